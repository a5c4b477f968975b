/// How a family's videos, latents and tokens relate in size.

public import Tensors

/// The sizes that lead from pixels to latents to tokens.
public struct LatentGeometry: Sendable, Hashable, Codable {
    /// Channels of the latents.
    public var channels: Int
    /// Frames, rows and columns of pixels per latent; the first frame has a latent of its own.
    public var stride: Extent
    /// Rows and columns of latents per token of the transformer.
    public var patch: Int
    /// Number of token positions along each axis: the length of the published models' rotary tables.
    public var positions: Int

    public init(
        channels: Int = 16, stride: Extent = Extent(t: 4, h: 8, w: 8), patch: Int = 2,
        positions: Int = 128
    ) {
        self.channels = channels
        self.stride = stride
        self.patch = patch
        self.positions = positions
    }

    /// The size of a video's latents. video: in pixels
    public func latents(of video: Extent) -> Extent {
        Extent(t: 1 + (video.t - 1) / stride.t, h: video.h / stride.h, w: video.w / stride.w)
    }

    /// The size in pixels of the video that latents decode to.
    public func video(of latents: Extent) -> Extent {
        Extent(
            t: 1 + (latents.t - 1) * stride.t, h: latents.h * stride.h, w: latents.w * stride.w)
    }

    /// Length of the transformer's sequence.
    public func tokens(of latents: Extent) -> Int {
        latents.t * (latents.h / patch) * (latents.w / patch)
    }

    /// What video sizes must be multiples of: heights of `multiple.h`, widths of `multiple.w`, and numbers of frames
    /// minus one of `multiple.t`.
    public var multiple: Extent {
        Extent(t: stride.t, h: stride.h * patch, w: stride.w * patch)
    }

    /// The largest video that has a position for every token.
    public var largest: Extent {
        Extent(
            t: 1 + (positions - 1) * stride.t, h: positions * multiple.h,
            w: positions * multiple.w)
    }
}
