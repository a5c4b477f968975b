/// Finding infinities and NaNs in tensors.

private import Dispatch
import Ground
private import Synchronization

extension Tensor {
    /// Whether no element of a host tensor is an infinity or a NaN, nor becomes one as f32: nothing computes in a wider
    /// type. Uses several threads.
    public var allFinite: Bool {
        // Infinities and NaNs have all exponent bits set; e4m3 has no infinities and one NaN, with all bits set.
        switch dtype {
        // From the middle between f32's largest number and the next one on, f64 is rounded to an infinity.
        case .f64: allLie(below: (0x1p128 - 0x1p103 as Double).bitPattern)
        case .f32: allLie(below: 0x7F80_0000 as UInt32)
        case .bf16: allLie(below: 0x7F80 as UInt16)
        case .f16: allLie(below: 0x7C00 as UInt16)
        case .f8e4m3: allLie(below: 0x7F as UInt8)
        case .f8e5m2: allLie(below: 0x7C as UInt8)
        case .i64, .i32, .i16, .i8, .u8, .bool: true
        }
    }

    /// Whether the bits of every element, without the sign, are below `limit`: magnitudes have the order of their bits.
    /// The inner loop has no exit, so that the compiler vectorises it.
    private func allLie<Word: FixedWidthInteger & UnsignedInteger & BitwiseCopyable & Sendable>(
        below limit: Word
    ) -> Bool {
        let magnitude = Word.max >> 1
        let isFound = Atomic(false)
        withElements(Word.self) { words in
            let piece = 1 << 20
            nonisolated(unsafe) let words = words
            DispatchQueue.concurrentPerform(iterations: ceilDivide(words.count, piece)) {
                index in
                let end = min((index + 1) * piece, words.count)
                for start in stride(from: index * piece, to: end, by: 8192) {
                    if isFound.load(ordering: .relaxed) { return }
                    var found: Word = 0
                    for at in start..<min(start + 8192, end) {
                        found |= words[at] & magnitude >= limit ? 1 : 0
                    }
                    if found != 0 { isFound.store(true, ordering: .relaxed) }
                }
            }
        }
        return !isFound.load(ordering: .relaxed)
    }
}
