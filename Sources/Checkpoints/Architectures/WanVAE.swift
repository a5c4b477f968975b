/// The causal video autoencoder of Wan2.1: its sizes and its tensors.
///
/// Names and shapes as in
/// https://github.com/thu-ml/TurboDiffusion/blob/aaecff5/turbodiffusion/rcm/tokenizers/wan2pt1.py

public import Tensors

/// The sizes of a Wan VAE, detected from its tensors.
public struct WanVAEArchitecture: Sendable, Hashable {
    /// Channels at full resolution.
    public var dim: Int
    public var latentChannels: Int
    /// Channels of an input picture: three, or more if patches of pixels are folded into them.
    public var pictureChannels = 3
    /// A file made for decoding only has no encoder.
    public var hasEncoder, hasDecoder: Bool

    /// Channels at each resolution in units of `dim`, full resolution first.
    public var multiples: [Int]
    /// Which of the steps between resolutions also halve the number of frames.
    public var halvesTime: [Bool]

    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    public static let residualBlocks = 2

    /// The defaults are Wan2.1's.
    public init(
        dim: Int = 96, latentChannels: Int = 16, hasEncoder: Bool = true, hasDecoder: Bool = true,
        multiples: [Int] = [1, 2, 4, 4], halvesTime: [Bool] = [false, true, true]
    ) {
        self.dim = dim
        self.latentChannels = latentChannels
        self.hasEncoder = hasEncoder
        self.hasDecoder = hasDecoder
        self.multiples = multiples
        self.halvesTime = halvesTime
    }

    /// Channels at each resolution, full resolution first.
    public var widths: [Int] { multiples.map { $0 * dim } }

    /// How many frames (after the first), rows and columns of a video one latent stands for.
    public var stride: Extent {
        let side = 1 << halvesTime.count
        return Extent(t: 1 << halvesTime.count { $0 }, h: side, w: side)
    }

    /// The published model with these sizes, or "Wan VAE".
    public var title: String {
        let name =
            latentChannels == 48
            ? "Wan2.2 VAE of TI2V-5B (48 latent channels)"
            : dim == 96 ? "Wan2.1 VAE" : dim == 24 ? "nano Wan VAE" : "Wan VAE"
        let whole = hasEncoder && hasDecoder
        return whole ? name : name + (hasEncoder ? ", encoder only" : ", decoder only")
    }

    /// Why this program does not run a model with these sizes; nil if it does.
    public var refusal: String? {
        if pictureChannels == 3 { return nil }
        return "\(title) takes pictures folded into \(pictureChannels) channels, which is not "
            + "supported; use Wan2.1's VAE (Wan2.1_VAE.pth)"
    }

    init?(detecting checkpoint: any Checkpoint) {
        func shape(_ name: String) -> [Int]? {
            checkpoint.info(name).flatMap { $0.shape.count > 1 ? $0.shape : nil }
        }
        let encoder = shape("encoder.conv1.weight")
        let decoder = shape("decoder.head.2.weight")
        guard let dim = encoder?[0] ?? decoder?[1], isPlausible(dim) else { return nil }
        let latent = shape("conv2.weight")?[0] ?? shape("decoder.conv1.weight")?[1]
        self.init(
            dim: dim, latentChannels: latent ?? 16, hasEncoder: encoder != nil,
            hasDecoder: decoder != nil)
        pictureChannels = encoder?[1] ?? shape("decoder.head.2.weight")?[0] ?? 3
        guard isPlausible(latentChannels, pictureChannels) else { return nil }
        // If the resolutions cannot be made out, the file is compared with Wan2.1's.
        if let levels = Self.levels(
            checkpoint, encoder == nil ? "decoder.upsamples." : "encoder.downsamples.")
        {
            let widths = encoder == nil ? levels.widths.reversed() : levels.widths
            multiples = widths.map { $0 / dim }
            halvesTime = encoder == nil ? levels.halvesTime.reversed() : levels.halvesTime
            guard widths.count <= 8,
                widths.allSatisfy({ $0 > 0 && $0 % dim == 0 && isPlausible($0) })
            else {
                return nil
            }
        }
    }

    /// Channels of each resolution, and which of the steps between them convolve over time, in the order of a chain
    /// of residual blocks and steps; nil if the chain has gaps.
    private static func levels(_ checkpoint: any Checkpoint, _ prefix: String) -> (
        widths: [Int], halvesTime: [Bool]
    )? {
        var widths: [Int] = []
        var halvesTime: [Bool] = []
        var blocks = 0
        for index in 0..<countEntries(prefix, in: checkpoint) {
            let name = "\(prefix)\(index)."
            if let residual = checkpoint.info(name + "residual.2.weight")?.shape.first {
                if blocks == 0 { widths.append(residual) }
                blocks += 1
            } else if checkpoint.info(name + "resample.1.weight") != nil, blocks > 0 {
                halvesTime.append(checkpoint.info(name + "time_conv.weight") != nil)
                blocks = 0
            } else {
                return nil
            }
        }
        return widths.count == halvesTime.count + 1 ? (widths, halvesTime) : nil
    }

    /// The tensors of this model, in the order of the original's state dictionary.
    public func tensors() -> [ExpectedTensor] {
        var list: [ExpectedTensor] = []
        func convolution(_ name: String, _ inputs: Int, _ outputs: Int, _ kernel: [Int]) {
            list.append(ExpectedTensor(name + ".weight", [outputs, inputs] + kernel))
            list.append(ExpectedTensor(name + ".bias", [outputs]))
        }
        func norm(_ name: String, _ channels: Int, axes: Int = 3) {
            let ones = [Int](repeating: 1, count: axes)
            list.append(ExpectedTensor(name + ".gamma", [channels] + ones))
        }
        func residual(_ name: String, _ inputs: Int, _ outputs: Int) {
            norm(name + ".residual.0", inputs)
            convolution(name + ".residual.2", inputs, outputs, [3, 3, 3])
            norm(name + ".residual.3", outputs)
            convolution(name + ".residual.6", outputs, outputs, [3, 3, 3])
            if inputs != outputs { convolution(name + ".shortcut", inputs, outputs, [1, 1, 1]) }
        }
        func middle(_ name: String, _ channels: Int) {
            residual(name + ".0", channels, channels)
            norm(name + ".1.norm", channels, axes: 2)
            convolution(name + ".1.to_qkv", channels, 3 * channels, [1, 1])
            convolution(name + ".1.proj", channels, channels, [1, 1])
            residual(name + ".2", channels, channels)
        }
        let deepest = widths[widths.count - 1]

        if hasEncoder {
            convolution("encoder.conv1", 3, dim, [3, 3, 3])
            var index = 0
            var channels = dim
            for (level, width) in widths.enumerated() {
                for _ in 0..<Self.residualBlocks {
                    residual("encoder.downsamples.\(index)", channels, width)
                    channels = width
                    index += 1
                }
                guard level < halvesTime.count else { break }
                let name = "encoder.downsamples.\(index)"
                convolution(name + ".resample.1", width, width, [3, 3])
                if halvesTime[level] {
                    convolution(name + ".time_conv", width, width, [3, 1, 1])
                }
                index += 1
            }
            middle("encoder.middle", deepest)
            norm("encoder.head.0", deepest)
            convolution("encoder.head.2", deepest, 2 * latentChannels, [3, 3, 3])
            convolution("conv1", 2 * latentChannels, 2 * latentChannels, [1, 1, 1])
        }
        if hasDecoder {
            convolution("conv2", latentChannels, latentChannels, [1, 1, 1])
            convolution("decoder.conv1", latentChannels, deepest, [3, 3, 3])
            middle("decoder.middle", deepest)
            var index = 0
            var channels = deepest
            for (level, width) in widths.reversed().enumerated() {
                for _ in 0...Self.residualBlocks {
                    residual("decoder.upsamples.\(index)", channels, width)
                    channels = width
                    index += 1
                }
                guard level < halvesTime.count else { break }
                let name = "decoder.upsamples.\(index)"
                // Going up, the spatial convolution halves the channels.
                convolution(name + ".resample.1", width, width / 2, [3, 3])
                if halvesTime.reversed()[level] {
                    convolution(name + ".time_conv", width, 2 * width, [3, 1, 1])
                }
                channels = width / 2
                index += 1
            }
            norm("decoder.head.0", dim)
            convolution("decoder.head.2", dim, 3, [3, 3, 3])
        }
        return list
    }
}
