/// Reading tar archives in a mapped file, header by header.

import Ground

/// A regular file in an archive.
struct TarMember {
    let name: String
    /// Its bytes in the archive.
    let range: Range<Int>
}

/// A damaged archive.
struct TarError: Error {
    let reason: String
}

/// The regular files of a ustar, GNU or pax archive, in their order. Time follows the number of members.
func readTar(_ bytes: UnsafeRawBufferPointer) throws(TarError) -> [TarMember] {
    let block = 512
    var members: [TarMember] = []
    var position = 0
    var longName: String?
    while position + block <= bytes.count {
        let header = UnsafeRawBufferPointer(rebasing: bytes[position..<position + block])
        if header.allSatisfy({ $0 == 0 }) { break }
        guard checksumIsRight(header) else {
            throw TarError(reason: "no tar header at byte \(position): damaged, or no tar archive")
        }
        guard let size = number(header, 124..<136), size <= bytes.count - position - block else {
            throw TarError(reason: "the member at byte \(position) is cut short")
        }
        let content = position + block..<position + block + size
        let kind = header[156]
        switch kind {
        case UInt8(ascii: "L"):
            longName = text(UnsafeRawBufferPointer(rebasing: bytes[content]))
        case UInt8(ascii: "x"):
            longName = paxPath(UnsafeRawBufferPointer(rebasing: bytes[content])) ?? longName
        case 0, UInt8(ascii: "0"):
            let prefix = text(UnsafeRawBufferPointer(rebasing: header[345..<500]))
            let isUStar = header[257..<262].elementsEqual("ustar".utf8)
            let short = text(UnsafeRawBufferPointer(rebasing: header[0..<100]))
            let name = longName ?? (isUStar && !prefix.isEmpty ? "\(prefix)/\(short)" : short)
            members.append(TarMember(name: name, range: content))
            longName = nil
        default: longName = nil
        }
        position += block + roundUp(size, to: block)
    }
    return members
}

/// Up to the first zero.
private func text(_ bytes: UnsafeRawBufferPointer) -> String {
    String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
}

/// Octal digits, or GNU's base 256 behind a set top bit.
private func number(_ header: UnsafeRawBufferPointer, _ range: Range<Int>) -> Int? {
    let field = UnsafeRawBufferPointer(rebasing: header[range])
    if field[0] & 0x80 != 0 {
        guard field[0] & 0x7F == 0, field[1..<4].allSatisfy({ $0 == 0 }), field[4] < 0x80 else {
            return nil
        }
        return field[4...].reduce(0) { $0 << 8 | Int($1) }
    }
    let digits = text(field).filter { $0 != " " }
    // A sign is no octal digit: no size is below 0.
    guard digits.utf8.allSatisfy({ (0x30...0x37).contains($0) }) else { return nil }
    return digits.isEmpty ? 0 : Int(digits, radix: 8)
}

private func checksumIsRight(_ header: UnsafeRawBufferPointer) -> Bool {
    guard let wanted = number(header, 148..<156) else { return false }
    var sum = 0
    for (index, byte) in header.enumerated() {
        sum += (148..<156).contains(index) ? 0x20 : Int(byte)
    }
    return sum == wanted
}

/// The value of `path` in records "length key=value\n", whose length counts all of the record's bytes.
private func paxPath(_ bytes: UnsafeRawBufferPointer) -> String? {
    var rest = bytes[...]
    while let space = rest.firstIndex(of: UInt8(ascii: " ")),
        let length = Int(String(decoding: rest[..<space], as: UTF8.self)),
        (space - rest.startIndex + 1...rest.count).contains(length)
    {
        let record = rest[..<(rest.startIndex + length)][(space + 1)...]
        if record.starts(with: "path=".utf8) {
            return String(decoding: record.dropFirst(5).dropLast(), as: UTF8.self)
        }
        rest = rest[(rest.startIndex + length)...]
    }
    return nil
}

/// The header of a regular file, and the zeros that fill its last block.
func tarMember(_ name: String, _ content: [UInt8]) -> [UInt8] {
    var header = [UInt8](repeating: 0, count: 512)
    func put(_ text: String, at start: Int) {
        for (index, byte) in text.utf8.enumerated() { header[start + index] = byte }
    }
    func octal(_ value: Int, digits: Int) -> String { padded(value, digits, radix: 8) }
    ensure(name.utf8.count <= 100, "tarMember: the name '\(name)' is too long")
    put(name, at: 0)
    put(octal(0o644, digits: 7), at: 100)
    for field in [108, 116] { put(octal(0, digits: 7), at: field) }
    put(octal(content.count, digits: 11), at: 124)
    put(octal(0, digits: 11), at: 136)
    header[156] = UInt8(ascii: "0")
    put("ustar\u{0}00", at: 257)
    let sum = header.reduce(0) { $0 + Int($1) } + 8 * 0x20
    put(octal(sum, digits: 6) + "\u{0} ", at: 148)
    let padding = [UInt8](repeating: 0, count: roundUp(content.count, to: 512) - content.count)
    return header + content + padding
}

/// What ends an archive.
let tarEnd = [UInt8](repeating: 0, count: 1024)
