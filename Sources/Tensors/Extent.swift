/// Extents of a video along its three axes.

/// Frames, rows and columns: of a video in pixels, of its latents, or of their patches.
public struct Extent: Sendable, Hashable, Codable {
    public var t, h, w: Int

    public init(t: Int, h: Int, w: Int) {
        self.t = t
        self.h = h
        self.w = w
    }

    public var count: Int { t * h * w }
}
