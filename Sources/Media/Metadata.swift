// Metadata: keeps one text (the request, as JSON) inside a file, and finds it again.

import Ground

/// The text that a ``VideoWriter`` stored in a file; `nil` if there is none.
///
/// | format | place | read by |
/// | --- | --- | --- |
/// | mp4, webm | `comment` tag | every player, exiftool, ffprobe |
/// | gif | comment extension (GIF89a, section 24) | exiftool, ImageMagick |
/// | webp | `XMP ` chunk, property `dc:description` | exiftool |
/// | png | `iTXt` chunk, keyword `Comment`, in every file of a sequence | exiftool, Pillow |
///
/// - Throws: ``MediaError/noSuchFile(path:)``, ``MediaError/notAVideo(path:reason:)`` for any other
///   kind of file.
public func readMetadata(path: String, ffmpeg: FFmpeg? = nil) async throws -> String? {
    let file = try InputFile(path)
    guard let media = MediaKind(try file.bytes(limit: 1024)) else {
        throw MediaError.notAVideo(
            path: path, reason: "its first bytes are not those of a supported video or picture")
    }
    if let kind = Metadata.Kind(media) {
        return Metadata.find(in: try file.bytes(limit: Metadata.fileLimit), kind)
    }
    let program = if let ffmpeg { try ffmpeg.probe } else { try FFmpeg.find().probe }
    let (output, remains) = try await FFmpeg.collect(
        program,
        ["-hide_banner", "-loglevel", "error", "-show_entries", "format_tags=comment,COMMENT"]
            + ["-of", "default=noprint_wrappers=1:nokey=1"]
            + FFmpeg.reading(media, pixelLimit: RGBImage.pixelLimit),
        input: .descriptor(file.descriptor.number), limit: 4 * Metadata.limit,
        limits: FFmpeg.probing)
    guard remains.ending.isSuccess else {
        throw MediaError.notAVideo(path: path, reason: remains.words.summary)
    }
    var text = String(decoding: output, as: UTF8.self)
    if text.last == "\n" { text.removeLast() }
    return text.isEmpty ? nil : text
}

enum Metadata {
    /// In bytes. On Linux, one argument of a process may have 128 KiB.
    static let limit = 96 << 10
    /// Pictures and animations are searched in memory up to this size.
    static let fileLimit = 1 << 30

    /// The formats whose text is read and written here, without FFmpeg.
    enum Kind {
        case gif, webp, png

        init?(_ media: MediaKind) {
            switch media {
            case .gif: self = .gif
            case .webp: self = .webp
            case .png: self = .png
            default: return nil
            }
        }

        /// Nil for formats into which FFmpeg writes the text itself, and for bare frames.
        init?(_ format: VideoFormat) {
            switch format {
            case .mp4, .webm, .raw: return nil
            case .gif: self = .gif
            case .webp: self = .webp
            case .png, .pngSequence: self = .png
            }
        }
    }

    /// The finished file with `text` added; nil if `bytes` are not a file of that kind.
    static func adding(_ text: String, to bytes: [UInt8], _ kind: Kind) -> [UInt8]? {
        switch kind {
        case .gif:
            // Before the last byte, the trailer.
            guard MediaKind(bytes) == .gif, bytes.last == 0x3B else { return nil }
            return bytes.dropLast() + gifComment(text) + [0x3B]
        case .webp:
            return webp(bytes, adding: text)
        case .png:
            // After the signature (8 bytes) and the header (25 bytes), which must come first.
            guard MediaKind(bytes) == .png, bytes.count > 33 else { return nil }
            return bytes[..<33] + pngText(text) + bytes[33...]
        }
    }

    static func find(in bytes: [UInt8], _ kind: Kind) -> String? {
        switch kind {
        case .gif: findGIFComment(bytes)
        case .webp: findWebPDescription(bytes)
        case .png: findPNGText(bytes)
        }
    }
}

// MARK: - GIF

extension Metadata {
    private static func gifComment(_ text: String) -> [UInt8] {
        var out: [UInt8] = [0x21, 0xFE]
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let part = rest.prefix(255)
            out.append(UInt8(part.count))
            out += part
            rest = rest.dropFirst(255)
        }
        return out + [0]
    }

    private static func findGIFComment(_ bytes: [UInt8]) -> String? {
        func byte(_ i: Int) -> Int { i < bytes.count ? Int(bytes[i]) : 0 }
        func paletteBytes(_ flags: Int) -> Int { flags & 0x80 == 0 ? 0 : 3 << ((flags & 7) + 1) }
        var at = 13 + paletteBytes(byte(10))
        while at < bytes.count {
            let isComment = bytes[at] == 0x21 && byte(at + 1) == 0xFE
            switch bytes[at] {
            case 0x2C: at += 11 + paletteBytes(byte(at + 9))
            case 0x21: at += 2
            default: return nil
            }
            var content: [UInt8] = []
            while at < bytes.count, bytes[at] > 0 {
                let end = min(at + 1 + Int(bytes[at]), bytes.count)
                if isComment { content += bytes[(at + 1)..<end] }
                at = end
            }
            at += 1
            if isComment { return String(decoding: content, as: UTF8.self) }
        }
        return nil
    }
}

// MARK: - WebP

extension Metadata {
    private static let xmpStart =
        "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">"
        + "<rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
        + "<rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\">"
        + "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">"
    private static let xmpEnd =
        "</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"
    private static let entities = [
        ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\r", "&#13;"),
    ]

    private static func replacing(_ text: String, _ old: String, by new: String) -> String {
        text.split(separator: old, omittingEmptySubsequences: false).joined(separator: new)
    }

    private static func little(_ value: Int, bytes: Int = 4) -> [UInt8] {
        (0..<bytes).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    private static func webp(_ bytes: [UInt8], adding text: String) -> [UInt8]? {
        guard let header = ImageHeader(bytes), header.kind == .webp, let width = header.width,
            let height = header.height
        else { return nil }
        var escaped = text
        for (plain, entity) in entities { escaped = replacing(escaped, plain, by: entity) }
        let packet = Array((xmpStart + escaped + xmpEnd).utf8)
        let chunk =
            Array("XMP ".utf8) + little(packet.count) + packet + (packet.count & 1 == 1 ? [0] : [])
        var body = Array(bytes[12...])
        let xmpFlag: UInt8 = 0x04
        if body.starts(with: "VP8X".utf8) {
            body[8] |= xmpFlag
        } else {
            // A single frame is written in the simple layout, which has no room for more chunks.
            let extended =
                Array("VP8X".utf8) + little(10) + [xmpFlag, 0, 0, 0]
                + little(width - 1, bytes: 3) + little(height - 1, bytes: 3)
            body = extended + body
        }
        body += chunk
        return Array("RIFF".utf8) + little(body.count + 4) + Array("WEBP".utf8) + body
    }

    private static func findWebPDescription(_ bytes: [UInt8]) -> String? {
        guard let range = ImageHeader.webpChunk("XMP ", in: bytes) else { return nil }
        let packet = String(decoding: bytes[range], as: UTF8.self)
        guard let start = packet.firstRange(of: xmpStart),
            let end = packet[start.upperBound...].firstRange(of: xmpEnd)
        else { return nil }
        var text = String(packet[start.upperBound..<end.lowerBound])
        for (plain, entity) in entities.reversed() { text = replacing(text, entity, by: plain) }
        return text
    }
}

// MARK: - PNG

extension Metadata {
    private static func big(_ value: Int) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (24 - 8 * $0)) }
    }

    /// An uncompressed iTXt chunk: keyword, flags, no language, no translated keyword, UTF-8 text.
    private static let pngKeyword = Array("Comment".utf8) + [0, 0, 0, 0, 0]

    private static func pngText(_ text: String) -> [UInt8] {
        let content = Array("iTXt".utf8) + pngKeyword + Array(text.utf8)
        return big(content.count - 4) + content
            + big(Int(content.withUnsafeBytes { CRC32.checksum($0) }))
    }

    private static func findPNGText(_ bytes: [UInt8]) -> String? {
        let name = ImageHeader.code("iTXt")
        for chunk in ImageHeader.pngChunks(bytes) where chunk.name == name {
            let content = bytes[chunk.content]
            if content.starts(with: pngKeyword) {
                return String(decoding: content.dropFirst(pngKeyword.count), as: UTF8.self)
            }
        }
        return nil
    }
}
