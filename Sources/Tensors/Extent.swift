/// The size of a video along its three axes.

/// Numbers of frames (t), rows (h) and columns (w): in pixels, latents or patches of latents.
public struct Extent: Sendable, Hashable, Codable {
    public var t, h, w: Int

    public init(t: Int, h: Int, w: Int) {
        self.t = t
        self.h = h
        self.w = w
    }

    /// Number of pixels, latents or patches.
    public var count: Int { t * h * w }
}
