// Element-wise operations: conversions, gated sums, sampler steps, noise.

import Ground
import Tensors

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

    /// Elements per thread: 8 if all addresses allow accesses of 16 bytes, otherwise 1.
    static func vector(_ pointers: DevicePointer...) -> Int {
        pointers.allSatisfy { $0.address % 16 == 0 } ? 8 : 1
    }
}

extension Elementwise {
    /// Launches the conversion of `count` elements at `source` to another type at `target`.
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
    func gatedAdd(_ o: Operation.GatedAdd) -> Tensor {
        let x = o.x
        let columns = x.shape.columns
        requireActivations(x, "gatedAdd")
        let y = converted(o.y, to: x.dtype)
        let gate = o.gate.map { converted($0, to: .f32) }
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

    func geluGate(_ o: Operation.GELUGate) -> Tensor {
        let (gate, up) = (o.gate, o.up)
        requireActivations(gate, "geluGate")
        let out = tensor(gate.shape, gate.dtype)
        let vector = Elementwise.vector(gate.pointer, up.pointer)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int64> = context.kernel(
            "gelu_gate<\(Self.typeName(gate.dtype)), \(vector)>", of: Elementwise.unit)
        kernel(
            .elements(gate.shape.count, perThread: vector), out.pointer, gate.pointer, up.pointer,
            Int64(gate.shape.count))
        return quantize(out, to: o.format)
    }

    func rcmStep(_ o: Operation.RCMStep) -> Tensor {
        let out = tensor(o.x.shape, .f64)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Double, Double, Int64
            > = context.kernel("rcm_step", of: Elementwise.unit)
        kernel(
            .elements(out.shape.count), out.pointer, o.x.pointer, o.velocity.pointer,
            o.noise?.pointer ?? .null, o.t, o.next, Int64(out.shape.count))
        return out
    }

    func combine(_ o: Operation.Combine) -> Tensor {
        var list = Terms()
        for (index, term) in o.terms.enumerated() {
            list.data[index] = term.pointer
            list.coefficients[index] = o.coefficients[index]
            if term.dtype == .f64 { list.doubles |= 1 << UInt32(index) }
        }
        list.count = Int32(o.terms.count)
        let out = tensor(o.terms[0].shape, o.dtype)
        let kernel: Kernel<DevicePointer, Terms, Int64> = context.kernel(
            "combine<\(Self.typeName(o.dtype))>", of: Elementwise.unit)
        kernel(.elements(out.shape.count), out.pointer, list, Int64(out.shape.count))
        return out
    }

    func noise(_ o: Operation.Noise) -> Tensor {
        let (shape, draw) = (o.shape, o.draw)
        let out = tensor(shape, .f32)
        let kernel: Kernel<DevicePointer, UInt64, UInt64, Int64, Int64> = context.kernel(
            "normal_noise", of: Elementwise.unit)
        kernel(
            .elements(draw.threads), out.pointer, draw.seed, draw.firstRound,
            Int64(draw.threads), Int64(shape.count))
        return out
    }
}
