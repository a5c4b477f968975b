// How weights reach pinned memory, checked without a GPU.

import Testing

@testable import CUDA

@Suite struct UploadTests {
    /// Lengths around the steps of the copy and around one thread's share of 1 MiB, at every alignment that matters.
    @Test(arguments: [0, 1, 15, 16, 63, 64, 65, 200, 1 << 20, (1 << 20) + 77, (3 << 20) + 5])
    func copiesExactlyTheBytesAskedFor(byteCount: Int) {
        let margin = 64
        let source = (0..<byteCount + margin).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
        for (from, to) in [(0, 0), (1, 16), (3, 7), (16, 15)] {
            var target = [UInt8](repeating: 7, count: byteCount + margin)
            source.withUnsafeBytes { source in
                target.withUnsafeMutableBytes { target in
                    Uploads.copy(
                        source.baseAddress! + from, to: target.baseAddress! + to,
                        byteCount: byteCount, threads: 3)
                }
            }
            #expect(target[..<to].allSatisfy { $0 == 7 })
            #expect(target[to..<to + byteCount].elementsEqual(source[from..<from + byteCount]))
            #expect(target[(to + byteCount)...].allSatisfy { $0 == 7 })
        }
    }
}
