/// Encoding frames to latents. Port of Wan2.1 wan/modules/vae.py (Encoder3d, WanVAE_.encode).

public import Checkpoints
import Ground
public import Tensors

extension WanVAE {
    /// The encoder, one half of the autoencoder.
    public struct Encoder {
        public let config: WanVAEArchitecture
        let statistics: LatentStatistics
        /// The layers, divided into stages where the number of frames halves, so that each stage can become steady by
        /// itself.
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

            let root = weights
            let weights = weights["encoder"]
            var stages: [Stage] = []
            var slots = Slots()
            var width = config.dim
            var layers: [any CausalLayer] = [
                try CausalConvolution(weights["conv1"], from: 3, to: width, &slots)
            ]
            var index = 0
            for level in config.widths.indices {
                for _ in 0..<WanVAEArchitecture.residualBlocks {
                    layers.append(
                        try ResidualBlock(
                            weights["downsamples"][index], from: width, to: config.widths[level],
                            &slots))
                    width = config.widths[level]
                    index += 1
                }
                guard level + 1 < config.widths.count else { break }
                let halvesTime = config.halvesTime[level]
                layers.append(
                    try Downsample(
                        weights["downsamples"][index], width, halvesTime: halvesTime, &slots))
                index += 1
                if halvesTime {
                    stages.append(Stage(layers: layers, slots: slots.count))
                    (layers, slots) = ([], Slots())
                }
            }
            layers += [
                try ResidualBlock(weights["middle"][0], from: width, to: width, &slots),
                try AttentionBlock(weights["middle"][1], width),
                try ResidualBlock(weights["middle"][2], from: width, to: width, &slots),
                try Head(weights["head"], from: width, to: 2 * config.latentChannels, &slots),
                try MeanProjection(root["conv1"], config.latentChannels),
            ]
            stages.append(Stage(layers: layers, slots: slots.count))
            self.stages = stages
        }

        /// The normalised latents of a video of 4n + 1 frames.
        /// video: [T, H, W, 3] in -1...1, in the dtype of activations → f32 [C, n + 1, H/8, W/8]
        public func callAsFunction(_ video: Tensor, on device: any Backend) -> Tensor {
            let (count, step) = (video.shape[0], config.stride.t)
            ensure((count - 1) % step == 0, "WanVAE: \(count) frames are not \(step)n + 1")
            let rows = pictureRows(height: video.shape[1], width: video.shape[2], on: device)
            let stream = CausalStream(stages, rows, on: device)
            func own(_ frames: Range<Int>) -> Tensor {
                rows.own(of: device.slice(video, frames), on: device)
            }
            var means = [stream(own(0..<1))]
            for start in stride(from: 1, to: count, by: step) {
                means.append(stream(own(start..<start + step)))
            }
            return normalized(means, rows, on: device)
        }

        /// The normalised latents of a picture followed by mid-grey frames (zeros), which condition image to video.
        ///
        /// Equal to encoding all `frameCount` frames; see `CausalStream` for what is not computed.
        /// picture: [H, W, 3] in -1...1, in the dtype of activations → f32 [C, n + 1, H/8, W/8]
        /// - Parameter afterChunk: called with the progress after each latent frame.
        public func encodeImage(
            _ picture: Tensor, frameCount: Int, on device: any Backend,
            afterChunk: (EncodingProgress) -> Void = { _ in }
        ) -> Tensor {
            let step = config.stride.t
            ensure(
                (frameCount - 1) % step == 0,
                "WanVAE: \(frameCount) frames are not \(step)n + 1")
            let (height, width) = (picture.shape[0], picture.shape[1])
            let rows = pictureRows(height: height, width: width, on: device)
            let stream = CausalStream(stages, rows, on: device)
            let first = rows.own(of: device.reshape(picture, [1] + picture.shape), on: device)
            var means = [stream(first)]
            let count = 1 + (frameCount - 1) / step
            func report() {
                afterChunk(
                    EncodingProgress(
                        done: means.count, count: count, stageRuns: stream.runsComputed))
            }
            report()
            let pause = [step] + Shape(first.shape.dimensions.dropFirst())
            let grey = device.place(pause, as: activations) { .zeros(pause, activations) }
            for chunk in 1..<count {
                means.append(stream(grey, isRepeated: chunk > 1))
                report()
            }
            return normalized(means, rows, on: device)
        }

        /// height, width: of pictures
        private func pictureRows(height: Int, width: Int, on device: any Backend) -> PictureRows {
            PictureRows(
                height: height / config.stride.h, width: width / config.stride.w, on: device)
        }

        /// means: [1, own rows, W, C] for each latent frame → (mean - statistics) / std, f32 [C, T, H, W]
        private func normalized(
            _ means: [Tensor], _ rows: PictureRows, on device: any Backend
        ) -> Tensor {
            let (mean, inverse) = statistics.rounded(to: activations)
            return device.channelsFirst(
                rows.whole(device.concatenate(means), on: device), scale: inverse,
                shift: zip(mean, inverse).map { -$0 * $1 })
        }
    }
}

extension WanVAE {
    /// The progress of encoding a picture.
    public struct EncodingProgress: Sendable {
        /// Number of finished latent frames, out of `count`.
        public let done, count: Int
        /// How many times each stage of the network has run; a steady stage is not run again.
        public let stageRuns: [Int]
    }
}

/// The mean of the posterior: the first half of the last convolution. The log variance is not used.
private struct MeanProjection: CausalLayer {
    let conv1: Linear

    init(_ weights: Weights, _ channels: Int) throws(CheckpointError) {
        conv1 = try Linear(
            pointwise: weights, from: 2 * channels, to: channels, rows: 0..<channels,
            of: 2 * channels)
    }

    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        conv1(x, on: device)
    }
}
