/// Zip archives of uncompressed members, as torch.save writes them (with zip64 where needed).
///
/// https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT

import Ground

/// The members of an archive and the places of their bytes.
struct ZipArchive {
    struct Member {
        /// In the file.
        let range: Range<Int>
        let crc: UInt32
    }

    static let maximumMembers = 1 << 18
    private(set) var members: [String: Member] = [:]
    let file: MappedFile
    /// The archive's part of the file, and the offset at which it begins.
    private let bytes: UnsafeRawBufferPointer
    private let base: Int

    /// - Parameter part: the archive's part of the file; nil: all of it.
    init(_ file: MappedFile, _ part: Range<Int>? = nil) throws(CheckpointError) {
        self.file = file
        base = part?.lowerBound ?? 0
        bytes = UnsafeRawBufferPointer(rebasing: file.bytes[part ?? 0..<file.bytes.count])
        let directory = try Self.directory(file, bytes)
        var reader = ByteReader(bytes, at: directory.offset)
        for _ in 0..<directory.count { try readMember(&reader, end: directory.end) }
        guard reader.position == directory.end else {
            throw file.fail("the zip directory does not have the size that it claims")
        }
    }

    private struct Directory {
        var count, offset, end: Int
    }

    /// Finds the end record, which is followed by a comment of at most 64 KiB.
    private static func directory(
        _ file: MappedFile, _ bytes: UnsafeRawBufferPointer
    ) throws(CheckpointError) -> Directory {
        let absent = file.fail("the zip archive has no directory: the file is cut short")
        guard bytes.count >= 22 else { throw absent }
        let end = stride(from: bytes.count - 22, through: max(0, bytes.count - 65557), by: -1)
            .first { at in
                bytes.loadUnaligned(fromByteOffset: at, as: UInt32.self) == 0x0605_4B50
                    && Int(bytes.loadUnaligned(fromByteOffset: at + 20, as: UInt16.self))
                        == bytes.count - at - 22
            }
        guard let end else { throw absent }
        var reader = ByteReader(bytes, at: end + 4)
        guard reader.integer(UInt16.self) == 0, reader.integer(UInt16.self) == 0 else {
            // An archive may not be spread over several disks.
            throw file.fail("a zip archive in several parts")
        }
        guard let here = reader.count(UInt16.self), let all = reader.count(UInt16.self),
            let size = reader.count(UInt32.self), let offset = reader.count(UInt32.self)
        else { throw absent }
        guard here == all else { throw file.fail("a zip archive in several parts") }
        // A 64-bit record replaces the 32-bit fields, which may be all ones.
        let (count, range) = try zip64(file, bytes, end) ?? (all, (offset, size, end))
        guard range.offset <= range.limit, range.size <= range.limit - range.offset else {
            throw file.fail("the zip directory lies outside the file")
        }
        // A member takes at least 46 bytes there, which exposes false counts.
        guard count <= range.size / 46, count <= maximumMembers else {
            throw file.fail("the zip directory claims \(count) members in \(range.size) bytes")
        }
        return Directory(count: count, offset: range.offset, end: range.offset + range.size)
    }

    /// The 64-bit end record, found by the locator before the 32-bit one; nil if there is none.
    private static func zip64(
        _ file: MappedFile, _ bytes: UnsafeRawBufferPointer, _ end: Int
    ) throws(CheckpointError) -> (count: Int, (offset: Int, size: Int, limit: Int))? {
        guard end >= 20 else { return nil }
        var locator = ByteReader(bytes, at: end - 20)
        guard locator.integer(UInt32.self) == 0x0706_4B50 else { return nil }
        let broken = file.fail("the zip64 directory lies outside the file")
        _ = locator.take(4)
        guard let at = locator.count(UInt64.self), at <= end - 20 - 56 else { throw broken }
        var record = ByteReader(bytes, at: at)
        guard record.integer(UInt32.self) == 0x0606_4B50, record.take(20) != nil,
            record.integer(UInt64.self) != nil, let count = record.count(UInt64.self),
            let size = record.count(UInt64.self), let offset = record.count(UInt64.self)
        else { throw broken }
        return (count, (offset, size, at))
    }

    private mutating func readMember(
        _ reader: inout ByteReader, end: Int
    ) throws(CheckpointError) {
        var broken: CheckpointError { file.fail("the zip directory is damaged") }
        guard end - reader.position >= 46, reader.integer(UInt32.self) == 0x0201_4B50,
            reader.take(4) != nil, let flags = reader.integer(UInt16.self),
            let method = reader.integer(UInt16.self), reader.take(4) != nil,
            let crc = reader.integer(UInt32.self), var packed = reader.count(UInt32.self),
            var size = reader.count(UInt32.self), let nameLength = reader.count(UInt16.self),
            let extraLength = reader.count(UInt16.self),
            let commentLength = reader.count(UInt16.self), reader.take(8) != nil,
            var offset = reader.count(UInt32.self), let nameRange = reader.take(nameLength),
            let extra = reader.take(extraLength), reader.take(commentLength) != nil,
            reader.position <= end, let name = reader.text(nameRange)
        else { throw broken }
        guard flags & 1 == 0 else { throw file.fail("'\(name)' is encrypted") }
        guard method == 0 else {
            throw file.fail("'\(name)' is compressed; PyTorch does not compress members")
        }
        // 64-bit fields replace those that are all ones, in this order.
        var fields = ByteReader(reader.slice(extra))
        while fields.remaining >= 4 {
            guard let id = fields.integer(UInt16.self), let length = fields.count(UInt16.self),
                let body = fields.take(length)
            else { throw broken }
            guard id == 1 else { continue }
            var wide = ByteReader(fields.slice(body))
            func widen(_ value: inout Int) throws(CheckpointError) {
                guard value == 0xFFFF_FFFF else { return }
                guard let large = wide.count(UInt64.self) else { throw broken }
                value = large
            }
            try widen(&size)
            try widen(&packed)
            try widen(&offset)
        }
        guard size == packed else { throw file.fail("'\(name)' has two different sizes") }
        let range = try payload(name, offset, size, before: end)
        guard members.updateValue(Member(range: range, crc: crc), forKey: name) == nil else {
            throw file.fail("two members of the archive are called '\(name)'")
        }
    }

    /// The bytes of a member, after its local header.
    private func payload(
        _ name: String, _ offset: Int, _ size: Int, before end: Int
    ) throws(CheckpointError) -> Range<Int> {
        guard offset <= bytes.count else {
            throw file.fail("'\(name)' lies outside the file")
        }
        var header = ByteReader(bytes, at: offset)
        guard header.integer(UInt32.self) == 0x0403_4B50, header.take(22) != nil,
            let nameLength = header.count(UInt16.self),
            let extraLength = header.count(UInt16.self), let local = header.take(nameLength),
            header.take(extraLength) != nil, let range = header.take(size),
            range.upperBound <= end
        else { throw file.fail("'\(name)' lies outside the file or has no header") }
        guard header.slice(local).elementsEqual(name.utf8) else {
            throw file.fail("'\(name)' has a different name in its local header")
        }
        return base + range.lowerBound..<base + range.upperBound
    }

    /// Whether the bytes of a member have the checksum in the directory.
    func isIntact(_ member: Member) -> Bool {
        CRC32.checksum(UnsafeRawBufferPointer(rebasing: file.bytes[member.range])) == member.crc
    }
}
