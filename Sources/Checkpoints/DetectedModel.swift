/// Which model a checkpoint holds, and which of its tensors are missing, wrong or superfluous.

public import Tensors

/// A model recognised by the names and shapes of its tensors.
public enum DetectedModel: Sendable, Hashable {
    case wanTransformer(WanTransformerArchitecture)
    case umT5(UMT5Architecture)
    case wanVAE(WanVAEArchitecture)

    /// nil if the checkpoint contains no known model.
    /// - Parameters:
    ///   - heads: needed for a transformer whose head width is not 128 and cannot be told from the file.
    ///   - patch: for a transformer, rows and columns of latents that make one token.
    public init?(_ checkpoint: any Checkpoint, heads: Int? = nil, patch: Int = 2) {
        let transformer = WanTransformerArchitecture(
            detecting: checkpoint, heads: heads, patch: patch)
        if let model = transformer {
            self = .wanTransformer(model)
        } else if let model = UMT5Architecture(detecting: checkpoint) {
            self = .umT5(model)
        } else if let model = WanVAEArchitecture(detecting: checkpoint) {
            self = .wanVAE(model)
        } else {
            return nil
        }
    }

    public enum Kind: String, Sendable, CaseIterable {
        case wanTransformer = "Wan transformer"
        case umT5 = "umT5 encoder"
        case wanVAE = "Wan VAE"
    }

    public var kind: Kind {
        switch self {
        case .wanTransformer: .wanTransformer
        case .umT5: .umT5
        case .wanVAE: .wanVAE
        }
    }

    /// The name of the published model with these sizes, or of the kind.
    public var title: String {
        switch self {
        case .wanTransformer(let model): model.title
        case .umT5(let model): model.title
        case .wanVAE(let model): model.title
        }
    }

    /// Why this program does not run the model; nil if it does.
    public var refusal: String? {
        switch self {
        case .wanTransformer(let model): model.refusal
        case .umT5(let model): model.refusal
        case .wanVAE(let model): model.refusal
        }
    }

    /// The tensors that this model needs, with linear layers in the form that they have in `checkpoint`.
    public func tensors(storedAs checkpoint: (any Checkpoint)? = nil) -> [ExpectedTensor] {
        switch self {
        case .wanTransformer(let model): model.tensors(storedAs: checkpoint)
        case .umT5(let model): model.tensors(storedAs: checkpoint)
        case .wanVAE(let model): model.tensors()
        }
    }

    /// The number of blocks, the linear layers of each that quantisation replaces, and which of these read the same input.
    /// Nothing of an autoencoder is quantised.
    var quantizable: (blocks: Int, layers: [String], sharing: [[String]]) {
        switch self {
        case .wanTransformer(let model):
            (
                model.layers, WanTransformerArchitecture.linears,
                WanTransformerArchitecture.sharedInputs
            )
        case .umT5(let model):
            (model.layers, UMT5Architecture.linears, UMT5Architecture.sharedInputs)
        case .wanVAE: (0, [], [])
        }
    }

    /// Sizes by name, for people and for JSON.
    public var properties: [(name: String, value: String)] {
        switch self {
        case .wanTransformer(let model):
            [
                ("dim", "\(model.dim)"), ("layers", "\(model.layers)"),
                ("heads", "\(model.heads)"), ("head_dim", "\(model.headDim)"),
                ("ffn_dim", "\(model.feedForward)"), ("in_dim", "\(model.inputChannels)"),
                ("out_dim", "\(model.outputChannels)"), ("text_dim", "\(model.textDim)"),
                ("freq_dim", "\(model.frequencyDim)"),
                ("attention", model.hasSparseLinearAttention ? "sla" : "plain"),
                ("linears", model.linears.rawValue),
            ]
        case .umT5(let model):
            [
                ("vocab_size", "\(model.vocabulary)"), ("dim", "\(model.dim)"),
                ("dim_attn", "\(model.attentionDim)"), ("ffn_dim", "\(model.feedForward)"),
                ("heads", "\(model.heads)"), ("layers", "\(model.layers)"),
                ("buckets", "\(model.buckets)"),
            ]
        case .wanVAE(let model):
            [
                ("dim", "\(model.dim)"), ("z_dim", "\(model.latentChannels)"),
                ("encoder", model.hasEncoder ? "yes" : "no"),
                ("decoder", model.hasDecoder ? "yes" : "no"),
            ]
        }
    }
}

/// Everything that a checkpoint's header says about it.
public struct CheckpointSummary: Sendable {
    public struct Mismatch: Sendable, Hashable {
        public let name: String
        public let expected, found: [Int]
        public let dtype: String
        /// The expected element type, in words.
        public let type: String
    }

    public let path: String
    public let format: CheckpointFormat?
    public let tensors: [TensorInfo]
    public let metadata: [String: String]
    /// Decisions made while reading.
    public let notes: [String]
    public let model: DetectedModel?
    /// Why the tensors cannot be used, such as an unsupported quantisation.
    public let refusal: CheckpointError?
    /// Whose names the tensors have; nil if the model is unknown.
    public let layout: KeyLayout?
    /// Tensors that the model needs but the file lacks, in the model's order.
    public let missing: [ExpectedTensor]
    /// Tensors that the model does not use, in the file's order.
    public let surplus: [String]
    /// Tensors with a shape or element type that does not fit.
    public let mismatched: [Mismatch]

    public var parameters: Int { tensors.reduce(0) { $0 + $1.shape.reduce(1, *) } }
    public var byteCount: Int { tensors.reduce(0) { $0 + $1.byteCount } }

    /// Tensors and bytes by element type, the most bytes first.
    public var types: [(dtype: DType, tensors: Int, byteCount: Int)] {
        Dictionary(grouping: tensors, by: \.dtype)
            .map { ($0.key, $0.value.count, $0.value.reduce(0) { $0 + $1.byteCount }) }
            .sorted { ($0.2, $0.0.rawValue) > ($1.2, $1.0.rawValue) }
    }

    /// Other programs' names are understood; missing tensors have their original names.
    /// - Parameters: see ``DetectedModel/init(_:heads:patch:)``.
    public init(_ checkpoint: any Checkpoint, heads: Int? = nil, patch: Int = 2) {
        path = checkpoint.path
        format = checkpoint.format
        metadata = checkpoint.metadata
        notes = checkpoint.notes
        tensors = checkpoint.names.compactMap { checkpoint.info($0) }
        layout = KeyLayout.detect(checkpoint.names)?.1
        var original = checkpoint
        var refusal: CheckpointError?
        if layout != nil {
            do throws(CheckpointError) {
                original = try inOriginalNames(checkpoint)
            } catch {
                refusal = error
            }
        }
        self.refusal = refusal
        model = DetectedModel(original, heads: heads, patch: patch)
        let expected = model?.tensors(storedAs: original) ?? []
        missing = expected.filter { original.info($0.name) == nil }
        mismatched = expected.compactMap { tensor in
            guard let info = original.info(tensor.name), !tensor.accepts(info) else {
                return nil
            }
            return Mismatch(
                name: tensor.name, expected: tensor.shape, found: info.shape,
                dtype: "\(info.dtype)", type: tensor.content.type)
        }
        let known = Set(expected.map(\.name))
        surplus = model == nil ? [] : original.names.filter { !known.contains($0) }
    }

    /// Whether the file has everything that its model needs, in the right shapes.
    public var isComplete: Bool {
        model != nil && missing.isEmpty && mismatched.isEmpty && refusal == nil
    }

    /// The model, which must be of the given kind.
    /// - Throws: `.wrongModel`, naming the first differences.
    @discardableResult
    public func require(_ kind: DetectedModel.Kind) throws(CheckpointError) -> DetectedModel {
        if let model, model.kind == kind { return model }
        if let refusal { throw refusal }
        let markers =
            switch kind {
            case .wanTransformer: ["patch_embedding.weight", "blocks.0.self_attn.q.weight"]
            case .umT5: ["token_embedding.weight", "blocks.0.attn.q.weight"]
            case .wanVAE: ["encoder.conv1.weight", "decoder.conv1.weight"]
            }
        let names = Set(tensors.map(\.name))
        // Quantised layers have codes in place of weights.
        let absent = markers.filter { marker in
            let (layer, leaf) = splitLeaf(marker)
            return !["", "int8_", "fp8_"].contains { names.contains("\(layer).\($0)\(leaf)") }
        }.map { "it has no '\($0)'" }
        let first = tensors.first.map { ["it begins with '\($0.name)' \($0.shape)"] } ?? []
        throw .wrongModel(
            path: path, expected: "a \(kind.rawValue)".replacingArticle,
            found: model.map { "a \($0.title)".replacingArticle } ?? "no known model",
            differences: absent + first)
    }
}

extension String {
    /// "a umT5 encoder" → "an umT5 encoder"
    fileprivate var replacingArticle: String {
        hasPrefix("a u") ? "an" + dropFirst() : self
    }
}
