// A compact, immutable trie over byte strings.

/// Byte strings stored end to end.
struct ByteStrings: Sendable {
    private(set) var bytes: [UInt8] = []
    /// String `i` is `bytes[starts[i]..<starts[i + 1]]`.
    private(set) var starts: [Int] = [0]

    var count: Int { starts.count - 1 }

    mutating func append(_ string: some Sequence<UInt8>) {
        bytes.append(contentsOf: string)
        starts.append(bytes.count)
    }

    subscript(index: Int) -> ArraySlice<UInt8> { bytes[starts[index]..<starts[index + 1]] }
}

/// Nodes in breadth-first order, so that the children of a node are adjacent and a node takes only
/// nine bytes. A step is a binary search among the labels of the children; the root has a table.
struct ByteTrie: Sendable {
    typealias Node = Int
    static let root: Node = 0

    /// The children of node `n` are `firstChild[n]..<firstChild[n + 1]`.
    private let firstChild: [UInt32]
    /// The byte that leads to each node.
    private let labels: [UInt8]
    /// The index of the string that ends at each node, or -1.
    private let values: [Int32]
    /// The child of the root for each byte, or 0.
    private let rootChildren: [UInt32]

    /// A trie of all non-empty `strings`; of equal strings the last one counts.
    init(_ strings: ByteStrings) {
        let order = Self.sorted(strings)
        var firstChild = [UInt32]()
        var labels: [UInt8] = [0]
        var values = [Int32]()
        // The part of `order` below each node, and the length of its common prefix.
        var ranges: [(low: Int32, high: Int32, depth: Int32)] = [(0, Int32(order.count), 0)]
        var node = 0
        while node < ranges.count {
            var (low, high, depth) = ranges[node]
            var value: Int32 = -1
            let offset = Int(depth)
            while low < high, strings[Int(order[Int(low)])].count == offset {
                value = order[Int(low)]
                low += 1
            }
            values.append(node == 0 ? -1 : value)
            firstChild.append(UInt32(ranges.count))
            while low < high {
                let label = strings.bytes[strings.starts[Int(order[Int(low)])] + offset]
                var end = low + 1
                while end < high,
                    strings.bytes[strings.starts[Int(order[Int(end)])] + offset] == label
                {
                    end += 1
                }
                ranges.append((low, end, depth + 1))
                labels.append(label)
                low = end
            }
            depth += 1
            high = low
            node += 1
        }
        firstChild.append(UInt32(ranges.count))

        var rootChildren = [UInt32](repeating: 0, count: 256)
        for child in firstChild[0]..<firstChild[1] { rootChildren[Int(labels[Int(child)])] = child }
        self.firstChild = firstChild
        self.labels = labels
        self.values = values
        self.rootChildren = rootChildren
    }

    /// The indices of `strings` sorted by their bytes, equal strings by index.
    private static func sorted(_ strings: ByteStrings) -> [Int32] {
        strings.bytes.withUnsafeBufferPointer { bytes in
            (0..<Int32(strings.count)).sorted { left, right in
                let (a, b) = (strings.starts[Int(left)], strings.starts[Int(right)])
                let (aEnd, bEnd) = (strings.starts[Int(left) + 1], strings.starts[Int(right) + 1])
                let shared = min(aEnd - a, bEnd - b)
                for offset in 0..<shared where bytes[a + offset] != bytes[b + offset] {
                    return bytes[a + offset] < bytes[b + offset]
                }
                return (aEnd - a, left) < (bEnd - b, right)
            }
        }
    }

    /// The node that `byte` leads to from `node`; nil if there is none.
    @inline(__always)
    func child(of node: Node, _ byte: UInt8) -> Node? {
        if node == Self.root {
            let child = Int(rootChildren[Int(byte)])
            return child == 0 ? nil : child
        }
        var low = Int(firstChild[node])
        var high = Int(firstChild[node + 1])
        while low < high {
            let middle = (low + high) >> 1
            let label = labels[middle]
            if label == byte { return middle }
            if label < byte { low = middle + 1 } else { high = middle }
        }
        return nil
    }

    /// The index of the string that ends at `node`.
    @inline(__always)
    func value(of node: Node) -> Int32? {
        let value = values[node]
        return value < 0 ? nil : value
    }

    /// The index of the string equal to `bytes`.
    func value(for bytes: some Sequence<UInt8>) -> Int32? {
        var node = Self.root
        for byte in bytes {
            guard let child = child(of: node, byte) else { return nil }
            node = child
        }
        return value(of: node)
    }

    /// The longest string of the trie that occurs in `bytes` at `start`.
    func longestMatch(
        in bytes: [UInt8], at start: Int
    ) -> (value: Int32, end: Int)? {
        var node = Self.root
        var best: (Int32, Int)?
        var index = start
        while index < bytes.count, let child = child(of: node, bytes[index]) {
            node = child
            index += 1
            if let value = value(of: node) { best = (value, index) }
        }
        return best
    }
}
