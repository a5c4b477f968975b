// Pictures as PNG without FFmpeg: small ones, for previews.

import Ground

extension RGBImage {
    /// The picture as a PNG file. Nothing is compressed: it is for pictures of a few thousand pixels.
    public var png: [UInt8] {
        var bytes: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]
        // 8 bits, RGB, and the only methods that there are.
        Self.append(
            "IHDR", Self.bigEndian(width) + Self.bigEndian(height) + [8, 2, 0, 0, 0], to: &bytes)
        var rows: [UInt8] = []
        rows.reserveCapacity(height * (3 * width + 1))
        for y in 0..<height {
            rows.append(0)  // no filter
            rows += pixels[3 * width * y..<3 * width * (y + 1)]
        }
        Self.append("IDAT", Self.stored(rows), to: &bytes)
        Self.append("IEND", [], to: &bytes)
        return bytes
    }

    /// zlib's format (RFC 1950) with stored blocks (RFC 1951, 3.2.4).
    private static func stored(_ bytes: [UInt8]) -> [UInt8] {
        var result: [UInt8] = [0x78, 0x01]
        var start = 0
        repeat {
            let count = min(65535, bytes.count - start)
            let isLast: UInt8 = start + count == bytes.count ? 1 : 0
            result += [
                isLast, UInt8(count & 0xFF), UInt8(count >> 8), UInt8(~count & 0xFF),
                UInt8(~count >> 8 & 0xFF),
            ]
            result += bytes[start..<start + count]
            start += count
        } while start < bytes.count
        var (a, b): (UInt32, UInt32) = (1, 0)
        for byte in bytes {
            a = (a + UInt32(byte)) % 65521
            b = (b + a) % 65521
        }
        return result + bigEndian(Int(b << 16 | a))
    }

    private static func append(_ type: String, _ content: [UInt8], to bytes: inout [UInt8]) {
        let body = Array(type.utf8) + content
        bytes += bigEndian(content.count) + body
        bytes += bigEndian(Int(body.withUnsafeBytes { CRC32.checksum($0) }))
    }

    private static func bigEndian(_ value: Int) -> [UInt8] {
        [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: value >> $0) }
    }
}
