/// What a request says, field by field, before it is known for which model.

import Families
import FoundationEssentials
import Ground
import Jobs
import Media
import Runs
import Tensors

/// The fields of a request as values. nil was not said.
struct Draft: Sendable, Hashable {
    var prompt, negativePrompt, model, user: String?
    var width, height: Int?
    /// A named size.
    var resolution: String?
    var seconds: Double?
    var frames, framesPerSecond, steps, crf: Int?
    var seed: UInt64?
    var guidance, shift, sigmaMax, boundary, topK: Double?
    var ode: Bool?
    var solver: String?
    var attention: AttentionChoice?
    var linears: LinearChoice?
    var precision: Precision?
    /// By name.
    var loras: [RequestedLoRA]?
    /// An encoded picture.
    var picture: [UInt8]?

    /// - Throws: `APIError` for a field that is not known, or says what cannot be done here.
    init(_ body: Body) throws(APIError) {
        for (name, value) in body.fields.sorted(by: { $0.key < $1.key }) {
            if case .json(.null) = value { continue }
            try set(name, Field(name: name, value: value))
        }
    }

    private mutating func set(_ name: String, _ field: Field) throws(APIError) {
        switch name {
        case "prompt": prompt = try field.text(limit: 32000)
        case "negative_prompt": negativePrompt = try field.text(limit: 32000)
        case "model": model = try field.text(limit: 200)
        case "user": user = try field.text(limit: 512)
        case "size", "resolution": try setSize(field)
        case "width": width = try field.integer()
        case "height": height = try field.integer()
        case "seconds": seconds = try field.number(0.01...3600)
        case "num_frames", "frames": frames = try field.integer()
        case "fps": framesPerSecond = try field.integer()
        case "seed": seed = try field.seed()
        case "num_inference_steps", "steps": steps = try field.integer()
        case "guidance_scale", "true_cfg_scale": guidance = try field.number(0...1000)
        case "flow_shift", "shift": shift = try field.number(0...1000)
        case "boundary_ratio", "boundary": boundary = try field.number(0...1)
        case "sigma_max": sigmaMax = try field.number(0...1e6)
        case "ode": ode = try field.bool()
        case "sampler":
            solver = try field.choice(["rcm"] + Sampling.Solver.allCases.map(\.rawValue))
        case "attention_type": attention = try field.choice()
        case "sla_topk": topK = try field.number(0...1)
        case "linears": linears = try field.choice()
        case "precision": precision = try field.choice()
        case "crf": crf = try field.integer(0...51)
        case "lora", "loras": loras = try field.loras()
        case "input_reference", "image_reference", "image":
            guard picture == nil else {
                throw .invalid("conflict", "there are two pictures", param: name)
            }
            picture = try field.picture()
        case "n", "num_outputs_per_prompt":
            guard try field.integer() == 1 else {
                throw .invalid(
                    "unsupported_field",
                    "\(name) must be 1: send further requests with other seeds",
                    param: name)
            }
        default: try refuse(name, field)
        }
    }

    /// Fields of other engines that ask for nothing are let through.
    private func refuse(_ name: String, _ field: Field) throws(APIError) {
        let others: Set<String> = [
            "guidance_scale_2", "generator_device", "max_sequence_length", "enable_teacache",
            "enable_frame_interpolation", "frame_interpolation_exp", "frame_interpolation_scale",
            "frame_interpolation_model_path", "enable_upscaling", "upscaling_scale",
            "upscaling_model_path", "generate_sound", "sound_duration", "output_quality",
            "output_compression", "output_path", "perf_dump_path", "diffusers_kwargs",
            "reference_url", "video_reference", "audio_reference", "video_path", "video_url",
            "quality",
        ]
        guard others.contains(name) else {
            throw .invalid(
                "unknown_field", "there is no field '\(name.prefix(80))'",
                param: String(name.prefix(80)))
        }
        if field.asksForNothing { return }
        throw .invalid("unsupported_field", "'\(name)' is not done by this service", param: name)
    }

    private mutating func setSize(_ field: Field) throws(APIError) {
        let text = try field.text(limit: 40)
        let sides = text.lowercased().split(separator: "x", omittingEmptySubsequences: false)
        if sides.count == 2, let width = Int(sides[0]), let height = Int(sides[1]) {
            (self.width, self.height) = (self.width ?? width, self.height ?? height)
        } else if Resolution.names.contains(text.lowercased()) {
            resolution = text.lowercased()
        } else {
            throw .value(
                field.name, "'\(text)'",
                expected: "WIDTHxHEIGHT or one of \(Resolution.names.joined(separator: ", "))")
        }
    }
}

// MARK: - A request

extension Draft {
    /// The request for a model.
    /// - Parameters:
    ///   - base: the request that is changed; nil: what the family has where nothing is said.
    ///   - draw: a seed where none is said.
    func request(for family: Family, base: Request? = nil, draw: () -> UInt64) throws(APIError)
        -> Request
    {
        var request = base ?? Request("", for: family)
        guard let prompt = prompt ?? base?.prompt else {
            throw .invalid(
                "missing_field", "prompt is missing: what the video shows", param: "prompt")
        }
        request.prompt = prompt
        request.negativePrompt = negativePrompt ?? request.negativePrompt
        if let resolution {
            do {
                let size = try Resolution(resolution)
                (request.width, request.height) = (size.width, size.height)
            } catch { throw APIError(error) }
        }
        request.width = width ?? request.width
        request.height = height ?? request.height
        request.framesPerSecond = framesPerSecond ?? request.framesPerSecond
        if let frames {
            request.frames = frames
        } else if let seconds {
            // The next number of frames that the model makes.
            let multiple = family.geometry.multiple.t
            let wanted = (seconds * Double(request.framesPerSecond)).rounded()
            guard wanted < 1e6 else {
                throw .value("seconds", "\(seconds)", expected: "what the model can make")
            }
            request.frames = 1 + max(0, (Int(wanted) - 1 + multiple - 1) / multiple * multiple)
        }
        request.seed = seed ?? base?.seed ?? draw()
        request.boundary = boundary ?? request.boundary
        request.loras = loras ?? request.loras
        try setSampling(&request, family)
        request.arithmetic.attention = attention ?? request.arithmetic.attention
        request.arithmetic.topK = topK ?? request.arithmetic.topK
        request.arithmetic.linears = linears ?? request.arithmetic.linears
        request.arithmetic.precision = precision ?? request.arithmetic.precision
        return request
    }

    private func setSampling(_ request: inout Request, _ family: Family) throws(APIError) {
        if let solver {
            request.sampling.use(Sampling.Solver(rawValue: solver), of: family.defaults)
        }
        if let steps { request.sampling.steps = steps }
        switch request.sampling {
        case .distilled(var settings):
            for (name, value) in [("guidance_scale", guidance), ("flow_shift", shift)] {
                // 1 and 0 ask for no guidance.
                guard let value, !(name == "guidance_scale" && value <= 1) else { continue }
                throw .invalid(
                    "conflict",
                    "\(name) is for undistilled models: leave it out, or name a sampler",
                    param: name)
            }
            settings.sigmaMax = sigmaMax ?? settings.sigmaMax
            settings.ode = ode ?? settings.ode
            request.sampling = .distilled(settings)
        case .flow(var settings):
            if ode == true {
                throw .invalid("conflict", "ode is for distilled models", param: "ode")
            }
            settings.sigmaMax = sigmaMax ?? settings.sigmaMax
            settings.guidance = guidance ?? settings.guidance
            settings.shift = shift ?? settings.shift
            request.sampling = .flow(settings)
        }
    }
}

// MARK: - Values

/// One field on its way to a value: as JSON has it, or as the text of a form.
private struct Field {
    let name: String
    let value: FieldValue

    private var json: JSON {
        if case .json(let json) = value { json } else { .null }
    }

    private var shown: String {
        if case .json(let json) = value { json.text } else { "a file" }
    }

    /// The text of a number or a text.
    private var word: String? {
        switch json {
        case .string(let text): text.trimmed
        case .number(let digits): digits
        default: nil
        }
    }

    /// Whether it says what is done anyway.
    var asksForNothing: Bool {
        switch json {
        case .bool(false): true
        case .string(let text): ["", "false", "none", "null", "0"].contains(text.lowercased())
        case .number(let digits): Double(digits) == 0
        case .array(let values): values.isEmpty
        case .object(let members): members.isEmpty
        default: false
        }
    }

    func text(limit: Int) throws(APIError) -> String {
        guard case .string(let text) = json else {
            throw .value(name, shown, expected: "a text")
        }
        guard text.unicodeScalars.count <= limit else {
            throw .value(
                name, "\(text.unicodeScalars.count) characters",
                expected: "at most \(limit) characters")
        }
        return text
    }

    func integer(_ range: ClosedRange<Int> = 0...1_000_000) throws(APIError) -> Int {
        let expected = "a whole number from \(range.lowerBound) to \(range.upperBound)"
        guard let word, let number = Double(word), number == number.rounded(),
            number.magnitude < 1e15, range.contains(Int(number))
        else { throw .value(name, shown, expected: expected) }
        return Int(number)
    }

    func number(_ range: ClosedRange<Double>) throws(APIError) -> Double {
        guard let word, let number = Double(word), range.contains(number) else {
            throw .value(
                name, shown, expected: "a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    /// nil for -1, which asks for one that is drawn.
    func seed() throws(APIError) -> UInt64? {
        if word == "-1" { return nil }
        guard let word, let seed = UInt64(word) else {
            throw .value(name, shown, expected: "a whole number from 0 to 18446744073709551615")
        }
        return seed
    }

    func bool() throws(APIError) -> Bool {
        switch json {
        case .bool(let value): return value
        case .string(let text) where ["true", "1"].contains(text.lowercased()): return true
        case .string(let text) where ["false", "0", ""].contains(text.lowercased()): return false
        default: throw .value(name, shown, expected: "true or false")
        }
    }

    func choice(_ choices: [String]) throws(APIError) -> String {
        guard case .string(let text) = json, choices.contains(text) else {
            throw .value(name, shown, expected: "one of \(choices.joined(separator: ", "))")
        }
        return text
    }

    func choice<Value: RawRepresentable<String> & CaseIterable>() throws(APIError) -> Value {
        let text = try choice(Value.allCases.map(\.rawValue))
        guard let value = Value(rawValue: text) else {
            throw .value(name, shown, expected: "known")
        }
        return value
    }

    // MARK: LoRAs

    func loras() throws(APIError) -> [RequestedLoRA] {
        switch json {
        case .array(let values): return try values.map { value throws(APIError) in try lora(value) }
        case .string(let text) where text.hasPrefix("{") || text.hasPrefix("["):
            guard let parsed = try? JSON(parsing: Array(text.utf8)) else {
                throw .value(name, shown, expected: "an object or a list of them")
            }
            return try Field(name: name, value: .json(parsed)).loras()
        default: return [try lora(json)]
        }
    }

    private func lora(_ json: JSON) throws(APIError) -> RequestedLoRA {
        if case .string(let lora) = json { return RequestedLoRA(lora) }
        guard case .object(let members) = json else {
            throw .value(name, json.text, expected: "a name or {\"name\": …, \"scale\": …}")
        }
        var lora = RequestedLoRA("")
        for (key, value) in members {
            let field = Field(name: "\(name)[\(key)]", value: .json(value))
            switch key {
            case "name": lora.path = try field.text(limit: 200)
            case "scale", "strength", "weight": lora.strength = Float(try field.number(-100...100))
            case "expert":
                switch try field.choice(["high_noise", "low_noise"]) {
                case "high_noise": lora.expert = .highNoise
                default: lora.expert = .lowNoise
                }
            case "int_id": break
            default:
                throw .invalid(
                    "unknown_field",
                    "there is no field '\(field.name.prefix(80))'; LoRAs are named",
                    param: String(field.name.prefix(80)))
            }
        }
        guard !lora.path.isEmpty else {
            throw .invalid("missing_field", "\(name)[name] is missing", param: "\(name)[name]")
        }
        return lora
    }

    // MARK: Pictures

    func picture() throws(APIError) -> [UInt8] {
        switch value {
        case .file(let bytes):
            guard !bytes.isEmpty else { throw .value(name, "an empty file", expected: "a picture") }
            return bytes
        case .json(.string(let text)):
            // SGLang's clients send the object as text.
            if text.hasPrefix("{"), let parsed = try? JSON(parsing: Array(text.utf8)) {
                return try Field(name: name, value: .json(parsed)).picture()
            }
            return try dataURL(text)
        case .json(.object(let members)):
            if case .string(let text)? = members["image_url"], members.count == 1 {
                return try dataURL(text)
            }
            if case .object(let inner)? = members["image_url"],
                case .string(let text)? = inner["url"]
            {
                return try dataURL(text)
            }
            throw .invalid(
                "unsupported_field",
                "\(name) must be a file, a data: URL, or {\"image_url\": \"data:…\"}; files are not kept here",
                param: name)
        default: throw .value(name, shown, expected: "a file or a data: URL")
        }
    }

    /// `data:image/png;base64,…`. No other URL is opened: this service reads only what it is sent.
    private func dataURL(_ text: String) throws(APIError) -> [UInt8] {
        guard text.hasPrefix("data:"), let comma = text.firstIndex(of: ","),
            text[..<comma].hasSuffix(";base64")
        else {
            throw .value(
                name, "'\(text.prefix(40))…'",
                expected: "a file, or a URL that begins with data:image/…;base64,")
        }
        let payload = String(text[text.index(after: comma)...])
        guard let data = Data(base64Encoded: payload, options: .ignoreUnknownCharacters),
            !data.isEmpty
        else { throw .value(name, "damaged", expected: "a picture in base64") }
        return [UInt8](data)
    }
}
