// Derivatives of layer norms and RMS norms.

internal import Ground
internal import Tensors

enum NormGradients {
    static let unit = KernelUnit(
        "norm_gradient.cu",
        kernels: ["norm_gradient", "norm_tangent"].flatMap { kernel in
            ["float", "bf16"].flatMap { a in
                ["float", "bf16"].map { "\(kernel)<\(a), \($0)>" }
            }
        })

    static let units = [unit]

    /// A block of threads for each row; it keeps two rows of floats.
    static func shape(rows: Int, columns: Int) -> LaunchShape {
        LaunchShape(grid: Extents(rows), block: 256, sharedBytes: 8 * columns)
    }
    /// What every card can hold: 99 KiB of shared memory for a block of threads, less what the sums need.
    static let mostColumns = (99 * 1024 - 256) / 8
}

/// `Gain` of norm_gradient.cu.
private struct Gain: BitwiseCopyable {
    var values: DevicePointer
    var offset: Float
    var padding: Int32 = 0

    init(_ gain: Tensor?, isOffset: Bool) {
        values = gain?.pointer ?? .null
        offset = isOffset ? 1 : 0
    }
}

extension CUDABackend {
    func normGradient(_ o: Operation.NormGradient) -> [Tensor] {
        requireNorm(o.x, "normGradient")
        let (x, g) = (o.x, activations(o.cotangent))
        let gain = o.gain.map { converted($0, to: .f32) }
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let types = "\(Self.typeName(x.dtype)), \(Self.typeName(g.dtype))"
        let out = tensor(x.shape, x.dtype)
        let statistics = storage(byteCount: rows * 8)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Gain, Int32, Float,
                Int32
            > = context.kernel("norm_gradient<\(types)>", of: NormGradients.unit)
        kernel(
            NormGradients.shape(rows: rows, columns: columns), out.pointer, statistics.location,
            x.pointer, g.pointer, Gain(gain, isOffset: o.isOffset), Int32(columns), o.epsilon,
            o.normalization == .layer ? 1 : 0)
        let plan = RowSumPlan(rows: rows, columns: columns)
        let gains = storage(byteCount: plan.byteCount)
        let biases = storage(byteCount: plan.byteCount)
        let sum:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32,
                Int32, Int32
            > = context.kernel("norm_parts<\(types)>", of: TrainingKernels.unit)
        sum(
            plan.shape, gains.location, biases.location, x.pointer, g.pointer,
            statistics.location, Int32(rows), Int32(columns), Int32(plan.chunk))
        return [out, joined(gains, plan), joined(biases, plan)]
    }

    func normTangent(_ o: Operation.NormTangent) -> Tensor {
        requireNorm(o.x, "normTangent")
        let (x, t) = (o.x, converted(o.tangent, to: o.x.dtype))
        let gain = o.gain.map { converted($0, to: .f32) }
        let columns = x.shape.columns
        ensure(o.dtype == .bf16 || o.dtype == .f32, "normTangent: no kernel for \(o.dtype)")
        let out = tensor(x.shape, o.dtype)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Gain, Int32, Float, Int32> =
            context.kernel(
                "norm_tangent<\(Self.typeName(x.dtype)), \(Self.typeName(o.dtype))>",
                of: NormGradients.unit)
        kernel(
            NormGradients.shape(rows: x.shape.rows, columns: columns), out.pointer, x.pointer,
            t.pointer, Gain(gain, isOffset: o.isOffset), Int32(columns), o.epsilon,
            o.normalization == .layer ? 1 : 0)
        return out
    }

    private func requireNorm(_ x: Tensor, _ operation: String) {
        requireActivations(x, operation)
        ensure(
            x.shape.columns <= NormGradients.mostColumns,
            "\(operation): rows of \(x.shape.columns) elements are too long")
    }
}
