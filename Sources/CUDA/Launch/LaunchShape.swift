// How many threads a kernel runs on.

import Ground

/// Three extents; the unmentioned ones are 1.
public struct Extents: Hashable, Sendable {
    public var x, y, z: Int

    public init(_ x: Int, _ y: Int = 1, _ z: Int = 1) {
        self.x = x
        self.y = y
        self.z = z
    }

    public var count: Int { x * y * z }
}

extension Extents: ExpressibleByIntegerLiteral {
    public init(integerLiteral value: Int) { self.init(value) }
}

/// Grid (in blocks), block (in threads), dynamic shared memory, cluster.
public struct LaunchShape: Hashable, Sendable {
    public var grid: Extents
    public var block: Extents
    /// Dynamic shared memory of a block, in bytes; above 48 KiB the kernel's limit is raised for you.
    public var sharedBytes: Int
    /// Blocks of a cluster (sm_90 and later); the grid is a multiple of it.
    public var cluster: Extents
    /// Start while the previous kernel of the stream is still running (sm_90 and later): the kernel
    /// must call grid_dependency_wait() before it touches what earlier kernels read or write.
    public var overlapsPrevious: Bool

    public init(
        grid: Extents, block: Extents, sharedBytes: Int = 0, cluster: Extents = 1,
        overlapsPrevious: Bool = false
    ) {
        self.grid = grid
        self.block = block
        self.sharedBytes = sharedBytes
        self.cluster = cluster
        self.overlapsPrevious = overlapsPrevious
    }

    /// One thread for each of `count` elements (or for each `perThread` of them), in blocks of `block`.
    public static func elements(
        _ count: Int, perThread: Int = 1, block: Int = 256
    ) -> LaunchShape {
        let perBlock = perThread * block
        return LaunchShape(grid: Extents(ceilDivide(count, perBlock)), block: Extents(block))
    }
}
