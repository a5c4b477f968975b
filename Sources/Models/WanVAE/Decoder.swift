/// Decoding latents to frames. Port of Wan2.1 wan/modules/vae.py (Decoder3d, WanVAE_.decode).

public import Checkpoints
public import Tensors

extension WanVAE {
    /// The decoder, one half of the autoencoder.
    public struct Decoder {
        public let config: WanVAEArchitecture
        let statistics: LatentStatistics
        let conv2: Linear
        /// The layers, divided into stages where the number of frames doubles.
        let stages: [Stage]
        let activations: DType

        /// weights: the root of the checkpoint
        public init(_ weights: Weights, statistics: LatentStatistics = .wan)
            throws(CheckpointError)
        {
            let config = try weights.autoencoder()
            statistics.check(channels: config.latentChannels)
            self.config = config
            self.statistics = statistics
            activations = weights.activations
            conv2 = try Linear(
                pointwise: weights["conv2"], from: config.latentChannels,
                to: config.latentChannels)

            let weights = weights["decoder"]
            var stages: [Stage] = []
            var slots = Slots()
            var width = config.widths.last!
            var layers: [any CausalLayer] = [
                try CausalConvolution(
                    weights["conv1"], from: config.latentChannels, to: width, &slots),
                try ResidualBlock(weights["middle"][0], from: width, to: width, &slots),
                try AttentionBlock(weights["middle"][1], width),
                try ResidualBlock(weights["middle"][2], from: width, to: width, &slots),
            ]
            var index = 0
            for level in config.widths.indices.reversed() {
                for _ in 0...WanVAEArchitecture.residualBlocks {
                    layers.append(
                        try ResidualBlock(
                            weights["upsamples"][index], from: width, to: config.widths[level],
                            &slots))
                    width = config.widths[level]
                    index += 1
                }
                guard level > 0 else { break }
                let doublesTime = config.halvesTime[level - 1]
                layers.append(
                    try Upsample(
                        weights["upsamples"][index], width, doublesTime: doublesTime, &slots))
                width /= 2
                index += 1
                if doublesTime {
                    stages.append(Stage(layers: layers, slots: slots.count))
                    (layers, slots) = ([], Slots())
                }
            }
            layers.append(try Head(weights["head"], from: width, to: 3, &slots))
            stages.append(Stage(layers: layers, slots: slots.count))
            self.stages = stages
        }

        /// The frames of `latents`, chunk by chunk in order. Of a group of devices each makes some rows of the pictures;
        /// latents and frames are whole on all of them. latents: normalised, [C, T, H, W]
        public func callAsFunction(_ latents: Tensor, on device: any Backend) -> Decoding {
            let (mean, inverse) = statistics.rounded(to: activations)
            let rows = PictureRows(height: latents.shape[2], width: latents.shape[3], on: device)
            let latents = device.channelsLast(
                latents, scale: inverse.map { 1 / $0 }, shift: mean, dtype: activations)
            return Decoding(
                latents: conv2(latents, on: device), stream: CausalStream(stages, rows, on: device))
        }
    }

    /// A video that is being decoded, one latent frame at a time.
    public struct Decoding: Sequence, IteratorProtocol {
        /// [T, H, W, C]
        let latents: Tensor
        let stream: CausalStream
        /// Latent frames decoded so far.
        public private(set) var decoded = 0
        /// What the first stage has made of latent frames that come next, one by one.
        private var begun: [Tensor] = []

        init(latents: Tensor, stream: CausalStream) {
            self.latents = latents
            self.stream = stream
        }

        /// The next frames, with values of about -1...1 that are not clamped: one frame, then `stride.t` for each
        /// latent frame; nil after the last. → [n, stride.h * H, stride.w * W, 3]
        public mutating func next() -> Tensor? {
            guard decoded < latents.shape[0] else { return nil }
            if begun.isEmpty { begin() }
            decoded += 1
            return stream.rows.whole(stream.finish(begun.removeFirst()), on: stream.device)
        }

        /// The first stage has the smallest frames: one of them does not fill a large device, so they go in pairs.
        /// The first one stands alone in time.
        private mutating func begin() {
            let device = stream.device
            let count = decoded == 0 ? 1 : Swift.min(2, latents.shape[0] - decoded)
            let pictures = device.slice(latents, decoded..<decoded + count)
            let x = stream.begin(stream.rows.own(of: pictures, on: device))
            let frames = x.shape[0] / count
            begun = (0..<count).map { device.slice(x, $0 * frames..<($0 + 1) * frames) }
        }
    }
}
