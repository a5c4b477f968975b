/// Operations for processors with AVX-512 BF16 and VNNI, or with AVX2, with the kernels in `cpu_kernels.h`.

internal import CDrivers
internal import Ground
import Tensors

/// The heavy operations in f32, bf16 and int8. Their results are the same bit for bit, however the work is divided.
final class VectorOperations {
    /// Part of the backend's name.
    let name: String
    /// Whether the processor multiplies bf16. Without that it costs as much as f32 and the conversion of each operand at
    /// each use, so weights and activations become f32 first.
    let multipliesBF16: Bool
    let kernels: cpu_kernels
    let definitions: Definitions

    /// Results are in the memory pool of `definitions`. `variant`: one whose kernels this processor can run
    init(_ definitions: Definitions, _ variant: cpu_variant) {
        self.definitions = definitions
        kernels = cpu_kernels_of(variant).pointee
        multipliesBF16 = variant == CPU_AVX_512
        name = variant == CPU_AVX_512 ? "AVX-512" : "AVX2"
    }

    /// nil if there is no faster version for these arguments, so that the definition has to run.
    func run(_ operation: Operation) -> [Tensor]? {
        let result: Tensor? =
            switch operation {
            case .linear(let o): linear(o)
            case .linearAdd(let o): linearAdd(o)
            case .quantize(let o): quantize(o.x, to: o.format)
            case .attention(let o): attention(o)
            case .relativeAttention(let o): relativeAttention(o)
            case .sparseLinearAttention(let o): sparseLinearAttention(o)
            case .convolution(let o): convolution(o)
            case .channelNorm(let o): channelNorm(o)
            default: nil
            }
        return result.map { [$0] }
    }

    /// Divides a result of `rows` x `panels` into pieces and calls `body` for each. A piece starts at a multiple of
    /// `step` rows and has at most `step` rows; panels are divided just enough to keep all threads busy.
    func pieces(
        rows: Int, step: Int, panels: Int,
        _ body: (_ rows: Range<Int>, _ panels: Range<Int>) -> Void
    ) {
        let chunks = ceilDivide(rows, step)
        let wanted = definitions.threads.count == 1 ? 1 : 8 * definitions.threads.count
        let groups = max(1, min(panels, ceilDivide(wanted, max(1, chunks))))
        definitions.threads.parallel(chunks * groups) { range in
            for index in range {
                let row = index / groups * step
                let group = index % groups
                body(
                    row..<min(rows, row + step),
                    group * panels / groups..<(group + 1) * panels / groups)
            }
        }
    }

    /// Calls `body` with the elements of a vector as f32, or nil. The pointer must not leave `body`.
    func withVector<R>(
        _ x: Tensor?, roundedTo dtype: DType = .f32, _ body: (UnsafePointer<Float>?) -> R
    ) -> R {
        guard let x else { return body(nil) }
        return definitions.vector(x, roundedTo: dtype).withUnsafeBufferPointer {
            body($0.baseAddress)
        }
    }
}

// MARK: - Linear layers

extension VectorOperations {
    private func linear(_ o: Operation.Linear) -> Tensor? {
        let result = product(
            o.x, o.weight, bias: o.bias, activation: o.activation, residual: nil, gate: nil,
            dtype: o.resultType)
        return result.map { quantize($0, to: o.format) ?? definitions.quantize($0, to: o.format) }
    }

    private func linearAdd(_ o: Operation.LinearAdd) -> Tensor? {
        product(
            o.x, o.weight, bias: o.bias, activation: .none, residual: o.residual, gate: o.gate,
            dtype: o.residual.dtype)
    }

    /// residual + gate * activation(x W^T + bias) in `dtype`, rounded where the definitions round.
    private func product(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        residual: Tensor?, gate: Tensor?, dtype: DType
    ) -> Tensor? {
        guard dtype == .f32 || dtype == .bf16,
            let (input, kind, scales, scale) = operands(x, weight)
        else { return nil }
        let packed = PackedMatrix.of(weight.matrix, kind, definitions)
        let result = definitions.memory.tensor(input.shape.replacingLast(weight.outputs), dtype)
        withVector(bias, roundedTo: kind == CPU_INT8 ? dtype : .f32) { bias in
            withVector(gate, roundedTo: dtype) { gate in
                let epilogue = cpu_epilogue(
                    bias: bias, round_first: kind == CPU_INT8 ? 1 : 0,
                    activation: activation.code, gate: gate,
                    residual: residual.map { UnsafeRawPointer($0.hostAddress) },
                    bf16: dtype == .bf16 ? 1 : 0)
                let job = cpu_linear_job(
                    kind: kind, columns: weight.outputs, inner: weight.inputs,
                    x: input.hostAddress, packed: packed.bytes,
                    x_scales: scales.map { UnsafePointer($0.floats) },
                    w_scales: scale.map {
                        UnsafePointer($0.hostAddress.assumingMemoryBound(to: Float.self))
                    }, epilogue: epilogue, y: result.hostAddress)
                pieces(
                    rows: input.shape.rows, step: kind == CPU_INT8 ? 64 : 96, panels: packed.panels
                ) {
                    rows, panels in
                    withUnsafePointer(to: job) {
                        kernels.linear(
                            $0, rows.lowerBound, rows.upperBound, panels.lowerBound,
                            panels.upperBound)
                    }
                }
            }
        }
        return withExtendedLifetime((input, packed, scales, scale, residual)) { result }
    }

    /// x in the form that the kernels take, the type that they multiply, and the scales of x and of the weight; nil if
    /// they cannot compute this product.
    private func operands(
        _ x: Tensor, _ weight: LinearWeight
    ) -> (Tensor, cpu_kind, Storage?, Tensor?)? {
        guard weight.inputs > 0 && weight.inputs <= 65_536 else { return nil }
        switch weight {
        case .dense(let matrix):
            guard x.dtype == .f32 || x.dtype == .bf16 else { return nil }
            if multipliesBF16, x.dtype == .bf16, matrix.dtype == .bf16, weight.inputs % 2 == 0 {
                return (x, CPU_BF16, nil, nil)
            }
            return (definitions.converted(x, to: .f32), CPU_F32, nil, nil)
        case .int8Blocks(_, let scale):
            guard weight.inputs % 128 == 0 else { return nil }
            let input = x.dtype == .i8 ? x : quantize(x, to: .int8Blocks)
            return input.map { ($0, CPU_INT8, $0.scales, scale) }
        case .fp8Rows(_, let scale):
            // f32 holds the codes exactly; the sums are scaled in the end.
            let codes = x.dtype == .f8e4m3 ? x : definitions.quantize(x, to: .fp8Rows)
            return (definitions.converted(codes, to: .f32), CPU_F32, codes.scales, scale)
        }
    }

    private func quantize(_ x: Tensor, to format: LinearFormat) -> Tensor? {
        if format == .plain { return x }
        guard format == .int8Blocks, x.dtype == .f32 || x.dtype == .bf16 else { return nil }
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let blockRows = ceilDivide(rows, 128)
        let blockColumns = ceilDivide(columns, 128)
        let scales = definitions.memory.storage(byteCount: blockRows * blockColumns * 4)
        let result = definitions.memory.tensor(x.shape, .i8, scales: scales)
        let scale = scales.floats
        let codes = result.hostAddress.assumingMemoryBound(to: Int8.self)
        let elements = x.hostAddress
        definitions.threads.parallel(blockRows * blockColumns, grain: 2) { range in
            for index in range {
                let row = index / blockColumns * 128
                let column = index % blockColumns * 128
                let offset = row * columns + column
                scale[index] = kernels.quantize_block(
                    elements + offset * x.dtype.byteCount, x.dtype == .bf16 ? 1 : 0, columns,
                    min(128, rows - row), min(128, columns - column), codes + offset)
            }
        }
        return withExtendedLifetime(x) { result }
    }
}

extension Storage {
    /// The bytes as f32.
    fileprivate var floats: UnsafeMutablePointer<Float> {
        hostPointer!.assumingMemoryBound(to: Float.self)
    }
}

extension Activation {
    fileprivate var code: cpu_activation {
        switch self {
        case .none: CPU_NONE
        case .geluTanh: CPU_GELU_TANH
        case .silu: CPU_SILU
        }
    }
}
