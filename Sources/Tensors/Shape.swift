/// Shapes of tensors, stored inline: they are made for every operation and must not allocate memory.

import Ground

/// Up to six extents, outermost first; the last one is contiguous in memory.
public struct Shape: Sendable {
    public static let maximumRank = 6
    private var extents: InlineArray<6, Int>
    public private(set) var rank: Int

    /// The shape of a scalar.
    private init() {
        extents = InlineArray(repeating: 1)
        rank = 0
    }

    public init(_ dimensions: some Collection<Int>) {
        self.init()
        ensure(
            dimensions.count <= Self.maximumRank, "Shape: rank \(dimensions.count) is above 6")
        rank = dimensions.count
        for (axis, extent) in dimensions.enumerated() {
            ensure(extent >= 0, "Shape: negative extent \(extent)")
            extents[axis] = extent
        }
    }

    /// The extent along `axis`; negative axes count from the end.
    public subscript(axis: Int) -> Int {
        let index = axis < 0 ? rank + axis : axis
        ensure(index >= 0 && index < rank, "Shape: axis \(axis) of \(self)")
        return extents[index]
    }

    /// Number of elements.
    public var count: Int {
        var product = 1
        for axis in 0..<rank { product *= extents[axis] }
        return product
    }

    public var dimensions: [Int] { (0..<rank).map { extents[$0] } }

    /// All extents but the first.
    public var tail: Shape {
        var shape = Shape()
        for axis in 1..<max(rank, 1) { shape.extents[axis - 1] = extents[axis] }
        shape.rank = max(rank - 1, 0)
        return shape
    }

    /// Product of all extents but the last: the rows of the tensor seen as a matrix.
    public var rows: Int {
        var product = 1
        for axis in 0..<max(rank - 1, 0) { product *= extents[axis] }
        return product
    }

    /// The last extent (1 for a scalar): the columns of the tensor seen as a matrix.
    public var columns: Int { rank == 0 ? 1 : extents[rank - 1] }

    /// This shape with the first extent replaced.
    public func replacingFirst(_ extent: Int) -> Shape {
        ensure(rank > 0 && extent >= 0, "Shape: \(extent) as the first extent of \(self)")
        var shape = self
        shape.extents[0] = extent
        return shape
    }

    /// An extent before all others.
    public static func + (first: [Int], rest: Shape) -> Shape { Shape(first + rest.dimensions) }

    /// This shape with the last extent replaced.
    public func replacingLast(_ extent: Int) -> Shape {
        var shape = self
        shape.extents[rank - 1] = extent
        return shape
    }
}

extension Shape: Equatable, Hashable {
    public static func == (a: Shape, b: Shape) -> Bool {
        guard a.rank == b.rank else { return false }
        for axis in 0..<a.rank where a.extents[axis] != b.extents[axis] { return false }
        return true
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(rank)
        for axis in 0..<rank { hasher.combine(extents[axis]) }
    }
}

extension Shape: ExpressibleByArrayLiteral, CustomStringConvertible {
    public init(arrayLiteral elements: Int...) { self.init(elements) }
    public var description: String { "\(dimensions)" }
}
