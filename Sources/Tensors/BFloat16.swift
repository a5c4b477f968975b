/// 16- and 8-bit floating-point formats that Swift has no type for.

/// The upper half of a `Float`: 8 exponent bits, 7 mantissa bits. Conversions round to nearest, ties to even.
@frozen
public struct BFloat16: Sendable, Hashable, BitwiseCopyable {
    public var bitPattern: UInt16

    @inlinable @inline(__always)
    public init(bitPattern: UInt16) { self.bitPattern = bitPattern }

    @inlinable @inline(__always)
    public init(_ value: Float) {
        let bits = value.bitPattern
        let rounded = (bits &+ 0x7FFF &+ ((bits >> 16) & 1)) >> 16
        // A NaN must stay a NaN: rounding its mantissa up would carry into the sign.
        bitPattern =
            (bits & 0x7FFF_FFFF) > 0x7F80_0000
            ? UInt16(truncatingIfNeeded: (bits >> 16) | 0x40)
            : UInt16(truncatingIfNeeded: rounded)
    }

    @inlinable @inline(__always)
    public var float: Float { Float(bitPattern: UInt32(bitPattern) << 16) }
}

extension Float {
    @inlinable @inline(__always)
    public init(_ value: BFloat16) { self = value.float }

    /// This value rounded to the nearest bfloat16 (ties to even).
    @inlinable @inline(__always)
    public var roundedToBFloat16: Float { BFloat16(self).float }
}

/// OCP FP8 E4M3 (finite, no infinities): 4 exponent bits with bias 7, 3 mantissa bits, largest 448.
public enum Float8E4M3 {
    /// The code nearest to `value` (ties to even), saturating at ±448; NaN becomes 0x7F.
    public static func encode(_ value: Float) -> UInt8 {
        if value.isNaN { return 0x7F }
        let sign: UInt8 = value.sign == .minus ? 0x80 : 0
        let magnitude = value.magnitude
        if magnitude >= 448 { return sign | 0x7E }
        // Below 2^-6 the format is subnormal with a fixed step of 2^-9.
        if magnitude < 0x1p-6 {
            return sign | UInt8((magnitude * 0x1p9).rounded(.toNearestOrEven))
        }
        let bits = magnitude.bitPattern
        let rounded = bits &+ 0x7FFFF &+ ((bits >> 20) & 1)
        return sign | UInt8(truncatingIfNeeded: (rounded >> 20) &- (120 << 3))
    }

    /// The number that a code stands for.
    public static func decode(_ code: UInt8) -> Float {
        let magnitude = code & 0x7F
        let sign: Float = code & 0x80 != 0 ? -1 : 1
        if magnitude == 0x7F { return .nan }
        let exponent = Int(magnitude >> 3)
        let mantissa = Float(magnitude & 7)
        if exponent == 0 { return sign * mantissa * 0x1p-9 }
        return sign * (1 + mantissa / 8)
            * Float(sign: .plus, exponent: exponent - 7, significand: 1)
    }
}

/// OCP FP8 E5M2: the upper half of a `Float16`.
public enum Float8E5M2 {
    /// The number that a code stands for.
    public static func decode(_ code: UInt8) -> Float {
        Float(Float16(bitPattern: UInt16(code) << 8))
    }
}
