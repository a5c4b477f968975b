/// `turbodiffusion dataset encode`: videos and their captions to latents and embedded prompts.

import ArgumentParser
import Catalog
import Checkpoints
import Devices
import Families
import Ground
import Media
import Models
import SystemPackage
import Tensors
import Terminal
import Tokenizers
import Training

struct DatasetEncodeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "encode",
        abstract: "Encode videos and captions into a shard.",
        discussion: """
            The caption of clip.mp4 is in clip.txt beside it. The first frames of a video are taken as they come, cut \
            around the middle to the shape that is asked for, and resized.

            Example:
              turbodiffusion dataset encode clips/*.mp4 --output data/shard_000000.tar
            """)

    @Argument(help: "Videos, each with a caption beside it.", completion: .file())
    var videos: [String]

    @Option(help: "The model whose autoencoder and text encoder are used: a name or a folder.")
    var model = "nano"

    @Option(help: "The new shard.", completion: .file(extensions: ["tar"]))
    var output: String

    @Option(help: "Pixels (default: the family's).")
    var width: Int?

    @Option(help: "Pixels (default: the family's).")
    var height: Int?

    @Option(help: "Frames of a video, 4n + 1 (default: the family's).")
    var numFrames: Int?

    @Option(help: "bf16 or f32.")
    var precision = TrainingPrecision.bf16

    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.usual

    @Flag(help: "Replace the output file if it exists.")
    var force = false

    func run() async throws {
        let models = try Catalog.published.open(ModelChoice(model))
        let family = models.family
        let video = Extent(
            t: numFrames ?? family.defaults.frames, h: height ?? family.defaults.height,
            w: width ?? family.defaults.width)
        let (multiple, largest) = (family.geometry.multiple, family.geometry.largest)
        guard (1...largest.h).contains(video.h), (1...largest.w).contains(video.w),
            (1...largest.t).contains(video.t), video.h % multiple.h == 0, video.w % multiple.w == 0,
            (video.t - 1) % multiple.t == 0
        else {
            throw UserError(
                "dataset.size",
                "\(video.w)x\(video.h) of \(video.t) frames: expected multiples of \(multiple.w) and "
                    + "\(multiple.h), at most \(largest.w)x\(largest.h), and \(multiple.t)n + 1 frames, at most \(largest.t)"
            )
        }
        let captions = try videos.map(caption)
        // Before the first one is encoded.
        for video in videos { try await FrameReader.check(path: video) }
        let tokenizer = try Tokenizer(path: models.tokenizer)
        let writer = try newShard(output, overwrite: force)
        let backend = try device.open { Output.note("\($0)") }
        let dtype: DType = precision == .bf16 ? .bf16 : .f32
        func weights(_ part: ModelPart) throws -> Weights {
            Weights(try models.file(part).checkpoint, on: backend, activations: dtype)
        }
        let encoder = try WanVAE.Encoder(
            try weights(.imageEncoder), statistics: family.statistics)
        let textEncoder = try UMT5(try weights(.textEncoder))
        for (index, path) in videos.enumerated() {
            let frames = try await frames(path, video)
            let latents = encoder(backend.place(frames, as: dtype), on: backend)
            let tokens = tokenizer.encode(prompt: captions[index], length: family.textLength)
            let text = textEncoder(
                Array(tokens.ids.prefix(tokens.count)), textLength: family.textLength, on: backend)
            try writer.add(
                index, latents: backend.read(latents), text: backend.read(text.rows),
                prompt: captions[index])
            try backend.synchronize()
            Output.note("\(path.printable): sample \(index + 1) of \(videos.count)")
        }
        try writer.finish()
    }

    func caption(_ video: String) throws -> String {
        var path = FilePath(video)
        path.extension = "txt"
        let bytes: [UInt8]
        do { bytes = try path.contents() } catch {
            throw UserError("dataset.caption", "no caption of \(video): \(error)")
        }
        guard var words = String(validating: bytes, as: UTF8.self) else {
            throw UserError("dataset.caption", "\(path): captions must be UTF-8 text")
        }
        if words.hasPrefix("\u{FEFF}") { words.removeFirst() }
        let line = words.split(whereSeparator: \.isNewline).joined(separator: " ")
        guard !line.unicodeScalars.allSatisfy(\.properties.isWhitespace) else {
            throw UserError(
                "dataset.caption", "\(path) is empty: it should hold the video's caption")
        }
        return line
    }

    /// The first frames, cut and resized. → f32 [T, H, W, 3] in -1...1
    private func frames(_ path: String, _ video: Extent) async throws -> Tensor {
        let reader = try await FrameReader(path: path)
        var values: [Float] = []
        values.reserveCapacity(video.t * video.h * video.w * 3)
        for number in 0..<video.t {
            guard let pixels = try await reader.next() else {
                throw UserError(
                    "dataset.frames",
                    "\(path) has \(number) frames, expected at least \(video.t) (--num-frames)")
            }
            let whole = RGBImage(width: reader.width, height: reader.height, pixels: pixels)
            let image = resize(
                whole.middle(as: (video.w, video.h)), width: video.w, height: video.h)
            values += image.pixels.map { Float($0) / 127.5 - 1 }
        }
        return Tensor(values, [video.t, video.h, video.w, 3])
    }
}

extension RGBImage {
    /// The largest part around the middle with the sides' ratio of `shape`.
    fileprivate func middle(as shape: (width: Int, height: Int)) -> RGBImage {
        let isWide = width * shape.height > height * shape.width
        let (w, h) =
            isWide
            ? (max(1, height * shape.width / shape.height), height)
            : (width, max(1, width * shape.height / shape.width))
        let (left, top) = ((width - w) / 2, (height - h) / 2)
        var cut: [UInt8] = []
        cut.reserveCapacity(3 * w * h)
        for row in top..<top + h {
            let start = 3 * (row * width + left)
            cut += pixels[start..<start + 3 * w]
        }
        return RGBImage(width: w, height: h, pixels: cut)
    }
}
