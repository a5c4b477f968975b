/// Numbers and texts out of bytes that nobody vouches for: never past the end.

/// Reads little-endian numbers one after the other.
public struct ByteReader {
    public let bytes: UnsafeRawBufferPointer
    public private(set) var position: Int

    public init(_ bytes: UnsafeRawBufferPointer, at position: Int = 0) {
        self.bytes = bytes
        self.position = position
    }

    public var remaining: Int { bytes.count - position }

    /// nil past the end.
    public mutating func integer<T: FixedWidthInteger>(_ type: T.Type) -> T? {
        guard remaining >= MemoryLayout<T>.size else { return nil }
        defer { position += MemoryLayout<T>.size }
        return T(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: T.self))
    }

    /// nil past the end, and where no `Int` holds the number.
    public mutating func count<T: FixedWidthInteger>(_ type: T.Type) -> Int? {
        integer(type).flatMap { Int(exactly: $0) }
    }

    /// The place of the next `count` bytes; nil past the end.
    public mutating func take(_ count: Int) -> Range<Int>? {
        guard count >= 0, count <= remaining else { return nil }
        defer { position += count }
        return position..<position + count
    }

    public func slice(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: bytes[range])
    }

    /// UTF-8 text; nil where the bytes are not UTF-8.
    public func text(_ range: Range<Int>) -> String? {
        String(validating: slice(range), as: UTF8.self)
    }
}

extension RandomAccessCollection<UInt8> {
    /// The number in the `count` bytes from `offset` on, the first byte the highest; nil past the end.
    /// - Parameter count: at most 7.
    public func bigEndian(_ offset: Int, _ count: Int) -> Int? {
        guard offset >= 0, offset <= self.count - count else { return nil }
        return dropFirst(offset).prefix(count).reduce(0) { $0 << 8 | Int($1) }
    }

    /// The number in the `count` bytes from `offset` on, the first byte the lowest; nil past the end.
    /// - Parameter count: at most 7.
    public func littleEndian(_ offset: Int, _ count: Int) -> Int? {
        guard offset >= 0, offset <= self.count - count else { return nil }
        return dropFirst(offset).prefix(count).reversed().reduce(0) { $0 << 8 | Int($1) }
    }
}
