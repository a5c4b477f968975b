/// Derivatives of single operations and of small compositions of them, in both modes.

import Checkpoints
import Models
import Tensors
import Training

/// A function of a case's inputs and weights, of one sample.
struct Composition: Sendable {
    /// Inputs that have a value for each sample; weights are shared.
    var inputs: [String]
    /// Results by name. `arguments` holds inputs and weights under their names without prefix.
    var body:
        @Sendable (any Backend, _ arguments: [String: Tensor], Fixture) throws -> [String: Tensor]
    /// Whether the first axis of the inputs is not one of samples.
    var isWhole = false
}

/// The composition of an operation of this name, without `_vjp` or `_jvp`.
private let compositions: [String: Composition] = [
    "linear": Composition(inputs: ["x"]) { device, a, _ in
        ["y": device.linear(a["x"]!, .dense(a["weight"]!), bias: a["bias"])]
    },
    "linear_gelu_tanh": Composition(inputs: ["x"]) { device, a, _ in
        ["y": device.linear(a["x"]!, .dense(a["weight"]!), bias: a["bias"], activation: .geluTanh)]
    },
    "gelu_tanh": Composition(
        inputs: ["x"], body: { device, a, _ in ["y": device.activate(a["x"]!, .geluTanh)] },
        isWhole: true),
    "silu": Composition(
        inputs: ["x"], body: { device, a, _ in ["y": device.activate(a["x"]!, .silu)] },
        isWhole: true),
    "softmax": Composition(inputs: ["x"], body: softmax, isWhole: true),
    "layernorm_affine": Composition(inputs: ["x"]) { device, a, fixture in
        [
            "y": device.layerNorm(
                a["x"]!, weight: a["weight"], bias: a["bias"], epsilon: try epsilon(fixture),
                kind: .exact, format: .plain)
        ]
    },
    "layernorm_modulate": Composition(inputs: ["x", "shift", "scale"]) { device, a, fixture in
        [
            "y": device.modulatedLayerNorm(
                a["x"]!, shift: a["shift"]!, scale: a["scale"]!, epsilon: try epsilon(fixture),
                kind: .exact, format: .plain, dtype: nil)
        ]
    },
    "rmsnorm": Composition(inputs: ["x"]) { device, a, fixture in
        ["y": try rmsNorm(a["x"]!, a["weight"]!, fixture, on: device)]
    },
    "rmsnorm_rope": Composition(inputs: ["x"]) { device, a, fixture in
        ["y": try turned(a["x"]!, a["weight"]!, fixture, on: device)]
    },
    "rope": Composition(inputs: ["x"]) { device, a, fixture in
        ["y": device.rotate(a["x"]!, try rope(fixture, headDim: a["x"]!.shape[2], on: device))]
    },
    "gated_add": Composition(inputs: ["x", "y", "gate"]) { device, a, _ in
        ["out": device.gatedAdd(a["x"]!, a["y"]!, gate: a["gate"])]
    },
    "modulation": Composition(inputs: ["e0"]) { device, a, _ in
        ["m": modulated(a["modulation"]!, a["e0"]!, on: device)]
    },
    "head": Composition(inputs: ["x", "e"]) { device, a, fixture in
        let dim = a["x"]!.shape[1]
        let offset = device.reshape(a["modulation"]!, [2, dim])
        let m = device.gatedAdd(offset, ones([2, dim], on: device), gate: a["e"])
        let y = device.modulatedLayerNorm(
            a["x"]!, shift: device.entry(m, 0), scale: device.entry(m, 1), epsilon: 1e-6,
            kind: .exact, format: .plain, dtype: nil)
        return ["y": device.linear(y, .dense(a["head.weight"]!), bias: a["head.bias"])]
    },
    "patch_embed": Composition(inputs: ["x"]) { device, a, _ in
        let tokens = device.patchify([a["x"]!], dtype: a["x"]!.dtype)
        return ["y": device.linear(tokens, .dense(a["weight"]!), bias: a["bias"])]
    },
    "unpatchify": Composition(inputs: ["y"]) { device, a, fixture in
        let grid = try grid(fixture)
        return [
            "x": device.unpatchify(a["y"]!, size: Extent(t: grid.t, h: 2 * grid.h, w: 2 * grid.w))
        ]
    },
    "text_embedding": Composition(inputs: ["context"]) { device, a, _ in
        let hidden = device.linear(
            a["context"]!, .dense(a["text_embedding.0.weight"]!), bias: a["text_embedding.0.bias"],
            activation: .geluTanh)
        return [
            "y": device.linear(
                hidden, .dense(a["text_embedding.2.weight"]!), bias: a["text_embedding.2.bias"])
        ]
    },
    "attention": Composition(inputs: ["q", "k", "v"]) { device, a, _ in
        ["o": device.attention(a["q"]!, a["k"]!, a["v"]!, scale: headScale(a["q"]!))]
    },
    "attention_multiplicity": Composition(inputs: ["q", "k", "v"]) { device, a, fixture in
        [
            "o": device.attention(
                a["q"]!, a["k"]!, a["v"]!, scale: headScale(a["q"]!),
                lastKeyCounts: [try fixture.int("copies")])
        ]
    },
    "self_attention": Composition(inputs: ["x"]) { device, a, fixture in
        ["y": try selfAttention(a["x"]!, a, "", fixture, on: device)]
    },
    "cross_attention": Composition(inputs: ["x", "context"]) { device, a, fixture in
        ["y": try crossAttention(a["x"]!, a["context"]!, a, "", fixture, on: device)]
    },
    "block": Composition(inputs: ["x", "e0", "context"], body: block),
]

/// The softmax of rows as attention whose keys and values are the unit vectors.
private func softmax(_ device: any Backend, _ a: [String: Tensor], _: Fixture) -> [String: Tensor] {
    let (rows, n) = (a["x"]!.shape[0], a["x"]!.shape[1])
    let unit = device.place(
        Tensor((0..<n * n).map { Float($0 / n == $0 % n ? 1 : 0) }, [n, 1, n]), as: .f32)
    let y = device.attention(device.reshape(a["x"]!, [rows, 1, n]), unit, unit, scale: 1)
    return ["y": device.reshape(y, [rows, n])]
}

private func epsilon(_ fixture: Fixture) throws -> Float { Float(try fixture.double("eps")) }

private func headScale(_ q: Tensor) -> Float { 1 / Float(q.shape[2]).squareRoot() }

private func ones(_ shape: Shape, on device: any Backend) -> Tensor {
    device.place(Tensor([Float](repeating: 1, count: shape.count), shape), as: .f32)
}

private func grid(_ fixture: Fixture) throws -> Extent {
    guard let grid = fixture.config["grid"]?.ints, grid.count == 3 else {
        throw FixtureError("config lacks 'grid'")
    }
    return Extent(t: grid[0], h: grid[1], w: grid[2])
}

private func rope(_ fixture: Fixture, headDim: Int, on device: any Backend) throws -> RotaryTable {
    RotaryEmbedding.positions(try grid(fixture), headDim: headDim, on: device).rope
}

private func rmsNorm(
    _ x: Tensor, _ weight: Tensor, _ fixture: Fixture, on device: any Backend
) throws -> Tensor {
    device.rmsNorm(
        x, weight: weight, epsilon: try epsilon(fixture), kind: .exact, format: .plain)
}

/// q or k of self-attention: normalised and rotated. x: [tokens, dim] → [tokens, heads, headDim]
private func turned(
    _ x: Tensor, _ weight: Tensor, _ fixture: Fixture, on device: any Backend
) throws -> Tensor {
    let heads = try fixture.int("heads")
    return device.rmsNormRope(
        x, weight: weight, epsilon: try epsilon(fixture), kind: .exact,
        rope: try rope(fixture, headDim: x.shape[1] / heads, on: device), heads: heads)
}

/// modulation + e0 by rows. [1, 6, dim], [6, dim] → [6, dim]
private func modulated(_ offset: Tensor, _ e0: Tensor, on device: any Backend) -> Tensor {
    let count = e0.shape.count
    let sum = device.gatedAdd(
        device.reshape(offset, [1, count]), ones([1, count], on: device),
        gate: device.reshape(e0, [count]))
    return device.reshape(sum, e0.shape)
}

private func layer(
    _ x: Tensor, _ a: [String: Tensor], _ name: String, on device: any Backend
) -> Tensor {
    device.linear(x, .dense(a["\(name).weight"]!), bias: a["\(name).bias"])
}

private func selfAttention(
    _ x: Tensor, _ a: [String: Tensor], _ prefix: String, _ fixture: Fixture,
    on device: any Backend
) throws -> Tensor {
    let q = try turned(
        layer(x, a, prefix + "q", on: device), a[prefix + "norm_q.weight"]!, fixture, on: device)
    let k = try turned(
        layer(x, a, prefix + "k", on: device), a[prefix + "norm_k.weight"]!, fixture, on: device)
    let v = device.reshape(layer(x, a, prefix + "v", on: device), q.shape)
    let y = device.attention(q, k, v, scale: headScale(q))
    return layer(device.reshape(y, x.shape), a, prefix + "o", on: device)
}

private func crossAttention(
    _ x: Tensor, _ context: Tensor, _ a: [String: Tensor], _ prefix: String, _ fixture: Fixture,
    on device: any Backend
) throws -> Tensor {
    let heads = try fixture.int("heads")
    func split(_ y: Tensor) -> Tensor {
        device.reshape(y, [y.shape[0], heads, y.shape[1] / heads])
    }
    let q = split(
        try rmsNorm(
            layer(x, a, prefix + "q", on: device), a[prefix + "norm_q.weight"]!, fixture,
            on: device))
    let k = split(
        try rmsNorm(
            layer(context, a, prefix + "k", on: device), a[prefix + "norm_k.weight"]!, fixture,
            on: device))
    let v = split(layer(context, a, prefix + "v", on: device))
    let y = device.attention(q, k, v, scale: headScale(q))
    return layer(device.reshape(y, x.shape), a, prefix + "o", on: device)
}

private func block(
    _ device: any Backend, _ a: [String: Tensor], _ fixture: Fixture
) throws -> [String: Tensor] {
    let m = modulated(a["modulation"]!, a["e0"]!, on: device)
    func row(_ index: Int) -> Tensor { device.entry(m, index) }
    func normed(_ x: Tensor, _ first: Int) throws -> Tensor {
        device.modulatedLayerNorm(
            x, shift: row(first), scale: row(first + 1), epsilon: try epsilon(fixture),
            kind: .exact, format: .plain, dtype: nil)
    }
    var x = a["x"]!
    x = device.gatedAdd(
        x, try selfAttention(try normed(x, 0), a, "self_attn.", fixture, on: device), gate: row(2))
    let queries = device.layerNorm(
        x, weight: a["norm3.weight"], bias: a["norm3.bias"], epsilon: try epsilon(fixture),
        kind: .exact, format: .plain)
    x = device.add(
        x, try crossAttention(queries, a["context"]!, a, "cross_attn.", fixture, on: device))
    let hidden = device.linear(
        try normed(x, 3), .dense(a["ffn.0.weight"]!), bias: a["ffn.0.bias"],
        activation: .geluTanh)
    return [
        "y": device.linearAdd(
            hidden, .dense(a["ffn.2.weight"]!), bias: a["ffn.2.bias"], to: x, gate: row(5))
    ]
}

// MARK: - Running them

/// The inputs and weights of one case, as they are placed.
struct CaseArguments {
    let composition: Composition
    let fixture: Fixture
    let dtype: DType
    let weights: [String: Tensor]

    init(_ composition: Composition, _ fixture: Fixture) throws {
        self.composition = composition
        self.fixture = fixture
        dtype = fixture.computeType.hasPrefix("bfloat16") ? .bf16 : .f32
        var found: [String: Tensor] = [:]
        for name in fixture.tensorNames where name.hasPrefix("w.") {
            found[String(name.dropFirst(2))] = try fixture.f32(name)
        }
        // Weights may be in the case of the same name in the other mode.
        if found.isEmpty, fixture.weights.entry != nil {
            let other = try fixture.weights.open()
            for name in other.names where name.hasPrefix("w.") {
                found[String(name.dropFirst(2))] = try other.tensor(name)!.converted(to: .f32)
            }
        }
        weights = found
    }

    var samples: Int {
        get throws {
            composition.isWhole ? 1 : try fixture.tensor("in.\(composition.inputs[0])").shape[0]
        }
    }

    /// The share of a sample in a tensor of the case.
    func part(_ name: String, _ sample: Int) throws -> Tensor {
        let tensor = try fixture.f32(name)
        // A copy: samples of one tensor would be one value to who watches them by their storage.
        let part = composition.isWhole ? tensor : tensor[sample]
        return Tensor(part.floats(), part.shape)
    }

    /// Inputs and weights on a device.
    func place(_ sample: Int, on device: any Backend) throws -> [String: Tensor] {
        var arguments: [String: Tensor] = [:]
        for (name, weight) in weights { arguments[name] = device.place(weight, as: .f32) }
        for name in composition.inputs {
            arguments[name] = device.place(
                try part("in.\(name)", sample).converted(to: dtype), as: dtype)
        }
        return arguments
    }
}

/// loss = sum over results of <result, cotangent>; `out.grad.…` by inputs and weights.
func checkReverse(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    guard let composition = compositions[String(fixture.operation.dropLast(4))] else {
        throw FixtureError("no composition for '\(fixture.operation)'")
    }
    let arguments = try CaseArguments(composition, fixture)
    var values: [String: [Double]] = [:]
    var inputs: [String: [Double]] = [:]
    var weights: [String: [Double]] = [:]
    for sample in 0..<(try arguments.samples) {
        let recorder = Recorder(device)
        let placed = try arguments.place(sample, on: device)
        for tensor in placed.values { recorder.watch(tensor) }
        let results = try composition.body(recorder, placed, fixture)
        var cotangents: [(value: Tensor, cotangent: Tensor)] = []
        for (name, result) in results {
            values[name, default: []] += device.read(result).doubles()
            let cotangent = try arguments.part("in.cotangent.\(name)", sample)
            cotangents.append(
                (
                    result,
                    device.place(
                        cotangent.converted(to: result.dtype).reshaped(result.shape),
                        as: result.dtype)
                ))
        }
        let gradients = recorder.backward(cotangents)
        for (name, tensor) in placed {
            let gradient =
                gradients.take(tensor).map { device.read($0).doubles() }
                ?? [Double](repeating: 0, count: tensor.shape.count)
            if composition.inputs.contains(name) {
                inputs[name, default: []] += gradient
            } else if let sum = weights[name] {
                weights[name] = zip(sum, gradient).map(+)
            } else {
                weights[name] = gradient
            }
        }
    }
    for (name, value) in values { try checks.compareSampled("out.\(name)", value, in: fixture) }
    for (name, gradient) in inputs.merging(weights, uniquingKeysWith: { a, _ in a })
    where fixture.has("out.grad.\(name)") {
        try checks.compareSampled("out.grad.\(name)", gradient, in: fixture)
    }
}

/// `out.tangent.…` along `in.tangent.…`; what has no tangent is constant.
func checkForward(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    guard let composition = compositions[String(fixture.operation.dropLast(4))] else {
        throw FixtureError("no composition for '\(fixture.operation)'")
    }
    let arguments = try CaseArguments(composition, fixture)
    var values: [String: [Double]] = [:]
    for sample in 0..<(try arguments.samples) {
        let tangents = Tangents(device)
        let placed = try arguments.place(sample, on: device)
        for name in composition.inputs where fixture.has("in.tangent.\(name)") {
            let x = placed[name]!
            let tangent = try arguments.part("in.tangent.\(name)", sample)
            tangents.move(
                x, along: device.place(tangent.converted(to: x.dtype), as: x.dtype))
        }
        for (name, result) in try composition.body(tangents, placed, fixture) {
            values[name, default: []] += device.read(result).doubles()
            guard let tangent = tangents.tangent(of: result) else {
                return checks.fail("out.tangent.\(name)", "the result does not move")
            }
            values["tangent.\(name)", default: []] += device.read(tangent).doubles()
        }
    }
    for (name, value) in values { try checks.compareSampled("out.\(name)", value, in: fixture) }
    if fixture.has("out.lse") {
        checks.skip("out.lse", "the denominators stay inside the operation")
    }
}
