// The number of blocks and threads of a launch.

import Ground

/// Three extents, 1 by default.
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

/// The configuration of a launch: grid (in blocks), block (in threads), dynamic shared memory, cluster.
public struct LaunchShape: Hashable, Sendable {
    public var grid: Extents
    public var block: Extents
    /// Bytes of dynamic shared memory per block. The kernel's limit is raised if necessary.
    public var sharedBytes: Int
    /// Blocks per cluster (sm_90 and later); the grid must be a multiple of it.
    public var cluster: Extents
    /// Whether the kernel may start while the previous one of the stream is still running (sm_90 and later). It must
    /// call grid_dependency_wait() before it accesses memory that earlier kernels read or write.
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

    /// One thread per `perThread` of `count` elements, in blocks of `block` threads.
    public static func elements(
        _ count: Int, perThread: Int = 1, block: Int = 256
    ) -> LaunchShape {
        let perBlock = perThread * block
        return LaunchShape(grid: Extents(ceilDivide(count, perBlock)), block: Extents(block))
    }
}
