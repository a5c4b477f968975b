/// The operations against numbers from the original implementation.

import CPU
import Tensors
import Testing

@Suite struct FixtureTests {
    let device = CPUBackend(threads: 2, engine: .definition)

    /// Without its files every test below would pass by running nothing.
    @Test(arguments: ["norms", "int8_quant", "int8_linear", "attention"])
    func theGroupHasCases(_ group: String) {
        #expect(!Fixture.names(group).isEmpty)
    }

    @Test(arguments: Fixture.names("norms")) func norms(_ name: String) throws {
        let fixture = try Fixture(name)
        let (weight, bias) = (fixture["w.weight"], fixture["w.bias"])
        let epsilon = fixture.epsilon
        func check(_ y: Tensor, _ output: String) {
            let fault = fixture.difference(y.floats(), output)
            #expect(fault == nil)
        }
        for (kind, prefix) in [(NormKind.exact, "wan"), (.reference, "fast")] {
            for (dtype, suffix) in [(DType.f32, ""), (.bf16, "_bf16")] {
                let x = fixture["in.x"].converted(to: dtype)
                check(
                    device.rmsNorm(x, weight: weight, epsilon: epsilon, kind: kind, format: .plain),
                    "out.\(prefix)_rmsnorm\(suffix)")
                check(
                    device.layerNorm(
                        x, weight: nil, bias: nil, epsilon: epsilon, kind: kind, format: .plain),
                    "out.\(prefix)_layernorm\(suffix)")
            }
            check(
                device.layerNorm(
                    fixture["in.x"], weight: weight, bias: bias, epsilon: epsilon, kind: kind,
                    format: .plain),
                "out.\(prefix)_layernorm_affine")
        }
    }

    @Test(arguments: Fixture.names("int8_quant")) func int8Blocks(_ name: String) throws {
        let fixture = try Fixture(name)
        let x = device.quantize(fixture["in.x"], to: .int8Blocks)
        #expect(fixture.difference(x.floats(), "out.q") == nil)
        #expect(fixture.difference(scales(x), "out.scale") == nil)
    }

    @Test(arguments: Fixture.names("int8_linear")) func int8Linear(_ name: String) throws {
        let fixture = try Fixture(name)
        guard fixture.isReferenceDefined else { return }
        let weight = LinearWeight.int8Blocks(
            weight: fixture["w.int8_weight"], scale: fixture["w.scale"])
        let bias = fixture.has("w.bias") ? fixture["w.bias"] : nil
        let x = fixture["in.x"]
        let quantized = device.quantize(x, to: .int8Blocks)
        #expect(fixture.difference(quantized.floats(), "mid.x_q") == nil)
        #expect(fixture.difference(scales(quantized), "mid.x_scale") == nil)
        let sums = device.linear(
            quantized, weight, bias: nil, activation: .none, format: .plain, dtype: .f32)
        #expect(fixture.difference(sums.floats(), "out.acc_fp32") == nil)
        for input in [x, quantized] {
            let y = device.linear(input, weight, bias: bias)
            #expect(y.dtype == .bf16)
            #expect(fixture.difference(y.floats(), "out.y") == nil)
        }
        let own = device.place(fixture["w.weight_bf16"], quantizedTo: .int8Blocks, in: nil)
        guard case .int8Blocks(let codes, let scale) = own else { fatalError() }
        #expect(fixture.difference(codes.floats(), "w.int8_weight") == nil)
        #expect(fixture.difference(scale.floats(), "w.scale") == nil)
    }

    /// The scales of an int8 tensor.
    private func scales(_ x: Tensor) -> [Float] {
        let count = x.scales!.byteCount / 4
        return Tensor([count], .f32, storage: x.scales!).floats()
    }

    @Test(arguments: Fixture.names("attention")) func attention(_ name: String) throws {
        let fixture = try Fixture(name)
        let batch = fixture["in.q"].shape[0]
        var outputs: [String: [Float]] = [:]
        func add(_ name: String, _ values: Tensor) { outputs[name, default: []] += values.floats() }
        for b in 0..<batch {
            let (q, k, v) = (fixture["in.q"][b], fixture["in.k"][b], fixture["in.v"][b])
            let projection = LinearWeight.dense(fixture["w.proj_l.weight"])
            let bias = fixture["w.proj_l.bias"]
            func run(_ spec: SparseAttention, _ dtype: DType = .bf16) -> Tensor {
                device.sparseLinearAttention(
                    q.converted(to: dtype), k.converted(to: dtype), v.converted(to: dtype),
                    projection: projection, bias: bias, spec)
            }
            let kinds: [(String, SparseAttention.Arithmetic)] =
                [("sla", .bf16)] + SageArchitecture.allCases.map { ($0.rawValue, .sage($0)) }
            for (name, arithmetic) in kinds {
                add("out.\(name).o", run(.init(topK: fixture.topK, arithmetic: arithmetic)))
            }
            for (block, architecture) in [("b128x64", SageArchitecture.sm89), ("b64x128", .sm90)] {
                let sage = SparseAttention(topK: fixture.topK, arithmetic: .sage(architecture))
                let exact = SparseAttention(
                    topK: fixture.topK, arithmetic: .exact, queryBlock: sage.queryBlock,
                    keyBlock: sage.keyBlock)
                let map = device.blockMap(q, k, sage)
                add("mid.\(block).score", map.scores)
                add("mid.\(block).topk_indices_sorted", map.indices)
                if !fixture["in.q"].floats().contains(where: { $0 != $0 }) {
                    add("out.\(block).o_ideal", run(exact, .f32))
                }
                let operands = device.sageOperands(q, k, v, sage)!
                add("mid.\(block).q_int8", byHead(operands.queryCodes))
                add("mid.\(block).k_int8", byHead(operands.keyCodes))
                add("mid.\(block).q_scale", operands.queryScales)
                add("mid.\(block).k_scale", operands.keyScales)
                if architecture == .sm89 {
                    add("mid.k_mean", operands.keyMean)
                    add("mid.v_fp8", byHead(operands.valueCodes!))
                    add("mid.v_scale", operands.valueScales!)
                }
            }
        }
        for (name, values) in outputs.sorted(by: { $0.key < $1.key }) where fixture.has(name) {
            #expect(fixture.difference(values, name) == nil)
        }
    }

    /// [L, heads, dim] → [heads, L, dim]
    private func byHead(_ x: Tensor) -> Tensor {
        let values = x.floats()
        let (tokens, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
        var out: [Float] = []
        for head in 0..<heads {
            for token in 0..<tokens {
                let start = (token * heads + head) * dim
                out += values[start..<start + dim]
            }
        }
        return Tensor(out, [heads, tokens, dim])
    }
}
