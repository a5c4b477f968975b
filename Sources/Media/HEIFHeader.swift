// HEIFHeader: size and orientation of an AVIF or HEIC picture (ISO/IEC 23008-12), from the boxes at its start.

import Ground

extension ImageHeader {
    /// Takes the size and, in their order, the rotations and mirrorings of the primary item. EXIF does not count here:
    /// MIAF (ISO/IEC 23000-22, 7.3.6.7) tells readers to ignore its orientation.
    mutating func readHEIF(_ bytes: [UInt8]) {
        // `meta` is a full box: four bytes of version and flags precede its content.
        guard let meta = Boxes(bytes, 0..<bytes.count).first("meta")?.dropFirst(4),
            let primary = Boxes(bytes, meta).first("pitm").flatMap({ Self.primaryItem(bytes, $0) }),
            let properties = Boxes(bytes, meta).first("iprp"),
            let container = Boxes(bytes, properties).first("ipco"),
            let associations = Boxes(bytes, properties).first("ipma")
        else { return }
        let known = Array(Boxes(bytes, container).prefix(1 << 15))
        for index in Self.properties(of: primary, bytes, associations)
        where known.indices.contains(index - 1) {
            let (name, content) = known[index - 1]
            guard let value = bytes.bigEndian(content.lowerBound, 1), !content.isEmpty else {
                continue
            }
            switch name {
            case Self.code("ispe"):
                width = bytes.bigEndian(content.lowerBound + 4, 4)
                height = bytes.bigEndian(content.lowerBound + 8, 4)
            // Quarter turns, anticlockwise.
            case Self.code("irot"): turn([1, 8, 3, 6][value & 3])
            // Mirrored: top to bottom, or left to right.
            case Self.code("imir"): turn(value & 1 == 0 ? 4 : 2)
            default: break
            }
        }
    }

    private static func primaryItem(_ bytes: [UInt8], _ box: Range<Int>) -> Int? {
        bytes.bigEndian(box.lowerBound + 4, bytes.bigEndian(box.lowerBound, 1) == 0 ? 2 : 4)
    }

    /// The numbers, from 1, of the properties of an item.
    /// - Parameter box: the content of `ipma`.
    private static func properties(of item: Int, _ bytes: [UInt8], _ box: Range<Int>) -> [Int] {
        guard let head = bytes.bigEndian(box.lowerBound, 4),
            let count = bytes.bigEndian(box.lowerBound + 4, 4)
        else { return [] }
        let (itemBytes, indexBytes) = (head >> 24 == 0 ? 2 : 4, head & 1 == 0 ? 1 : 2)
        var at = box.lowerBound + 8
        for _ in 0..<count {
            guard at < box.upperBound, let found = bytes.bigEndian(at, itemBytes),
                let number = bytes.bigEndian(at + itemBytes, 1)
            else { return [] }
            at += itemBytes + 1
            if found == item {
                // The highest bit says whether a reader must understand the property.
                return (0..<number).compactMap { index in
                    bytes.bigEndian(at + index * indexBytes, indexBytes)
                        .map { $0 & (indexBytes == 1 ? 0x7F : 0x7FFF) }
                }
            }
            at += number * indexBytes
        }
        return []
    }
}

/// The boxes in a range of an ISO base media file, up to the first incomplete one.
private struct Boxes: Sequence, IteratorProtocol {
    private let bytes: [UInt8]
    private var at: Int
    private let end: Int

    init(_ bytes: [UInt8], _ range: Range<Int>) {
        (self.bytes, at, end) = (bytes, range.lowerBound, range.upperBound)
    }

    mutating func next() -> (name: Int, content: Range<Int>)? {
        guard at < end, var size = bytes.bigEndian(at, 4), let name = bytes.bigEndian(at + 4, 4)
        else {
            return nil
        }
        var head = 8
        if size == 1 {
            // The size follows the name, in eight bytes, of which the first is always zero in practice.
            guard let large = bytes.bigEndian(at + 9, 7) else { return nil }
            (size, head) = (large, 16)
        }
        if size == 0 { size = end - at }
        guard size >= head, size <= end - at else { return nil }
        defer { at += size }
        return (name, (at + head)..<(at + size))
    }

    func first(_ name: StaticString) -> Range<Int>? {
        let code = ImageHeader.code(name)
        return first { $0.name == code }?.content
    }
}
