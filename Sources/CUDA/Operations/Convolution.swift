// Causal convolutions over channels-last frames.

public import Tensors

/// `ConvolutionArguments` of conv.cuh.
struct ConvolutionArguments: BitwiseCopyable {
    var x = DevicePointer.null
    var history = DevicePointer.null
    var w = DevicePointer.null
    var bias = DevicePointer.null
    var residual = DevicePointer.null
    var out = DevicePointer.null
    var frames, historyFrames, leadingZeros, height, width, inputs: Int32
    var outFrames, outHeight, outWidth, outputs: Int32
    var kernelTime, kernelHeight, kernelWidth: Int32
    var timeStride, spatialStride, padTop, padLeft: Int32
    var upsample: Int32

    /// The geometry, without addresses. x: [T, H, W, in], history: [n, H, W, in]
    init(
        _ x: Shape, history: Shape?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool
    ) {
        precondition(
            x.rank == 4 && x[3] == weight.inputs && (history.map { $0.tail == x.tail } ?? true),
            "convolution: x \(x), history \(history ?? x) for a kernel \(weight.tensor.shape)")
        let (top, left) =
            padding == .same ? ((weight.height - 1) / 2, (weight.width - 1) / 2) : (0, 0)
        let (extraHeight, extraWidth) = padding == .same ? (2 * top, 2 * left) : (1, 1)
        let past = history?[0] ?? 0
        let depth = leadingZeros + past + x[0] - weight.time
        precondition(
            depth >= 0,
            "convolution: \(depth + weight.time) frames for a kernel of \(weight.time)")
        let scale = upsample ? 2 : 1
        (frames, height, width) = (Int32(x[0]), Int32(x[1]), Int32(x[2]))
        (historyFrames, self.leadingZeros) = (Int32(past), Int32(leadingZeros))
        (inputs, outputs) = (Int32(weight.inputs), Int32(weight.outputs))
        (kernelTime, kernelHeight) = (Int32(weight.time), Int32(weight.height))
        kernelWidth = Int32(weight.width)
        (self.timeStride, self.spatialStride) = (Int32(timeStride), Int32(spatialStride))
        (padTop, padLeft) = (Int32(top), Int32(left))
        self.upsample = upsample ? 1 : 0
        outFrames = Int32(depth / timeStride + 1)
        outHeight = Int32((x[1] * scale + extraHeight - weight.height) / spatialStride + 1)
        outWidth = Int32((x[2] * scale + extraWidth - weight.width) / spatialStride + 1)
    }

    var output: Shape { [Int(outFrames), Int(outHeight), Int(outWidth), Int(outputs)] }
    var pixels: Int { Int(outFrames) * Int(outHeight) * Int(outWidth) }
    /// A multiply-add is two.
    var operations: Double {
        2 * Double(pixels) * Double(outputs) * Double(inputs)
            * Double(kernelTime * kernelHeight * kernelWidth)
    }
}

enum Convolution {
    static let mma = KernelUnit("conv_mma.cu", kernels: ["conv_mma<true>", "conv_mma<false>"])
    static let simt = KernelUnit("conv_simt.cu", kernels: ["conv_simt<float>", "conv_simt<bf16>"])
    static let units = [mma, simt]

    enum Plan: Hashable {
        /// conv_mma.cu: bf16, channels in multiples of 8.
        case mma
        /// conv_simt.cu: everything.
        case simt

        static func choose(_ arguments: ConvolutionArguments, _ dtype: DType) -> Plan {
            dtype == .bf16 && arguments.inputs % 8 == 0 ? .mma : .simt
        }
    }

    /// Every plan that can compute it.
    static func plans(_ arguments: ConvolutionArguments, _ dtype: DType) -> [Plan] {
        dtype == .bf16 && arguments.inputs % 8 == 0 ? [.mma, .simt] : [.simt]
    }

    /// Queues the convolution; frames and weights in `dtype`, f32 or bf16.
    static func launch(
        _ arguments: ConvolutionArguments, _ dtype: DType, _ context: Context, plan: Plan? = nil
    ) {
        let pixels = arguments.pixels
        switch plan ?? .choose(arguments, dtype) {
        case .mma:
            let kernel: Kernel<ConvolutionArguments> = context.kernel(
                "conv_mma<\(arguments.outputs % 2 == 0)>", of: mma)
            kernel(
                LaunchShape(
                    grid: Extents(
                        ceilDivide(pixels, 128), ceilDivide(Int(arguments.outputs), 128)),
                    block: 256, sharedBytes: Linear.mmaSharedBytes), arguments)
        case .simt:
            let kernel: Kernel<ConvolutionArguments> = context.kernel(
                "conv_simt<\(CUDABackend.typeName(dtype))>", of: simt)
            kernel(
                LaunchShape(
                    grid: Extents(ceilDivide(pixels, 64), ceilDivide(Int(arguments.outputs), 64)),
                    block: 256), arguments)
        }
    }
}

extension CUDABackend {
    public func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        var arguments = ConvolutionArguments(
            x.shape, history: history?.shape, leadingZeros: leadingZeros, weight,
            timeStride: timeStride, spatialStride: spatialStride, padding: padding,
            upsample: upsample)
        precondition(
            (x.dtype == .f32 || x.dtype == .bf16) && history?.dtype ?? x.dtype == x.dtype
                && residual?.dtype ?? x.dtype == x.dtype
                && residual?.shape ?? arguments.output == arguments.output,
            "convolution: x \(x.shape) \(x.dtype), residual "
                + "\(residual.map { "\($0.shape) \($0.dtype)" } ?? "none"), "
                + "result \(arguments.output)")
        let kernel = converted(weight.tensor, to: x.dtype)
        let bias = weight.bias.map { converted($0, to: .f32) }
        let out = tensor(arguments.output, x.dtype)
        arguments.x = x.pointer
        arguments.history = history?.pointer ?? .null
        arguments.w = kernel.pointer
        arguments.bias = bias?.pointer ?? .null
        arguments.residual = residual?.pointer ?? .null
        arguments.out = out.pointer
        Convolution.launch(arguments, x.dtype, context)
        return withExtendedLifetime((kernel, bias)) { out }
    }
}
