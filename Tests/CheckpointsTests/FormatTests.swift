// Containers beside safetensors and .pth, files that are none, names with wrappers, damage.

import Checkpoints
import FoundationEssentials
import Glibc
import Ground
import Tensors
import Testing

@Suite("GGUF")
struct GGUFTests {
    /// Two blocks of random bytes with known scales: type, elements, sum, weighted sum, and the elements
    /// 0, 1, 17, 31, half + 5 and last, by the gguf package of llama.cpp.
    static let blocks: [(UInt32, Int, Double, Double, [Float])] = [
        (2, 64, -90, -3855, [3.5, -2, -1, 2.5, -9, 7.5]),
        (3, 64, 544, 21768, [3.75, 4.25, 0.75, 1.75, 1.75, 21.25]),
        (6, 64, -121, -5009.5, [-6, 0, 2.5, -7, 9, -18]),
        (7, 64, 1107, 43948.5, [1.25, 13.25, 11.75, 16.25, 9.25, 36.25]),
        (8, 64, -36, -8243.5, [0.5, -38, 1.5, -34, 16.5, 189]),
        (10, 512, 781, 124864.5, [-9, 6, 6, -3, -5.25, -21]),
        (11, 512, -690, -34058, [-9, 0, -2, -2, 13.5, -85.5]),
        (12, 512, 118224, 37_368_704, [147.5, 124.5, 9.5, 147.5, 1114, 812]),
        (13, 512, 215196, 69_345_882, [244.25, 174.25, 174.25, 436.75, 1200.75, 1009.25]),
        (14, 512, -3027.5, 1_922_826, [-455, -325, -390, 195, 36, 1824]),
    ]

    /// Bytes of a block, and where its half-precision scales are.
    static let layouts: [UInt32: (Int, [Int])] = [
        2: (18, [0]), 3: (20, [0, 2]), 6: (22, [0]), 7: (24, [0, 2]), 8: (34, [0]),
        10: (84, [80, 82]), 11: (110, [108]), 12: (144, [0, 2]), 13: (176, [0, 2]),
        14: (210, [208]),
    ]

    static func bytesOfBlocks(_ type: UInt32) -> [UInt8] {
        let (size, scales) = layouts[type]!
        var random = SplitMix64(seed: UInt64(type))
        var data = (0..<2 * size).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        for block in 0..<2 {
            for (index, place) in scales.enumerated() {
                let scale = Float16(0.5 + Float(block) + Float(index) / 4)
                data.replaceSubrange(
                    block * size + place..<block * size + place + 2,
                    with: bytes(of: scale.bitPattern))
            }
        }
        return data
    }

    @Test("every kind of block gives the numbers of llama.cpp", arguments: blocks.indices)
    func decoding(index: Int) throws {
        let (type, count, sum, weighted, samples) = Self.blocks[index]
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "x",
            ggufFile([
                ("blocks.0.self_attn.q.weight", type, [2, count / 2], Self.bytesOfBlocks(type))
            ]))
        let tensor = try #require(
            try openCheckpoint(path, blocksAs: .f32).tensor("blocks.0.self_attn.q.weight"))
        let values = tensor.floats()
        #expect(tensor.shape == [2, count / 2])
        #expect(values.reduce(0) { $0 + Double($1) } == sum)
        #expect(
            values.enumerated().reduce(0) { $0 + Double($1.offset + 1) * Double($1.element) }
                == weighted)
        #expect([0, 1, 17, 31, count / 2 + 5, count - 1].map { values[$0] } == samples)
        let narrow = try #require(
            try openCheckpoint(path).tensor("blocks.0.self_attn.q.weight"))
        #expect(narrow.dtype == .bf16 && narrow.floats() == values.map(\.roundedToBFloat16))
    }

    @Test("plain types, metadata, folded shapes, unsupported types")
    func plain() throws {
        let folder = try TemporaryFolder()
        func text(_ text: String) -> [UInt8] {
            bytes(of: UInt64(text.utf8.count)) + Array(text.utf8)
        }
        let shape =
            bytes(of: UInt32(5)) + bytes(of: UInt64(5))
            + [2, 1, 1, 2, 2].flatMap { bytes(of: Int32($0)) }
        let strings = bytes(of: UInt32(8)) + bytes(of: UInt64(2)) + text("a") + text("bc")
        let path = try folder.file(
            "x.gguf",
            ggufFile(
                [
                    ("patch_embedding.weight", 0, [2, 4], floatBytes([1, 2, 3, 4, 5, 6, 7, 8])),
                    (
                        "head.head.bias", 30, [2],
                        bytes(of: UInt16(0x3F80)) + bytes(of: UInt16(0xC000))
                    ),
                    ("half", 1, [1], bytes(of: Float16(0.25).bitPattern)),
                    ("strange", 20, [32], [UInt8](repeating: 0, count: 18)),
                ],
                values: [
                    ("general.architecture", 8, text("wan")), ("tokens", 9, strings),
                    ("comfy.gguf.orig_shape.patch_embedding.weight", 9, shape),
                    ("general.quantization_version", 4, bytes(of: UInt32(2))),
                ]))
        let file = try openCheckpoint(path)
        #expect(file.format == .gguf)
        #expect(file.metadata["general.architecture"] == "wan")
        #expect(file.info("patch_embedding.weight")?.shape == [2, 1, 1, 2, 2])
        #expect(try file.tensor("patch_embedding.weight")?.floats() == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(try file.tensor("head.head.bias")?.floats() == [1, -2])
        #expect(try file.tensor("half")?.floats() == [0.25])
        #expect(file.info("strange") == nil && file.foreignTypes["strange"] == "IQ4_NL")
        #expect(file.notes.count == 1)
    }

    @Test("llama.cpp's names of a text encoder")
    func names() throws {
        let model = UMT5Architecture(
            vocabulary: 8, dim: 4, attentionDim: 4, feedForward: 6, heads: 2, layers: 2)
        let base = MemoryCheckpoint(
            model.tensors().map { ($0.name, .zeros(Shape($0.shape), .f32)) })
        var conversion = Conversion()
        conversion.layout = .llamacpp
        let there = try converted(base, conversion)
        #expect(
            Set(there.names).isSuperset(of: [
                "token_embd.weight", "enc.output_norm.weight", "enc.blk.1.attn_q.weight",
                "enc.blk.0.attn_rel_b.weight", "enc.blk.0.ffn_gate.weight",
                "enc.blk.1.ffn_up.weight",
            ]))
        #expect(try modelFile(there, .umT5).model == .umT5(model))
    }

    @Test("damaged files are refused")
    func damaged() throws {
        let folder = try TemporaryFolder()
        let whole = ggufFile([("a", 0, [4], floatBytes([1, 2, 3, 4]))])
        for count in [4, 8, 20, 24, 40, whole.count - 1] {
            let path = try folder.file("cut", Array(whole.prefix(count)))
            #expect(throws: CheckpointError.self) { try openCheckpoint(path) }
        }
        for tensors: [(String, UInt32, [Int], [UInt8])] in [
            [("a", 8, [2, 33], [UInt8](repeating: 0, count: 99))],
            [("a", 0, [1 << 40, 1 << 40], [])], [("a", 0, [Int.max], [])],
            [("a", 0, [1], [0, 0, 0, 0]), ("a", 0, [1], [0, 0, 0, 0])],
        ] {
            let path = try folder.file("bad", ggufFile(tensors))
            #expect(throws: CheckpointError.self) { try openCheckpoint(path) }
        }
        let deep = (0..<40).reduce(bytes(of: UInt32(0)) + bytes(of: UInt64(0))) { inner, _ in
            bytes(of: UInt32(9)) + bytes(of: UInt64(1)) + inner
        }
        let path = try folder.file("deep", ggufFile([], values: [("a", 9, deep)]))
        #expect(throws: CheckpointError.self) { try openCheckpoint(path) }
    }
}

@Suite("Distributed checkpoints")
struct DistributedTests {
    private static func write(
        _ checkpoint: (metadata: [UInt8], files: [String: [UInt8]]), to folder: TemporaryFolder
    ) throws {
        _ = try folder.file(".metadata", checkpoint.metadata)
        for (name, bytes) in checkpoint.files { _ = try folder.file(name, bytes) }
    }

    private static let numbers = (0..<12).map(Float.init)

    @Test("tensors in one piece, cut along either axis, and in a grid")
    func pieces() throws {
        let folder = try TemporaryFolder()
        let whole = Self.numbers
        func part(_ rows: Range<Int>, _ columns: Range<Int>) -> [Float] {
            rows.flatMap { row in columns.map { whole[row * 4 + $0] } }
        }
        try Self.write(
            distributedFiles([
                ("net.one", [3, 4], [([0, 0], [3, 4], whole, "__0_0.distcp")]),
                (
                    "net.rows", [3, 4],
                    [
                        ([0, 0], [2, 4], part(0..<2, 0..<4), "__0_0.distcp"),
                        ([2, 0], [1, 4], part(2..<3, 0..<4), "__1_0.distcp"),
                    ]
                ),
                (
                    "net.grid", [3, 4],
                    [
                        ([0, 2], [3, 2], part(0..<3, 2..<4), "__1_0.distcp"),
                        ([0, 0], [1, 2], part(0..<1, 0..<2), "__0_0.distcp"),
                        ([1, 0], [2, 2], part(1..<3, 0..<2), "__0_0.distcp"),
                    ]
                ),
                ("net.scalar", [], [([], [], [7], "__0_0.distcp")]),
            ]), to: folder)
        for path in [folder.path, folder.path + "/.metadata"] {
            let file = try openCheckpoint(path)
            #expect(file.format == .torchDistributed)
            #expect(file.names == ["one", "rows", "grid", "scalar"])
            for name in ["one", "rows", "grid"] {
                #expect(try file.tensor(name)?.floats() == whole, "\(name)")
            }
            #expect(try file.tensor("scalar")?.floats() == [7])
        }
        let outer = try TemporaryFolder()
        try FileManager.default.copyItem(atPath: folder.path, toPath: outer.path + "/model")
        #expect(try openCheckpoint(outer.path).names.count == 4)
    }

    @Test("gaps, overlaps, missing files, changed bytes")
    func damaged() throws {
        let whole = Self.numbers
        let cases: [[(start: [Int], shape: [Int], [Float], file: String)]] = [
            [([0, 0], [2, 4], Array(whole[..<8]), "a")],
            [
                ([0, 0], [2, 4], Array(whole[..<8]), "a"),
                ([1, 0], [1, 4], Array(whole[..<4]), "a"),
            ],
            [([0, 0], [4, 4], whole + whole[..<4], "a")], [([1, 0], [3, 4], whole, "a")],
        ]
        for pieces in cases {
            let folder = try TemporaryFolder()
            try Self.write(distributedFiles([("x", [3, 4], pieces)]), to: folder)
            #expect(throws: CheckpointError.self) { try openCheckpoint(folder.path) }
        }
        let folder = try TemporaryFolder()
        let good = distributedFiles([("x", [3, 4], [([0, 0], [3, 4], whole, "a")])])
        _ = try folder.file(".metadata", good.metadata)
        #expect(throws: CheckpointError.self) { try openCheckpoint(folder.path) }
        var data = try #require(good.files["a"])
        let place = try #require(
            data.indices.dropLast(4).first { Array(data[$0..<$0 + 4]) == floatBytes([5]) })
        data[place] ^= 1
        _ = try folder.file("a", data)
        let file = try openCheckpoint(folder.path)
        #expect(throws: CheckpointError.self) { try file.tensor("x") }
    }
}

@Suite("Names and files as found in practice")
struct FoundFileTests {
    @Test("wrappers at any depth")
    func wrappers() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "x.safetensors",
            safetensorsFile([
                "model._fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.self_attn.q.weight",
                "_orig_mod.blocks.0._checkpoint_wrapped_module.self_attn._orig_mod.k.weight",
                "module.module.net.blocks.1.module.norm.weight", "net.", "module",
            ]))
        #expect(
            try openCheckpoint(path).names == [
                "blocks.0.self_attn.q.weight", "blocks.0.self_attn.k.weight",
                "blocks.1.norm.weight",
                "net.", "module",
            ])
        let twice = try folder.file("y.safetensors", safetensorsFile(["net.a", "module.a"]))
        #expect {
            try openCheckpoint(twice)
        } throws: { "\($0)".contains("'net.a' and 'module.a'") }
    }

    @Test("averages are preferred to the weights they average, with a note")
    func averages() throws {
        let folder = try TemporaryFolder()
        let both = try folder.file(
            "x.safetensors",
            safetensorsFile([
                ("net.a", "F32", [1], floatBytes([1])), ("net_ema.a", "F32", [1], floatBytes([2])),
                ("net.b", "F32", [1], floatBytes([3])),
            ]))
        let file = try openCheckpoint(both)
        #expect(file.names == ["a", "b"])
        #expect(try file.tensor("a")?.floats() == [2])
        #expect(file.notes.count == 1 && file.notes[0].contains("net_ema"))
        let alone = try openCheckpoint(
            try folder.file("y.safetensors", safetensorsFile(["net_ema.a", "net_ema.b"])))
        #expect(alone.names == ["a", "b"] && alone.notes.count == 1)
        // A table that bears such a name is none.
        let few = try openCheckpoint(
            try folder.file("w.safetensors", safetensorsFile(["ema.decay", "net.a", "net.b"])))
        #expect(few.names == ["ema.decay", "a", "b"] && few.notes.isEmpty)
        // As dictionaries in a PyTorch file: the average of all, not a table that bears its name.
        func dict(_ names: [String], _ storage: String) -> Pickled {
            .dict(names.map { (.text($0), .tensor([1], storage: storage)) })
        }
        for (average, expected) in [(["a", "b", "c"], Float(2)), (["a"], 1)] {
            let path = try folder.file(
                "z.pth",
                torchFile(
                    .dict([
                        (.text("generator"), dict(["a", "b", "c"], "0")),
                        (.text("generator_ema"), dict(average, "1")),
                    ]), storages: [("0", floatBytes([1])), ("1", floatBytes([2]))]))
            let file = try openCheckpoint(path)
            #expect(try file.tensor("a")?.floats() == [expected])
            #expect(file.notes.count == (expected == 2 ? 1 : 0))
        }
    }

    @Test("numbered files, indices of variants, .bin")
    func shards() throws {
        let folder = try TemporaryFolder()
        func put(_ number: Int, _ names: [String]) throws {
            _ = try folder.file("m-0000\(number)-of-00003.safetensors", safetensorsFile(names))
        }
        try put(1, ["a"])
        try put(3, ["c"])
        #expect {
            try openCheckpoint(folder.path)
        } throws: { "\($0)".contains("number 2 of 3 files") }
        try put(2, ["b"])
        _ = try folder.file("pytorch_model.bin", [1, 2, 3])  // another format of the same
        #expect(try openCheckpoint(folder.path).names == ["a", "b", "c"])
        let other = try TemporaryFolder()
        _ = try other.file("w.fp16-00001-of-00001.safetensors", safetensorsFile(["a"]))
        let index = try other.file(
            "w.safetensors.index.fp16.json",
            Array(#"{"weight_map": {"a": "w.fp16-00001-of-00001.safetensors"}}"#.utf8))
        #expect(try openCheckpoint(index).names == ["a"])
        #expect(try openCheckpoint(other.path).names == ["a"])
        let bin = try TemporaryFolder()
        _ = try bin.file(
            "p-00001-of-00001.bin",
            torchFile(
                .dict([(.text("a"), .tensor([1], storage: "0"))]),
                storages: [("0", floatBytes([4]))]))
        _ = try bin.file(
            "p.bin.index.json", Array(#"{"weight_map": {"a": "p-00001-of-00001.bin"}}"#.utf8))
        #expect(try openCheckpoint(bin.path).tensor("a")?.floats() == [4])
    }

    @Test("an archive of many tensors, each in a member of its own")
    func manyMembers() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "many.pth",
            torchFile(
                .dict((0..<600).map { (.text("layer.\($0)"), .tensor([2], storage: "\($0)")) }),
                storages: (0..<600).map { ("\($0)", floatBytes([Float($0), -Float($0)])) }))
        let file = try openCheckpoint(path)
        #expect(file.names == (0..<600).map { "layer.\($0)" })
        for index in [0, 1, 599] {
            #expect(try file.tensor("layer.\(index)")?.floats() == [Float(index), -Float(index)])
        }
    }

    @Test("files found in place of a model are called what they are")
    func strangers() throws {
        let folder = try TemporaryFolder()
        for (content, word) in [
            (
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 28577035\n",
                "Git LFS"
            ),
            ("<!DOCTYPE html><html>", "HTML"), ("\n\n  <html lang=\"en\">", "HTML"),
            ("{\"error\":\"Repository not found\"}", "error"), ("Entry not found", "error"),
            ("\u{7F}ELF\u{2}\u{1}", "program"), (String(repeating: "\0", count: 200), "zeros"),
            ("%PDF-1.7", "PDF"), ("Not Found", "a text, not a model: 'Not Found'"),
            ("<Error>\n<Code>AccessDenied</Code></Error>", "AccessDenied"),
        ] {
            for name in ["model.safetensors", "model.pth", "model.gguf"] {
                let path = try folder.file(name, Array(content.utf8))
                #expect {
                    try openCheckpoint(path)
                } throws: { "\($0)".contains(word) }
            }
        }
        let pointer = Array("version https://git-lfs.github.com/spec/v1\noid sha256:0\n".utf8)
        let index = try folder.file("model.safetensors.index.json", pointer)
        #expect { try openCheckpoint(index) } throws: { "\($0)".contains("Git LFS") }
    }

    @Test("an unsupported element type beside supported ones")
    func foreignTypes() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "x.safetensors",
            safetensorsFile([
                ("steps", "U64", [1], [0, 0, 0, 0, 0, 0, 0, 0]), ("a", "F32", [1], floatBytes([1])),
                ("blocks.0.self_attn.q.weight", "F8_E8M0", [2], [0, 0]),
            ]))
        let file = try openCheckpoint(path)
        #expect(file.names == ["a"] && file.notes.count == 1)
        #expect(
            file.foreignTypes == ["steps": "U64", "blocks.0.self_attn.q.weight": "F8_E8M0"])
        let torch = try openCheckpoint(
            try folder.file(
                "x.pth",
                torchFile(
                    .dict([
                        (.text("c"), .tensor([1], storage: "0", type: "ComplexFloatStorage")),
                        (.text("a"), .tensor([1], storage: "1")),
                    ]), storages: [("0", floatBytes([1, 2])), ("1", floatBytes([3]))])))
        #expect(try torch.tensor("a")?.floats() == [3])
        #expect(torch.foreignTypes == ["c": "ComplexFloatStorage"])
        // What a model needs is refused by its type.
        let model = WanTransformerArchitecture(
            dim: 8, layers: 1, feedForward: 8, heads: 1, textDim: 8)
        let tensors = model.tensors().map { tensor in
            let isStrange = tensor.name == "blocks.0.ffn.0.weight"
            return (
                tensor.name, isStrange ? "F8_E8M0" : "I8", tensor.shape,
                [UInt8](repeating: 0, count: tensor.shape.reduce(1, *))
            )
        }
        let strange = try folder.file("y.safetensors", safetensorsFile(tensors))
        #expect {
            try openModel(strange, .wanTransformer)
        } throws: { "\($0)".contains("'blocks.0.ffn.0.weight' holds F8_E8M0") }
    }

    @Test("changed bytes in an archive are reported")
    func checksums() throws {
        let folder = try TemporaryFolder()
        let large = [Float](repeating: 1, count: 1 << 19)
        var file = torchFile(
            .dict([
                (.text("small"), .tensor([2], storage: "0")),
                (.text("large"), .tensor([1 << 19], storage: "1")),
            ]), storages: [("0", floatBytes([3, 5])), ("1", floatBytes(large))])
        func flip(_ pattern: [UInt8]) throws {
            let place = try #require(
                file.indices.dropLast(8).first { Array(file[$0..<$0 + 8]) == pattern })
            file[place] ^= 1
        }
        try flip(floatBytes([3, 5]))
        try flip(floatBytes([1, 1]))
        let damaged = try openCheckpoint(try folder.file("x.pth", file))
        #expect(throws: CheckpointError.self) { try damaged.tensor("small") }
        #expect(throws: CheckpointError.self) { try damaged.verify("large") }
        #expect {
            try writeCheckpoint(damaged, to: folder.path + "/y.safetensors")
        } throws: { "\($0)".contains("checksum") }
        #expect(folder.contents == ["x.pth"])
    }

    @Test("a model inside a file that holds a whole pipeline")
    func wholePipeline() throws {
        let text = UMT5Architecture(
            vocabulary: 8, dim: 4, attentionDim: 4, feedForward: 6, heads: 2, layers: 1)
        let vae = WanVAEArchitecture(dim: 2)
        let net = WanTransformerArchitecture(
            dim: 8, layers: 1, feedForward: 8, heads: 1, textDim: 4)
        let file = MemoryCheckpoint(
            net.tensors().map { ($0.name, .zeros(Shape($0.shape), .f32)) }
                + text.tensors().map {
                    ("text_encoders.umt5xxl.transformer.\($0.name)", .zeros(Shape($0.shape), .f32))
                } + vae.tensors().map { ("vae.\($0.name)", .zeros(Shape($0.shape), .f32)) })
        #expect(try modelFile(file, .umT5).model == .umT5(text))
        #expect(try modelFile(file, .wanVAE).model == .wanVAE(vae))
        #expect(!(try modelFile(file, .wanTransformer).unused.isEmpty))
    }
}

@Suite("Small files stay small")
struct BoundTests {
    /// Time and bytes taken by a body, alone in a process of its own would be better; limits are wide.
    private func bounded(_ body: () throws -> Void) rethrows {
        let before = peakMemory()
        let time = try ContinuousClock().measure(body)
        #expect(time < .seconds(5))
        #expect(peakMemory() - before < 300 << 20)
    }

    @Test("names of any length do not take much memory")
    func longNames() throws {
        let folder = try TemporaryFolder()
        for name in [
            String(repeating: ".", count: 200_000), String(repeating: "net.", count: 50_000),
            "blocks.0." + String(repeating: "a.", count: 100_000) + "weight",
        ] {
            let path = try folder.file(
                "x.safetensors", safetensorsFile([name, "blocks.0.attn1.to_q.weight"]))
            bounded {
                let summary = (try? openCheckpoint(path)).map { CheckpointSummary($0) }
                #expect(summary?.tensors.count ?? 2 == 2)
            }
        }
    }

    @Test("a long key that thousands of tensors share")
    func sharedKeys() throws {
        let folder = try TemporaryFolder()
        let key = String(repeating: "k", count: 1_000_000)
        // The key is remembered once and recalled as name and storage of each tensor.
        var code: [UInt8] =
            [0x80, 2] + Array("}(".utf8) + Pickled.text(key).code + Array("q\u{0}".utf8)
        code += Pickled.none.code
        let tensor = Pickled.tensor([1], storage: "0").code
        for _ in 0..<4000 { code += Array("h\u{0}".utf8) + tensor }
        code += Array("u.".utf8)
        let path = try folder.file(
            "x.pth", zipArchive([("archive/data.pkl", code), ("archive/data/0", floatBytes([1]))]))
        bounded { #expect(throws: CheckpointError.self) { try openCheckpoint(path) } }
    }

    @Test("views that repeat elements, many times")
    func views() throws {
        let folder = try TemporaryFolder()
        let tensors = (0..<2000).map { index -> (Pickled, Pickled) in
            let view = Pickled.call(
                .global("torch._utils", "_rebuild_tensor_v2"),
                [
                    .persistent(
                        .tuple([
                            .text("storage"), .global("torch", "FloatStorage"), .text("0"),
                            .text("cpu"), .int(1),
                        ])), .int(0), .tuple([.int(1 << 20)]), .tuple([.int(0)]), .int(0), .none,
                ])
            return (.text("\(index)"), view)
        }
        let path = try folder.file(
            "x.pth", torchFile(.dict(tensors), storages: [("0", floatBytes([1]))]))
        bounded { #expect(throws: CheckpointError.self) { try openCheckpoint(path) } }
    }

    @Test("pipes and devices are refused at once")
    func pipes() throws {
        let folder = try TemporaryFolder()
        for name in ["x.safetensors", "x.index.json", ".metadata"] {
            let path = folder.path + "/" + name
            #expect(mkfifo(path, 0o600) == 0)
            bounded { #expect(throws: CheckpointError.self) { try openCheckpoint(path) } }
        }
        bounded { #expect(throws: CheckpointError.self) { try openCheckpoint("/dev/zero") } }
    }

    @Test("control characters of a file do not reach a terminal")
    func controlCharacters() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "x.safetensors", Array("        {\"a\\u001b[31m\":1}".utf8))
        do {
            _ = try openCheckpoint(path)
        } catch {
            #expect(!"\(error)".unicodeScalars.contains { $0.value < 32 })
        }
        let key = MemoryCheckpoint([("\u{1B}[2Jx", .zeros([1], .f32))])
        do {
            _ = try converted(
                key,
                {
                    var c = Conversion(); c.layout = .diffusers; return c
                }())
        } catch {
            #expect(!"\(error)".unicodeScalars.contains { $0.value < 32 })
        }
    }
}

@Suite("Differences")
struct DifferenceTests {
    @Test("only tensors that were compared are called equal")
    func differences() throws {
        func integers(_ values: [Int64]) -> Tensor {
            let tensor = Tensor.host([values.count], .i64)
            tensor.withMutable(Int64.self) { for (i, x) in values.enumerated() { $0[i] = x } }
            return tensor
        }
        let a = MemoryCheckpoint([
            ("same", Tensor([1, .nan] as [Float], [2])), ("shape", .zeros([2], .f32)),
            ("type", .zeros([2], .f32)), ("value", Tensor([3, 4] as [Float], [2])),
            ("infinite", Tensor([1, 2] as [Float], [2])), ("wide", integers([1 << 60])),
            ("first", .zeros([1], .f32)),
        ])
        let b = MemoryCheckpoint([
            ("same", Tensor([1, .nan] as [Float], [2])), ("shape", .zeros([3], .f32)),
            ("type", .zeros([2], .bf16)), ("value", Tensor([3, 4.5] as [Float], [2])),
            ("infinite", Tensor([1, .infinity] as [Float], [2])), ("wide", integers([1 << 60 + 1])),
            ("second", .zeros([1], .f32)),
        ])
        let difference = try CheckpointDifference(a, b)
        #expect(difference.equal == 1)
        #expect(
            difference.changes.map(\.name) == ["shape", "type", "value", "infinite", "wide"])
        #expect(difference.onlyInFirst.map(\.name) == ["first"])
        #expect(difference.onlyInSecond.map(\.name) == ["second"])
        let value = try #require(difference.changes.first { $0.name == "value" }?.distance)
        #expect(value.largest == 0.5 && value.nonFinite == 0)
        let infinite = try #require(difference.changes.first { $0.name == "infinite" }?.distance)
        #expect(infinite.largest == .infinity && infinite.nonFinite == 1 && infinite.relative == 0)
        #expect(!difference.isEmpty)
        #expect(try CheckpointDifference(a, a).isEmpty)
    }

    @Test("numbers at the ends of f64's range have distances, too")
    func extremes() throws {
        func file(_ value: Double) -> MemoryCheckpoint {
            let tensor = Tensor.host([1], .f64)
            tensor.withMutable(Double.self) { $0[0] = value }
            return MemoryCheckpoint([("x", tensor)])
        }
        for (x, y, largest, relative) in [
            (1e300, -1e300, 2e300, 2.0), (2e-200, 1e-200, 1e-200, 1), (1e300, 0, 1e300, 1e300),
            (1.7e308, -1.7e308, .greatestFiniteMagnitude, 2),
        ] {
            let distance = try CheckpointDifference(file(x), file(y)).common[0].distance
            #expect(distance?.largest == largest && distance?.relative == relative)
        }
    }

    @Test("tensors of unsupported types are not called equal")
    func foreign() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "x.safetensors",
            safetensorsFile([("steps", "U64", [1], [UInt8](repeating: 0, count: 8))]))
        let file = try openCheckpoint(path)
        let difference = try CheckpointDifference(file, file)
        #expect(difference.notCompared == ["steps"] && !difference.isEmpty)
    }
}
