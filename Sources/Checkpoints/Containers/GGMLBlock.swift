/// Decodes GGML's quantised blocks.
///
/// https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c (`dequantize_row_*`)

import Ground

/// A format of blocks of 32 or 256 numbers.
enum GGMLBlock: UInt32, Sendable {
    case q4_0 = 2
    case q4_1 = 3
    case q5_0 = 6
    case q5_1 = 7
    case q8_0 = 8
    case q2_K = 10
    case q3_K = 11
    case q4_K = 12
    case q5_K = 13
    case q6_K = 14

    /// How many numbers a block holds.
    var elements: Int { rawValue < 10 ? 32 : 256 }

    /// The bytes of a block.
    var byteCount: Int {
        switch self {
        case .q4_0: 18
        case .q4_1: 20
        case .q5_0: 22
        case .q5_1: 24
        case .q8_0: 34
        case .q2_K: 84
        case .q3_K: 110
        case .q4_K: 144
        case .q5_K: 176
        case .q6_K: 210
        }
    }

    func byteCount(elements count: Int) -> Int { ceilDivide(count, elements) * byteCount }

    /// Decodes whole blocks.
    /// - Parameters:
    ///   - bytes: the tensor's bytes, from its first block.
    ///   - range: the elements to decode, which must begin and end with a block.
    func decode(_ bytes: UnsafeRawBufferPointer, elements range: Range<Int>) -> [Float] {
        let blocks = range.lowerBound / elements..<ceilDivide(range.upperBound, elements)
        ensure(
            range.lowerBound % elements == 0 && range.count % elements == 0
                && blocks.upperBound * byteCount <= bytes.count,
            "GGMLBlock: elements \(range) of \(bytes.count) bytes")
        return [Float](unsafeUninitializedCapacity: range.count) { out, count in
            for (index, block) in blocks.enumerated() {
                let (start, first) = (block * byteCount, index * elements)
                decode(
                    UnsafeRawBufferPointer(rebasing: bytes[start..<start + byteCount]),
                    UnsafeMutableBufferPointer(rebasing: out[first..<first + elements]))
            }
            count = range.count
        }
    }

    /// x: one block; y: its numbers
    private func decode(_ x: UnsafeRawBufferPointer, _ y: UnsafeMutableBufferPointer<Float>) {
        func half(_ offset: Int) -> Float {
            Float(Float16(bitPattern: x.loadUnaligned(fromByteOffset: offset, as: UInt16.self)))
        }
        switch self {
        case .q4_0, .q4_1:
            let hasMinimum = self == .q4_1
            let (scale, offset) = (half(0), hasMinimum ? half(2) : -8 * half(0))
            let codes = hasMinimum ? 4 : 2
            for i in 0..<16 {
                y[i] = scale * Float(x[codes + i] & 15) + offset
                y[i + 16] = scale * Float(x[codes + i] >> 4) + offset
            }
        case .q5_0, .q5_1:
            let hasMinimum = self == .q5_1
            let (scale, offset) = (half(0), hasMinimum ? half(2) : -16 * half(0))
            let start = hasMinimum ? 4 : 2
            let high = x.loadUnaligned(fromByteOffset: start, as: UInt32.self)
            for i in 0..<16 {
                let (low, bits) = (x[start + 4 + i], high >> UInt32(i))
                y[i] = scale * Float(UInt32(low & 15) | bits << 4 & 16) + offset
                y[i + 16] = scale * Float(UInt32(low >> 4) | bits >> 12 & 16) + offset
            }
        case .q8_0:
            let scale = half(0)
            for i in 0..<32 { y[i] = scale * Float(Int8(bitPattern: x[2 + i])) }
        case .q2_K: decodeTwoBits(x, y, scale: half(80), minimum: half(82))
        case .q3_K: decodeThreeBits(x, y, scale: half(108))
        case .q4_K, .q5_K: decodeFourBits(x, y, scale: half(0), minimum: half(2))
        case .q6_K: decodeSixBits(x, y, scale: half(208))
        }
    }

    /// 16 scales and minima of 4 bits, 256 codes of 2.
    private func decodeTwoBits(
        _ x: UnsafeRawBufferPointer, _ y: UnsafeMutableBufferPointer<Float>, scale: Float,
        minimum: Float
    ) {
        for group in 0..<16 {
            let (half, shift, part) = (group / 8, group % 8 / 2 * 2, group % 2)
            let factor = scale * Float(x[group] & 15)
            let offset = minimum * Float(x[group] >> 4)
            for i in 0..<16 {
                let code = x[16 + half * 32 + part * 16 + i] >> UInt8(shift) & 3
                y[group * 16 + i] = factor * Float(code) - offset
            }
        }
    }

    /// 256 high bits, 256 codes of 2 bits, 16 scales of 6.
    private func decodeThreeBits(
        _ x: UnsafeRawBufferPointer, _ y: UnsafeMutableBufferPointer<Float>, scale: Float
    ) {
        for group in 0..<16 {
            let (half, shift, part) = (group / 8, group % 8 / 2 * 2, group % 2)
            // The low four bits of the scales are in eight bytes, the high two in four.
            let low = group < 8 ? x[96 + group] & 15 : x[96 + group - 8] >> 4
            let high = x[104 + group % 4] >> UInt8(group / 4 * 2) & 3
            let factor = scale * Float(Int(low | high << 4) - 32)
            for i in 0..<16 {
                let code = Int(x[32 + half * 32 + part * 16 + i] >> UInt8(shift) & 3)
                let isHigh = x[part * 16 + i] >> UInt8(group / 2) & 1 == 1
                y[group * 16 + i] = factor * Float(isHigh ? code : code - 4)
            }
        }
    }

    /// 8 scales and minima of 6 bits, 256 codes of 4 bits, or of 5 bits, with the high bits stored first.
    private func decodeFourBits(
        _ x: UnsafeRawBufferPointer, _ y: UnsafeMutableBufferPointer<Float>, scale: Float,
        minimum: Float
    ) {
        let isWide = self == .q5_K
        let codes = isWide ? 48 : 16
        for group in 0..<8 {
            let (s, m): (UInt8, UInt8) =
                group < 4
                ? (x[4 + group] & 63, x[8 + group] & 63)
                : (
                    x[8 + group] & 15 | (x[group] >> 6) << 4,
                    x[8 + group] >> 4 | (x[4 + group] >> 6) << 4
                )
            let (factor, offset) = (scale * Float(s), minimum * Float(m))
            for i in 0..<32 {
                let byte = x[codes + group / 2 * 32 + i]
                var code = group % 2 == 0 ? byte & 15 : byte >> 4
                if isWide { code |= (x[16 + i] >> UInt8(group) & 1) << 4 }
                y[group * 32 + i] = factor * Float(code) - offset
            }
        }
    }

    /// 256 codes of 4 and of 2 bits, 16 signed scales.
    private func decodeSixBits(
        _ x: UnsafeRawBufferPointer, _ y: UnsafeMutableBufferPointer<Float>, scale: Float
    ) {
        for group in 0..<16 {
            let (half, quarter, part) = (group / 8, group % 8 / 2, group % 2)
            let factor = scale * Float(Int8(bitPattern: x[192 + group]))
            for i in 0..<16 {
                let at = part * 16 + i
                let byte = x[half * 64 + quarter % 2 * 32 + at]
                let low = quarter < 2 ? byte & 15 : byte >> 4
                let high = x[128 + half * 32 + at] >> UInt8(quarter * 2) & 3
                y[group * 16 + i] = factor * Float(Int(low | high << 4) - 32)
            }
        }
    }
}
