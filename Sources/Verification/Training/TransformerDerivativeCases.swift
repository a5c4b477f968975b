/// Derivatives of the whole transformer, in both modes.

import Checkpoints
import Models
import Tensors
import Training

/// A net of a training case.
struct TrainingNet {
    let net: Net
    let fixture: Fixture
    let device: any Backend

    /// - Parameter isTrained: whether its parameters are copied and watched; SLA's projections start at zero where the
    ///   checkpoint has none.
    init(
        _ fixture: Fixture, _ checkpoint: any Checkpoint, on device: any Backend,
        attention: SelfAttentionKind, isTrained: Bool, recomputation: Recomputation = .none
    ) throws {
        self.fixture = fixture
        self.device = device
        let isHalf = fixture.computeType.hasPrefix("bfloat16")
        let (heads, layers) = (try fixture.int("num_heads"), try fixture.int("num_layers"))
        var missing: [(name: String, shape: Shape)] = []
        if case .sparse = attention {
            let width = try fixture.int("dim") / heads
            missing = SparseProjection.parameters(layers: layers, headDim: width)
        }
        let dtype: DType = isHalf ? .bf16 : .f32
        net = Net(
            isTrained || !missing.isEmpty
                ? try Parameters(checkpoint, as: dtype, missing: missing) : checkpoint,
            WanTransformerOptions(attention: attention, heads: heads), activations: dtype,
            recomputation: recomputation, on: device)
    }

    /// The attention that the case names for the trained net.
    static func attention(_ fixture: Fixture) throws -> SelfAttentionKind {
        guard fixture.config["attention_type"]?.string == "sla" else { return .original }
        return .sparse(
            SparseAttention(
                topK: try fixture.double("sla_topk"),
                arithmetic: fixture.computeType.hasPrefix("bfloat16") ? .bf16 : .exact,
                queryBlock: try fixture.int("BLKQ"), keyBlock: try fixture.int("BLKK")))
    }

    /// The block maps of every layer at these latents, as 0 and 1.
    func blockMaps(_ x: Tensor, at timestep: Double, _ text: Text) throws -> [[Double]] {
        guard case .sparse(let spec) = net.options.attention else { return [] }
        let model = try net.model()
        let modulation = model.modulation(at: timestep, on: device)
        let context = model.prepare(
            TextEmbedding(
                rows: device.place(text.rows, as: net.activations), count: text.count),
            size: Extent(t: x.shape[1], h: x.shape[2], w: x.shape[3]), on: device)
        var state = model.embed([device.place(x, as: .f32)], on: device)
        return (0..<model.config.layers).map { layer in
            let (q, k) = model.queryKey(state, block: layer, modulation, context, on: device)
            model.step(&state, block: layer, modulation, context, on: device)
            return describe(device.blockMap(q, k, spec), on: device)["block_map"]!
        }
    }
}

/// Sums of gradients by parameter.
struct GradientSums {
    private(set) var values: [String: [Double]] = [:]

    mutating func add(_ gradients: [String: Tensor], on device: any Backend) {
        for (name, gradient) in gradients {
            let more = device.read(gradient).doubles()
            values[name] = values[name].map { zip($0, more).map(+) } ?? more
        }
    }

    /// Compares with every `prefix.name` of the case.
    func compare(_ prefix: String, _ checks: Checks, in fixture: Fixture) throws {
        for (name, gradient) in values where fixture.has("\(prefix).\(name)") {
            try checks.compareSampled("\(prefix).\(name)", gradient, in: fixture)
        }
    }
}

/// in.x: [B, 16, T, H, W], in.timesteps: [B, 1], in.context: [B, rows, textDim], in.cotangent.v as in.x
func checkTransformerReverse(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let attention = try TrainingNet.attention(fixture)
    var bits: [[String: Tensor]] = []
    for recomputation in Recomputation.allCases {
        let net = try TrainingNet(
            fixture, try fixture.weights.open(), on: device, attention: attention, isTrained: true,
            recomputation: recomputation)
        let timesteps = try fixture.tensor("in.timesteps").doubles()
        let (xs, contexts) = (try fixture.f32("in.x"), try fixture.f32("in.context"))
        let cotangents = try fixture.f32("in.cotangent.v")
        var sums = GradientSums()
        var velocity: [Double] = []
        var latents: [Double] = []
        var maps: [[Double]] = []
        for (sample, timestep) in timesteps.enumerated() {
            let text = Text(contexts[sample])
            let recorded = try net.net.recorded(
                xs[sample], at: timestep, text, watchesLatents: true)
            velocity += recorded.velocity.doubles()
            let found = recorded.gradients(cotangents[sample])
            sums.add(found.parameters, on: device)
            latents += device.read(found.latents!).doubles()
            if sample == 0 { bits.append(found.parameters) }
            for (layer, map) in try net.blockMaps(xs[sample], at: timestep, text).enumerated() {
                if maps.count <= layer { maps.append([]) }
                maps[layer] += map
            }
        }
        guard recomputation == .none else { continue }
        try checks.compareSampled("out.v", velocity, in: fixture)
        try checks.compareSampled("out.grad.x", latents, in: fixture)
        try sums.compare("out.grad", checks, in: fixture)
        for (layer, map) in maps.enumerated() {
            try checks.compare("mid.block\(layer).block_map", map, in: fixture)
        }
    }
    // Recomputation and repetition give the same bits.
    for (name, gradient) in bits[0] where !device.equalBits(gradient, bits[1][name]!) {
        checks.fail("out.grad.\(name)", "other bits where blocks are computed again")
    }
}

/// in.tangent.x, in.tangent.timesteps as in.x and in.timesteps
func checkTransformerForward(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let attention = try TrainingNet.attention(fixture)
    let net = try TrainingNet(
        fixture, try fixture.weights.open(), on: device, attention: attention, isTrained: false)
    let timesteps = try fixture.tensor("in.timesteps").doubles()
    let speeds = try fixture.tensor("in.tangent.timesteps").doubles()
    let (xs, contexts) = (try fixture.f32("in.x"), try fixture.f32("in.context"))
    let directions = try fixture.f32("in.tangent.x")
    var found: [String: [Double]] = [:]
    for (sample, timestep) in timesteps.enumerated() {
        let text = Text(contexts[sample])
        let result = try net.net.moving(
            xs[sample], along: directions[sample], at: timestep, along: speeds[sample], text)
        found["out.v", default: []] += result.velocity.doubles()
        found["out.tangent.v", default: []] += result.tangent.doubles()
        for (layer, map) in try net.blockMaps(xs[sample], at: timestep, text).enumerated() {
            found["mid.block\(layer).block_map", default: []] += map
        }
    }
    for (name, values) in found { try checks.compareSampled(name, values, in: fixture) }
}
