/// `turbodiffusion compare`: how much two videos, pictures or latents differ.

import ArgumentParser
import Checkpoints
import Ground
import Media
import Quality
import Tensors
import Terminal

struct CompareCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "compare",
        abstract: "Measure how much two videos, pictures or latents differ.",
        discussion: """
            Videos, animations, pictures and sequences (frames/%04d.png) are compared frame by frame: PSNR over all \
            channels, SSIM (11x11 Gaussian windows) of the luma. Files of tensors are compared tensor by tensor.

            Example:
              turbodiffusion compare video.mp4 again.mp4 --picture difference.png
            """)

    @Argument(help: "The reference.", completion: .file())
    var first: String
    @Argument(help: "What to compare with it.", completion: .file())
    var second: String
    @Option(
        help: "Write a picture: reference, other, and their difference times eight.",
        completion: .file())
    var picture: String?
    @Flag(help: "Replace the picture if it exists.")
    var force = false
    @Flag(help: "Print JSON.")
    var json = false
    @Flag(help: "Print only the overall figures, not those of each frame.")
    var summary = false

    private struct Frame: Encodable {
        var frame: Int
        var psnr: Double?
        var ssim: Double
    }
    private struct Overall: Encodable {
        var frames: Int
        /// Absent where the videos are equal.
        var psnr: Double?
        var ssim: Double
    }
    private struct TensorDistance: Encodable {
        var tensor: String
        /// JSON has no infinities: figures are left out where only one of two values is a finite number.
        var relativeL2, maximum: Double?
        var nonFinite: Int?
        var equal: Bool?
        var notCompared: String?
    }

    func run() async throws {
        if Self.isTensorFile(first), Self.isTensorFile(second) {
            guard picture == nil else {
                throw UserError("compare", "--picture draws frames, not tensors: leave it out")
            }
            return try compareTensors()
        }
        if let picture { try await checkPicture(picture) }
        let (a, b) = (try await FrameReader(path: first), try await FrameReader(path: second))
        guard a.width == b.width, a.height == b.height else {
            throw UserError(
                "compare",
                "\(first) has frames of \(a.width)x\(a.height), \(second) of \(b.width)x\(b.height)"
            )
        }
        let size = a.frameBytes
        var (count, total, similarity) = (0, 0.0, 0.0)
        while true {
            let (x, y) = (try await a.next(), try await b.next())
            guard let x, let y else {
                if x == nil && y == nil { break }
                throw UserError(
                    "compare",
                    "\(x == nil ? first : second) has only \(count) frames, the other has more")
            }
            let error = FrameDistance.squaredError(x[...], y[...])
            let ssim = FrameDistance.similarity(x[...], y[...], width: a.width, height: a.height)
            total += error
            similarity += ssim
            show(Frame(frame: count, psnr: FrameDistance.psnr(error / Double(size)), ssim: ssim))
            count += 1
        }
        let overall = Overall(
            frames: count, psnr: FrameDistance.psnr(total / Double(size * count)),
            ssim: similarity / Double(count))
        if json {
            Output.json(overall)
        } else {
            Output.line(
                "overall: PSNR \(Self.decibels(overall.psnr)), SSIM \(fixed(overall.ssim, 5)), "
                    + "\(overall.frames) frames")
        }
        if let picture { try await draw(count, to: picture) }
    }

    private func show(_ frame: Frame) {
        if summary { return }
        if json { return Output.json(frame) }
        Output.line(
            "frame \(frame.frame): PSNR \(Self.decibels(frame.psnr)), "
                + "SSIM \(fixed(frame.ssim, 5))")
    }

    private static func decibels(_ value: Double?) -> String {
        value.map { fixed($0, 2) + " dB" } ?? "infinite (equal)"
    }

    // MARK: Tensors

    private static func isTensorFile(_ path: String) -> Bool {
        [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf", ".index.json"]
            .contains { path.hasSuffix($0) }
    }

    private func compareTensors() throws {
        let (a, b) = (try openCheckpoint(first), try openCheckpoint(second))
        let difference = try CheckpointDifference(a, b)
        guard difference.common.contains(where: { $0.distance != nil }) else {
            throw UserError(
                "compare", "\(first) and \(second) share no tensor of the same name and shape")
        }
        for tensor in difference.common { show(tensor) }
        let others =
            difference.onlyInFirst.map { ($0.name, "only in \(first)") }
            + difference.onlyInSecond.map { ($0.name, "only in \(second)") }
            + difference.notCompared.map { ($0, "its element type is not supported") }
        for (name, reason) in others {
            if json {
                Output.json(TensorDistance(tensor: name, notCompared: reason))
            } else {
                Output.line("\(name.printable): not compared: \(reason.printable)")
            }
        }
    }

    private func show(_ tensor: CheckpointDifference.Comparison) {
        let name = tensor.name.printable
        guard let distance = tensor.distance else {
            let reason = "shapes \(tensor.first.shape) and \(tensor.second.shape)"
            return json
                ? Output.json(TensorDistance(tensor: tensor.name, notCompared: reason))
                : Output.line("\(name): not compared: \(reason)")
        }
        if json {
            return Output.json(
                TensorDistance(
                    tensor: tensor.name,
                    relativeL2: distance.relative.isFinite ? distance.relative : nil,
                    maximum: distance.largest.isFinite ? distance.largest : nil,
                    nonFinite: distance.nonFinite, equal: distance.isEqual))
        }
        let rest =
            distance.nonFinite > 0
            ? ", \(distance.nonFinite) elements finite in only one of the two" : ""
        Output.line(
            "\(name): relative L2 \(distance.relative), largest difference \(distance.largest)\(rest)"
        )
    }

    // MARK: Picture

    /// Refuses what could not be written, before anything is compared.
    private func checkPicture(_ path: String) async throws {
        do {
            try await VideoWriter.check(
                VideoWriter.Options(path: path, replaces: force, width: 16, height: 16), frames: 1)
        } catch { throw UserError(error, takesPicture: false) }
    }

    /// Draws up to four of `count` frames, evenly spaced, one per row.
    private func draw(_ count: Int, to path: String) async throws {
        let (a, b) = (try await FrameReader(path: first), try await FrameReader(path: second))
        let rows = min(4, count)
        let (width, height) = (a.width, a.height)
        var image = RGBImage(width: 3 * width, height: rows * height, red: 0, green: 0, blue: 0)
        var row = 0
        for frame in 0..<count {
            guard let x = try await a.next(), let y = try await b.next() else { break }
            guard frame == (rows == 1 ? 0 : row * (count - 1) / (rows - 1)) else { continue }
            for line in 0..<height {
                for index in 0..<width * 3 {
                    let (p, q) = (x[line * width * 3 + index], y[line * width * 3 + index])
                    let target = ((row * height + line) * 3 * width) * 3 + index
                    image.pixels[target] = p
                    image.pixels[target + width * 3] = q
                    image.pixels[target + 2 * width * 3] = UInt8(
                        clamping: 8 * abs(Int(p) - Int(q)))
                }
            }
            row += 1
        }
        let writer = try VideoWriter(
            VideoWriter.Options(
                path: path, replaces: force, width: image.width, height: image.height))
        try await writer.append(image)
        try await writer.finish()
    }
}
