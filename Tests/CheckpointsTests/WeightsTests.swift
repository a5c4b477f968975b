// The cursor: exact names and shapes, every form of a linear layer, what nobody asked for.

import Checkpoints
import Tensors
import Testing

@Suite("Weights")
struct WeightsTests {
    static func checkpoint() -> MemoryCheckpoint {
        MemoryCheckpoint([
            ("a.plain.weight", .zeros([200, 64], .f16)), ("a.plain.bias", .zeros([200], .bf16)),
            ("a.small.int8_weight", .zeros([200, 64], .i8)),
            ("a.small.scale", Tensor([1, 1] as [Float], [2, 1])),
            ("a.rows.fp8_weight", .zeros([200, 64], .f8e4m3)),
            ("a.rows.scale", Tensor([Float](repeating: 1, count: 200), [200])),
            ("a.wrong.int8_weight", .zeros([200, 64], .u8)),
            ("a.wrong.scale", .zeros([2, 1], .f32)),
            ("patch.weight", .zeros([8, 4, 1, 2, 2], .f32)), ("m", .zeros([1, 6, 8], .f32)),
        ])
    }

    @Test("linear layers in every form")
    func linears() throws {
        let weights = Weights(Self.checkpoint(), on: NullBackend(), activations: .bf16)["a"]
        let (plain, bias) = try weights["plain"].linear(from: 64, to: 200)
        guard case .dense(let matrix) = plain else { return #expect(Bool(false), "not dense") }
        #expect(matrix.dtype == .bf16 && matrix.shape == [200, 64])
        #expect(bias?.dtype == .f32)
        let (small, none) = try weights["small"].linear(from: 64, to: 200)
        #expect(small.inputFormat == .int8Blocks && none == nil)
        #expect(try weights["rows"].linear(from: 64, to: 200).weight.inputFormat == .fp8Rows)
        #expect(
            throws: CheckpointError.dtype(
                "a.wrong.int8_weight", in: "memory", expected: "i8", found: "u8")
        ) { try weights["wrong"].linear(from: 64, to: 200) }
        #expect(weights.unread == ["a.wrong.scale", "patch.weight", "m"])
    }

    @Test("scales of every floating-point type become f32, in a plan as well")
    func scaleTypes() throws {
        for type in [DType.f64, .f32, .f16, .bf16, .f8e4m3] {
            let stored = Tensor([1, 2] as [Float], [2, 1]).converted(to: type)
            for scale in [stored, .outline([2, 1], type)] {
                let file = MemoryCheckpoint([
                    ("a.int8_weight", .zeros([200, 64], .i8)), ("a.scale", scale),
                ])
                let weights = Weights(file, on: NullBackend(), activations: .bf16)
                guard
                    case .int8Blocks(_, let placed) = try weights["a"].linear(from: 64, to: 200)
                        .weight
                else {
                    Issue.record("\(type): not in blocks")
                    continue
                }
                #expect(placed.dtype == .f32 && placed.shape == [2, 1])
            }
        }
    }

    @Test("plain layers are quantised while loading on request")
    func quantizing() throws {
        let weights = Weights(
            Self.checkpoint(), on: NullBackend(), activations: .bf16, linearFormat: .int8Blocks)
        let layer = weights["a"]["plain"]
        #expect(try layer.linear(from: 64, to: 200).weight.inputFormat == .plain)
        let quantized = try layer.linear(from: 64, to: 200, quantizable: true).weight
        #expect(quantized.inputFormat == .int8Blocks)
    }

    @Test("shapes may differ in extents of one, and a convolution may be a matrix")
    func shapes() throws {
        let weights = Weights(Self.checkpoint(), on: NullBackend(), activations: .f32)
        #expect(try weights.host("m", [6, 8]).shape == [6, 8])
        #expect(try weights["patch"].host("weight", [8, 16]).shape == [8, 16])
        #expect(
            throws: CheckpointError.shape(
                "patch.weight", in: "memory", expected: [8, 4], found: [8, 4, 1, 2, 2])
        ) { try weights["patch"].host("weight", [8, 4]) }
    }

    @Test("a missing tensor comes with the names nearest to it")
    func missing() {
        let weights = Weights(Self.checkpoint(), on: NullBackend(), activations: .f32)
        #expect {
            try weights["a"]["plane"].host("weight", [1])
        } throws: {
            "\($0)".hasPrefix("memory has no tensor 'a.plane.weight'; nearest: a.plain.weight")
        }
    }
}
