/// `turbodiffusion encode`: raw frames → a video.

import ArgumentParser
import Delivery
import Glibc
import Ground
import Media
import SystemPackage
import Terminal

struct EncodeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "encode",
        abstract: "Write raw frames as a video.",
        discussion: """
            Reads frames from standard input as t2v and i2v write them to --save_path -: RGB, 8 bits, rows from top to \
            bottom, frame after frame.

            Example:
              turbodiffusion t2v "A red ball." --save_path - | my-filter | turbodiffusion encode --size 256x144 ball.mp4
            """)

    @Argument(
        help: "The output: .mp4, .webm, .gif, .webp, .png, or a pattern such as frames/%04d.png.",
        completion: .file())
    var output: String
    @Option(help: "Width and height of the frames: WIDTHxHEIGHT.")
    var size: FrameSize
    @Option(help: "Frames per second.")
    var fps = 16.0
    @Option(help: "Quality of the video, lower is better: 0 to 51 for .mp4 (default 12).")
    var crf: Int?
    @Option(
        name: .customLong("run"),
        help: "How the frames were made, to be kept in the file: \"run\" of the event run.started.")
    var run_: String?
    @Flag(help: "Replace the output if it exists.")
    var force = false
    @Flag(help: "Print nothing but errors.")
    var quiet = false

    func run() async throws {
        do {
            let path = try await encode()
            if !quiet { Output.line("wrote \(path.printable)") }
        } catch {
            throw UserError(error, takesPicture: false)
        }
    }

    private func encode() async throws -> String {
        guard isatty(STDIN_FILENO) == 0 else {
            throw UserError("request.missing", "frames are read from standard input: pipe them in")
        }
        var options = VideoWriter.Options(
            path: output, replaces: force, width: size.width, height: size.height,
            framesPerSecond: fps)
        options.crf = crf
        // Read and written again: what a file says of its making is what this program would say.
        options.metadata = try run_.map { try StoredRun(json: $0, path: "--run").json }
        try await VideoWriter.check(options)
        let writer = try VideoWriter(options)
        do {
            while let frames = try frames(of: writer.frameBytes) { try await writer.append(frames) }
            return try await writer.finish()
        } catch {
            await writer.cancel()
            throw error
        }
    }

    /// The next frames of standard input, some megabytes at once; nil at its end.
    private func frames(of frameBytes: Int) throws -> [UInt8]? {
        let wanted = max(1, (4 << 20) / frameBytes) * frameBytes
        let frames = try [UInt8](unsafeUninitializedCapacity: wanted) { buffer, count in
            while count < wanted {
                let rest = UnsafeMutableRawBufferPointer(
                    rebasing: UnsafeMutableRawBufferPointer(buffer)[count...])
                let got = try StandardInput.read(into: rest)
                if got == 0 { break }
                count += got
            }
        }
        guard frames.count % frameBytes == 0 else {
            throw UserError(
                "media",
                "standard input ends within a frame: \(size.width)x\(size.height) in RGB are "
                    + "\(frameBytes) bytes, the last one has \(frames.count % frameBytes)")
        }
        return frames.isEmpty ? nil : frames
    }
}

/// `WIDTHxHEIGHT`.
struct FrameSize: ExpressibleByArgument {
    let width, height: Int

    init?(argument: String) {
        guard let (width, height) = pair(argument),
            (1...Resolution.longestSide).contains(width),
            (1...Resolution.longestSide).contains(height)
        else { return nil }
        (self.width, self.height) = (width, height)
    }
}
