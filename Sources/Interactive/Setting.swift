/// What can be set while the session goes on, and what each setting does to a request.

public import Families
import Ground
import Media
public import Runs

/// A setting by its name: that of the command line's option, or a shorter one.
public enum Setting: String, Sendable, CaseIterable, Codable {
    case model, prompt
    case negativePrompt = "negative_prompt"
    case image = "image_path"
    case resolution
    case aspectRatio = "aspect_ratio"
    case adaptiveResolution = "adaptive_resolution"
    case frames = "num_frames"
    case fps, seed
    case samples = "num_samples"
    case sampler
    case steps = "num_steps"
    case sigmaMax = "sigma_max"
    case ode, guidance, shift, boundary
    case attention = "attention_type"
    case topK = "sla_topk"
    case linears, precision
    case lora
    case crf
    case output = "save_path"
    case preview

    /// - Returns: nil where no setting has the name.
    public init?(named name: String) {
        var name = name.lowercased().replacing("-", with: "_")
        while name.hasPrefix("_") { name.removeFirst() }
        let short: [String: Setting] = [
            "image": .image, "size": .resolution, "aspect": .aspectRatio,
            "adaptive": .adaptiveResolution, "frames": .frames, "samples": .samples,
            "steps": .steps, "sigma": .sigmaMax, "attention": .attention, "topk": .topK,
            "top_k": .topK, "linear": .linears, "loras": .lora, "output": .output,
        ]
        guard let setting = Setting(rawValue: name) ?? short[name] else { return nil }
        self = setting
    }

    /// What its value may be, in words.
    public var values: String {
        switch self {
        case .model: "a model's name or folder"
        case .prompt: "what the video shows"
        case .negativePrompt: "what guidance steers away from"
        case .image: "the picture that the video starts with"
        case .resolution: "480p, 720p or WIDTHxHEIGHT"
        case .aspectRatio: Resolution.aspectRatios.joined(separator: ", ")
        case .adaptiveResolution: "on or off: the picture's shape"
        case .frames: "4n + 1"
        case .fps: "1 to 240"
        case .seed: "a number, or random"
        case .samples: "1 to \(Request.mostSamples)"
        case .sampler: "rcm, \(Sampling.Solver.allCases.map(\.rawValue).joined(separator: ", "))"
        case .steps: "1 to 4 for distilled models"
        case .sigmaMax: "the noise level of the first step"
        case .ode: "on or off"
        case .guidance, .shift: "a number, for undistilled models"
        case .boundary: "0 to 1: where the second expert takes over"
        case .attention: AttentionChoice.allCases.map(\.rawValue).joined(separator: ", ")
        case .topK: "above 0, at most 1"
        case .linears: LinearChoice.allCases.map(\.rawValue).joined(separator: ", ")
        case .precision: Precision.allCases.map(\.rawValue).joined(separator: ", ")
        case .lora: "FILE or FILE:STRENGTH, several after commas, or none"
        case .crf: "0 to 51, less is better"
        case .output: "the file that the next video is written to"
        case .preview: PictureKind.names.joined(separator: ", ")
        }
    }

    /// Its values where they can be listed.
    var choices: [String] {
        switch self {
        case .resolution: ["480p", "720p"]
        case .aspectRatio: Resolution.aspectRatios
        case .adaptiveResolution, .ode: ["on", "off"]
        case .seed: ["random"]
        case .sampler: ["rcm"] + Sampling.Solver.allCases.map(\.rawValue)
        case .attention: AttentionChoice.allCases.map(\.rawValue)
        case .linears: LinearChoice.allCases.map(\.rawValue)
        case .precision: Precision.allCases.map(\.rawValue)
        case .preview: PictureKind.names
        default: []
        }
    }

    var takesFile: Bool { [.image, .lora, .output, .model].contains(self) }
}

/// A line that says what was expected.
public struct SettingError: Error, Sendable, Hashable, CustomStringConvertible {
    public let description: String

    init(_ description: String) { self.description = description }
}

/// The values that were set, over the request that the session began with.
public struct Settings: Sendable, Hashable {
    /// As they were typed.
    public private(set) var values: [Setting: String] = [:]

    public init() {}

    public subscript(_ setting: Setting) -> String? {
        get { values[setting] }
        set { values[setting] = newValue }
    }

    /// The request of a base with the values that were set.
    /// - Parameters:
    ///   - family: whose own values a sampler of another kind begins with.
    ///   - draw: a seed where it is random.
    /// - Throws: ``SettingError`` for a text that is no value.
    public func request(
        _ base: Request, for family: Family,
        draw: () -> UInt64 = { UInt64.random(in: 0...UInt64(UInt32.max)) }
    ) throws(SettingError) -> Request {
        var request = base
        // In the order of the cases: a sampler comes before its steps, a size before its shape.
        for setting in Setting.allCases {
            if let text = values[setting] { try apply(setting, text, &request, family, draw) }
        }
        return request
    }

    private func apply(
        _ setting: Setting, _ text: String, _ request: inout Request, _ family: Family,
        _ draw: () -> UInt64
    ) throws(SettingError) {
        func wrong() -> SettingError {
            SettingError("\(setting.rawValue) must be \(setting.values), not '\(text)'")
        }
        func integer() throws(SettingError) -> Int {
            guard let value = Int(text) else { throw wrong() }
            return value
        }
        func number() throws(SettingError) -> Double {
            guard let value = Double(text), value.isFinite else { throw wrong() }
            return value
        }
        func choice<T: RawRepresentable<String>>() throws(SettingError) -> T {
            guard let value = T(rawValue: text.lowercased()) else { throw wrong() }
            return value
        }
        switch setting {
        case .prompt: request.prompt = text
        case .negativePrompt: request.negativePrompt = text
        case .image: request.image = text
        case .resolution, .aspectRatio:
            // One of them is applied with the other.
            if setting == .aspectRatio, values[.resolution] != nil { return }
            try setSize(&request)
        case .frames: request.frames = try integer()
        case .fps: request.framesPerSecond = try integer()
        case .samples: request.samples = try integer()
        case .seed:
            if text.lowercased() == "random" || text == "-1" {
                request.seed = draw()
            } else if let seed = UInt64(text) {
                request.seed = seed
            } else {
                throw wrong()
            }
        case .sampler:
            var solver: Sampling.Solver?
            if text.lowercased() != "rcm" { solver = try choice() as Sampling.Solver }
            request.sampling.use(solver, of: family.defaults)
        case .steps: request.sampling.steps = try integer()
        case .sigmaMax, .guidance, .shift: try setSampling(setting, try number(), &request)
        case .ode:
            let isOn = try isOn(setting)
            guard case .distilled(var settings) = request.sampling else {
                if isOn { throw SettingError("ode is for distilled models: /set sampler rcm") }
                return
            }
            settings.ode = isOn
            request.sampling = .distilled(settings)
        case .boundary: request.boundary = try number()
        case .attention: request.arithmetic.attention = try choice()
        case .topK: request.arithmetic.topK = try number()
        case .linears: request.arithmetic.linears = try choice()
        case .precision: request.arithmetic.precision = try choice()
        case .lora: request.loras = try loras(text)
        case .adaptiveResolution: _ = try isOn(setting)
        case .crf:
            guard (0...63).contains(try integer()) else { throw wrong() }
        case .preview:
            guard PictureKind.names.contains(text) else { throw wrong() }
        case .model, .output: break
        }
    }

    private func setSize(_ request: inout Request) throws(SettingError) {
        let text = (values[.resolution] ?? "").lowercased()
        let sides = text.split(separator: "x", omittingEmptySubsequences: false).map { Int($0) }
        if sides.count == 2, let width = sides[0], let height = sides[1] {
            (request.width, request.height) = (width, height)
            return
        }
        let name =
            text.isEmpty ? (request.width * request.height > 600_000 ? "720p" : "480p") : text
        do {
            let size = try Resolution(name, aspectRatio: values[.aspectRatio] ?? "16:9")
            (request.width, request.height) = (size.width, size.height)
        } catch {
            throw SettingError("\(error)")
        }
    }

    private func setSampling(_ setting: Setting, _ value: Double, _ request: inout Request)
        throws(SettingError)
    {
        switch request.sampling {
        case .distilled(var settings):
            guard setting == .sigmaMax else {
                throw SettingError(
                    "\(setting.rawValue) is for undistilled models: /set sampler unipc")
            }
            settings.sigmaMax = value
            request.sampling = .distilled(settings)
        case .flow(var settings):
            switch setting {
            case .guidance: settings.guidance = value
            case .shift: settings.shift = value
            default: settings.sigmaMax = value
            }
            request.sampling = .flow(settings)
        }
    }

    private func loras(_ text: String) throws(SettingError) -> [RequestedLoRA] {
        if ["none", "off"].contains(text.lowercased()) { return [] }
        var loras: [RequestedLoRA] = []
        for part in text.split(separator: ",") {
            let word = part.trimmed
            var lora = RequestedLoRA(word)
            if let colon = word.lastIndex(of: ":"),
                let strength = Float(word[word.index(after: colon)...])
            {
                guard strength.isFinite else {
                    throw SettingError("the strength of a LoRA must be a number, not '\(word)'")
                }
                lora = RequestedLoRA(String(word[..<colon]), strength: strength)
            }
            loras.append(lora)
        }
        return loras
    }

    /// Whether a switch is on; false where it was not set.
    func isOn(_ setting: Setting) throws(SettingError) -> Bool {
        switch values[setting]?.lowercased() {
        case nil, "off", "false", "no", "0": return false
        case "on", "true", "yes", "1": return true
        case let text?: throw SettingError("\(setting.rawValue) must be on or off, not '\(text)'")
        }
    }

    // MARK: Requests that were made before

    /// The settings that make a request out of any base of its model.
    public init(_ request: Request) {
        values[.prompt] = request.prompt
        values[.negativePrompt] = request.negativePrompt
        values[.image] = request.image
        values[.resolution] = "\(request.width)x\(request.height)"
        values[.frames] = "\(request.frames)"
        values[.fps] = "\(request.framesPerSecond)"
        values[.seed] = "\(request.seed)"
        values[.samples] = "\(request.samples)"
        switch request.sampling {
        case .distilled(let settings):
            values[.sampler] = "rcm"
            values[.sigmaMax] = "\(settings.sigmaMax)"
            values[.ode] = settings.ode ? "on" : "off"
        case .flow(let settings):
            values[.sampler] = settings.solver.rawValue
            values[.sigmaMax] = settings.sigmaMax.map { "\($0)" }
            values[.guidance] = "\(settings.guidance)"
            values[.shift] = "\(settings.shift)"
        }
        values[.steps] = "\(request.sampling.steps)"
        values[.boundary] = "\(request.boundary)"
        values[.attention] = request.arithmetic.attention.rawValue
        values[.topK] = "\(request.arithmetic.topK)"
        values[.linears] = request.arithmetic.linears.rawValue
        values[.precision] = request.arithmetic.precision.rawValue
        if !request.loras.isEmpty {
            values[.lora] = request.loras.map { "\($0.path):\($0.strength)" }.joined(separator: ",")
        }
    }
}
