// Causal convolutions of frames with channels last.

import Ground
import Tensors

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

    /// Everything except the addresses.
    init(_ g: ConvolutionGeometry) {
        (frames, height, width) = (Int32(g.frames), Int32(g.height), Int32(g.width))
        (historyFrames, leadingZeros) = (Int32(g.historyFrames), Int32(g.leadingZeros))
        (inputs, outputs) = (Int32(g.inputs), Int32(g.output[3]))
        (kernelTime, kernelHeight) = (Int32(g.kernel.time), Int32(g.kernel.height))
        kernelWidth = Int32(g.kernel.width)
        (timeStride, spatialStride) = (Int32(g.timeStride), Int32(g.spatialStride))
        (padTop, padLeft) = (Int32(g.padding.top), Int32(g.padding.left))
        upsample = g.upsample ? 1 : 0
        (outFrames, outHeight) = (Int32(g.output[0]), Int32(g.output[1]))
        outWidth = Int32(g.output[2])
    }

    var output: Shape { [Int(outFrames), Int(outHeight), Int(outWidth), Int(outputs)] }
    var pixels: Int { Int(outFrames) * Int(outHeight) * Int(outWidth) }
}

/// A kernel for a convolution, with its tile.
enum ConvolutionPlan: Hashable {
    /// conv_sm90.cu: tiles of 256 pixels, 2^`widthLog2` wide, times `outputs`; reads `slice` channels at a time.
    case hopper(widthLog2: Int, outputs: Int, slice: Int)
    /// conv_taps_sm90.cu: tiles of 16x16 pixels times `outputs`; reads `slice` channels at a time.
    case taps(outputs: Int, slice: Int)
    /// conv_mma.cu: tiles of 128 pixels times `outputs`; for bf16, with channels in multiples of 8.
    case mma(outputs: Int)
    /// conv_simt.cu: for everything.
    case simt

    /// All plans that can compute a convolution, the best first. `dtype` of frames and weights: f32 or bf16.
    static func all(
        _ arguments: ConvolutionArguments, _ dtype: DType, _ architecture: Architecture
    ) -> [ConvolutionPlan] {
        guard dtype == .bf16, arguments.inputs % 8 == 0 else { return [.simt] }
        let (inputs, outputs) = (Int(arguments.inputs), Int(arguments.outputs))
        let mma = ConvolutionPlan.mma(outputs: mmaOutputs(outputs))
        let doubled =
            arguments.upsample == 0
            || arguments.outHeight % 2 == 0 && arguments.outWidth % 2 == 0
        guard architecture == .hopper, outputs % 8 == 0 || outputs <= 16, doubled else {
            return [mma, .simt]
        }
        let (width, height) = arguments.tiledSize
        // Of the shapes that cover the frame with the fewest tiles, the widest.
        let widthLog2 = (3...6).reversed().min {
            tiles($0, width, height) < tiles($1, width, height)
        }!
        let columns = outputs <= 16 ? 16 : outputs <= 96 ? 96 : 192
        let slice = inputs % 64 != 0 && inputs % 96 == 0 ? 96 : 64
        let hopper = ConvolutionPlan.hopper(widthLog2: widthLog2, outputs: columns, slice: slice)
        if arguments.kernelHeight > 3 || arguments.kernelWidth > 3 { return [hopper, mma, .simt] }
        let taps = ConvolutionPlan.taps(outputs: columns, slice: slice)
        // If neighbouring outputs share pixels, one rectangle of pixels serves all taps of a plane.
        let shares =
            arguments.kernelHeight * arguments.kernelWidth > 1 && arguments.spatialStride == 1
        return (shares ? [taps, hopper] : [hopper, taps]) + [mma, .simt]
    }

    /// Outputs per tile of conv_mma.cu. All numbers of channels in Wan's autoencoder are multiples of 96; a tile half
    /// as wide reads the pixels twice as often. Odd or small numbers of outputs have their own tile.
    static func mmaOutputs(_ outputs: Int) -> Int {
        if outputs <= 16 || outputs % 2 != 0 { return 16 }
        return ceilDivide(outputs, 96) * 4 <= ceilDivide(outputs, 48) * 3 ? 96 : 48
    }

    private static func tiles(_ widthLog2: Int, _ width: Int, _ height: Int) -> Int {
        ceilDivide(width, 1 << widthLog2) * ceilDivide(height, 256 >> widthLog2)
    }
}

extension ConvolutionArguments {
    /// The area that Hopper's tiles cover: the output, or one parity of it if x is upsampled.
    fileprivate var tiledSize: (width: Int, height: Int) {
        upsample == 0
            ? (Int(outWidth), Int(outHeight)) : (Int(outWidth) / 2, Int(outHeight) / 2)
    }
}

/// `ConvolutionMaps` of conv_sm90.cu.
private struct ConvolutionMaps: BitwiseCopyable {
    var x, xTail, history, historyTail, w, wTail: TensorMap
    var out: InlineArray<4, TensorMap>
}

/// `ConvolutionTiles` of conv_sm90.cu.
private struct ConvolutionTiles: BitwiseCopyable {
    var widthLog2, across, down, outputs, parities: Int32
}

/// `ConvolutionTiles` of conv_taps_sm90.cu.
private struct TapTiles: BitwiseCopyable {
    var across, down, outputs, parities, width, height, shared: Int32
}

enum Convolution {
    private static let hopper = [16, 96, 192].map { outputs in
        KernelUnit(
            "conv_sm90.cu", for: .hopper,
            kernels: ["conv_sm90<\(outputs), 128>", "conv_sm90<\(outputs), 192>"])
    }
    private static let taps = [16, 96, 192].map { outputs in
        KernelUnit(
            "conv_taps_sm90.cu", for: .hopper,
            kernels: ["conv_taps_sm90<\(outputs), 128>", "conv_taps_sm90<\(outputs), 192>"])
    }
    /// The kernel for each number of outputs per tile. Its second argument is how many of the eight warps lie along the
    /// pixels.
    private static let mmaKernels = [
        96: "conv_mma<96, 4>", 48: "conv_mma<48, 8>", 16: "conv_mma<16, 8>",
    ]
    private static let mma = KernelUnit("conv_mma.cu", kernels: mmaKernels.values.sorted())
    private static let simt = KernelUnit(
        "conv_simt.cu", kernels: ["conv_simt<float>", "conv_simt<bf16>"])
    static let units = hopper + taps + [mma, simt]

    /// Bytes of dynamic shared memory; see conv_sm90.cu.
    private static let hopperSharedBytes = 1024 + 204 * 1024 + 2 * 8 * 1024 + 512

    /// Launches the convolution.
    static func launch(
        _ arguments: ConvolutionArguments, _ dtype: DType, _ plan: ConvolutionPlan,
        _ context: Context
    ) {
        let pixels = arguments.pixels
        switch plan {
        case .hopper(let widthLog2, let outputs, let slice):
            launch(arguments, widthLog2: widthLog2, outputs: outputs, slice: slice, context)
        case .taps(let outputs, let slice):
            launch(arguments, outputs: outputs, slice: slice, context)
        case .mma(let outputs):
            let kernel: Kernel<ConvolutionArguments> = context.kernel(
                mmaKernels[outputs]!, of: mma)
            kernel(
                LaunchShape(
                    grid: Extents(
                        ceilDivide(pixels, 128) * ceilDivide(Int(arguments.outputs), outputs)),
                    block: 256, sharedBytes: 3 * (128 + outputs) * 64), arguments)
        case .simt:
            let kernel: Kernel<ConvolutionArguments> = context.kernel(
                "conv_simt<\(CUDABackend.typeName(dtype))>", of: simt)
            kernel(
                LaunchShape(
                    grid: Extents(ceilDivide(pixels, 64), ceilDivide(Int(arguments.outputs), 64)),
                    block: 256), arguments)
        }
    }

    private static func launch(
        _ arguments: ConvolutionArguments, widthLog2: Int, outputs: Int, slice: Int,
        _ context: Context
    ) {
        let (width, height) = (1 << widthLog2, 256 >> widthLog2)
        let stride = Int(arguments.spatialStride)
        let maps = ConvolutionMaps(
            arguments, rectangle: (width * stride, height * stride),
            stored: (width, 64 / width), outputs: outputs, slice: slice, context)
        let size = arguments.tiledSize
        let tiles = ConvolutionTiles(
            widthLog2: Int32(widthLog2), across: Int32(ceilDivide(size.width, width)),
            down: Int32(ceilDivide(size.height, height)),
            outputs: Int32(ceilDivide(Int(arguments.outputs), outputs)),
            parities: arguments.upsample == 0 ? 1 : 4)
        let count =
            tiles.across * tiles.down * tiles.outputs * tiles.parities * arguments.outFrames
        let kernel: Kernel<ConvolutionMaps, ConvolutionArguments, ConvolutionTiles> =
            context.kernel("conv_sm90<\(outputs), \(slice * 2)>", of: hopper[unit(outputs)])
        kernel(
            LaunchShape(
                grid: Extents(min(Int(count), context.properties.multiprocessors)), block: 384,
                sharedBytes: hopperSharedBytes), maps, arguments, tiles)
    }

    private static func launch(
        _ arguments: ConvolutionArguments, outputs: Int, slice: Int, _ context: Context
    ) {
        let stride = Int(arguments.spatialStride)
        let shared = stride == 1
        let width = shared ? 15 + Int(arguments.kernelWidth) : 16
        let height = shared ? 15 + Int(arguments.kernelHeight) : 16
        let maps = ConvolutionMaps(
            arguments, rectangle: (width * stride, height * stride), stored: (8, 8),
            outputs: outputs, slice: slice, context)
        let size = arguments.tiledSize
        let tiles = TapTiles(
            across: Int32(ceilDivide(size.width, 16)), down: Int32(ceilDivide(size.height, 16)),
            outputs: Int32(ceilDivide(Int(arguments.outputs), outputs)),
            parities: arguments.upsample == 0 ? 1 : 4, width: Int32(width),
            height: Int32(height), shared: shared ? 1 : 0)
        let count =
            tiles.across * tiles.down * tiles.outputs * tiles.parities * arguments.outFrames
        let kernel: Kernel<ConvolutionMaps, ConvolutionArguments, TapTiles> =
            context.kernel("conv_taps_sm90<\(outputs), \(slice * 2)>", of: taps[unit(outputs)])
        kernel(
            LaunchShape(
                grid: Extents(min(Int(count), context.properties.multiprocessors)), block: 384,
                sharedBytes: 227 * 1024), maps, arguments, tiles)
    }

    private static func unit(_ outputs: Int) -> Int { outputs == 16 ? 0 : outputs == 96 ? 1 : 2 }
}

extension ConvolutionMaps {
    /// - Parameters:
    ///   - rectangle: width and height that one copy of x covers; with a spatial stride of 2 it takes every second
    ///   pixel.
    ///   - stored: width and height that one copy of the result covers.
    ///   - outputs: outputs per tile.
    ///   - slice: channels of x that are read at a time.
    fileprivate init(
        _ arguments: ConvolutionArguments, rectangle: (width: Int, height: Int),
        stored: (width: Int, height: Int), outputs: Int, slice: Int, _ context: Context
    ) {
        let stride = Int(arguments.spatialStride)
        let inputs = Int(arguments.inputs)
        let hasTail = slice == 96
        // A slice of 96 channels is copied as 64 and 32.
        func source(_ base: DevicePointer, _ frames: Int32, tail: Bool) -> TensorMap {
            context.tensorMap(
                .bf16, at: base,
                extents: [inputs, Int(arguments.width), Int(arguments.height), Int(frames)],
                box: [tail ? 32 : 64, rectangle.width, rectangle.height, 1],
                steps: [1, stride, stride, 1], swizzle: tail ? .bytes64 : .bytes128)
        }
        func weight(tail: Bool) -> TensorMap {
            let taps = arguments.kernelTime * arguments.kernelHeight * arguments.kernelWidth
            return context.tensorMap(
                .bf16, at: arguments.w, extents: [inputs, Int(taps), Int(arguments.outputs)],
                box: [tail ? 32 : 64, 1, outputs], swizzle: tail ? .bytes64 : .bytes128)
        }
        x = source(arguments.x, arguments.frames, tail: false)
        xTail = hasTail ? source(arguments.x, arguments.frames, tail: true) : x
        if arguments.historyFrames > 0 {
            let frames = arguments.historyFrames
            history = source(arguments.history, frames, tail: false)
            historyTail = hasTail ? source(arguments.history, frames, tail: true) : history
        } else {
            (history, historyTail) = (x, xTail)
        }
        w = weight(tail: false)
        wTail = hasTail ? weight(tail: true) : w

        let size = arguments.tiledSize
        let scale = arguments.upsample == 0 ? 1 : 2
        let pixel = Int(arguments.outputs) * 2
        let line = pixel * Int(arguments.outWidth)
        func result(_ parity: Int) -> TensorMap {
            context.tensorMap(
                .bf16, at: arguments.out + (parity / 2 * line + parity % 2 * pixel),
                extents: [
                    Int(arguments.outputs), size.width, size.height, Int(arguments.outFrames),
                ],
                strides: [scale * pixel, scale * line, line * Int(arguments.outHeight)],
                box: [64, stored.width, stored.height, 1])
        }
        if outputs <= 16 {
            // The kernels store narrow results without the copy engine.
            out = .init(repeating: TensorMap())
        } else if scale == 1 {
            out = .init(repeating: result(0))
        } else {
            out = [result(0), result(1), result(2), result(3)]
        }
    }
}

extension CUDABackend {
    func convolution(_ o: Operation.Convolution) -> Tensor {
        let (x, weight) = (o.x, o.weight)
        requireActivations(x, "convolution")
        var arguments = ConvolutionArguments(o.geometry)
        let kernel = converted(weight.tensor, to: x.dtype)
        let bias = weight.bias.map { converted($0, to: .f32) }
        let out = tensor(arguments.output, x.dtype)
        arguments.x = x.pointer
        arguments.history = o.history?.pointer ?? .null
        arguments.w = kernel.pointer
        arguments.bias = bias?.pointer ?? .null
        arguments.residual = o.residual?.pointer ?? .null
        arguments.out = out.pointer
        let plan = ConvolutionPlan.all(arguments, x.dtype, context.kernelArchitecture)[0]
        Convolution.launch(arguments, x.dtype, plan, context)
        return withExtendedLifetime((kernel, bias)) { out }
    }
}
