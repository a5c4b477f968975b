// Readers of foreign bytes under mutation: whatever a file holds, it is read or refused.
//
// TURBODIFFUSION_FUZZ=1000000 runs so many mutations (with the sanitizers, for example), TURBODIFFUSION_FUZZ_SEED
// begins elsewhere. The file that ended a run is left in its temporary folder.

import Checkpoints
import FoundationEssentials
import Ground
import Tensors
import Testing

@Suite("Mutated files")
struct FuzzTests {
    static func environment(_ name: String, _ otherwise: Int) -> Int {
        ProcessInfo.processInfo.environment[name].flatMap { Int($0) } ?? otherwise
    }

    /// Small files of every kind that is read, by the name that they are given.
    static func corpus() throws -> [(name: String, bytes: [UInt8])] {
        let numbers = (0..<64).map { Float($0) / 8 - 4 }
        let net = WanTransformerArchitecture(
            dim: 8, layers: 1, feedForward: 8, heads: 1, textDim: 4)
        let whole = net.tensors().map { tensor in
            (
                tensor.name, "F8_E4M3", tensor.shape,
                [UInt8](repeating: 0x38, count: tensor.shape.reduce(1, *))
            )
        }
        let module = "blocks.0.self_attn.q"
        let marker = Array(#"{"format": "float8_e4m3fn"}"#.utf8)
        let quantized = whole.flatMap { tensor in
            guard tensor.0.hasPrefix(module), tensor.0.hasSuffix(".weight") else { return [tensor] }
            return [
                tensor,
                ("\(module).weight_scale", "F32", [8, 1], floatBytes(Array(numbers[33..<41]))),
                ("\(module).comfy_quant", "U8", [marker.count], marker),
            ]
        }
        func lora(_ parts: [(String, [Int])], _ metadata: String? = nil) -> [UInt8] {
            safetensorsFile(
                parts.map {
                    (
                        "diffusion_model.\(module).\($0.0)", "F32", $0.1,
                        floatBytes(Array(numbers[..<$0.1.reduce(1, *)]))
                    )
                }, metadata: metadata)
        }
        let dora = #"{"lora_adapter_metadata":"{\"transformer.lora_alpha\": 2, \"r\": 2}"}"#
        let torch = torchFile(
            .dict([
                (
                    .text("ema"),
                    .dict([
                        (.text("a"), .tensor([2, 3], storage: "0")),
                        (.text("module.b"), .tensor([4], storage: "1", type: "HalfStorage")),
                    ])
                ), (.text("step"), .int(3)),
            ]),
            storages: [
                ("0", floatBytes(Array(numbers[..<6]))), ("1", [UInt8](repeating: 1, count: 8)),
            ])
        let distributed = distributedFiles([
            (
                "net.a", [2, 2],
                [([0, 0], [1, 2], [1, 2], "data"), ([1, 0], [1, 2], [3, 4], "data")]
            )
        ])
        let blocks = GGUFTests.layouts.keys.sorted().map { type in
            (
                "blocks.\(type).weight", type, [2, GGUFTests.blocks.first { $0.0 == type }!.1 / 2],
                GGUFTests.bytesOfBlocks(type)
            )
        }
        let alignment: (String, UInt32, [UInt8]) = ("general.alignment", 4, bytes(of: UInt32(32)))
        return [
            ("x.safetensors", safetensorsFile(whole, metadata: #"{"format":"pt"}"#)),
            ("x.safetensors", safetensorsFile(quantized)),
            (
                "x.safetensors",
                safetensorsFile([
                    ("net.a", "F32", [2], floatBytes([1, 2])),
                    ("net_ema.a", "F64", [], bytes(of: 5)),
                    ("steps", "U64", [1], bytes(of: 7)),
                ])
            ), ("lora", lora([("lora_A.weight", [2, 8]), ("lora_B.weight", [8, 2])], dora)),
            (
                "lora",
                lora([
                    ("lora_down.weight", [2, 8]), ("lora_up.weight", [8, 2]),
                    ("dora_scale", [8, 1]),
                ])
            ),
            (
                "lora",
                lora([
                    ("hada_w1_a", [8, 2]), ("hada_w1_b", [2, 8]), ("hada_w2_a", [8, 2]),
                    ("hada_w2_b", [2, 8]), ("alpha", []),
                ])
            ),
            ("lora", lora([("lokr_w1", [2, 2]), ("lokr_w2_a", [4, 1]), ("lokr_w2_b", [1, 4])])),
            ("lora", lora([("diff", [8, 8]), ("diff_b", [8])])), ("x.pth", torch),
            (
                "x.pth",
                [UInt8](
                    try #require(
                        FileManager.default.contents(
                            atPath: golden("containers/legacy_shared_views.pth"))))
            ),
            (
                "x.pth",
                [UInt8](
                    try #require(
                        FileManager.default.contents(
                            atPath: golden("containers/zip_protocol4.pth"))))
            ), (".metadata", distributed.metadata),
            ("data", try #require(distributed.files["data"])),
            ("x.gguf", ggufFile(blocks, values: [alignment])),
            (
                "x.index.json",
                Array(#"{"metadata":{"n":1},"weight_map":{"net.a":"x.safetensors"}}"#.utf8)
            ),
            ("adapter_config.json", Array(#"{"r":2,"lora_alpha":4,"alpha_pattern":{"q":1}}"#.utf8)),
        ]
    }

    /// A file with a few things changed.
    static func mutated(
        _ original: [UInt8], _ other: [UInt8], using random: inout SplitMix64
    ) -> [UInt8] {
        var bytes = original
        func place(_ count: Int) -> Int { Int.random(in: 0...max(count - 1, 0), using: &random) }
        for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty {
            let at = place(bytes.count)
            switch Int.random(in: 0..<9, using: &random) {
            case 0: bytes[at] = UInt8.random(in: 0...255, using: &random)
            case 1: bytes[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            case 2:
                // Numbers at the ends of their ranges, in every width.
                let value = [0, 1, -1, .max, .min, 1 << 31, 1 << 32, 127, 65535].randomElement(
                    using: &random)!
                let width = [1, 2, 4, 8].randomElement(using: &random)!
                for (index, byte) in withUnsafeBytes(of: Int(value), Array.init).prefix(width)
                    .enumerated() where at + index < bytes.count
                {
                    bytes[at + index] = byte
                }
            case 3: bytes.removeSubrange(at..<min(at + place(16) + 1, bytes.count))
            case 4:
                let end = min(at + place(64) + 1, bytes.count)
                bytes.insert(contentsOf: bytes[at..<end], at: place(bytes.count))
            case 5: bytes.removeLast(place(bytes.count))
            case 6:
                let start = place(other.count)
                let end = min(start + place(128) + 1, other.count)
                bytes.replaceSubrange(
                    at..<min(at + end - start, bytes.count), with: other[start..<end])
            case 7:
                // A number in a text.
                let digits = Array(
                    "\([0, -1, 1 << 40, Int.max].randomElement(using: &random)!)".utf8)
                if (0x30...0x39).contains(bytes[at]) {
                    bytes.replaceSubrange(at...at, with: digits)
                }
            default: bytes.swapAt(at, place(bytes.count))
            }
        }
        return bytes
    }

    /// All that is done with a file: what it holds, as each kind of model, dequantised, as an adapter.
    static func use(_ path: String, isAdapter: Bool) {
        guard let file = try? openCheckpoint(path) else { return }
        for name in file.names.prefix(64) {
            guard let info = file.info(name), info.byteCount < 1 << 22 else { continue }
            _ = try? file.tensor(name)?.floats()
        }
        for kind in DetectedModel.Kind.allCases { _ = try? modelFile(file, kind) }
        _ = CheckpointSummary(file)
        func read(_ checkpoint: (any Checkpoint)?) {
            for name in checkpoint?.names.prefix(64) ?? [] {
                guard let info = checkpoint?.info(name), info.byteCount < 1 << 22 else { continue }
                _ = try? checkpoint?.tensor(name)
            }
        }
        read(try? dequantized(file))
        read(try? inOriginalNames(file))
        guard isAdapter else { return }
        let module = "blocks.0.self_attn.q"
        var random = SplitMix64(seed: 1)
        let base = MemoryCheckpoint([
            ("\(module).weight", .random([8, 8], using: &random)),
            ("\(module).bias", .random([8], using: &random)),
            ("\(module).other", .random([8, 1], using: &random)),
        ])
        read((try? adapted(base, by: [LoRA(file)]))?.checkpoint)
    }

    @Test("every mutated file is read or refused in bounded time")
    func mutations() throws {
        let corpus = try Self.corpus()
        let folder = try TemporaryFolder()
        for (name, bytes) in corpus { _ = try folder.file(name, bytes) }
        var random = SplitMix64(seed: UInt64(Self.environment("TURBODIFFUSION_FUZZ_SEED", 1)))
        var slowest = Duration.zero
        for _ in 0..<Self.environment("TURBODIFFUSION_FUZZ", 20_000) {
            let (name, original) = corpus.randomElement(using: &random)!
            let other = corpus.randomElement(using: &random)!.bytes
            let path = try folder.file(name, Self.mutated(original, other, using: &random))
            let opened = name == "data" || name == ".metadata" ? folder.path + "/.metadata" : path
            let time = ContinuousClock().measure {
                Self.use(
                    name == "adapter_config.json" ? folder.path + "/lora" : opened,
                    isAdapter: name == "lora" || name == "adapter_config.json")
            }
            slowest = max(slowest, time)
            // What the next file may refer to is whole again.
            _ = try folder.file(name, original)
        }
        #expect(slowest < .seconds(5))
    }
}
