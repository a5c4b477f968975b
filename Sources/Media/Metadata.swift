// Metadata: keeps one text (the request, as JSON) inside a file, and finds it again.

import Ground
import Subprocess

/// The text that a ``VideoWriter`` stored in a file; `nil` where there is none.
///
/// | format | place | read by |
/// | --- | --- | --- |
/// | mp4, webm | `comment` tag | every player, exiftool, ffprobe |
/// | gif | comment extension (GIF89a, section 24) | exiftool, ImageMagick |
/// | webp | `XMP ` chunk, property `dc:description` | exiftool |
/// | png | `iTXt` chunk, keyword `Comment`, in every file of a sequence | exiftool, Pillow |
///
/// - Throws: ``MediaError/noSuchFile(path:)``, ``MediaError/notAVideo(path:reason:)`` for a file that
///   is none of these.
public func readMetadata(path: String, ffmpeg: FFmpeg? = nil) async throws -> String? {
    guard Files.isRegular(path) else { throw MediaError.noSuchFile(path: path) }
    guard let head = Files.read(path, limit: 16) else {
        throw MediaError.unreadable(path: path, reason: Files.lastError)
    }
    if let kind = Metadata.Kind(head) {
        guard let bytes = Files.read(path, limit: Metadata.fileLimit) else {
            throw MediaError.unreadable(path: path, reason: Files.lastError)
        }
        return Metadata.find(in: bytes, kind)
    }
    let program = if let ffmpeg { ffmpeg.ffprobe } else { try FFmpeg.find().ffprobe }
    let outcome = try await FFmpeg.collect(
        program,
        ["-hide_banner", "-loglevel", "error", "-show_entries", "format_tags=comment,COMMENT"]
            + ["-of", "default=noprint_wrappers=1:nokey=1", "-i", "file:" + path],
        limit: 4 * Metadata.limit, seconds: 60)
    guard outcome.status.isSuccess else {
        throw MediaError.notAVideo(path: path, reason: outcome.errors.summary)
    }
    var text = String(decoding: outcome.output, as: UTF8.self)
    if text.last == "\n" { text.removeLast() }
    return text.isEmpty ? nil : text
}

enum Metadata {
    /// One argument of a process may have 128 KiB on Linux.
    static let limit = 96 << 10
    /// Pictures and animations are searched in memory up to this size.
    static let fileLimit = 1 << 30

    enum Kind {
        case gif, webp, png

        init?(_ head: [UInt8]) {
            if head.starts(with: "GIF8".utf8) {
                self = .gif
            } else if head.starts(with: "RIFF".utf8) && head.dropFirst(8).starts(with: "WEBP".utf8)
            {
                self = .webp
            } else if head.starts(with: [0x89, 0x50, 0x4E, 0x47]) {
                self = .png
            } else {
                return nil
            }
        }
    }

    /// Adds `text` to a finished file that ffmpeg 5 itself writes none to; others are left alone.
    static func embed(_ text: String, in path: String, format: VideoFormat) throws(MediaError) {
        switch format {
        case .mp4, .webm: return
        case .gif:
            // In front of the last byte, the trailer.
            let size = Files.size(path)
            try Files.write(gifComment(text) + [0x3B], to: path, at: size - 1)
        case .webp:
            guard let bytes = Files.read(path, limit: fileLimit) else {
                throw .unreadable(path: path, reason: Files.lastError)
            }
            try Files.write(webp(bytes, adding: text), to: path)
        case .png, .pngSequence:
            guard let bytes = Files.read(path, limit: fileLimit) else {
                throw .unreadable(path: path, reason: Files.lastError)
            }
            // Behind the signature (8 bytes) and the header (25 bytes), which must come first.
            try Files.write(
                bytes[..<33] + pngText(text) + bytes[33...], to: path)
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
            switch bytes[at] {
            case 0x2C: at += 11 + paletteBytes(byte(at + 9))
            case 0x21: at += 2
            default: return nil
            }
            let isComment = at >= 2 && bytes[at - 2] == 0x21 && bytes[at - 1] == 0xFE
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

    private static func webp(_ bytes: [UInt8], adding text: String) -> [UInt8] {
        var escaped = text
        for (plain, entity) in entities { escaped = replacing(escaped, plain, by: entity) }
        let packet = Array((xmpStart + escaped + xmpEnd).utf8)
        let chunk =
            Array("XMP ".utf8) + little(packet.count) + packet + (packet.count & 1 == 1 ? [0] : [])
        var body = Array(bytes[12...])
        let xmpFlag: UInt8 = 0x04
        if body.starts(with: "VP8X".utf8) {
            body[8] |= xmpFlag
        } else if let header = ImageHeader(bytes) {
            // A single frame was written in the simple layout, which has no place for more chunks.
            let extended =
                Array("VP8X".utf8) + little(10) + [xmpFlag, 0, 0, 0]
                + little(header.width - 1, bytes: 3) + little(header.height - 1, bytes: 3)
            body = extended + body
        }
        body += chunk
        return Array("RIFF".utf8) + little(body.count + 4) + Array("WEBP".utf8) + body
    }

    private static func findWebPDescription(_ bytes: [UInt8]) -> String? {
        guard let range = ImageHeader.webpChunk("XMP ", in: bytes) else { return nil }
        let packet = String(decoding: bytes[range], as: UTF8.self)
        guard let start = packet.firstRange(of: xmpStart), let end = packet.firstRange(of: xmpEnd)
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
        for chunk in ImageHeader.pngChunks(bytes) where chunk.name == "iTXt" {
            let content = bytes[chunk.content]
            if content.starts(with: pngKeyword) {
                return String(decoding: content.dropFirst(pngKeyword.count), as: UTF8.self)
            }
        }
        return nil
    }
}
