/// Derivatives of sparse-linear attention and of the time embedding, in both modes.

import Models
import Tensors
import Training

/// The arithmetic and results of a case: exact ones, and where they are stored those with the kernels' roundings.
private let variants: [(prefix: String, dtype: DType, arithmetic: SparseAttention.Arithmetic)] = [
    ("", .f32, .exact), ("bf16.", .bf16, .bf16),
]

private func spec(_ fixture: Fixture, _ arithmetic: SparseAttention.Arithmetic) throws
    -> SparseAttention
{
    SparseAttention(
        topK: try fixture.double("topk_ratio"), arithmetic: arithmetic,
        queryBlock: try fixture.int("BLKQ"), keyBlock: try fixture.int("BLKK"))
}

/// in.q, in.k, in.v, in.cotangent.o: [B, L, heads, headDim]; w.proj_l.*
func checkSparseReverse(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    for (prefix, dtype, arithmetic) in variants where fixture.has("out.\(prefix)o") {
        let spec = try spec(fixture, arithmetic)
        let samples = try fixture.tensor("in.q").shape[0]
        var found: [String: [Double]] = [:]
        for sample in 0..<samples {
            func placed(_ name: String, _ dtype: DType, of sample: Int? = nil) throws -> Tensor {
                let tensor = try fixture.f32(name)
                return device.place(
                    (sample.map { tensor[$0] } ?? tensor).converted(to: dtype), as: dtype)
            }
            let names = ["q", "k", "v"]
            let heads = try names.map { try placed("in.\($0)", dtype, of: sample) }
            let projection = try placed("w.proj_l.weight", dtype)
            let bias = try placed("w.proj_l.bias", .f32)
            let recorder = Recorder(device)
            for tensor in heads + [projection, bias] { recorder.watch(tensor) }
            let o = recorder.sparseLinearAttention(
                heads[0], heads[1], heads[2], projection: .dense(projection), bias: bias, spec)
            found["o", default: []] += device.read(o).doubles()
            let gradients = recorder.backward([
                (o, try placed("in.cotangent.o", dtype, of: sample))
            ])
            for (name, tensor) in zip(names, heads) {
                found["grad.\(name)", default: []] +=
                    device.read(gradients.take(tensor)!).doubles()
            }
            for (name, tensor) in [("weight", projection), ("bias", bias)] {
                let values = device.read(gradients.take(tensor)!).doubles()
                let key = "grad.proj_l.\(name)"
                found[key] = found[key].map { zip($0, values).map(+) } ?? values
            }
            if prefix.isEmpty {
                found["block_map", default: []] +=
                    describe(device.blockMap(heads[0], heads[1], spec), on: device)["block_map"]!
            }
        }
        if let map = found.removeValue(forKey: "block_map") {
            try checks.compare("mid.block_map", map, in: fixture)
        }
        for (name, values) in found {
            try checks.compareSampled("out.\(prefix)\(name)", values, in: fixture)
        }
    }
}

/// in.tangent.q, in.tangent.k, in.tangent.v: [B, L, heads, headDim]
func checkSparseForward(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let spec = try spec(fixture, .exact)
    var found: [String: [Double]] = [:]
    var map: [Double] = []
    for sample in 0..<(try fixture.tensor("in.q").shape[0]) {
        let tangents = Tangents(device)
        let heads = try ["q", "k", "v"].map { name in
            let x = device.place(try fixture.f32("in.\(name)")[sample], as: .f32)
            tangents.move(
                x, along: device.place(try fixture.f32("in.tangent.\(name)")[sample], as: .f32))
            return x
        }
        let o = tangents.sparseLinearAttention(
            heads[0], heads[1], heads[2],
            projection: .dense(device.place(try fixture.f32("w.proj_l.weight"), as: .f32)),
            bias: device.place(try fixture.f32("w.proj_l.bias"), as: .f32), spec)
        found["o", default: []] += device.read(o).doubles()
        found["tangent.o", default: []] += device.read(tangents.tangent(of: o)!).doubles()
        map += describe(device.blockMap(heads[0], heads[1], spec), on: device)["block_map"]!
    }
    try checks.compare("mid.block_map", map, in: fixture)
    for (name, values) in found {
        try checks.compareSampled("out.\(name)", values, in: fixture)
    }
}

// MARK: - Time embedding

/// e and e0 of a sinusoid. sinusoid: [1, freq_dim] → [1, dim], [1, 6 * dim]
private func timeEmbedding(
    _ sinusoid: Tensor, _ a: [String: Tensor], on device: any Backend
) -> [String: Tensor] {
    func layer(_ x: Tensor, _ name: String, _ activation: Activation = .none) -> Tensor {
        device.linear(
            x, .dense(a["\(name).weight"]!), bias: a["\(name).bias"], activation: activation)
    }
    let hidden = layer(sinusoid, "time_embedding.0", .silu)
    let e = layer(hidden, "time_embedding.2")
    return ["e": e, "e0": layer(device.activate(e, .silu), "time_projection.1")]
}

private struct TimeCase {
    let fixture: Fixture
    let arguments: CaseArguments

    init(_ fixture: Fixture) throws {
        self.fixture = fixture
        arguments = try CaseArguments(
            Composition(inputs: [], body: { _, _, _ in [:] }), fixture)
    }

    func weights(on device: any Backend) -> [String: Tensor] {
        arguments.weights.mapValues { device.place($0, as: .f32) }
    }

    var timesteps: [Double] { get throws { try fixture.tensor("in.t").doubles() } }
}

/// in.t: [n], in.cotangent.e: [n, dim], in.cotangent.e0: [n, 6, dim]
func checkTimeReverse(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let time = try TimeCase(fixture)
    let width = try fixture.int("freq_dim")
    var found: [String: [Double]] = [:]
    for (index, timestep) in try time.timesteps.enumerated() {
        let weights = time.weights(on: device)
        let sinusoid = device.place(TimeEmbedding.sinusoid(timestep, width), as: .f32)
        let recorder = Recorder(device)
        for tensor in weights.values { recorder.watch(tensor) }
        recorder.watch(sinusoid)
        var cotangents: [(value: Tensor, cotangent: Tensor)] = []
        for (name, value) in timeEmbedding(sinusoid, weights, on: recorder) {
            found[name, default: []] += device.read(value).doubles()
            let cotangent = try fixture.f32("in.cotangent.\(name)")[index]
            cotangents.append((value, device.place(cotangent.reshaped(value.shape), as: .f32)))
        }
        let gradients = recorder.backward(cotangents)
        let bySinusoid = device.read(gradients.take(sinusoid)!).doubles()
        let slope = TimeEmbedding.sinusoidSlope(timestep, width).doubles()
        found["grad.t", default: []].append(zip(bySinusoid, slope).reduce(0) { $0 + $1.0 * $1.1 })
        for (name, tensor) in weights {
            let values = device.read(gradients.take(tensor)!).doubles()
            let key = "grad.\(name)"
            found[key] = found[key].map { zip($0, values).map(+) } ?? values
        }
    }
    for (name, values) in found {
        try checks.compareSampled("out.\(name)", values, in: fixture)
    }
}

/// in.t, in.tangent.t: [n]
func checkTimeForward(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let time = try TimeCase(fixture)
    let width = try fixture.int("freq_dim")
    let speeds = try fixture.tensor("in.tangent.t").doubles()
    let weights = time.weights(on: device)
    var found: [String: [Double]] = [:]
    for (timestep, speed) in zip(try time.timesteps, speeds) {
        let sinusoid = device.place(TimeEmbedding.sinusoid(timestep, width), as: .f32)
        let slope = TimeEmbedding.sinusoidSlope(timestep, width)
        let tangents = Tangents(device)
        tangents.move(
            sinusoid,
            along: device.place(
                Tensor(slope.floats().map { Float(Double($0) * speed) }, slope.shape), as: .f32))
        for (name, value) in timeEmbedding(sinusoid, weights, on: tangents) {
            found[name, default: []] += device.read(value).doubles()
            found["tangent.\(name)", default: []] +=
                device.read(tangents.tangent(of: value)!).doubles()
        }
    }
    for (name, values) in found {
        try checks.compareSampled("out.\(name)", values, in: fixture)
    }
}
