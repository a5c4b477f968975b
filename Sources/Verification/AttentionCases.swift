/// Cases of attention: sparse-linear attention and its 8-bit operands, cross attention, umT5's position bias.

import Tensors

/// Results by name; those of a batch's samples one after the other.
private typealias Collected = [String: [Double]]

/// in.q, in.k, in.v: bf16 [B, L, H, D]; every arithmetic and block shape that the case has results for.
func checkSparseLinearAttention(
    _ fixture: Fixture, _ device: any Backend, _ checks: Checks
) throws {
    let topK = try fixture.double("topk_ratio")
    let q = try fixture.tensor("in.q")
    let k = try fixture.tensor("in.k")
    let v = try fixture.tensor("in.v")
    var collected: Collected = [:]
    for sample in 0..<q.shape[0] {
        let case_ = AttentionCase(
            fixture: fixture, device: device, topK: topK, q: q[sample], k: k[sample],
            v: v[sample], weight: try fixture.f32("w.proj_l.weight"),
            bias: try fixture.f32("w.proj_l.bias"))
        for (name, values) in try case_.results() { collected[name, default: []] += values }
    }
    let absent = arithmetics.filter { !device.supports($0.1) }.map { "out.\($0.0).o" }
    for name in fixture.expectedNames {
        if let values = collected[name] {
            if name.hasSuffix("valid_block_num") {
                checks.compare(name, values, try fixture.tensor(name).doubles(), .exact)
            } else {
                try checks.compare(name, values, in: fixture)
            }
        } else if absent.contains(name) {
            checks.skip(name, "\(device.name) does not support this arithmetic")
        } else if name == "mid.sla.lse2" {
            checks.skip(name, "softmax statistics do not leave the kernel")
        } else if ["int8", "scale", "fp8", "k_mean"].contains(where: name.contains) {
            checks.skip(name, "\(device.name) does not expose its 8-bit operands")
        }
    }
}

private struct AttentionCase {
    let fixture: Fixture
    let device: any Backend
    let topK: Double
    /// bf16 [L, H, D]
    let q, k, v: Tensor
    let weight, bias: Tensor

    func results() throws -> Collected {
        var results: Collected = [:]
        let bf16 = (place(q, .bf16), place(k, .bf16), place(v, .bf16))
        for (label, queryBlock, keyBlock) in [("b128x64", 128, 64), ("b64x128", 64, 128)]
        where fixture.tensorNames.contains(where: { $0.contains(label) }) {
            let spec = SparseAttention(
                topK: topK, arithmetic: .exact, queryBlock: queryBlock, keyBlock: keyBlock)
            let map = device.blockMap(bf16.0, bf16.1, spec)
            for (name, values) in describe(map, on: device) {
                results["mid.\(label).\(name)"] = values
            }
            if fixture.has("out.\(label).o_ideal") {
                results["out.\(label).o_ideal"] = attend(
                    (place(q, .f32), place(k, .f32), place(v, .f32)), spec, .f32)
            }
            operands(bf16, label, spec).forEach { results[$0] = $1 }
        }
        for (label, arithmetic) in arithmetics
        where fixture.has("out.\(label).o") && device.supports(arithmetic) {
            let spec = SparseAttention(topK: topK, arithmetic: arithmetic)
            results["out.\(label).o"] = attend(bf16, spec, .bf16)
        }
        if fixture.has("mid.sla.o_s") || fixture.has("mid.o_l") {
            let (sparse, linear) = branches(bf16)
            results["mid.sla.o_s"] = sparse
            results["mid.o_l"] = linear
        }
        return results
    }

    private func place(_ x: Tensor, _ dtype: DType) -> Tensor { device.place(x, as: dtype) }

    private func attend(
        _ inputs: (Tensor, Tensor, Tensor), _ spec: SparseAttention, _ dtype: DType
    ) -> [Double] {
        let projection = device.place(.dense(weight), as: dtype, in: nil)
        let output = device.sparseLinearAttention(
            inputs.0, inputs.1, inputs.2, projection: projection, bias: place(bias, .f32), spec)
        return device.read(output).doubles()
    }

    /// The sparse branch alone (with a projection of zeros), and the projected linear branch: multiplied by a power of
    /// two, it makes the sparse branch vanish in the rounding of their sum. → [H, L, D] each
    private func branches(_ inputs: (Tensor, Tensor, Tensor)) -> ([Double], [Double]) {
        let spec = SparseAttention(topK: topK, arithmetic: .bf16)
        func output(projectedBy factor: Float) -> [Double] {
            func scaled(_ x: Tensor) -> Tensor { Tensor(x.floats().map { $0 * factor }, x.shape) }
            let projection = device.place(.dense(scaled(weight)), as: .bf16, in: nil)
            return device.read(
                device.sparseLinearAttention(
                    inputs.0, inputs.1, inputs.2, projection: projection,
                    bias: place(scaled(bias), .f32), spec)
            ).doubles()
        }
        let sparse = output(projectedBy: 0)
        let factor: Float = 256
        let linear = zip(output(projectedBy: factor), sparse).map { ($0 - $1) / Double(factor) }
        return (headsFirst(sparse, q.shape), headsFirst(linear, q.shape))
    }

    private func operands(
        _ inputs: (Tensor, Tensor, Tensor), _ label: String, _ shape: SparseAttention
    ) -> Collected {
        let architecture: SageArchitecture = shape.keyBlock == 128 ? .sm90 : .sm89
        let spec = SparseAttention(topK: topK, arithmetic: .sage(architecture))
        guard let operands = device.sageOperands(inputs.0, inputs.1, inputs.2, spec) else {
            return [:]
        }
        var results: Collected = [:]
        results["mid.k_mean"] = device.read(operands.keyMean).doubles()
        results["mid.\(label).q_int8"] = headsFirst(
            device.read(operands.queryCodes).doubles(), q.shape)
        results["mid.\(label).k_int8"] = headsFirst(
            device.read(operands.keyCodes).doubles(), k.shape)
        results["mid.\(label).q_scale"] = device.read(operands.queryScales).doubles()
        results["mid.\(label).k_scale"] = device.read(operands.keyScales).doubles()
        if let codes = operands.valueCodes, let scales = operands.valueScales {
            results["mid.v_fp8"] = headsFirst(device.read(codes).doubles(), v.shape)
            results["mid.v_scale"] = device.read(scales).doubles()
        }
        return results
    }
}

/// The names that cases use for each arithmetic.
let arithmetics: [(String, SparseAttention.Arithmetic)] =
    [("sla", .bf16)] + SageArchitecture.allCases.map { ($0.rawValue, .sage($0)) }

/// [L, H, D] → [H, L, D]
func headsFirst(_ values: [Double], _ shape: Shape) -> [Double] {
    let (length, heads, dim) = (shape[0], shape[1], shape[2])
    var result: [Double] = []
    result.reserveCapacity(values.count)
    for head in 0..<heads {
        for row in 0..<length {
            let start = (row * heads + head) * dim
            result += values[start..<start + dim]
        }
    }
    return result
}

/// A block map in the forms that cases store: scores, a 0/1 map, indices, and delta-coded indices.
func describe(_ map: BlockMap, on device: any Backend) -> [String: [Double]] {
    let indices = device.read(map.indices).doubles().map { Int($0) }
    let selected = map.indices.shape[2]
    let keyBlocks = map.scores.shape[2]
    var bits: [Double] = []
    var deltas: [Double] = []
    var counts: [Double] = []
    for start in stride(from: 0, to: indices.count, by: selected) {
        let row = indices[start..<start + selected]
        bits += (0..<keyBlocks).map { row.contains($0) ? 1 : 0 }
        var previous = 0
        for index in row {
            deltas.append(Double(index - previous))
            previous = index
        }
        deltas += [Double](repeating: 0, count: keyBlocks - selected)
        counts.append(Double(selected))
    }
    return [
        "score": device.read(map.scores).doubles(), "block_map": bits,
        "topk_indices_sorted": indices.map { Double($0) }, "lut_delta": deltas,
        "valid_block_num": counts,
    ]
}

// MARK: - Cross attention

/// in.x: [1, L, dim], in.context: [1, rows, dim] whose last rows are equal (padding).
func checkCrossAttention(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let heads = try fixture.int("heads")
    let epsilon = Float(try fixture.double("eps"))
    let dim = try fixture.int("dim")
    func layer(_ x: Tensor, _ name: String) throws -> Tensor {
        device.linear(
            x, device.place(.dense(try fixture.tensor("w.\(name).weight")), as: .f32, in: nil),
            bias: device.place(try fixture.tensor("w.\(name).bias"), as: .f32))
    }
    func norm(_ x: Tensor, _ name: String) throws -> Tensor {
        device.rmsNorm(
            x, weight: device.place(try fixture.tensor("w.\(name).weight"), as: .f32),
            epsilon: epsilon, kind: .exact, format: .plain)
    }
    let x = device.place(try fixture.f32("in.x")[0], as: .f32)
    let stored = try fixture.f32("in.context")[0]
    func result(_ context: Tensor, lastKeyCounts: [Int]) throws -> [Double] {
        let split: (Tensor) -> Tensor = { $0.reshaped([$0.shape[0], heads, dim / heads]) }
        let context = device.place(context, as: .f32)
        let attended = device.attention(
            split(try norm(try layer(x, "q"), "norm_q")),
            split(try norm(try layer(context, "k"), "norm_k")), split(try layer(context, "v")),
            scale: 1 / Float(dim / heads).squareRoot(), lastKeyCounts: lastKeyCounts)
        return device.read(try layer(attended.reshaped([x.shape[0], dim]), "o")).doubles()
    }
    try checks.compare("out.y", try result(stored, lastKeyCounts: []), in: fixture)

    // Equal rows at the end are one key that counts several times.
    let values = stored.floats()
    let rows = stored.shape[0]
    let last = values[(rows - 1) * dim..<rows * dim]
    var first = rows - 1
    while first > 0, values[(first - 1) * dim..<first * dim].elementsEqual(last) { first -= 1 }
    let trimmed = try result(stored.slice(0..<first + 1), lastKeyCounts: [rows - first])
    checks.compare(
        "padding as one key", trimmed, try fixture.tensor("out.y").doubles(),
        fixture.tolerance(for: "out.y") ?? Tolerance(relativeL2: 1e-5))
    for name in fixture.expectedNames where name.hasPrefix("mid.y_if_wrongly") {
        checks.skip(name, "a mistake, shown for comparison")
    }
}

// MARK: - Position bias

/// in.rel_pos: [n], out.bucket: [n]. The buckets are found from the attention itself: head b is biased towards bucket b,
/// so that its weights show which keys are in it.
func checkPositionBuckets(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let positions = try fixture.tensor("in.rel_pos").doubles().map { Int($0) }
    let buckets = try fixture.int("num_buckets")
    let length = (positions.map(abs).max() ?? 0) + 1
    let width = 64
    var table = [Float](repeating: 0, count: buckets * buckets)
    for bucket in 0..<buckets { table[bucket * buckets + bucket] = 30 }
    let zeros = device.place(
        Tensor(
            [Float](repeating: 0, count: length * buckets * width), [length, buckets, width]),
        as: .f32)
    let placedTable = device.place(Tensor(table, [buckets, buckets]), as: .f32)
    // best[rel + length - 1]: the bucket whose head gives this key the largest weight
    var best = [Int](repeating: -1, count: 2 * length - 1)
    var weights = [Float](repeating: -1, count: 2 * length - 1)
    for start in stride(from: 0, to: length, by: width) {
        var oneHot = [Float](repeating: 0, count: length * buckets * width)
        for key in start..<min(start + width, length) {
            for head in 0..<buckets { oneHot[(key * buckets + head) * width + key - start] = 1 }
        }
        let v = device.place(Tensor(oneHot, [length, buckets, width]), as: .f32)
        let output = device.read(
            device.relativeAttention(zeros, zeros, v, table: placedTable)
        ).floats()
        for query in [0, length - 1] {
            for key in start..<min(start + width, length) {
                let slot = key - query + length - 1
                for head in 0..<buckets {
                    let weight = output[(query * buckets + head) * width + key - start]
                    if weight > weights[slot] {
                        weights[slot] = weight
                        best[slot] = head
                    }
                }
            }
        }
    }
    try checks.compare(
        "out.bucket", positions.map { Double(best[$0 + length - 1]) }, in: fixture)
}
