/// Element types of tensors, as checkpoints store them and as backends compute with them.

/// The element type of a tensor.
public enum DType: UInt8, Sendable, Hashable, CaseIterable {
    case f64, f32, f16, bf16, f8e4m3, f8e5m2, i64, i32, i16, i8, u8, bool

    /// Bytes of one element.
    public var byteCount: Int {
        switch self {
        case .f64, .i64: 8
        case .f32, .i32: 4
        case .f16, .bf16, .i16: 2
        case .f8e4m3, .f8e5m2, .i8, .u8, .bool: 1
        }
    }

    /// Whether the elements are floating-point numbers, of any width.
    public var isFloatingPoint: Bool {
        switch self {
        case .f64, .f32, .f16, .bf16, .f8e4m3, .f8e5m2: true
        default: false
        }
    }
}

extension DType: CustomStringConvertible {
    public var description: String {
        switch self {
        case .f64: "f64"
        case .f32: "f32"
        case .f16: "f16"
        case .bf16: "bf16"
        case .f8e4m3: "f8e4m3"
        case .f8e5m2: "f8e5m2"
        case .i64: "i64"
        case .i32: "i32"
        case .i16: "i16"
        case .i8: "i8"
        case .u8: "u8"
        case .bool: "bool"
        }
    }
}
