/// `config.json`: the description of the model in a folder, in the form that comes with the nano model.

public import Families
import FoundationEssentials
import Ground
import Models
import SystemPackage
import Tensors

/// The keys that are understood; others are ignored.
struct Configuration: Decodable {
    struct Files: Decodable {
        var transformer, lowNoiseTransformer, textEncoder, tokenizer, vae: String?
        var names: [String] {
            [transformer, lowNoiseTransformer, textEncoder, tokenizer, vae].compactMap { $0 }
        }
    }
    struct Model: Decodable {
        struct Transformer: Decodable {
            var numHeads, inDim: Int?
            var patchSize: [Int]?
        }
        struct Autoencoder: Decodable {
            var zDim: Int?
            var dimMult: [Int]?
            var temperalDownsample: [Bool]?
        }
        var dit: Transformer?
        var vae: Autoencoder?
    }
    /// Of the distilled model.
    struct DistilledSampler: Decodable {
        var sigmaMax: Double?
        var numSteps: Int?
        var roundTimesteps: Bool?
    }
    /// Of the model that it was distilled from.
    struct FlowSampler: Decodable {
        var type: String?
        var steps: Int?
        var shift, cfg: Double?
    }
    struct SparseAttention: Decodable { var topk: Double? }
    /// From latents to small pictures.
    struct Preview: Decodable {
        var factors: [[Float]]
        var bias: [Float]
    }

    var name, negativePrompt: String?
    var model: Model?
    var files: Files?
    var textLen: Int?
    var latentMean, latentStd: [Float]?
    var fps, numFrames, width, height: Int?
    var sampler: DistilledSampler?
    var teacherSampler: FlowSampler?
    var sla: SparseAttention?
    var latentPreview: Preview?
    var trained: Training?

    init(path: String) throws(CatalogError) {
        let bytes: [UInt8]
        do { bytes = try FilePath(path).contents() } catch {
            throw .unreadable(path: path, reason: error.reason)
        }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            self = try decoder.decode(Configuration.self, from: Data(bytes))
        } catch let error as DecodingError {
            throw .unreadable(path: path, reason: error.line)
        } catch {
            throw .unreadable(path: path, reason: "\(error)")
        }
        // For the system a name ends at a NUL: the file would be another one.
        if let name = files?.names.first(where: { $0.utf8.contains(0) }) {
            throw .value(path: path, key: "files", found: name, expected: "names of files")
        }
    }
}

extension Catalog {
    /// The names of a model's files, from the bytes of its `config.json`; nil where it names none.
    public static func fileNames(configuration bytes: [UInt8]) -> [String]? {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try? decoder.decode(Configuration.self, from: Data(bytes)).files?.names
    }

    /// The names of the pieces of a file, from the bytes of its index; nil where it is none.
    public static func pieceNames(index bytes: [UInt8]) -> [String]? {
        struct Index: Decodable { var weightMap: [String: String] }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        guard let index = try? decoder.decode(Index.self, from: Data(bytes)) else { return nil }
        return Set(index.weightMap.values).sorted()
    }
}

extension Configuration {
    /// The family that the file describes, with every number checked.
    /// - Parameters:
    ///   - name: the name if the file has none.
    ///   - conditioning: assumed if the file has no `in_dim`.
    func family(named name: String, conditioning: Family.Conditioning, path: String)
        throws(CatalogError) -> Family
    {
        var geometry = LatentGeometry()
        if let patch = model?.dit?.patchSize {
            guard patch.count == 3, patch[0] == 1, patch[1] == patch[2] else {
                throw .value(
                    path: path, key: "patch_size", found: "\(patch)", expected: "[1, n, n]")
            }
            geometry.patch = patch[1]
        }
        geometry.channels = model?.vae?.zDim ?? geometry.channels
        if let levels = model?.vae?.dimMult?.count {
            let stride = 1 << min(max(levels - 1, 0), 16)
            (geometry.stride.h, geometry.stride.w) = (stride, stride)
        }
        if let halvings = model?.vae?.temperalDownsample?.count(where: { $0 }) {
            geometry.stride.t = 1 << min(halvings, 16)
        }
        try geometry.check(in: path)
        var family = conditioning == .firstFrame ? Family.wan22I2V : .wan21
        family.name = self.name ?? name
        family.geometry = geometry
        let statistics = (
            latentMean ?? LatentStatistics.wan.mean, latentStd ?? LatentStatistics.wan.std
        )
        for (key, values) in [("latent_mean", statistics.0), ("latent_std", statistics.1)]
        where values.count != geometry.channels {
            throw .value(
                path: path, key: key, found: "\(values.count) numbers",
                expected: "\(geometry.channels), one for each latent channel")
        }
        family.statistics = LatentStatistics(mean: statistics.0, std: statistics.1)
        // The usual map is of the usual autoencoder, which has these statistics.
        if family.statistics != .wan || geometry.channels != family.preview?.factors.count {
            family.preview = nil
        }
        if let latentPreview {
            family.preview = LatentPreview(
                factors: latentPreview.factors, bias: latentPreview.bias)
        }
        family.conditioning = conditioning
        if let channels = model?.dit?.inDim {
            let all = [Family.Conditioning.none, .firstFrame]
            let possible = all.map { conditioning in
                var family = family
                family.conditioning = conditioning
                return family
            }
            guard let found = possible.first(where: { $0.inputChannels == channels }) else {
                throw .value(
                    path: path, key: "in_dim", found: "\(channels)",
                    expected: possible.map { "\($0.inputChannels)" }.joined(separator: " or "))
            }
            family.conditioning = found.conditioning
        }
        family.textLength = textLen ?? family.textLength
        family.heads = model?.dit?.numHeads
        family.roundsTimesteps = sampler?.roundTimesteps ?? family.roundsTimesteps
        family.training = trained
        try fill(&family.defaults, geometry, path)
        try family.check(in: path)
        return family
    }

    private func fill(
        _ defaults: inout Family.Defaults, _ geometry: LatentGeometry, _ path: String
    ) throws(CatalogError) {
        let (multiple, largest) = (geometry.multiple, geometry.largest)
        defaults.width = width ?? min(defaults.width / multiple.w * multiple.w, largest.w)
        defaults.height = height ?? min(defaults.height / multiple.h * multiple.h, largest.h)
        defaults.frames =
            numFrames ?? min((defaults.frames - 1) / multiple.t * multiple.t + 1, largest.t)
        defaults.framesPerSecond = fps ?? defaults.framesPerSecond
        defaults.distilled.steps = sampler?.numSteps ?? defaults.distilled.steps
        defaults.distilled.sigmaMax = sampler?.sigmaMax ?? defaults.distilled.sigmaMax
        defaults.attention = sla == nil ? .original : .sla
        defaults.topK = sla?.topk ?? defaults.topK
        defaults.negativePrompt = negativePrompt ?? defaults.negativePrompt
        guard let teacher = teacherSampler else { return }
        let solvers: [String: Sampling.Solver] = [
            "euler_flow": .euler, "euler": .euler, "unipc": .unipc, "wan_unipc": .wanUniPC,
        ]
        if let type = teacher.type {
            guard let solver = solvers[type] else {
                throw .value(
                    path: path, key: "teacher_sampler.type", found: type,
                    expected: "one of " + solvers.keys.sorted().joined(separator: ", "))
            }
            defaults.flow.solver = solver
        }
        defaults.flow.steps = teacher.steps ?? defaults.flow.steps
        defaults.flow.shift = teacher.shift ?? defaults.flow.shift
        defaults.flow.guidance = teacher.cfg ?? defaults.flow.guidance
    }
}

extension LatentGeometry {
    fileprivate func check(in path: String) throws(CatalogError) {
        let check = RangeCheck(path: path)
        try check("z_dim", channels, 1...256)
        for extent in [stride.t, stride.h, stride.w] {
            try check("dim_mult or temperal_downsample", extent, 1...64, "at most 6 halvings")
        }
        try check("patch_size", patch, 1...16)
    }
}

extension Family {
    /// Throws for the first number that no model can have. Keys are those of `config.json`.
    /// - Parameter path: the file that the numbers are from, for the message.
    public func check(in path: String) throws(CatalogError) {
        try geometry.check(in: path)
        let check = RangeCheck(path: path)
        let count = geometry.channels
        let known: [(key: String, values: [Float], range: ClosedRange<Float>)] = [
            ("latent_mean", statistics.mean, -1e4...1e4),
            ("latent_std", statistics.std, 1e-4...1e4),
        ]
        for (key, values, range) in known {
            try check(key, values.count, count...count, "\(count) numbers")
            for value in values { try check(key, value, range) }
        }
        if let preview {
            let rows = preview.factors + [preview.bias]
            guard preview.factors.count == geometry.channels,
                rows.allSatisfy({ $0.count == 3 && $0.allSatisfy(\.isFinite) })
            else {
                throw .value(
                    path: path, key: "latent_preview",
                    found: "factors of \(preview.factors.count) channels",
                    expected: "three finite numbers for the bias and for each of "
                        + "\(geometry.channels) channels")
            }
        }
        try check("text_len", textLength, 1...4096)
        try check("num_heads", heads, 1...1024)
        let (multiple, largest) = (geometry.multiple, geometry.largest)
        try check("width", defaults.width, multiple.w...largest.w)
        try check("height", defaults.height, multiple.h...largest.h)
        try check("num_frames", defaults.frames, 1...largest.t)
        try check("fps", defaults.framesPerSecond, 1...240)
        try check("sampler.num_steps", defaults.distilled.steps, 1...4)
        try check("sampler.sigma_max", defaults.distilled.sigmaMax, Sampling.sigmaMaxRange)
        try check(
            "sla.topk", defaults.topK, Double.leastNormalMagnitude...1, "above 0 and at most 1")
        try check("teacher_sampler.steps", defaults.flow.steps, 1...1000)
        try check("teacher_sampler.shift", defaults.flow.shift, Sampling.shiftRange)
        try check("teacher_sampler.cfg", defaults.flow.guidance, Sampling.guidanceRange)
    }
}

/// Refuses values out of range, naming the file that they are from.
private struct RangeCheck {
    let path: String

    func callAsFunction<T: Comparable>(
        _ key: String, _ value: T?, _ range: ClosedRange<T>, _ expected: String? = nil
    ) throws(CatalogError) {
        guard let value, !range.contains(value) else { return }
        throw .value(
            path: path, key: key, found: "\(value)",
            expected: expected ?? "\(range.lowerBound) to \(range.upperBound)")
    }
}
