// Files that nobody should have: refused in one line, and nothing else is opened.

import Glibc
import Ground
import Testing

@testable import Media

@Suite("Hostile pictures and videos")
struct HostileTests {
    private func refusal(of path: String, ffmpeg: FFmpeg? = nil) async -> String {
        do {
            _ = try await readImage(path: path, ffmpeg: ffmpeg)
            return "accepted"
        } catch { return "\(error)" }
    }

    @Test(
        "exactly the file that was named",
        arguments: ["cat%20dog.png", "-i.png", "a:b.png", "50%.png", "x?[1]*.png"])
    func names(name: String) async throws {
        let scratch = Scratch()
        let image = gradient(width: 20, height: 10)
        try await encode(image, [], to: scratch.path + "/plain.png")
        rename(scratch.path + "/plain.png", scratch.path + "/" + name)
        #expect(try await readImage(path: scratch.path + "/" + name) == image)
        #expect(try await readVideo(path: scratch.path + "/" + name).pixels == image.pixels)
    }

    @Test(
        "scripts, playlists and drawings are not accepted as pictures",
        arguments: [
            "ffconcat version 1.0\nfile other.png\n",
            "#EXTM3U\n#EXTINF:1.0,\nother.png\n#EXT-X-ENDLIST\n",
            "<svg xmlns=\"http://www.w3.org/2000/svg\"><image href=\"other.png\"/></svg>",
            "<?xml version=\"1.0\"?><MPD/>", "v=0\no=- 0 0 IN IP4 127.0.0.1\n",
            "[Playlist]\nFile1=other.png\n",
        ])
    func scripts(text: String) async throws {
        let scratch = Scratch()
        try await encode(gradient(width: 20, height: 10), [], to: scratch.path + "/other.png")
        for name in ["a.png", "a.jpg", "a.avif", "a.ffconcat", "a.m3u8"] {
            let path = scratch.write(Array(text.utf8), name)
            #expect(await refusal(of: path).contains("first bytes"))
            await #expect(throws: MediaError.self) { try await readVideo(path: path) }
            await #expect(throws: MediaError.self) { try await readMetadata(path: path) }
        }
    }

    @Test("a picture's bytes go to its own decoder, and no other file is opened")
    func whitelist() async throws {
        let scratch = Scratch()
        let secret = scratch.write(Array("secret".utf8), "secret")
        // A program in ffmpeg's place that says how it was called.
        let script = "#!/bin/sh\nprintf '%s ' \"$@\" >&2; readlink /proc/self/fd/0 >&2; exit 1\n"
        let program = scratch.write(Array(script.utf8), "ffmpeg")
        chmod(program, 0o755)
        try await encode(gradient(width: 20, height: 10), [], to: scratch.path + "/a.png")
        let words = await refusal(
            of: scratch.path + "/a.png", ffmpeg: FFmpeg(ffmpeg: program, ffprobe: program))
        #expect(words.contains("-protocol_whitelist file,pipe -f png_pipe"))
        #expect(words.contains("-i file:/proc/self/fd/0"))
        #expect(words.contains(scratch.path + "/a.png"))
        #expect(!words.contains(secret))
    }

    @Test("pipes, folders and devices are refused at once")
    func pipes() async throws {
        let scratch = Scratch()
        let pipe = scratch.path + "/a.png"
        mkfifo(pipe, 0o600)
        for path in [pipe, scratch.path, "/dev/zero"] {
            #expect(await refusal(of: path).contains("a folder, a pipe or a device"))
            await #expect(throws: MediaError.self) { try await readVideo(path: path) }
            await #expect(throws: MediaError.self) { try await readMetadata(path: path) }
        }
    }

    @Test("control characters from a file or ffmpeg do not reach the terminal")
    func controls() async throws {
        let scratch = Scratch()
        let script = "#!/bin/sh\nprintf 'a\\033[31mb\\rc\\007\\n\\302\\233d\\n' >&2; exit 1\n"
        let program = scratch.write(Array(script.utf8), "ffmpeg")
        chmod(program, 0o755)
        try await encode(gradient(width: 20, height: 10), [], to: scratch.path + "/a.png")
        rename(scratch.path + "/a.png", scratch.path + "/\u{1B}]0;x\u{7}.png")
        let words = await refusal(
            of: scratch.path + "/\u{1B}]0;x\u{7}.png",
            ffmpeg: FFmpeg(ffmpeg: program, ffprobe: program))
        #expect(words.contains("\\u{1B}[31mb"))
        #expect(
            words.unicodeScalars.allSatisfy { $0.value >= 32 && !(127..<160).contains($0.value) })
    }

    @Test("pictures and frames of absurd size are refused before they are decoded")
    func sizes() async throws {
        let scratch = Scratch()
        try await encode(gradient(width: 64, height: 48), [], to: scratch.path + "/a.png")
        for (width, height) in [(32768, 6000), (40000, 10), (1 << 31, 1 << 31), (0, 5)] {
            var bytes = scratch.read("a.png")
            bytes.replaceSubrange(
                16..<24,
                with: [width, height].flatMap { side in
                    (0..<4).map { UInt8(truncatingIfNeeded: side >> (24 - 8 * $0)) }
                })
            let path = scratch.write(bytes, "b.png")
            let words = await refusal(of: path)
            #expect(words.contains("too large") || words.contains("no pixels"), "\(words)")
            await #expect(throws: MediaError.self) { try await readVideo(path: path) }
        }
    }

    @Test("a sequence is read completely, and only if it is one")
    func sequence() async throws {
        let scratch = Scratch()
        for (number, blue) in [(7, 10), (8, 20), (10, 30)] as [(Int, UInt8)] {
            try await encode(
                gradient(width: 20, height: 10, blue: blue), [],
                to: scratch.path + "/f\(number).png")
        }
        let video = try await readVideo(path: scratch.path + "/f%d.png")
        #expect(video.count == 3)
        let blues: [UInt8] = [video.pixels[2], video.pixels[602], video.pixels[1202]]
        #expect(blues == [10, 20, 30])
        try await encode(gradient(width: 22, height: 10), [], to: scratch.path + "/f11.png")
        await #expect { try await readVideo(path: scratch.path + "/f%d.png") } throws: {
            "\($0)".contains("f11.png") && "\($0)".contains("20x10")
        }
    }

    @Test("an end of XMP before its start")
    func reversed() {
        let packet = Array(
            "</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>".utf8)
        let start = Array(
            ("<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">"
                + "<rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\">"
                + "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">").utf8)
        let body = packet + start
        let bytes =
            Array("RIFF".utf8) + [0, 0, 0, 0] + Array("WEBPXMP ".utf8)
            + [UInt8(body.count & 255), UInt8(body.count >> 8), 0, 0] + body
        #expect(Metadata.find(in: bytes, .webp) == nil)
    }
}
