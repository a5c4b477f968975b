// Every layout of 8-bit matrices is dequantised right, or refused by name.

import Checkpoints
import Ground
import Tensors
import Testing

@Suite("Layouts of quantised matrices")
struct QuantizationTests {
    /// Codes whose numbers are known: [6, 8].
    private static func codes(_ type: DType) -> (Tensor, [Float]) {
        let numbers = (0..<48).map { Float($0 % 15 - 7) }
        let tensor = Tensor.host([6, 8], type)
        switch type {
        case .i8:
            tensor.withMutable(Int8.self) { for (i, x) in numbers.enumerated() { $0[i] = Int8(x) } }
        case .f8e5m2:
            // The upper half of an f16; -7 ... 7 need three bits, so 5 becomes 4 and 7 becomes 6.
            tensor.withMutable(UInt8.self) {
                for (i, x) in numbers.enumerated() {
                    $0[i] = UInt8(Float16(x).bitPattern >> 8)
                }
            }
        default: return (Tensor(numbers, [6, 8]).converted(to: type), numbers)
        }
        return (tensor, tensor.floats())
    }

    private static func scales(_ shape: [Int], _ type: DType = .f32) -> Tensor {
        let count = shape.reduce(1, *)
        return Tensor((0..<count).map { Float($0 % 7 + 1) / 8 }, Shape(shape)).converted(to: type)
    }

    /// A model with one quantised matrix; which model its names tell.
    private static func model(
        _ layer: String, _ tensors: [(String, Tensor)], metadata: [String: String] = [:]
    ) -> MemoryCheckpoint {
        MemoryCheckpoint(tensors.map { ("\(layer).\($0.0)", $0.1) }, metadata: metadata)
    }

    private static let layers = [
        "blocks.0.self_attn.q", "encoder.block.0.layer.0.SelfAttention.q",
        "condition_embedder.time_proj", "token_embedding", "decoder.conv1",
    ]

    /// Scale of each element of [6, 8] for scales of a shape.
    private static func grid(_ shape: [Int], _ scales: [Float]) -> [Float] {
        (0..<48).map { index in
            let (row, column) = (index / 8, index % 8)
            let down = shape.first ?? 1
            let right = scales.count / down
            return scales[row * down / 6 * right + column * right / 8]
        }
    }

    @Test("names, element types and shapes of scales, for every model")
    func table() throws {
        for layer in Self.layers {
            for naming in ["weight_scale", "scale_weight", "scale", "weight_scale_inv"] {
                for type in [DType.i8, .f8e4m3, .f8e5m2, .bf16] {
                    for shape in [
                        [], [1], [6], [6, 1], [6, 2, 1], [6, 4], [3, 2], [1, 8], [1, 1],
                    ] {
                        let (codes, numbers) = Self.codes(type)
                        let scale = Self.scales(shape, naming == "scale" ? .bf16 : .f32)
                        let base = Self.model(
                            layer,
                            [
                                ("weight", codes), (naming, scale),
                                ("input_scale", Self.scales([])),
                                ("bias", .zeros([6], .f32)),
                            ])
                        let expected = zip(numbers, Self.grid(shape, scale.floats())).map(*)
                        let plain = try dequantized(base, to: .f32)
                        #expect(plain.names == ["\(layer).weight", "\(layer).bias"])
                        #expect(
                            try plain.tensor("\(layer).weight")?.floats() == expected,
                            "\(layer) \(naming) \(type) \(shape)")
                        // The same numbers in the forms that models take.
                        let own = try dequantized(try inOriginalNames(base), to: .f32)
                        let name = try #require(own.names.first)
                        #expect(try own.tensor(name)?.floats() == expected)
                    }
                }
            }
        }
    }

    @Test("codes are kept if this program has the form and the layer may have it")
    func ownForms() throws {
        func names(_ tensors: [(String, Tensor)]) throws -> [String] {
            try inOriginalNames(MemoryCheckpoint(tensors)).names
        }
        let (codes, _) = Self.codes(.f8e4m3)
        func layer(_ name: String, _ scale: [Int]) -> [(String, Tensor)] {
            [("\(name).weight", codes), ("\(name).weight_scale", Self.scales(scale))]
        }
        let own = try inOriginalNames(MemoryCheckpoint(layer("blocks.0.self_attn.o", [])))
        #expect(own.names == ["blocks.0.self_attn.o.fp8_weight", "blocks.0.self_attn.o.scale"])
        #expect(own.info("blocks.0.self_attn.o.scale")?.shape == [6])
        #expect(
            try names(layer("blocks.0.self_attn.o", [6, 1]) + layer("head.head", []))
                == [
                    "blocks.0.self_attn.o.fp8_weight", "blocks.0.self_attn.o.scale",
                    "head.head.weight",
                ])
        // What reads one input has one form.
        let mixed = layer("blocks.0.self_attn.q", []) + layer("blocks.0.self_attn.k", [])
        #expect(
            try names(mixed + layer("blocks.0.self_attn.v", [6, 2])).allSatisfy {
                $0.hasSuffix(".weight")
            })
        #expect(
            try names(mixed + layer("blocks.0.self_attn.v", [1])).contains(
                "blocks.0.self_attn.v.fp8_weight"))
        // Blocks of 128x128 are those of int8_weight.
        let blocks = try inOriginalNames(
            Self.model(
                "blocks.0.self_attn.o",
                [("weight", .zeros([200, 256], .i8)), ("weight_scale", Self.scales([2, 2]))]))
        #expect(blocks.info("blocks.0.self_attn.o.int8_weight")?.shape == [200, 256])
        #expect(blocks.info("blocks.0.self_attn.o.scale")?.shape == [2, 2])
        // Blocks that end at the edge: the last of 200 rows has the second scale from row 128 on.
        let ones = Tensor.zeros([200, 256], .i8)
        ones.withMutable(Int8.self) { for i in 0..<200 * 256 { $0[i] = 1 } }
        let edge = try dequantized(
            Self.model(
                "blocks.0.self_attn.o", [("weight", ones), ("weight_scale", Self.scales([2, 2]))]),
            to: .f32)
        let numbers = try #require(try edge.tensor("blocks.0.self_attn.o.weight")).floats()
        #expect(numbers[127 * 256] == 0.125 && numbers[128 * 256] == 0.375)
        #expect(numbers[127 * 256 + 128] == 0.25 && numbers[199 * 256 + 255] == 0.5)
    }

    @Test("bitsandbytes and quanto")
    func otherPrograms() throws {
        let (codes, numbers) = Self.codes(.i8)
        let scale = Self.scales([6])
        let rows = Self.grid([6], scale.floats())
        let bits = Self.model("blocks.0.self_attn.o", [("weight", codes), ("SCB", scale)])
        let found = try #require(
            try dequantized(bits, to: .f32).tensor("blocks.0.self_attn.o.weight")
        ).floats()
        for (a, b) in zip(found, zip(numbers, rows).map { $0 * $1 / 127 }) {
            #expect((a - b).magnitude <= 1e-6 * b.magnitude)
        }
        let quanto = MemoryCheckpoint([
            ("blocks.0.self_attn.o.weight._data", codes),
            ("blocks.0.self_attn.o.weight._scale", Self.scales([6, 1])),
            ("blocks.0.self_attn.o.input_scale", Self.scales([])),
            ("blocks.0.self_attn.o.output_scale", Self.scales([])),
        ])
        let plain = try dequantized(quanto, to: .f32)
        #expect(plain.names == ["blocks.0.self_attn.o.weight"])
        #expect(
            try plain.tensor("blocks.0.self_attn.o.weight")?.floats() == zip(numbers, rows).map(*))
    }

    @Test("ComfyUI's markers, in tensors and in the header; fp8 kept as bytes")
    func markers() throws {
        let (codes, numbers) = Self.codes(.f8e4m3)
        let bytes = Tensor([6, 8], .u8, storage: codes.storage)
        func marker(_ text: String) -> Tensor {
            let tensor = Tensor.host([text.utf8.count], .u8)
            tensor.withMutable(UInt8.self) { for (i, x) in text.utf8.enumerated() { $0[i] = x } }
            return tensor
        }
        let layer = "blocks.0.self_attn.o"
        func weight(_ base: any Checkpoint) throws -> [Float]? {
            try dequantized(base, to: .f32).tensor("\(layer).weight")?.floats()
        }
        let scale = Self.scales([])
        let expected = zip(numbers, Self.grid([], scale.floats())).map(*)
        for (tensor, text) in [
            (codes, #"{"format": "float8_e4m3fn"}"#),
            (bytes, #"{"format":"float8_e4m3fn","full_precision_matrix_mult":true}"#),
        ] {
            let base = Self.model(
                layer,
                [("weight", tensor), ("weight_scale", scale), ("comfy_quant", marker(text))])
            #expect(try weight(base) == expected)
            let header = Self.model(
                layer, [("weight", tensor), ("weight_scale", scale)],
                metadata: [
                    "_quantization_metadata":
                        #"{"format_version": "1.0", "layers": {"model.diffusion_model.\#(layer)": \#(text)}}"#
                ])
            #expect(try weight(header) == expected)
            // The metadata no longer says that plain matrices are quantised.
            let plain = try dequantized(header, to: .f32)
            #expect(plain.metadata.isEmpty)
            #expect(try weight(plain) == expected)
            // Other names do not change the quantisation.
            var conversion = Conversion()
            conversion.layout = .diffusers
            let renamed = try converted(header, conversion)
            #expect(renamed.names.contains("blocks.0.attn1.to_out.0.weight_scale"))
        }
        for text in [
            #"{"format": "nvfp4"}"#, #"{"format": "mxfp8"}"#, "{}", "not JSON",
            #"{"format": "int8_tensorwise", "convrot": true}"#,
        ] {
            let tensors = [("weight", codes), ("weight_scale", scale)]
            for base in [
                Self.model(layer, tensors + [("comfy_quant", marker(text))]),
                Self.model(
                    layer, tensors,
                    metadata: ["_quantization_metadata": #"{"layers": {"\#(layer)": \#(text)}}"#]),
            ] {
                #expect(throws: CheckpointError.self, "\(text)") { try inOriginalNames(base) }
            }
        }
    }

    @Test("unsupported formats are refused and named")
    func refused() throws {
        let (codes, _) = Self.codes(.f8e4m3)
        let layer = "blocks.0.self_attn.o"
        let bytes = Tensor([6, 8], .u8, storage: codes.storage)
        for tensors: [(String, Tensor)] in [
            [("weight", codes), ("weight_scale", Self.scales([5]))],
            [("weight", codes), ("weight_scale", Self.scales([6, 3]))],
            [("weight", codes), ("weight_scale", Self.scales([2, 2, 2]))],
            [("weight", codes), ("weight_scale", Self.scales([6], .f8e4m3))],
            [("weight", bytes), ("weight_scale", Self.scales([6]))],
            [("weight", codes), ("weight_scale", Self.scales([6])), ("SCB", Self.scales([6]))],
            [
                ("weight", codes), ("weight_scale", Self.scales([])),
                ("scale_weight", Self.scales([])),
            ],
            [
                ("weight", codes), ("weight_scale", Self.scales([6])),
                ("weight_scale_2", Self.scales([])),
            ],
            [("qweight", bytes), ("wscales", Self.scales([6]))],
            [("weight", bytes), ("weight.absmax", Self.scales([6]))],
        ] {
            let base = Self.model(layer, tensors)
            #expect("\(tensors.map { "\($0.0) \($0.1.shape)" })") {
                try inOriginalNames(base)
            } throws: {
                "\($0)".contains(layer)
            }
            #expect(throws: CheckpointError.self) { try dequantized(base) }
        }
        for codes in [Self.codes(.i8).0, bytes] {
            #expect(throws: CheckpointError.self) {
                try dequantized(Self.model(layer, [("weight", codes)]))
            }
        }
    }

    @Test(
        "scales of a type that is not read are refused by name",
        arguments: ["blocks.0.self_attn.o", "blocks.0.attn1.to_out.0"])
    func unreadScales(layer: String) throws {
        let folder = try TemporaryFolder()
        let file = try openCheckpoint(
            try folder.file(
                "x.safetensors",
                safetensorsFile([
                    ("\(layer).weight", "F8_E4M3", [2, 2], [0x38, 0x38, 0x38, 0x38]),
                    ("\(layer).weight_scale", "F8_E8M0", [2, 1], [127, 127]),
                ])))
        for tool: () throws -> Void in [
            { _ = try inOriginalNames(file) }, { _ = try dequantized(file) },
            { _ = try converted(file, Conversion()) },
        ] {
            #expect {
                try tool()
            } throws: {
                "\($0)".contains("weight_scale' holds scales of type F8_E8M0")
            }
        }
        #expect(CheckpointSummary(file).refusal != nil)
    }

    @Test("scales that are not positive numbers", arguments: [0, -1, .infinity, .nan] as [Float])
    func badScales(value: Float) throws {
        let (codes, _) = Self.codes(.f8e4m3)
        let (int8, _) = Self.codes(.i8)
        let layer = "blocks.0.self_attn.o"
        let bad = { (shape: Shape) in
            Tensor([Float](repeating: value, count: shape.count), shape)
        }
        for tensors: [(String, Tensor)] in [
            [("weight", codes), ("weight_scale", bad([]))],
            [("fp8_weight", codes), ("scale", bad([6]))],
            [("int8_weight", int8), ("scale", bad([1, 1]))],
        ] {
            let base = Self.model(layer, tensors)
            let plain = try dequantized(base, to: .f32)
            #expect(throws: CheckpointError.self) { try plain.tensor("\(layer).weight") }
            let weights = Weights(try inOriginalNames(base), on: NullBackend(), activations: .bf16)
            #expect(throws: CheckpointError.self) {
                try weights["blocks"][0]["self_attn"]["o"].linear(from: 8, to: 6)
            }
        }
    }

    @Test("NaN codes are refused, and no infinities are created")
    func nonFinite() throws {
        let codes = Tensor.zeros([6, 8], .f8e4m3)
        codes.withMutable(UInt8.self) { $0[3] = 0x7F }
        let base = Self.model(
            "blocks.0.self_attn.o", [("weight", codes), ("weight_scale", Self.scales([]))])
        let plain = try dequantized(base)
        #expect(throws: CheckpointError.self) { try plain.tensor("blocks.0.self_attn.o.weight") }
        var conversion = Conversion()
        conversion.dtype = .f16
        let large = Self.model(
            "blocks.0.self_attn.o", [("bias", Tensor([1, 70_000] as [Float], [2]))])
        let narrow = try converted(large, conversion)
        #expect(throws: CheckpointError.self) { try narrow.tensor("blocks.0.self_attn.o.bias") }
        // A NaN that was there hides no infinity that was not.
        func bias(_ values: [Float], _ type: DType = .f32) throws -> Tensor? {
            let tensor = Tensor(values, [values.count]).converted(to: type)
            let base = Self.model("blocks.0.self_attn.o", [("bias", tensor)])
            return try converted(base, conversion).tensor("blocks.0.self_attn.o.bias")
        }
        #expect(try bias([.nan, 1, -.infinity])?.floats()[1] == 1)
        #expect(throws: CheckpointError.self) { try bias([.nan, 1_000_000]) }
        #expect(throws: CheckpointError.self) { try bias([.infinity, -1_000_000], .f64) }
        let wide = Tensor.host([2], .f64)
        wide.withMutable(Double.self) { ($0[0], $0[1]) = (.nan, 1e300) }
        conversion.dtype = .f32
        let single = try converted(Self.model("blocks.0.self_attn.o", [("bias", wide)]), conversion)
        #expect(throws: CheckpointError.self) { try single.tensor("blocks.0.self_attn.o.bias") }
    }

    @Test("this program's own codes: what is not finite is refused, too")
    func nonFiniteOwn() throws {
        func coded(_ type: DType, _ code: UInt8) -> Tensor {
            let codes = Tensor.zeros([6, 8], type)
            codes.withMutable(UInt8.self) { $0[3] = code }
            return codes
        }
        func uniform(_ value: Float, _ shape: Shape) -> Tensor {
            Tensor([Float](repeating: value, count: shape.count), shape)
        }
        let layer = "blocks.0.self_attn.o"
        for (form, codes, scale, type) in [
            ("int8", coded(.i8, 127), uniform(1000, [1, 1]), DType.f16),
            ("int8", coded(.i8, 127), uniform(3e38, [1, 1]), .f32),
            ("fp8", coded(.f8e4m3, 0x7F), uniform(1, [6]), .bf16),
            ("fp8", coded(.f8e4m3, 0x7E), uniform(1000, [6]), .f16),
        ] {
            let base = Self.model(layer, [("\(form)_weight", codes), ("scale", scale)])
            let plain = try dequantized(base, to: type)
            #expect(throws: CheckpointError.self) { try plain.tensor("\(layer).weight") }
        }
    }

    @Test("an adapter on another program's layout leaves its scales alone")
    func adaptedForeign() throws {
        for shape in [[], [6, 1], [6, 2, 1]] {
            let (codes, numbers) = Self.codes(.f8e4m3)
            let scale = Self.scales(shape)
            let base = Self.model(
                "blocks.0.self_attn.q",
                [("weight", codes), ("weight_scale", scale), ("input_scale", Self.scales([]))])
            let change = Tensor((0..<48).map { Float($0) / 16 }, [6, 8])
            let result = try adapted(
                base, by: [LoRA(MemoryCheckpoint([("blocks.0.self_attn.q.diff", change)]))])
            #expect(result.notes.count == 1)
            let found = result.checkpoint
            for name in base.names where !name.hasSuffix(".weight") {
                #expect(try found.tensor(name)?.bytes == base.tensor(name)?.bytes)
            }
            let sum = try #require(
                try dequantized(found, to: .f32).tensor("blocks.0.self_attn.q.weight")
            ).floats()
            let grid = Self.grid(shape, scale.floats())
            for (index, value) in change.floats().enumerated() {
                let expected = numbers[index] * grid[index] + value
                #expect((sum[index] - expected).magnitude <= expected.magnitude / 256)
            }
        }
    }
}
