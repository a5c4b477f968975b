/// How the latents of a family of models lie in a video.

public import Tensors

/// Channels, strides and patches: from pixels to latents to tokens.
public struct LatentGeometry: Sendable, Hashable, Codable {
    /// Channels of the latents.
    public var channels: Int
    /// Frames (after the first, which stands alone), rows and columns of pixels for one latent.
    public var stride: Extent
    /// Rows and columns of latents that make one token of the transformer.
    public var patch: Int
    /// Positions along each axis: where the rotary tables of the published models end.
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

    /// The latents of a video in pixels: its first frame, then one for every `stride.t` frames.
    public func latents(of video: Extent) -> Extent {
        Extent(t: 1 + (video.t - 1) / stride.t, h: video.h / stride.h, w: video.w / stride.w)
    }

    /// The video that latents decode to.
    public func video(of latents: Extent) -> Extent {
        Extent(
            t: 1 + (latents.t - 1) * stride.t, h: latents.h * stride.h, w: latents.w * stride.w)
    }

    /// Tokens of the transformer's sequence.
    public func tokens(of latents: Extent) -> Int {
        latents.t * (latents.h / patch) * (latents.w / patch)
    }

    /// Heights are multiples of `multiple.h`, widths of `multiple.w`; numbers of frames are one more than a
    /// multiple of `multiple.t`.
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
