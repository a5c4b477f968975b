// Quantising activations and weights to 8 bits.

import Ground
import Tensors

enum Quantize {
    static let unit = KernelUnit(
        "quantize.cu",
        kernels: ["bf16", "float"].flatMap { type in
            ["true", "false"].flatMap { vector in
                ["quantize_blocks<\(type), \(vector)>", "quantize_rows<\(type), \(vector)>"]
            }
        })
    static let units = [unit]

    /// Launches the kernel. x: [rows, columns] in bf16 or f32 → codes: same shape; scales: f32
    /// [ceil(rows/128), ceil(columns/128)] for int8 blocks, [rows] for fp8 rows
    static func launch(
        _ x: DevicePointer, _ dtype: DType, rows: Int, columns: Int, _ format: LinearFormat,
        codes: DevicePointer, scales: DevicePointer, _ context: Context
    ) {
        let vector = x.address % 16 == 0 && columns % 8 == 0
        let types = "\(CUDABackend.typeName(dtype)), \(vector)"
        if format == .fp8Rows {
            let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32> =
                context.kernel("quantize_rows<\(types)>", of: unit)
            kernel(
                LaunchShape(grid: Extents(rows), block: 256), codes, scales, x, Int32(columns))
        } else {
            let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32> =
                context.kernel("quantize_blocks<\(types)>", of: unit)
            kernel(
                LaunchShape(
                    grid: Extents(ceilDivide(columns, 128), ceilDivide(rows, 128)), block: 256),
                codes, scales, x, Int32(rows), Int32(columns))
        }
    }
}

extension CUDABackend {
    func quantize(_ o: Operation.Quantize) -> Tensor {
        let format = o.format
        let x = o.x.dtype == .bf16 || o.x.dtype == .f32 ? o.x : converted(o.x, to: .f32)
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let count =
            format == .fp8Rows ? rows : ceilDivide(rows, 128) * ceilDivide(columns, 128)
        let scales = storage(byteCount: count * 4)
        let out = tensor(x.shape, format == .fp8Rows ? .f8e4m3 : .i8, scales: scales)
        Quantize.launch(
            x.pointer, x.dtype, rows: rows, columns: columns, format, codes: out.pointer,
            scales: scales.location, context)
        return out
    }
}
