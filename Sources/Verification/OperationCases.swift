/// Cases of single operations: norms, activations, 8-bit arithmetic, patches.

import Ground
import Tensors

/// in.x: [M, N]; every norm of the model, f32 and bf16.
func checkNorms(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let x = try fixture.f32("in.x")
    let epsilon = Float(try fixture.double("eps"))
    let weight = try fixture.f32("w.weight")
    let bias = device.place(try fixture.f32("w.bias"), as: .f32)
    for dtype in [DType.f32, .bf16] {
        let suffix = dtype == .bf16 ? "_bf16" : ""
        let input = device.place(x, as: dtype)
        for (name, kind) in [("wan", NormKind.exact), ("fast", .reference)] {
            // WanRMSNorm multiplies by the weight in the dtype of x.
            let rounded = kind == .exact ? weight.converted(to: dtype).converted(to: .f32) : weight
            let gamma = device.place(rounded, as: .f32)
            let results: [(String, () -> Tensor)] = [
                (
                    "rmsnorm",
                    {
                        device.rmsNorm(
                            input, weight: gamma, epsilon: epsilon, kind: kind, format: .plain)
                    }
                ),
                (
                    "layernorm",
                    {
                        device.layerNorm(
                            input, weight: nil, bias: nil, epsilon: epsilon, kind: kind,
                            format: .plain)
                    }
                ),
                (
                    "layernorm_affine",
                    {
                        device.layerNorm(
                            input, weight: device.place(weight, as: .f32), bias: bias,
                            epsilon: epsilon, kind: kind, format: .plain)
                    }
                ),
            ]
            for (norm, compute) in results {
                let tensor = "out.\(name)_\(norm)\(suffix)"
                guard fixture.has(tensor) else { continue }
                try checks.compare(tensor, device.read(compute()), in: fixture)
            }
        }
    }
}

/// in.x: [n] through linear layers with an identity weight.
func checkActivations(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let x = try fixture.f32("in.x")
    let width = 16
    let count = x.shape.count
    let rows = ceilDivide(count, width)
    let padded = Tensor(
        x.floats() + [Float](repeating: 0, count: rows * width - count), [rows, width])
    var identity = [Float](repeating: 0, count: width * width)
    for index in 0..<width { identity[index * width + index] = 1 }
    let ones = Tensor([Float](repeating: 1, count: rows * width), [rows, width])
    for dtype in [DType.f32, .bf16] {
        let suffix = dtype == .bf16 ? "_bf16" : ""
        let input = device.place(padded, as: dtype)
        let weight = device.place(.dense(Tensor(identity, [width, width])), as: dtype, in: nil)
        let results: [(String, () -> Tensor)] = [
            (
                "gelu_tanh",
                { device.linear(input, weight, bias: nil, activation: .geluTanh, format: .plain) }
            ),
            (
                "silu",
                { device.linear(input, weight, bias: nil, activation: .silu, format: .plain) }
            ),
            ("gelu_t5", { device.geluGate(input, device.place(ones, as: dtype), format: .plain) }),
        ]
        for (name, compute) in results {
            let tensor = "out.\(name)\(suffix)"
            guard fixture.has(tensor) else { continue }
            let values = device.read(compute()).doubles()
            try checks.compare(tensor, Array(values.prefix(count)), in: fixture)
        }
    }
}

/// in.x: [n] to bf16 and f16.
func checkHalfRounding(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let x = try fixture.f32("in.x")
    try checks.compare("out.bf16", x.converted(to: .bf16), in: fixture)
    // The file has only finite numbers: infinities are stored as the largest one.
    let largest = Double(Float16.greatestFiniteMagnitude)
    let halves = x.converted(to: .f16).doubles().map { min(max($0, -largest), largest) }
    try checks.compare("out.fp16_value", halves, in: fixture)
}

/// in.x: [n] to fp8 codes and back.
func checkFloat8(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let codes = try fixture.tensor("in.x").floats().map(Float8E4M3.encode)
    try checks.compare("out.code", codes.map { Double($0) }, in: fixture)
    try checks.compare(
        "out.value", codes.map { Double(Float8E4M3.decode($0)) }, in: fixture)
    let all = try fixture.tensor("in.all_finite_codes").withElements(UInt8.self) { Array($0) }
    try checks.compare(
        "out.all_finite_values", all.map { Double(Float8E4M3.decode($0)) }, in: fixture)
}

/// in.x: [B, C, T, H, W], in.head: [B, tokens, 4 C]
func checkPatchify(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let x = try fixture.f32("in.x")
    let tokens = (0..<x.shape[0]).flatMap { sample in
        device.read(device.patchify([device.place(x[sample], as: .f32)], dtype: .f32)).doubles()
    }
    try checks.compare("out.tokens", tokens, in: fixture)
    let head = try fixture.f32("in.head")
    let size = Extent(t: x.shape[2], h: x.shape[3], w: x.shape[4])
    let latents = (0..<head.shape[0]).flatMap { sample in
        device.read(device.unpatchify(device.place(head[sample], as: .f32), size: size)).doubles()
    }
    try checks.compare("out.unpatched", latents, in: fixture)
}

// MARK: - 8-bit linear layers

/// Codes and scales of a tensor that `quantize` made with `.int8Blocks`.
/// x: i8 [rows, columns] → codes [rows, columns], scales [ceil(rows/128), ceil(columns/128)]
func readInt8(_ x: Tensor, on device: any Backend) -> (codes: [Double], scales: [Double]) {
    let codes = device.read(x)
    guard let storage = x.scales else { return (codes.doubles(), []) }
    let blocks: Shape = [ceilDivide(x.shape.rows, 128), ceilDivide(x.shape.columns, 128)]
    return (codes.doubles(), device.read(Tensor(blocks, .f32, storage: storage)).doubles())
}

/// in.x: bf16 [M, N]
func checkInt8Quantization(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let x = device.place(try fixture.tensor("in.x"), as: .bf16)
    let (codes, scales) = readInt8(device.quantize(x, to: .int8Blocks), on: device)
    try checks.compare("out.q", codes, in: fixture)
    try checks.compare("out.scale", scales, in: fixture)
}

/// in.x: bf16 [..., K], w.int8_weight: [N, K]
func checkInt8Linear(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let stored = try fixture.tensor("in.x")
    let x = device.place(
        stored.reshaped([stored.shape.rows, stored.shape.columns]), as: .bf16)
    let weight = LinearWeight.int8Blocks(
        weight: try fixture.tensor("w.int8_weight"), scale: try fixture.tensor("w.scale"))
    let placed = device.place(weight, as: .bf16, in: nil)
    let bias =
        fixture.has("w.bias") ? device.place(try fixture.tensor("w.bias"), as: .f32) : nil
    let quantized = device.quantize(x, to: .int8Blocks)
    let (codes, scales) = readInt8(quantized, on: device)
    func product(bias: Tensor?, as dtype: DType) -> [Double] {
        device.read(
            device.linear(
                quantized, placed, bias: bias, activation: .none, format: .plain, dtype: dtype)
        ).doubles()
    }
    if fixture.has("out.y") {
        try checks.compare("mid.x_q", codes, in: fixture)
        try checks.compare("mid.x_scale", scales, in: fixture)
        try checks.compare("out.y", product(bias: bias, as: .bf16), in: fixture)
        try checks.compare("out.acc_fp32", product(bias: nil, as: .f32), in: fixture)
        // The same kernel quantises weights and activations.
        let dense = device.place(try fixture.tensor("w.weight_bf16"), as: .bf16)
        let again = readInt8(device.quantize(dense, to: .int8Blocks), on: device)
        try checks.compare("w.int8_weight", again.codes, in: fixture)
        try checks.compare("w.scale", again.scales, in: fixture)
    } else {
        // The reference returns zeros for widths that are not a multiple of 128. Here the last block is
        // narrower, and the result is compared with the definition in f64.
        checks.skip("out.y_reference", "the reference fails here; checked against the definition")
        let defined = blockProduct(codes, scales, weight, columns: x.shape.columns)
        checks.compare(
            "definition", product(bias: nil, as: .f32), defined, Tolerance(relativeL2: 1e-6))
    }
}

/// sum over blocks of 128 columns of the integer products times both scales, in f64.
private func blockProduct(
    _ codes: [Double], _ scales: [Double], _ weight: LinearWeight, columns: Int
) -> [Double] {
    guard case .int8Blocks(let matrix, let scale) = weight else { return [] }
    let w = matrix.doubles()
    let ws = scale.doubles()
    let blocks = ceilDivide(columns, 128)
    return (0..<codes.count / columns).flatMap { row in
        (0..<matrix.shape[0]).map { output in
            var sum = 0.0
            for column in 0..<columns {
                sum +=
                    codes[row * columns + column] * w[output * columns + column]
                    * scales[row / 128 * blocks + column / 128]
                    * ws[output / 128 * blocks + column / 128]
            }
            return sum
        }
    }
}
