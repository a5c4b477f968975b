// Gradients of linear layers: products of transposed matrices, by the kernels of linear layers.

internal import Ground
internal import Tensors

/// The length of a row of a transposed matrix: the linear layers' kernels on tensor cores read rows in multiples of 16
/// bytes. What is added is zero, and adds nothing to a sum.
func transposedStride(rows: Int, _ dtype: DType) -> Int {
    dtype == .bf16 ? roundUp(rows, to: 8) : rows
}

extension CUDABackend {
    func inputGradient(_ o: Operation.InputGradient) -> Tensor {
        let g = activations(o.cotangent)
        let matrix = plain(o.weight, as: g.dtype)
        let turned = transposed(matrix, as: matrix.dtype, stride: o.weight.outputs)
        return linear(
            g, .dense(turned), bias: nil,
            dtype: o.dtype == .bf16 ? .bf16 : .f32
        ).reshaped(o.cotangent.shape.replacingLast(o.weight.inputs))
    }

    func weightGradient(_ o: Operation.WeightGradient) -> Tensor {
        let (g, x) = (activations(o.cotangent), activations(o.x))
        let dtype: DType = g.dtype == .bf16 && x.dtype == .bf16 ? .bf16 : .f32
        let stride = transposedStride(rows: g.shape.rows, dtype)
        return linear(
            transposed(g, as: dtype, stride: stride),
            .dense(transposed(x, as: dtype, stride: stride)), bias: nil, dtype: .f32)
    }

    /// x as a matrix, turned. x: [..., columns], f32 or bf16 → [columns, stride] in `dtype`, zeros from x's rows on
    func transposed(_ x: Tensor, as dtype: DType, stride: Int) -> Tensor {
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let out = tensor([columns, stride], dtype)
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32> = context.kernel(
            "transpose<\(Self.typeName(x.dtype)), \(Self.typeName(dtype))>",
            of: TrainingKernels.unit)
        kernel(
            LaunchShape(
                grid: Extents(ceilDivide(stride, 32), ceilDivide(columns, 32)), block: 256),
            out.pointer, x.pointer, Int32(rows), Int32(columns), Int32(stride))
        return out
    }

    /// The numbers that a weight's codes stand for, in `dtype`; a dense weight as it is. → [out, in], f32 or bf16
    private func plain(_ weight: LinearWeight, as dtype: DType) -> Tensor {
        let (codes, scale): (Tensor, Tensor)
        switch weight {
        case .dense(let matrix): return activations(matrix)
        case .int8Blocks(let matrix, let its), .fp8Rows(let matrix, let its):
            (codes, scale) = (matrix, its)
        }
        let out = tensor(codes.shape, dtype)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int64, Int32> =
            context.kernel(
                "dequantize<\(Self.typeName(codes.dtype)), \(Self.typeName(dtype))>",
                of: TrainingKernels.unit)
        kernel(
            .elements(codes.shape.count), out.pointer, codes.pointer, scale.pointer,
            Int32(codes.shape.columns), Int64(codes.shape.count),
            weight.inputFormat == .int8Blocks ? 1 : 0)
        return out
    }
}
