// Linear layers in f32 arithmetic: the time embedding, the head, and whole models in f32.

import Ground
import Tensors

enum FullPrecisionLinear {
    /// The numbers of rows that `linear_few_rows` is compiled for.
    static let fewRows = [4, 1]

    static let unit = KernelUnit(
        "full_precision_linear.cu",
        kernels: ["float", "bf16"].flatMap { weight in
            [4, 1].flatMap { vector in
                fewRows.map { "linear_few_rows<\(weight), \($0), \(vector)>" }
                    + ["linear_tiles<\(weight), \(vector)>"]
            }
        })
    static let units = [unit]
}

/// `Finish` of full_precision_linear.cu.
private struct Finish: BitwiseCopyable {
    var bias: DevicePointer
    var activation: Int32
    var rounds: Int32
}

extension CUDABackend {
    /// `linear` in f32, exact except for the rounding of f32 sums. x: [..., in], any float type; weight: [out, in], f32
    /// or bf16 → [..., out] in `dtype`, f32 or bf16. The bias is added in f32; the sum is rounded to `dtype` before an
    /// activation.
    func fullPrecisionLinear(
        _ x: Tensor, _ weight: Tensor, bias: Tensor?, activation: Activation, dtype: DType
    ) -> Tensor {
        let (outputs, inputs, rows) = (weight.shape[0], weight.shape[1], x.shape.rows)
        ensure(
            (weight.dtype == .f32 || weight.dtype == .bf16) && (dtype == .f32 || dtype == .bf16),
            "linear: no kernel for weight \(weight), result \(dtype)")
        let x = converted(x, to: .f32)
        let bias = bias.map { converted($0, to: .f32) }
        let out = tensor(x.shape.replacingLast(outputs), .f32)
        let aligned =
            inputs % 4 == 0 && x.pointer.address % 16 == 0 && weight.pointer.address % 16 == 0
        let type = Self.typeName(weight.dtype)
        let finish = Finish(
            bias: bias?.pointer ?? .null,
            activation: activation == .geluTanh ? 1 : activation == .silu ? 2 : 0,
            rounds: dtype == .bf16 ? 1 : 0)
        if rows > 16 {
            let kernel:
                Kernel<
                    DevicePointer, DevicePointer, DevicePointer, Finish, Int32, Int32, Int32
                > = context.kernel(
                    "linear_tiles<\(type), \(aligned ? 4 : 1)>", of: FullPrecisionLinear.unit)
            kernel(
                LaunchShape(
                    grid: Extents(ceilDivide(rows, 128), ceilDivide(outputs, 64)), block: 256),
                out.pointer, x.pointer, weight.pointer, finish, Int32(rows), Int32(outputs),
                Int32(inputs))
            return converted(out, to: dtype)
        }
        var row = 0
        while row < rows {
            let count = FullPrecisionLinear.fewRows.first { $0 <= rows - row }!
            let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Finish, Int32, Int32> =
                context.kernel(
                    "linear_few_rows<\(type), \(count), \(aligned ? 4 : 1)>",
                    of: FullPrecisionLinear.unit)
            kernel(
                LaunchShape(grid: Extents(ceilDivide(outputs, 8)), block: 256),
                out.pointer + row * outputs * 4, x.pointer + row * inputs * 4,
                weight.pointer, finish, Int32(outputs), Int32(inputs))
            row += count
        }
        return converted(out, to: dtype)
    }
}
