/// Operations of the video autoencoder (channels last), and of the conversion of its frames to bytes.

/// Where a convolution pads height and width with zeros.
public enum SpatialPadding: Sendable, Hashable {
    /// (kernel - 1) / 2 on every side.
    case same
    /// One row at the bottom and one column on the right, as in the encoder's strided convolutions.
    case bottomRight
}

extension Operation {
    /// Moves the channels to the last axis and applies an affine map to each.
    /// x: [C, T, H, W] → x * scale + shift as [T, H, W, C] in `dtype`
    public struct ChannelsLast: OperationFacts {
        public static let name = "channelsLast"
        public var x: Tensor
        /// C numbers each
        public var scale, shift: [Float]
        public var dtype: DType

        public var fits: Bool {
            x.shape.rank == 4 && scale.count == x.shape[0] && shift.count == x.shape[0]
        }
        public var results: [ResultType] {
            let s = x.shape
            return [ResultType([s[1], s[2], s[3], s[0]], dtype)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .channelsLast(self) }
    }

    /// The reverse of `ChannelsLast`. x: [T, H, W, C] → x * scale + shift as f32 [C, T, H, W]
    public struct ChannelsFirst: OperationFacts {
        public static let name = "channelsFirst"
        public var x: Tensor
        /// C numbers each
        public var scale, shift: [Float]

        public var fits: Bool {
            x.shape.rank == 4 && scale.count == x.shape[3] && shift.count == x.shape[3]
        }
        public var results: [ResultType] {
            let s = x.shape
            return [ResultType([s[3], s[0], s[1], s[2]], .f32)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .channelsFirst(self) }
    }

    /// A convolution that is causal in time; its sum is rounded before the residual is added.
    /// x: [T, H, W, in] → [T', H', W', out]
    ///
    /// The input is `leadingZeros` frames of zeros, then the n frames of `history`, then x, so that
    /// T' = (leadingZeros + n + T - kernelTime) / timeStride + 1.
    public struct Convolution: OperationFacts {
        public static let name = "convolution"
        public var x: Tensor
        /// The frames before x. [n, H, W, in]
        public var history: Tensor?
        public var leadingZeros: Int
        public var weight: ConvolutionWeight
        public var timeStride: Int
        /// 1 or 2
        public var spatialStride: Int
        public var padding: SpatialPadding
        /// Doubles height and width first, by repeating each pixel.
        public var upsample: Bool
        /// Added to the result. [T', H', W', out]
        public var residual: Tensor?
        /// Rows at the top and at the bottom of x and the history that are there to be read only: they take the place of
        /// the padding, and H' is counted without them.
        public var rowsAbove = 0
        public var rowsBelow = 0

        public var geometry: ConvolutionGeometry {
            ConvolutionGeometry(
                x.shape, history: history?.shape, leadingZeros: leadingZeros, weight,
                timeStride: timeStride, spatialStride: spatialStride, padding: padding,
                upsample: upsample, rowsAbove: rowsAbove, rowsBelow: rowsBelow)
        }

        public var fits: Bool {
            x.shape.rank == 4 && x.shape[3] == weight.inputs && leadingZeros >= 0
                && rowsAbove >= 0 && rowsBelow >= 0 && x.shape[1] > rowsAbove + rowsBelow
                && history.map {
                    $0.shape.rank == 4 && $0.shape.tail == x.shape.tail && $0.dtype == x.dtype
                } ?? true
                && leadingZeros + (history?.shape[0] ?? 0) + x.shape[0] >= weight.time
                && weight.bias.isVector(of: weight.outputs)
                && residual.map { $0.shape == geometry.output && $0.dtype == x.dtype } ?? true
        }
        public var results: [ResultType] { [ResultType(geometry.output, x.dtype)] }
        public var flops: Int {
            let output = geometry.output
            // Frames of zeros are skipped.
            let frameTaps = (0..<output[0]).reduce(0) { sum, frame in
                sum + weight.time - min(weight.time, max(0, leadingZeros - frame * timeStride))
            }
            let products = frameTaps * weight.height * weight.width * weight.inputs
            return 2 * output.tail.count * products
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            Tensors.visit(&history, .activation, tensor)
            weight.visit(tensor)
            Tensors.visit(&residual, .activation, tensor)
        }
        public var operation: Operation { .convolution(self) }
    }

    /// Splits each frame into two: channels [0, C) become the even frame, [C, 2C) the odd one.
    /// x: [T, H, W, 2C] → [2T, H, W, C]
    public struct InterleaveTime: OperationFacts {
        public static let name = "interleaveTime"
        public var x: Tensor

        public var fits: Bool { x.shape.rank == 4 && x.shape[3] % 2 == 0 }
        public var results: [ResultType] {
            let s = x.shape
            return [ResultType([2 * s[0], s[1], s[2], s[3] / 2], x.dtype)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .interleaveTime(self) }
    }

    /// floor(clamp((x + 1) / 2, 0, 1) * 255 + 0.5), NaN to 0. x: [T, H, W, 3] → u8
    public struct RGB8: OperationFacts {
        public static let name = "rgb8"
        public var x: Tensor

        public var fits: Bool { x.shape.rank == 4 && x.shape[3] == 3 }
        public var results: [ResultType] { [ResultType(x.shape, .u8)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .rgb8(self) }
    }

    /// Frames in the format that video encoders take: BT.709 (ITU-R BT.709-6, 3.2 and 3.4), limited range, one chroma
    /// sample in the middle of each 2x2 pixels. x: [T, H, W, 3], H and W even → u8 [T, H * 3 / 2, W]: in each frame H
    /// rows of Y, then H / 2 rows of alternating Cb and Cr. x is clamped to [-1, 1], NaN becomes -1; then, in f32,
    ///   y = 0.2126 r + 0.7152 g + 0.0722 b, Y = floor(125.5 + 109.5 y + 0.5), and with means over 2x2 pixels
    ///   Cb = floor(128 + 112 (b - y) / 1.8556 + 0.5), Cr = floor(128 + 112 (r - y) / 1.5748 + 0.5).
    public struct NV12: OperationFacts {
        public static let name = "nv12"
        public var x: Tensor

        public var fits: Bool {
            let s = x.shape
            return s.rank == 4 && s[1] % 2 == 0 && s[2] % 2 == 0 && s[3] == 3
        }
        public var results: [ResultType] {
            let s = x.shape
            return [ResultType([s[0], s[1] / 2 * 3, s[2]], .u8)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .nv12(self) }
    }
}

/// The sizes of a convolution's input and output, in elements.
public struct ConvolutionGeometry: Sendable {
    /// Input frames: zeros, then history, then x. Height and width are those of x.
    public let leadingZeros, historyFrames, frames, height, width: Int
    public var inputs: Int
    public let kernel: (time: Int, height: Int, width: Int)
    public let timeStride, spatialStride: Int
    /// Rows of zeros above the input, and columns of zeros to its left. Where there are fewer than none, the first row of
    /// the input is above those that the first row of the result reads.
    public let padding: (top: Int, left: Int)
    public let upsample: Bool
    /// [T', H', W', out]
    public let output: Shape

    /// x: [T, H, W, in]; history: [n, H, W, in] or nil
    public init(
        _ x: Shape, history: Shape?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        rowsAbove: Int = 0, rowsBelow: Int = 0
    ) {
        self.leadingZeros = leadingZeros
        historyFrames = history?[0] ?? 0
        (frames, height, width, inputs) = (x[0], x[1], x[2], x[3])
        kernel = (weight.time, weight.height, weight.width)
        self.timeStride = timeStride
        self.spatialStride = spatialStride
        self.upsample = upsample
        let scale = upsample ? 2 : 1
        let (top, left, extraHeight, extraWidth): (Int, Int, Int, Int)
        switch padding {
        case .same:
            (top, left) = ((weight.height - 1) / 2, (weight.width - 1) / 2)
            (extraHeight, extraWidth) = (2 * top, 2 * left)
        case .bottomRight: (top, left, extraHeight, extraWidth) = (0, 0, 1, 1)
        }
        self.padding = (top - rowsAbove * scale, left)
        let ownHeight = height - rowsAbove - rowsBelow
        output = [
            (leadingZeros + historyFrames + frames - weight.time) / timeStride + 1,
            (ownHeight * scale + extraHeight - weight.height) / spatialStride + 1,
            (width * scale + extraWidth - weight.width) / spatialStride + 1, weight.outputs,
        ]
    }
}

extension Backend {
    /// See `Operation.ChannelsLast`.
    public func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        result(of: Operation.ChannelsLast(x: x, scale: scale, shift: shift, dtype: dtype))
    }

    /// See `Operation.ChannelsFirst`.
    public func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        result(of: Operation.ChannelsFirst(x: x, scale: scale, shift: shift))
    }

    /// See `Operation.Convolution`.
    public func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        convolution(
            HaloedFrames(x), history: history, leadingZeros: leadingZeros, weight,
            timeStride: timeStride, spatialStride: spatialStride, padding: padding,
            upsample: upsample, residual: residual)
    }

    /// The convolution of a device's own rows of the picture. The history has the same rows of its neighbours as x.
    public func convolution(
        _ x: HaloedFrames, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor {
        result(
            of: Operation.Convolution(
                x: x.frames, history: history, leadingZeros: leadingZeros, weight: weight,
                timeStride: timeStride, spatialStride: spatialStride, padding: padding,
                upsample: upsample, residual: residual, rowsAbove: x.above, rowsBelow: x.below))
    }

    /// See `Operation.InterleaveTime`.
    public func interleaveTime(_ x: Tensor) -> Tensor {
        result(of: Operation.InterleaveTime(x: x))
    }

    /// See `Operation.RGB8`.
    public func rgb8(_ x: Tensor) -> Tensor { result(of: Operation.RGB8(x: x)) }

    /// See `Operation.NV12`.
    public func nv12(_ x: Tensor) -> Tensor { result(of: Operation.NV12(x: x)) }
}
