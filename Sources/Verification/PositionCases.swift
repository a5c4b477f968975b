/// Cases of positions and timesteps: rotary angles and their application, sinusoids.

import Models
import Tensors

/// in.token_index: [n]; out.cos, out.sin: [n, headDim / 2]
func checkRotaryTable(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let table = try rotaryTable(fixture, on: device)
    let rows = try fixture.tensor("in.token_index").doubles().map { Int($0) }
    func chosen(_ tensor: Tensor) -> [Double] {
        let values = device.read(tensor).doubles()
        let width = tensor.shape[1]
        return rows.flatMap { values[$0 * width..<($0 + 1) * width] }
    }
    try checks.compare("out.cos", chosen(table.cosine), in: fixture)
    try checks.compare("out.sin", chosen(table.sine), in: fixture)
    checks.skip("mid.freqs", "angles are kept as their cosines and sines")
}

/// in.x: [B, L, heads, headDim]. The operation normalises before it rotates. With a weight of 1, and with the norm of
/// each row multiplied back here, only the rotation remains.
func checkRotary(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let table = try rotaryTable(fixture, on: device)
    let x = try fixture.f32("in.x")
    let (tokens, heads, headDim) = (x.shape[1], x.shape[2], x.shape[3])
    let width = heads * headDim
    let ones = device.place(Tensor([Float](repeating: 1, count: width), [width]), as: .f32)
    let epsilon = 1e-6
    for (name, dtype) in [("out.y", DType.f32), ("out.y_bf16", .bf16)] where fixture.has(name) {
        var result: [Double] = []
        for sample in 0..<x.shape[0] {
            let input = x[sample].reshaped([tokens, width]).converted(to: dtype)
            let turned = device.read(
                device.rmsNormRope(
                    device.place(input, as: dtype), weight: ones, epsilon: Float(epsilon),
                    kind: .exact, rope: table, heads: heads)
            ).doubles()
            let values = input.doubles()
            for row in 0..<tokens {
                let range = row * width..<(row + 1) * width
                let squares = values[range].reduce(0) { $0 + $1 * $1 }
                let norm = (squares / Double(width) + epsilon).squareRoot()
                result += turned[range].map { $0 * norm }
            }
        }
        try checks.compare(name, result, in: fixture)
    }
    checks.skip("mid.freqs", "angles are kept as their cosines and sines")
}

private func rotaryTable(_ fixture: Fixture, on device: any Backend) throws -> RotaryTable {
    RotaryEmbedding.positions(
        Extent(
            t: try fixture.int("T"), h: try fixture.int("H"), w: try fixture.int("W")),
        headDim: try fixture.int("head_dim"), on: device
    ).rope
}

/// in.t: [n], in.t_bf16: [n] → [n, freq_dim]
func checkTimeSinusoid(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let width = try fixture.int("freq_dim")
    func embedded(_ name: String) throws -> [Double] {
        try fixture.tensor(name).doubles().flatMap {
            TimeEmbedding.sinusoid($0, width).doubles()
        }
    }
    for (input, outputs) in [
        ("in.t", ["out.emb", "out.emb_fp64"]), ("in.t_bf16", ["out.emb_from_bf16"]),
    ] {
        for output in outputs where fixture.has(output) {
            try checks.compare(output, try embedded(input), in: fixture)
        }
    }
}
