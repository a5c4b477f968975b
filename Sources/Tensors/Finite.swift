/// Whether the numbers of a tensor are finite.

extension Tensor {
    /// Whether every element of a host tensor is a finite number.
    public var isFinite: Bool {
        // The exponent is all ones in what is not finite.
        switch dtype {
        case .f32: !contains(UInt32.self, exponent: 0x7F80_0000)
        case .bf16: !contains(UInt16.self, exponent: 0x7F80)
        case .f16: !contains(UInt16.self, exponent: 0x7C00)
        case .f64: !contains(UInt64.self, exponent: 0x7FF0_0000_0000_0000)
        case .f8e5m2: !contains(UInt8.self, exponent: 0x7C)
        // No infinities, and one pattern that is no number.
        case .f8e4m3: !contains(UInt8.self, exponent: 0x7F)
        case .i64, .i32, .i16, .i8, .u8, .bool: true
        }
    }

    /// Whether all bits of `exponent` are set in some element; in runs that the compiler turns into vectors.
    private func contains<Word: FixedWidthInteger & BitwiseCopyable>(
        _ type: Word.Type, exponent: Word
    ) -> Bool {
        withElements(Word.self) { x in
            var start = 0
            while start < x.count {
                let end = min(start + 8192, x.count)
                var found: Word = 0
                for index in start..<end { found |= x[index] & exponent == exponent ? 1 : 0 }
                if found != 0 { return true }
                start = end
            }
            return false
        }
    }
}
