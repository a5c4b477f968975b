// MediaKind: the kind of a file by its first bytes, and the one demuxer of FFmpeg that may read it.

import Ground

/// The kinds of picture and video that are read. FFmpeg itself would guess among hundreds of formats, some of them
/// scripts and playlists that open other files: it is never allowed to guess.
enum MediaKind: Sendable, CaseIterable {
    case png, jpeg, webp, gif, bmp, tiff, heif, jpegXL, jpeg2000, bitMap, grayMap, pixelMap, anyMap,
        qoi
    case mp4, matroska, avi, mpegTransport, mpegProgram, flash, ogg, yuv4mpeg

    /// Nil for any other kind of file.
    init?(_ head: some RandomAccessCollection<UInt8>) {
        guard let kind = Self.allCases.first(where: { $0.matches(head) }) else { return nil }
        self = kind
    }

    var isPicture: Bool {
        switch self {
        case .mp4, .matroska, .avi, .mpegTransport, .mpegProgram, .flash, .ogg, .yuv4mpeg: false
        default: true
        }
    }

    var demuxer: String {
        switch self {
        case .png: "png_pipe"
        case .jpeg: "jpeg_pipe"
        case .webp: "webp_pipe"
        case .gif: "gif"
        case .bmp: "bmp_pipe"
        case .tiff: "tiff_pipe"
        case .heif, .mp4: "mov"
        case .jpegXL: "jpegxl_pipe"
        case .jpeg2000: "j2k_pipe"
        case .bitMap: "pbm_pipe"
        case .grayMap: "pgm_pipe"
        case .pixelMap: "ppm_pipe"
        case .anyMap: "pam_pipe"
        case .qoi: "qoi_pipe"
        case .matroska: "matroska"
        case .avi: "avi"
        case .mpegTransport: "mpegts"
        case .mpegProgram: "mpeg"
        case .flash: "flv"
        case .ogg: "ogg"
        case .yuv4mpeg: "yuv4mpegpipe"
        }
    }

    private func matches(_ head: some RandomAccessCollection<UInt8>) -> Bool {
        func has(_ text: String, at offset: Int = 0) -> Bool {
            head.dropFirst(offset).starts(with: text.utf8)
        }
        func has(_ bytes: [UInt8]) -> Bool { head.starts(with: bytes) }
        func isMap(_ digits: String) -> Bool {
            let (digit, space) = (head.bigEndian(1, 1), head.bigEndian(2, 1))
            guard has("P"), let digit, let space else { return false }
            return digits.utf8.contains(UInt8(digit)) && [9, 10, 13, 32].contains(space)
        }
        switch self {
        case .png: return has([0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A])
        case .jpeg: return has([0xFF, 0xD8, 0xFF])
        case .webp: return has("RIFF") && has("WEBP", at: 8)
        case .gif: return has("GIF87a") || has("GIF89a")
        case .bmp: return has("BM")
        case .tiff: return has([0x49, 0x49, 0x2A, 0]) || has([0x4D, 0x4D, 0, 0x2A])
        case .heif:
            let brands = [
                "avif", "avis", "heic", "heix", "heim", "heis", "hevc", "mif1", "mif2", "msf1",
            ]
            return has("ftyp", at: 4) && brands.contains { has($0, at: 8) }
        case .jpegXL: return has([0xFF, 0x0A]) || has([0, 0, 0, 12] + Array("JXL ".utf8))
        case .jpeg2000:
            return has([0, 0, 0, 12] + Array("jP  ".utf8)) || has([0xFF, 0x4F, 0xFF, 0x51])
        case .bitMap: return isMap("14")
        case .grayMap: return isMap("25")
        case .pixelMap: return isMap("36")
        case .anyMap: return isMap("7")
        case .qoi: return has("qoif")
        case .mp4:
            return ["ftyp", "moov", "mdat", "wide", "free", "skip"].contains { has($0, at: 4) }
        case .matroska: return has([0x1A, 0x45, 0xDF, 0xA3])
        case .avi: return has("RIFF") && has("AVI ", at: 8)
        case .mpegTransport: return [0, 188, 376].allSatisfy { head.bigEndian($0, 1) == 0x47 }
        case .mpegProgram: return has([0, 0, 1, 0xBA])
        case .flash: return has("FLV")
        case .ogg: return has("OggS")
        case .yuv4mpeg: return has("YUV4MPEG2 ")
        }
    }
}
