/// Finding infinities and NaNs in tensors.

private import Dispatch
import Ground
private import Synchronization

extension Tensor {
    /// Whether no element of a host tensor is an infinity or a NaN. Uses several threads.
    public var allFinite: Bool {
        // Infinities and NaNs have all exponent bits set; e4m3 has no infinities and one NaN, with all bits set.
        switch dtype {
        case .f64: allLack(0x7FF0_0000_0000_0000 as UInt64)
        case .f32: allLack(0x7F80_0000 as UInt32)
        case .bf16: allLack(0x7F80 as UInt16)
        case .f16: allLack(0x7C00 as UInt16)
        case .f8e4m3: allLack(0x7F as UInt8)
        case .f8e5m2: allLack(0x7C as UInt8)
        case .i64, .i32, .i16, .i8, .u8, .bool: true
        }
    }

    /// Whether no element has all of the `bits` set. The inner loop has no exit, so that the compiler vectorises it.
    private func allLack<Word: FixedWidthInteger & BitwiseCopyable & Sendable>(_ bits: Word) -> Bool
    {
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
                        found |= words[at] & bits == bits ? 1 : 0
                    }
                    if found != 0 { isFound.store(true, ordering: .relaxed) }
                }
            }
        }
        return !isFound.load(ordering: .relaxed)
    }
}
