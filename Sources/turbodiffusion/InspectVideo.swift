/// `turbodiffusion inspect` of a video: the request that it was made from.

import Catalog
import Delivery
import Families
import Ground
import Media
import Runs
import Tensors
import Terminal

/// What a video's metadata says about how it was made.
struct VideoSummary {
    let path: String
    let stored: StoredRun

    /// Whether the name ends like a video's or a picture's.
    static func isVideo(_ path: String) -> Bool {
        switch try? VideoFormat(path: path) {
        case nil, .pngSequence, .raw: false
        default: true
        }
    }

    init(path: String) async throws {
        guard let text = try await readMetadata(path: path) else {
            throw StoredRunError.noRequest(path: path)
        }
        self.path = path
        stored = try StoredRun(json: text, path: path)
    }

    /// Titles and values. Text that comes from the file is quoted.
    var lines: [(title: String, text: String)] {
        let request = stored.request
        var lines = [("made by", stored.program.debugDescription)]
        lines.append(("prompt", request.prompt.debugDescription))
        if let negative = request.negativePrompt, request.sampling.isGuided {
            lines.append(("negative", negative.debugDescription))
        }
        if let image = request.image { lines.append(("picture", image.debugDescription)) }
        lines.append(
            (
                "video",
                "\(request.width)x\(request.height), \(request.frames) frame\(request.frames == 1 ? "" : "s"), "
                    + "\(request.framesPerSecond) per second"
            ))
        lines.append(("seed", "\(request.seed)"))
        if request.samples > 1 {
            let which = stored.sample.map { "sample \($0) of" } ?? "all of"
            lines.append(("samples", "\(which) \(request.samples)"))
        }
        lines.append(("sampling", request.sampling.summary))
        let arithmetic = request.arithmetic
        let sparse = arithmetic.attention == .original ? "" : " (top \(arithmetic.topK))"
        lines.append(
            (
                "arithmetic",
                "\(arithmetic.attention.rawValue)\(sparse), linears \(arithmetic.linears.rawValue), "
                    + "\(arithmetic.precision.rawValue), norms \(arithmetic.norms.rawValue)"
            ))
        for lora in request.loras {
            lines.append(("LoRA", "\(lora.path.debugDescription), strength \(lora.strength)"))
        }
        lines.append(("model", stored.model.debugDescription))
        for file in ModelFile.allCases {
            guard let identity = stored.files[file] else { continue }
            lines.append((file.title, described(identity)))
        }
        for input in StoredInput.allCases {
            guard let identity = stored.inputs[input] else { continue }
            lines.append(("from \(input.rawValue)", described(identity)))
        }
        return lines
    }

    private func described(_ file: FileIdentity) -> String {
        "\(file.name.debugDescription), \(describe(bytes: file.bytes))"
    }

    func show() {
        Output.line("\(path.printable): a video made by this program")
        let width = lines.map(\.title.count).max() ?? 0
        for (title, text) in lines {
            Output.line(title + String(repeating: " ", count: width + 2 - title.count) + text)
        }
    }
}

extension Sampling {
    fileprivate var summary: String {
        switch self {
        case .distilled(let settings):
            "rcm, \(settings.steps) steps from \(settings.sigmaMax)" + (settings.ode ? ", ode" : "")
        case .flow(let settings):
            "\(settings.solver.rawValue), \(settings.steps) steps, shift \(settings.shift), "
                + "guidance \(settings.guidance)"
                + (settings.sigmaMax.map { ", from \($0)" } ?? "")
        }
    }
}
