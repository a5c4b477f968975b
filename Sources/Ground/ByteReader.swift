/// Reading numbers and text from untrusted bytes, never past their end.

/// Reads little-endian numbers one after another. Everything is inlined: headers consist of a hundred thousand numbers.
public struct ByteReader {
    public let bytes: UnsafeRawBufferPointer
    @usableFromInline var next: Int
    @inlinable public var position: Int { next }

    @inlinable public init(_ bytes: UnsafeRawBufferPointer, at position: Int = 0) {
        self.bytes = bytes
        next = position
    }

    @inlinable public var remaining: Int { bytes.count - position }

    /// The next number; nil past the end.
    @inlinable public mutating func integer<T: FixedWidthInteger>(_ type: T.Type) -> T? {
        guard remaining >= MemoryLayout<T>.size else { return nil }
        defer { next += MemoryLayout<T>.size }
        return T(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: T.self))
    }

    /// The next number as an `Int`; nil past the end, and if it does not fit.
    @inlinable public mutating func count<T: FixedWidthInteger>(_ type: T.Type) -> Int? {
        integer(type).flatMap { Int(exactly: $0) }
    }

    /// Skips the next `count` bytes and returns their range; nil past the end.
    @inlinable public mutating func take(_ count: Int) -> Range<Int>? {
        guard count >= 0, count <= remaining else { return nil }
        defer { next += count }
        return position..<position + count
    }

    /// The bytes of a range, which must lie within `bytes`.
    @inlinable public func slice(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: bytes[range])
    }

    /// The bytes of a range as UTF-8 text; nil if they are not UTF-8.
    public func text(_ range: Range<Int>) -> String? {
        String(validating: slice(range), as: UTF8.self)
    }
}

extension RandomAccessCollection<UInt8> {
    /// The number in the `count` bytes from `offset` on, with the highest byte first; nil past the end.
    /// - Parameter count: at most 7.
    public func bigEndian(_ offset: Int, _ count: Int) -> Int? {
        guard offset >= 0, offset <= self.count - count else { return nil }
        return dropFirst(offset).prefix(count).reduce(0) { $0 << 8 | Int($1) }
    }

    /// The number in the `count` bytes from `offset` on, with the lowest byte first; nil past the end.
    /// - Parameter count: at most 7.
    public func littleEndian(_ offset: Int, _ count: Int) -> Int? {
        guard offset >= 0, offset <= self.count - count else { return nil }
        return dropFirst(offset).prefix(count).reversed().reduce(0) { $0 << 8 | Int($1) }
    }
}
