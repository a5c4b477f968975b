/// The diffusion transformer of Wan2.1 and Wan2.2: its sizes and its tensors.
///
/// Names and shapes as in
/// https://github.com/thu-ml/TurboDiffusion/blob/aaecff5/turbodiffusion/rcm/networks/wan2pt1.py

public import Tensors

/// The sizes of a Wan transformer, detected from its tensors.
public struct WanTransformerArchitecture: Sendable, Hashable {
    /// Width of the model.
    public var dim: Int
    public var layers: Int
    public var feedForward: Int
    public var heads: Int
    /// Channels of the input latents (with conditioning) and of the output latents.
    public var inputChannels, outputChannels: Int
    /// Rows and columns of latents that make one token.
    public var patch: Int
    /// Width of the text encoder's rows.
    public var textDim: Int
    /// Width of the sinusoidal embedding of time.
    public var frequencyDim: Int
    /// Whether it has the linear branch of sparse-linear attention (`proj_l`).
    public var hasSparseLinearAttention: Bool
    /// The form of most of the linear layers in the blocks.
    public var linears: LinearFormat
    /// Whether it has a second cross attention, to CLIP features, as Wan2.1's image-to-video models do. Its
    /// tensors are not among `tensors`: this program does not run such models.
    public var hasImageBranch = false

    public var headDim: Int { dim / heads }
    /// Latents that make one token.
    public var patchCount: Int { patch * patch }

    public init(
        dim: Int, layers: Int, feedForward: Int, heads: Int, inputChannels: Int = 16,
        outputChannels: Int = 16, patch: Int = 2, textDim: Int = 4096, frequencyDim: Int = 256,
        hasSparseLinearAttention: Bool = false, linears: LinearFormat = .plain
    ) {
        self.dim = dim
        self.layers = layers
        self.feedForward = feedForward
        self.heads = heads
        self.inputChannels = inputChannels
        self.outputChannels = outputChannels
        self.patch = patch
        self.textDim = textDim
        self.frequencyDim = frequencyDim
        self.hasSparseLinearAttention = hasSparseLinearAttention
        self.linears = linears
    }

    public static let wan21T2V1B = Self(dim: 1536, layers: 30, feedForward: 8960, heads: 12)
    public static let wan21T2V14B = Self(dim: 5120, layers: 40, feedForward: 13824, heads: 40)
    public static let wan22I2VA14B = Self(
        dim: 5120, layers: 40, feedForward: 13824, heads: 40, inputChannels: 36)
    public static let nano = Self(dim: 256, layers: 10, feedForward: 1024, heads: 2, textDim: 256)

    private static let known: [(String, Self)] = [
        ("Wan2.1 T2V 1.3B", wan21T2V1B), ("Wan2.1 T2V 14B", wan21T2V14B),
        ("Wan2.2 I2V A14B", wan22I2VA14B), ("nano", nano),
    ]

    /// The published model with these sizes, or "Wan transformer".
    public var title: String {
        if hasImageBranch { return "Wan2.1 I2V (with a CLIP branch)" }
        var plain = self
        plain.hasSparseLinearAttention = false
        plain.linears = .plain
        plain.heads = dim / min(dim, 128)
        if let name = Self.known.first(where: { $0.1 == plain })?.0 { return name }
        switch (inputChannels, outputChannels) {
        case (48, 48): return "Wan transformer of 48 latent channels (as Wan2.2 TI2V-5B)"
        case (48, 16), (52, 16): return "Wan transformer with control channels (as Fun-Control)"
        default: return "Wan transformer"
        }
    }

    /// Why this program does not run a model with these sizes; nil if it does.
    public var refusal: String? {
        if hasImageBranch {
            return
                "a second cross attention to CLIP features (Wan2.1 image-to-video) is not supported"
        }
        guard dim == heads * headDim, headDim % 2 == 0 else {
            return "a transformer of width \(dim) cannot have \(heads) heads of even width"
        }
        guard frequencyDim % 2 == 0 else {
            return "the embedding of time has \(frequencyDim) numbers, expected an even number"
        }
        return nil
    }

    /// - Parameters:
    ///   - heads: needed if the head width is not 128 and cannot be told from the checkpoint (only
    ///     `proj_l` tells it).
    ///   - side: rows and columns of latents that make one token.
    init?(detecting checkpoint: any Checkpoint, heads: Int? = nil, patch side: Int = 2) {
        func shape(_ name: String) -> [Int]? { checkpoint.info(name)?.shape }
        let layers = countEntries("blocks.", in: checkpoint)
        guard layers > 0, checkpoint.names.contains(where: { $0.hasPrefix("blocks.0.self_attn.") })
        else { return nil }
        let matrix = { (name: String) in
            LinearFormat.leaves.lazy.compactMap { shape(name + "." + $0) }
                .first { $0.count == 2 }
        }
        let patch = shape("patch_embedding.weight") ?? []
        guard
            let dim = shape("blocks.0.modulation")?.last ?? patch.first
                ?? matrix("blocks.0.self_attn.q")?[1], isPlausible(dim)
        else { return nil }
        let projection = shape("blocks.0." + Self.sparseLinear + ".weight")
        let headDim = projection?.first ?? (dim % 128 == 0 ? 128 : dim)
        let patchColumns = patch.dropFirst().reduce(1, *)
        self.init(
            dim: dim, layers: layers, feedForward: matrix("blocks.0.ffn.0")?[0] ?? 4 * dim,
            heads: heads ?? (headDim > 0 ? max(dim / headDim, 1) : 1),
            inputChannels: patch.isEmpty ? 16 : patchColumns / (side * side),
            outputChannels: shape("head.head.weight").map { ($0.first ?? 64) / (side * side) }
                ?? 16,
            patch: side,
            textDim: shape("text_embedding.0.weight")?.last ?? 4096,
            frequencyDim: shape("time_embedding.0.weight")?.last ?? 256,
            hasSparseLinearAttention: projection != nil,
            linears: Self.commonStorage(checkpoint))
        hasImageBranch = shape("img_emb.proj.1.weight") != nil
        guard
            isPlausible(
                feedForward, self.heads, inputChannels, outputChannels, textDim, frequencyDim)
        else { return nil }
    }

    private static func commonStorage(_ checkpoint: any Checkpoint) -> LinearFormat {
        var counts: [LinearFormat: Int] = [:]
        for layer in linears {
            guard let form = LinearFormat.stored("blocks.0.\(layer)", in: checkpoint) else {
                continue
            }
            counts[form, default: 0] += 1
        }
        return counts.max { ($0.value, $1.key.rawValue) < ($1.value, $0.key.rawValue) }?.key
            ?? .plain
    }

    /// The linear layers of a block that quantisation replaces.
    static let linears =
        ["self_attn", "cross_attn"].flatMap { part in ["q", "k", "v", "o"].map { "\(part).\($0)" } }
        + ["ffn.0", "ffn.2"]

    /// Layers that read the same input, which has one format.
    static let sharedInputs = [
        ["self_attn.q", "self_attn.k", "self_attn.v"], ["cross_attn.k", "cross_attn.v"],
    ]

    /// The linear branch of sparse-linear attention in a block.
    static let sparseLinear = "self_attn.attn_op.local_attn.proj_l"

    /// The tensors of this model, in the order of the original's state dictionary.
    /// - Parameter checkpoint: each linear layer is expected in the form that it has in this checkpoint; nil: as
    ///   `linears` says.
    public func tensors(storedAs checkpoint: (any Checkpoint)? = nil) -> [ExpectedTensor] {
        var list: [ExpectedTensor] = []
        func dense(_ name: String, _ outputs: Int, _ inputs: Int) {
            list.append(ExpectedTensor(name + ".weight", [outputs, inputs]))
            list.append(ExpectedTensor(name + ".bias", [outputs]))
        }
        dense("patch_embedding", dim, inputChannels * patchCount)
        dense("text_embedding.0", dim, textDim)
        dense("text_embedding.2", dim, dim)
        dense("time_embedding.0", dim, frequencyDim)
        dense("time_embedding.2", dim, dim)
        dense("time_projection.1", 6 * dim, dim)
        for block in 0..<layers {
            let block = "blocks.\(block)."
            func linear(_ name: String, _ outputs: Int, _ inputs: Int) {
                let form =
                    checkpoint.flatMap { LinearFormat.stored(block + name, in: $0) } ?? linears
                list += form.tensors(block + name, outputs, inputs)
                list.append(ExpectedTensor(block + name + ".bias", [outputs]))
            }
            func vector(_ name: String) { list.append(ExpectedTensor(block + name, [dim])) }
            list.append(ExpectedTensor(block + "modulation", [1, 6, dim]))
            for part in ["self_attn", "cross_attn"] {
                for name in ["q", "k", "v", "o"] { linear("\(part).\(name)", dim, dim) }
                vector("\(part).norm_q.weight")
                vector("\(part).norm_k.weight")
                guard part == "self_attn" else { continue }
                if hasSparseLinearAttention { dense(block + Self.sparseLinear, headDim, headDim) }
                vector("norm3.weight")
                vector("norm3.bias")
            }
            linear("ffn.0", feedForward, dim)
            linear("ffn.2", dim, feedForward)
        }
        list.append(ExpectedTensor("head.modulation", [1, 2, dim]))
        dense("head.head", outputChannels * patchCount, dim)
        return list
    }
}
