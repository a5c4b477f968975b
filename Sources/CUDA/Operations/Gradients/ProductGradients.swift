// Gradients of linear layers: products of transposed matrices, by the kernels of linear layers; on Hopper those of
// weights by a kernel that reads both operands as they lie.

internal import Ground
internal import Tensors

/// The length of a row of a transposed matrix: the linear layers' kernels on tensor cores read rows in multiples of 16
/// bytes. What is added is zero, and adds nothing to a sum.
func transposedStride(rows: Int, _ dtype: DType) -> Int {
    dtype == .bf16 ? roundUp(rows, to: 8) : rows
}

/// weight_gradient_sm90.cu, and into how many parts it cuts the sum over rows.
enum WeightGradients {
    static let unit = KernelUnit(
        "weight_gradient_sm90.cu", for: .hopper, kernels: ["weight_gradient_sm90"])
    static let units = [unit]

    /// Rows of a stage.
    static let rows = 64

    /// Stages of a part, by the shapes alone: sums are the same on every card that has this kernel.
    ///
    /// Reckoned in stages, of 0.85 us: 66 clusters have tiles of 256x256, the start and the end of a part cost as much
    /// as ten stages, and adding up the parts reads them once. Their memory stays below that of the operands in f32.
    static func chunk(rows: Int, outputs: Int, inputs: Int) -> Int {
        let slices = ceilDivide(rows, Self.rows)
        let tiles = ceilDivide(outputs, 256) * ceilDivide(inputs, 256)
        let most = max(1, min(32, rows * (outputs + inputs) / max(1, outputs * inputs)))
        func cost(_ wanted: Int) -> Double {
            let chunk = ceilDivide(slices, wanted)
            let parts = ceilDivide(slices, chunk)
            let joining = parts == 1 ? 0 : Double(parts * outputs * inputs) * 4 / 2.1e6
            return Double(ceilDivide(tiles * parts, 66) * (chunk + 10)) + joining
        }
        return ceilDivide(slices, (1...most).min { cost($0) < cost($1) }!)
    }
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
        guard g.shape.rows > 0 else {
            let zeros = tensor([g.shape.columns, x.shape.columns], .f32)
            context.stream.fill(zeros.pointer, with: 0, byteCount: zeros.byteCount)
            return zeros
        }
        let dtype: DType = g.dtype == .bf16 && x.dtype == .bf16 ? .bf16 : .f32
        if context.kernelArchitecture == .hopper, dtype == .bf16, g.hasAlignedRows,
            x.hasAlignedRows
        {
            return weightGradient(asTheyLie: g, x)
        }
        let stride = transposedStride(rows: g.shape.rows, dtype)
        return linear(
            transposed(g, as: dtype, stride: stride),
            .dense(transposed(x, as: dtype, stride: stride)), bias: nil, dtype: .f32)
    }

    /// g: bf16 [..., outputs], x: bf16 [..., inputs], rows in multiples of 16 bytes → f32 [outputs, inputs]
    private func weightGradient(asTheyLie g: Tensor, _ x: Tensor) -> Tensor {
        let (rows, outputs, inputs) = (g.shape.rows, g.shape.columns, x.shape.columns)
        let chunk = WeightGradients.chunk(rows: rows, outputs: outputs, inputs: inputs)
        let parts = ceilDivide(rows, chunk * WeightGradients.rows)
        let out = tensor([outputs, inputs], .f32)
        let sums = parts == 1 ? out : tensor([parts, outputs * inputs], .f32)
        let kernel: Kernel<TensorMap, TensorMap, DevicePointer, Int32, Int32, Int32, Int32> =
            context.kernel("weight_gradient_sm90", of: WeightGradients.unit)
        func map(_ matrix: Tensor) -> TensorMap {
            context.tensorMap(
                .bf16, at: matrix.pointer, extents: [matrix.shape.columns, rows], box: [64, 64])
        }
        let items = ceilDivide(outputs, 256) * ceilDivide(inputs, 256) * parts
        kernel(
            LaunchShape(
                grid: Extents(2 * min(items, context.properties.multiprocessors / 2)), block: 384,
                sharedBytes: Linear.hopperSharedBytes, cluster: 2),
            map(g), map(x), sums.pointer, Int32(rows), Int32(outputs), Int32(inputs), Int32(chunk))
        if parts > 1 { join(sums, into: out) }
        return out
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
