// Operations that go element by element: conversions, gated sums, samplers, noise.

import Ground
public import Tensors

enum Elementwise {
    private static let types = ["bf16", "float"]

    static let unit = KernelUnit(
        "elementwise.cu",
        kernels: types.flatMap { t in
            [
                "gated_add<\(t), 8>", "gated_add<\(t), 1>", "gelu_gate<\(t), 8>",
                "gelu_gate<\(t), 1>",
            ]
        } + ["rcm_step", "combine<float>", "combine<double>", "combine<bf16>", "normal_noise"])

    static let conversions = KernelUnit(
        "elementwise.cu",
        kernels: ["double", "float", "f16", "bf16", "e4m3"].flatMap { from in
            ["double", "float", "f16", "bf16"].filter { $0 != from }.flatMap { to in
                ["convert<\(from), \(to), 8>", "convert<\(from), \(to), 1>"]
            }
        })

    static let units = [unit, conversions]

    /// 8 elements a thread where all addresses allow whole accesses.
    static func vector(_ pointers: DevicePointer...) -> Int {
        pointers.allSatisfy { $0.address % 16 == 0 } ? 8 : 1
    }
}

extension Elementwise {
    /// Queues `count` elements at `source` as another type at `target`.
    static func convert(
        _ source: DevicePointer, _ from: DType, to target: DevicePointer, _ to: DType, count: Int,
        _ context: Context
    ) {
        let vector = vector(source, target)
        let name =
            "convert<\(CUDABackend.typeName(from)), \(CUDABackend.typeName(to)), \(vector)>"
        ensure(conversions.kernels.contains(name), "no conversion from \(from) to \(to)")
        let kernel: Kernel<DevicePointer, DevicePointer, Int64> = context.kernel(
            name, of: conversions)
        kernel(.elements(count, perThread: vector), target, source, Int64(count))
    }
}

/// `Terms` of elementwise.cu.
private struct Terms: BitwiseCopyable {
    var data: InlineArray<5, DevicePointer> = .init(repeating: .null)
    var coefficients: InlineArray<5, Double> = .init(repeating: 0)
    var count: Int32 = 0
    var doubles: UInt32 = 0
}

extension CUDABackend {
    public func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        let columns = x.shape.columns
        requireActivations(x, "gatedAdd")
        ensure(
            x.shape.count == y.shape.count && (gate == nil || gate!.shape.count == columns),
            "gatedAdd: x \(x.shape), y \(y.shape), gate \(gate.map { "\($0.shape)" } ?? "none")")
        let y = converted(y, to: x.dtype)
        let gate = gate.map { converted($0, to: .f32) }
        let out = tensor(x.shape, x.dtype)
        let vector =
            columns % 8 == 0 ? Elementwise.vector(x.pointer, y.pointer, gate?.pointer ?? .null) : 1
        let kernel:
            Kernel<DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int64, Int32> =
                context.kernel(
                    "gated_add<\(Self.typeName(x.dtype)), \(vector)>", of: Elementwise.unit)
        kernel(
            .elements(x.shape.count, perThread: vector), out.pointer, x.pointer, y.pointer,
            gate?.pointer ?? .null, Int64(x.shape.count), Int32(columns))
        return out
    }

    public func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor {
        requireActivations(gate, "geluGate")
        ensure(
            gate.shape == up.shape && gate.dtype == up.dtype,
            "geluGate: gate \(gate.shape) \(gate.dtype), up \(up.shape) \(up.dtype)")
        let out = tensor(gate.shape, gate.dtype)
        let vector = Elementwise.vector(gate.pointer, up.pointer)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int64> = context.kernel(
            "gelu_gate<\(Self.typeName(gate.dtype)), \(vector)>", of: Elementwise.unit)
        kernel(
            .elements(gate.shape.count, perThread: vector), out.pointer, gate.pointer, up.pointer,
            Int64(gate.shape.count))
        return format == .plain ? out : quantize(out, to: format)
    }

    public func rcmStep(
        _ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double
    ) -> Tensor {
        ensure(
            x.dtype == .f64 && velocity.dtype == .f32 && x.shape.count == velocity.shape.count
                && (noise == nil || noise!.dtype == .f32 && noise!.shape.count == x.shape.count),
            "rcmStep: x \(x.shape) \(x.dtype), velocity \(velocity.shape) \(velocity.dtype)")
        let out = tensor(x.shape, .f64)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Double, Double, Int64
            > = context.kernel("rcm_step", of: Elementwise.unit)
        kernel(
            .elements(x.shape.count), out.pointer, x.pointer, velocity.pointer,
            noise?.pointer ?? .null, t, next, Int64(x.shape.count))
        return out
    }

    public func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        ensure(
            (1...5).contains(terms.count) && terms.count == coefficients.count
                && terms.allSatisfy {
                    $0.shape == terms[0].shape && ($0.dtype == .f32 || $0.dtype == .f64)
                },
            "combine: \(terms.map { "\($0.shape) \($0.dtype)" }), \(coefficients.count) coefficients"
        )
        var list = Terms()
        for (index, term) in terms.enumerated() {
            list.data[index] = term.pointer
            list.coefficients[index] = coefficients[index]
            if term.dtype == .f64 { list.doubles |= 1 << UInt32(index) }
        }
        list.count = Int32(terms.count)
        let out = tensor(terms[0].shape, dtype)
        let kernel: Kernel<DevicePointer, Terms, Int64> = context.kernel(
            "combine<\(Self.typeName(dtype))>", of: Elementwise.unit)
        kernel(.elements(out.shape.count), out.pointer, list, Int64(out.shape.count))
        return out
    }

    public func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        let draw = generator.draw(shape.count)
        let out = tensor(shape, .f32)
        let kernel: Kernel<DevicePointer, UInt64, UInt64, Int64, Int64> = context.kernel(
            "normal_noise", of: Elementwise.unit)
        kernel(
            .elements(draw.threads), out.pointer, draw.seed, draw.firstRound,
            Int64(draw.threads), Int64(shape.count))
        return out
    }
}
