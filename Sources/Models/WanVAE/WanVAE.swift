/// The Wan 2.1 video autoencoder: what it does, and the statistics of its latents.

import Ground
import Tensors

/// Latents have 1/8 of the height and width of a video, and n + 1 frames for 4n + 1 (other autoencoders have another
/// `WanVAEArchitecture.stride`). The convolutions are causal in time, so encoder and decoder process a video of any
/// length chunk by chunk, and keep only the last frames that each convolution has read.
public enum WanVAE {}

/// Mean and standard deviation of each latent channel. The transformer's latents are (latent - mean) / std.
public struct LatentStatistics: Sendable, Hashable {
    public var mean, std: [Float]

    public init(mean: [Float], std: [Float]) {
        ensure(mean.count == std.count, "LatentStatistics: \(mean.count), \(std.count)")
        self.mean = mean
        self.std = std
    }

    /// The statistics of the published Wan 2.1 autoencoder.
    public static let wan = LatentStatistics(
        mean: [
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        std: [
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
        ])

    func check(channels: Int) {
        ensure(
            mean.count == channels,
            "WanVAE: statistics of \(mean.count) channels, \(channels) expected")
    }

    /// Mean and 1 / std, rounded to the dtype of activations as in the original.
    func rounded(to dtype: DType) -> (mean: [Float], inverse: [Float]) {
        func rounded(_ values: [Float]) -> [Float] {
            Tensor(values, [values.count]).converted(to: dtype).floats()
        }
        return (rounded(mean), rounded(std.map { 1 / $0 }))
    }
}
