/// Weights in the layout of the vector kernels, made once and kept as long as the weight.

internal import CDrivers
import Tensors

/// A matrix whose rows are the columns of a product, packed into panels; see `cpu_kernels.h`.
final class PackedMatrix {
    let kind: cpu_kind
    let panels: Int
    private let storage: Storage

    var bytes: UnsafeRawPointer { UnsafeRawPointer(storage.hostPointer!) }

    /// matrix: [columns, inner] in the element type of `kind`
    private init(
        _ matrix: Tensor, _ kind: cpu_kind, columns: Int, inner: Int, _ definitions: Definitions
    ) {
        self.kind = kind
        panels = cpu_panel_count(kind, columns)
        storage = definitions.memory.storage(byteCount: cpu_packed_bytes(kind, columns, inner))
        let (source, target) = (matrix.hostAddress, storage.hostPointer!)
        definitions.threads.parallel(panels) { range in
            cpu_pack(
                kind, source, inner * matrix.dtype.byteCount, columns, inner, range.lowerBound,
                range.upperBound, target)
        }
    }

    /// The packed copy of a weight, which must never change: made at first use and kept with the weight's storage.
    /// weight: [columns, inner...]
    static func of(_ weight: Tensor, _ kind: cpu_kind, _ definitions: Definitions) -> PackedMatrix {
        let columns = weight.shape[0]
        let inner = weight.shape.count / max(1, columns)
        return weight.kept(as: "panels \(kind.rawValue)") {
            let elements = definitions.converted(weight, to: kind.dtype)
            return PackedMatrix(elements, kind, columns: columns, inner: inner, definitions)
        }
    }
}

extension cpu_kind {
    /// The element type of the operands.
    var dtype: DType {
        switch self {
        case CPU_F32: .f32
        case CPU_BF16: .bf16
        default: .i8
        }
    }
}
