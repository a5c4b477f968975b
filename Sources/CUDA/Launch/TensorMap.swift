// Descriptors of tensors for bulk tensor copies (TMA), on sm_90 and later.

internal import CDrivers
internal import Ground
import Tensors

/// The copy engine's description of a tensor in device memory: 128 opaque bytes, passed to a kernel as
/// `const __grid_constant__ TensorMap`.
public struct TensorMap: BitwiseCopyable, Sendable {
    var opaque: InlineArray<16, UInt64> = .init(repeating: 0)

    /// The type of the elements, as far as the copy engine distinguishes it.
    public enum Element: Hashable, Sendable {
        case uint8, int32, f16, bf16, f32

        var byteCount: Int {
            switch self {
            case .uint8: 1
            case .f16, .bf16: 2
            case .int32, .f32: 4
            }
        }

        fileprivate var code: Int32 {
            switch self {
            case .uint8: 0
            case .int32: 3
            case .f16: 6
            case .f32: 7
            case .bf16: 9
            }
        }
    }

    /// How 16-byte chunks are permuted by xor with the row; the innermost extent of the box is at most that many bytes.
    public enum Swizzle: Int32, Hashable, Sendable {
        case none = 0
        case bytes32 = 1
        case bytes64 = 2
        case bytes128 = 3
    }

    /// How many bytes the L2 cache fetches at once.
    public enum Promotion: Int32, Hashable, Sendable {
        case none = 0
        case bytes64 = 1
        case bytes128 = 2
        case bytes256 = 3
    }
}

extension Context {
    /// Describes a tensor for the copy engine. int8 and fp8 elements are `.uint8`, because the engine only moves them.
    /// Elements outside of the tensor read as zero.
    ///
    /// - Parameters:
    ///   - base: address of the tensor, a multiple of 16.
    ///   - extents: 1 to 5 extents in elements, innermost (contiguous) first.
    ///   - strides: for each dimension except the innermost, bytes from one index to the next, multiples of 16; nil for
    ///     a dense tensor.
    ///   - box: extents of one copy, innermost first, each at most 256; the innermost in bytes is a multiple of 16 and
    ///     not larger than the swizzle.
    ///   - steps: strides within the box, in elements; 2 takes every second index. 1 by default.
    public func tensorMap(
        _ element: TensorMap.Element, at base: DevicePointer, extents: [Int], strides: [Int]? = nil,
        box: [Int], steps: [Int]? = nil, swizzle: TensorMap.Swizzle = .bytes128,
        promotion: TensorMap.Promotion = .bytes256
    ) -> TensorMap {
        let rank = extents.count
        var byteStrides = strides.map { $0.map(UInt64.init) } ?? []
        if strides == nil {
            var stride = element.byteCount
            for extent in extents.dropLast() {
                stride *= extent
                byteStrides.append(UInt64(stride))
            }
        }
        ensure(
            (1...5).contains(rank) && box.count == rank && byteStrides.count == rank - 1
                && base.address % 16 == 0 && byteStrides.allSatisfy { $0 % 16 == 0 }
                && box.allSatisfy { (1...256).contains($0) },
            "tensorMap: extents \(extents), strides \(byteStrides), box \(box), base \(base)")
        var map = TensorMap()
        guard device.failure == nil else { return map }
        if byteStrides.isEmpty { byteStrides = [0] }
        // The driver requires a target address that is a multiple of 64.
        withUnsafeTemporaryAllocation(byteCount: 128, alignment: 64) { bytes in
            let result = device.cuda.cuTensorMapEncodeTiled(
                bytes.baseAddress!, element.code, UInt32(rank),
                UnsafeMutableRawPointer(bitPattern: UInt(base.address))!, extents.map(UInt64.init),
                byteStrides, box.map(UInt32.init),
                (steps ?? Array(repeating: 1, count: rank)).map(UInt32.init), 0, swizzle.rawValue,
                promotion.rawValue, 0)
            let fine = device.check(
                result,
                "cuTensorMapEncodeTiled \(element) extents \(extents) strides \(byteStrides) "
                    + "box \(box)")
            if fine { map = bytes.load(as: TensorMap.self) }
        }
        return map
    }
}
