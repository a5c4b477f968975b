// Every container format against the checksums of its tensors; every hostile file against its
// verdict.

import Checkpoints
import FoundationEssentials
import Ground
import Tensors
import Testing

private struct ContainerManifest: Decodable {
    struct Entry: Decodable {
        var shape: [Int]
        var dtype: String
        var sha256_contiguous: String
    }
    var tensors: [String: Entry]
}

private struct HostileManifest: Decodable {
    struct File: Decodable {
        var verdict: String
        var side_effect_marker: String
    }
    var files: [String: File]
}

private let torchNames: [String: DType] = [
    "float64": .f64, "float32": .f32, "float16": .f16, "bfloat16": .bf16, "int64": .i64,
    "float8_e4m3fn": .f8e4m3, "float8_e5m2": .f8e5m2, "int32": .i32, "int16": .i16, "int8": .i8,
    "uint8": .u8, "bool": .bool,
]

@Suite("Containers")
struct ContainerTests {
    @Test("every tensor has the shape, type and bytes of the manifest")
    func manifest() throws {
        let manifest = try decode(
            [String: ContainerManifest].self, golden("containers/manifest.json"))
        #expect(manifest.count == 12)
        for (file, expected) in manifest {
            let checkpoint = try openCheckpoint(golden("containers/" + file))
            #expect(checkpoint.names.count == expected.tensors.count, "\(file)")
            for (full, entry) in expected.tensors {
                var name = full.hasPrefix("state_dict/") ? String(full.dropFirst(11)) : full
                if name.hasPrefix("net.") { name = String(name.dropFirst(4)) }
                let info = try #require(checkpoint.info(name), "\(file) \(name)")
                #expect(info.shape == entry.shape)
                #expect(info.dtype == torchNames[entry.dtype])
                let tensor = try #require(try checkpoint.tensor(name))
                #expect(sha256(tensor.bytes) == entry.sha256_contiguous, "\(file) \(name)")
                #expect(Int(bitPattern: tensor.hostAddress) % tensor.dtype.byteCount == 0)
            }
        }
    }

    @Test("names keep the order of the file")
    func order() throws {
        let ordered = try openCheckpoint(golden("containers/zip_ordereddict_metadata.pth"))
        #expect(ordered.names == (0..<12).map { "blocks.\($0).self_attn.q.weight" })
    }

    @Test("contiguous views of one storage share the mapping")
    func zeroCopy() throws {
        let file = try openCheckpoint(golden("containers/zip_shared_views.pth"))
        let full = try #require(try file.tensor("full"))
        let rows = try #require(try file.tensor("rows_2_5"))
        #expect(rows.hostAddress == full.hostAddress + 2 * 12 * 4)
    }

    @Test("metadata of safetensors is kept")
    func metadata() throws {
        let file = try openCheckpoint(golden("containers/all.safetensors"))
        #expect(!file.metadata.isEmpty)
        #expect(try openCheckpoint(golden("containers/one_bf16.safetensors")).metadata.isEmpty)
    }

    @Test("hostile files are refused quickly, without effects and without much memory")
    func hostile() throws {
        let manifest = try decode(HostileManifest.self, golden("hostile/manifest.json"))
        #expect(manifest.files.count > 50)
        for (file, expected) in manifest.files {
            let before = peakMemory()
            var refusal: CheckpointError?
            let time = ContinuousClock().measure {
                do throws(CheckpointError) {
                    let checkpoint = try openCheckpoint(golden("hostile/" + file))
                    for name in checkpoint.names { _ = try checkpoint.tensor(name) }
                } catch {
                    refusal = error
                }
            }
            #expect(time < .seconds(2), "\(file)")
            #expect(peakMemory() - before < 32 << 20, "\(file)")
            switch expected.verdict {
            case "reject": #expect(refusal != nil, "\(file)")
            case "accept": #expect(refusal == nil, "\(file): \(refusal?.description ?? "")")
            default: break
            }
            #expect(!FileManager.default.fileExists(atPath: expected.side_effect_marker))
        }
    }

    @Test("a header whose length looks like another format's magic is still safetensors")
    func ambiguousLengths() throws {
        let folder = try TemporaryFolder()
        // 0x0280 starts like a pickle, 0x4B50 like a zip archive.
        for length in [0x0280, 0x4B50] {
            let text = #"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#
            let header =
                Array(text.utf8) + [UInt8](repeating: 0x20, count: length - text.utf8.count)
            let size = withUnsafeBytes(of: UInt64(length).littleEndian) { Array($0) }
            for name in ["x.safetensors", "x"] {
                let path = try folder.file(name, size + header + [7])
                #expect(try openCheckpoint(path).tensor("a")?.bytes == [7])
            }
        }
    }

    @Test("a refused global is named")
    func globalNamed() {
        #expect {
            try openCheckpoint(golden("hostile/pickle_os_system.pth"))
        } throws: { error in
            "\(error)".contains("system'")
        }
    }
}

@Suite("Sharded safetensors")
struct ShardTests {
    private func safetensors(_ names: [String]) -> [UInt8] {
        var fields: [String] = []
        for (index, name) in names.enumerated() {
            fields.append(
                "\"\(name)\":{\"dtype\":\"F32\",\"shape\":[1],"
                    + "\"data_offsets\":[\(index * 4),\(index * 4 + 4)]}")
        }
        let header = Array("{\(fields.joined(separator: ","))}".utf8)
        let length = withUnsafeBytes(of: UInt64(header.count).littleEndian) { Array($0) }
        return length + header + [UInt8](repeating: 0, count: names.count * 4)
    }

    @Test("an index and its folder are opened, faulty ones are refused")
    func shards() throws {
        let folder = try TemporaryFolder()
        _ = try folder.file("m-1.safetensors", safetensors(["a", "b"]))
        _ = try folder.file("m-2.safetensors", safetensors(["c"]))
        let index = try folder.file(
            "m.safetensors.index.json",
            Array(
                #"""
                {"metadata": {"total_size": 12, "x": [1e3, -2.5, true, null, {"y": []}]},
                 "weight_map": {"a": "m-1.safetensors", "c": "m-2.safetensors",
                                "b": "m-1.safetensors"}}
                """#.utf8))
        for path in [index, folder.path] {
            let checkpoint = try openCheckpoint(path)
            #expect(checkpoint.names == ["a", "b", "c"])
            #expect(try checkpoint.tensor("c") != nil)
        }
        for (map, reason) in [
            (#"{"d": "m-1.safetensors"}"#, "should be in"),
            (#"{"a": "../m-1.safetensors"}"#, "same folder"),
            (#"{"a": "m-1.safetensors\u0000.safetensors"}"#, "same folder"),
            (#"{"a": "m-3.safetensors"}"#, "no such file"),
            ("{}", "names no tensor"),
        ] {
            let bad = try folder.file(
                "bad.index.json", Array("{\"weight_map\": \(map)}".utf8))
            #expect {
                try openCheckpoint(bad)
            } throws: { "\($0)".contains(reason) }
        }
        _ = try folder.file("n.safetensors.index.json", [])
        #expect(throws: CheckpointError.self) { try openCheckpoint(folder.path) }
    }

    @Test("a name keeps its prefix if the short name is taken")
    func prefixes() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file(
            "x.safetensors",
            safetensors(["net.a", "a", "model.diffusion_model.b", "module.net.c", "net."]))
        #expect(try openCheckpoint(path).names == ["net.a", "a", "b", "c", "net."])
    }

    @Test("what is not a regular file is refused")
    func notFiles() throws {
        let folder = try TemporaryFolder()
        #expect(throws: CheckpointError.self) { try openCheckpoint(folder.path) }
        #expect(throws: CheckpointError.self) { try openCheckpoint(folder.path + "/absent") }
        #expect(throws: CheckpointError.self) { try openCheckpoint("/dev/zero") }
        let text = try folder.file("readme.md", Array("# A text, no checkpoint.".utf8))
        #expect(throws: CheckpointError.self) { try openCheckpoint(text) }
    }
}
