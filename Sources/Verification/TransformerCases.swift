/// Cases of the whole transformer, with its intermediate results.

import Checkpoints
import Models
import Tensors

/// The transformer of a case, run sample by sample.
struct SmallTransformer {
    let model: WanTransformer
    let device: any Backend
    let activations: DType

    init(
        _ fixture: Fixture, _ checkpoint: any Checkpoint, on device: any Backend,
        activations: DType, attention: SelfAttentionKind = .original
    ) throws {
        let config = fixture.config["dit"] ?? fixture.config
        let weights = Weights(checkpoint, on: device, activations: activations)
        model = try WanTransformer(
            weights,
            WanTransformerOptions(
                attention: attention,
                norms: config["fast_norm"]?.bool == true ? .reference : .exact,
                heads: config["num_heads"]?.int))
        self.device = device
        self.activations = activations
    }

    /// The text embedding, whose rows after the last one that is not zero are padding.
    /// context: f32 [rows, textDim] on the host
    func text(_ context: Tensor) -> TextEmbedding {
        let values = context.floats()
        let dim = context.shape[1]
        let used = values.lastIndex { $0 != 0 }.map { $0 / dim + 1 } ?? 0
        return TextEmbedding(rows: device.place(context, as: activations), count: used)
    }

    /// state: f32 [samples, C, T, H, W] on the device; context: [samples or 1, rows, textDim] and conditioning:
    /// [samples or 1, 20, T, H, W] on the host → f32 [samples, C, T, H, W]
    func velocity(
        _ state: Tensor, at timestep: Double, context: Tensor, conditioning: Tensor? = nil
    ) throws -> Tensor {
        let answers = (0..<state.shape[0]).map { sample in
            var parts = [state[sample]]
            if let conditioning {
                parts.append(
                    device.place(conditioning[min(sample, conditioning.shape[0] - 1)], as: .f32))
            }
            let prepared = model.prepare(
                text(context[min(sample, context.shape[0] - 1)]), size: size(state[sample]),
                on: device)
            return model(parts, timestep: timestep, prepared, on: device)
        }
        return device.concatenate(answers.map { $0.reshaped(Shape([1] + $0.shape.dimensions)) })
    }

    /// latents: [C, T, H, W]
    func size(_ latents: Tensor) -> Extent {
        Extent(t: latents.shape[1], h: latents.shape[2], w: latents.shape[3])
    }
}

/// The same weights with the head halved: the low-noise expert in cases that have two.
func halvedHead(_ checkpoint: any Checkpoint) -> any Checkpoint {
    ScaledCheckpoint(checkpoint, ["head.head.weight", "head.head.bias"], by: 0.5)
}

/// in.x: [B, 16, T, H, W], in.timesteps: [B, 1], in.context: [B, rows, textDim], in.y: [B, 20, T, H, W] or absent
func checkTransformer(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let dtype: DType = fixture.computeType.hasPrefix("bfloat16") ? .bf16 : .f32
    let weights = try fixture.weights.open()
    let attention = try attentionKind(fixture)
    let run = TransformerRun(
        fixture: fixture, checks: checks,
        net: try SmallTransformer(
            fixture, weights, on: device, activations: dtype, attention: attention))
    func isSupported(_ attention: SelfAttentionKind) -> Bool {
        guard case .sparse(let spec) = attention else { return true }
        return device.supports(spec.arithmetic)
    }
    if isSupported(attention) { try run.compareAll(attention: attention, weights: weights) }

    let others: [(String, SelfAttentionKind)] = [
        ("out.v_fp32", attention), ("out.v_fp32act", attention),
        ("out.v_ideal", exact(attention)),
    ]
    for (name, attention) in others where fixture.has(name) && isSupported(attention) {
        func output(on device: any Backend) throws -> Tensor {
            let net = try SmallTransformer(
                fixture, weights, on: device, activations: .f32, attention: attention)
            return device.read(
                try TransformerRun(fixture: fixture, checks: checks, net: net).output())
        }
        let result = try output(on: device)
        guard fixture.config["quant_linear"]?.bool == true else {
            try checks.compare(name, result, in: fixture)
            continue
        }
        try checks.compare(name, result, in: fixture) { seed in
            try output(on: LastPlaces(device, seed: seed))
        }
    }
    guard !isSupported(attention) else { return }
    let seen = Set(checks.results.map(\.name))
    for name in fixture.expectedNames where !seen.contains(name) {
        checks.skip(name, "\(device.name) does not support the arithmetic of this attention")
    }
}

/// The attention that the case names.
private func attentionKind(_ fixture: Fixture) throws -> SelfAttentionKind {
    guard let type = fixture.config["attention_type"]?.string, type != "original" else {
        return .original
    }
    let name = fixture.config["backend"]?.string ?? type
    guard let arithmetic = arithmetics.first(where: { $0.0 == name })?.1 else {
        throw FixtureError("unknown attention '\(name)'")
    }
    let topK = try fixture.double("sla_topk")
    guard let queryBlock = fixture.config["BLKQ"]?.int, let keyBlock = fixture.config["BLKK"]?.int
    else { return .sparse(SparseAttention(topK: topK, arithmetic: arithmetic)) }
    return .sparse(
        SparseAttention(
            topK: topK, arithmetic: arithmetic, queryBlock: queryBlock, keyBlock: keyBlock))
}

/// The same blocks without any rounding.
private func exact(_ attention: SelfAttentionKind) -> SelfAttentionKind {
    guard case .sparse(var spec) = attention else { return attention }
    spec.arithmetic = .exact
    return .sparse(spec)
}

private struct TransformerRun {
    let fixture: Fixture
    let checks: Checks
    let net: SmallTransformer

    private var device: any Backend { net.device }
    private var model: WanTransformer { net.model }

    private func parts(_ sample: Int) throws -> [Tensor] {
        var parts = [device.place(try fixture.f32("in.x")[sample], as: .f32)]
        if fixture.has("in.y") {
            parts.append(device.place(try fixture.f32("in.y")[sample], as: .f32))
        }
        return parts
    }

    private func context(_ sample: Int) throws -> WanTransformer.Context {
        let x = try fixture.tensor("in.x")[sample]
        return model.prepare(
            net.text(try fixture.f32("in.context")[sample]), size: net.size(x), on: device)
    }

    private var timesteps: [Double] {
        get throws { try fixture.tensor("in.timesteps").doubles() }
    }

    /// → f32 [B, 16, T, H, W]
    func output() throws -> Tensor {
        let timesteps = try timesteps
        return device.concatenate(
            try timesteps.indices.map { sample in
                let v = model(
                    try parts(sample), timestep: timesteps[sample], try context(sample),
                    on: device)
                return v.reshaped(Shape([1] + v.shape.dimensions))
            })
    }

    /// Runs block by block and compares everything that the case has.
    func compareAll(attention: SelfAttentionKind, weights: any Checkpoint) throws {
        var found: [String: [Double]] = [:]
        func keep(_ name: String, _ tensor: Tensor) {
            found[name, default: []] += device.read(tensor).doubles()
        }
        let timesteps = try timesteps
        for sample in timesteps.indices {
            let context = try context(sample)
            let modulation = model.modulation(at: timesteps[sample], on: device)
            try keepTimeEmbedding(modulation, weights, keep)
            keep(
                "mid.text_embed",
                model.embed(
                    net.text(try fixture.f32("in.context")[sample]).rows, on: device))
            var x = model.embed(try parts(sample), on: device)
            keep("mid.patch_embed", x)
            if fixture.has("mid.block0_q_in") {
                let (input, output) = try firstQuery(x, modulation, weights)
                keep("mid.block0_q_in", input)
                keep("mid.block0_q_out", output)
            }
            for block in 0..<model.config.layers {
                if case .sparse(let spec) = attention {
                    let (q, k) = model.queryKey(
                        x, block: block, modulation, context, on: device)
                    let map = describe(device.blockMap(q, k, spec), on: device)
                    for (name, values) in map {
                        found["mid.block\(block).\(name)", default: []] += values
                    }
                }
                model.step(&x, block: block, modulation, context, on: device)
                keep("mid.block\(block)_out", x)
            }
            keep("mid.head_out", model.project(x, modulation, on: device))
        }
        for name in fixture.expectedNames {
            if let values = found[name] { try checks.compare(name, values, in: fixture) }
        }
        try checks.compare("out.v", device.read(try output()), in: fixture)
    }

    /// Recovers e and e0 from the modulation of the head and of the first block, which is an offset in the checkpoint
    /// plus e or e0.
    private func keepTimeEmbedding(
        _ modulation: Modulation, _ weights: any Checkpoint, _ keep: (String, Tensor) -> Void
    ) throws {
        func difference(_ total: Tensor, _ offset: String) throws -> Tensor? {
            guard let offset = try weights.tensor(offset) else { return nil }
            return device.combine(
                [total, device.place(offset.reshaped(total.shape), as: .f32)], [1, -1], as: .f32)
        }
        if fixture.has("mid.e"), let e = try difference(modulation.head, "head.modulation") {
            keep("mid.e", e[0])
        }
        if fixture.has("mid.e0"),
            let e0 = try difference(modulation.blocks[0], "blocks.0.modulation")
        {
            keep("mid.e0", e0)
        }
    }

    /// Input and output of the first quantised layer: the queries of block 0, before their norm.
    private func firstQuery(
        _ x: Tensor, _ modulation: Modulation, _ weights: any Checkpoint
    ) throws -> (Tensor, Tensor) {
        let dim = model.config.dim
        let q = try Linear(
            Weights(weights, on: device, activations: net.activations)["blocks"][0]["self_attn"][
                "q"], from: dim, to: dim)
        let kind: NormKind = fixture.config["fast_norm"]?.bool == true ? .reference : .exact
        func norm(_ format: LinearFormat) -> Tensor {
            device.modulatedLayerNorm(
                x, shift: modulation.blocks[0][0], scale: modulation.blocks[0][1],
                epsilon: 1e-6, kind: kind, format: format, dtype: nil)
        }
        return (norm(.plain), q(norm(q.inputFormat), on: device))
    }
}
