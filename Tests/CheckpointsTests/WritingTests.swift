// Written checkpoints reload as they were; failures leave nothing behind.

import Checkpoints
import FoundationEssentials
import Ground
import Tensors
import Testing

@Suite("Writing")
struct WritingTests {
    @Test("every container survives both formats")
    func roundTrips() throws {
        let folder = try TemporaryFolder()
        for file in try FileManager.default.contentsOfDirectory(atPath: golden("containers"))
        where !file.hasSuffix(".json") {
            let source = try openCheckpoint(golden("containers/" + file))
            for ending in ["safetensors", "pth"] {
                let path = folder.path + "/copy." + ending
                var last = 0.0
                try writeCheckpoint(source, to: path, overwrite: true) { last = $0 }
                let copy = try openCheckpoint(path)
                #expect(try areEqual(source, copy), "\(file) as \(ending)")
                #expect(source.names.isEmpty || last == 1)
                if ending == "pth" { #expect(copy.names == source.names) }
                if ending == "safetensors" { #expect(copy.metadata == source.metadata) }
            }
        }
    }

    @Test("tensors of both formats begin at multiples of their element size")
    func alignment() throws {
        let folder = try TemporaryFolder()
        var random = SplitMix64(seed: 3)
        let source = MemoryCheckpoint([
            ("a", .random([3], .bf16, using: &random)), ("b", .random([5], .f32, using: &random)),
            ("c", .random([1, 7], .f8e4m3, using: &random)),
            ("d", .random([3], .f64, using: &random)), ("e", .zeros([0, 4], .i64)),
            ("f \"\\\n\u{1F600}", .zeros([], .bool)),
        ])
        for ending in ["safetensors", "pth"] {
            let path = folder.path + "/x." + ending
            try writeCheckpoint(source, to: path)
            let copy = try openCheckpoint(path)
            #expect(try areEqual(source, copy))
            // Tensors that are in place look at one mapping: copies would lie far apart.
            let places = try copy.names.map { Int(bitPattern: try copy.tensor($0)!.hostAddress) }
            #expect(places.max()! - places.min()! < 4096)
        }
    }

    @Test("an existing file is kept unless told otherwise")
    func overwriting() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file("x.safetensors", [1, 2, 3])
        let source = MemoryCheckpoint([("a", .zeros([2], .f32))])
        #expect {
            try writeCheckpoint(source, to: path)
        } throws: {
            "\($0)" == "cannot write \(path): it exists already; --force replaces it"
        }
        #expect(FileManager.default.contents(atPath: path) == Data([1, 2, 3]))
        try writeCheckpoint(source, to: path, overwrite: true)
        #expect(try openCheckpoint(path).names == ["a"])
        #expect(folder.contents == ["x.safetensors"])
    }

    @Test("a file may be rewritten from itself")
    func inPlace() throws {
        let folder = try TemporaryFolder()
        let path = folder.path + "/x.safetensors"
        var random = SplitMix64(seed: 9)
        let source = MemoryCheckpoint([("a", .random([300, 70], using: &random))])
        try writeCheckpoint(source, to: path)
        try writeCheckpoint(try openCheckpoint(path), to: path, overwrite: true)
        #expect(try areEqual(source, try openCheckpoint(path)))
    }

    @Test("a failure leaves nothing behind", arguments: ["safetensors", "pth"])
    func failures(ending: String) throws {
        let folder = try TemporaryFolder()
        let broken = MemoryCheckpoint(
            [("a", .zeros([1 << 20], .f32)), ("b", .zeros([4], .f32))], broken: "b")
        #expect(throws: CheckpointError.malformed(path: "memory", reason: "'b' is broken")) {
            try writeCheckpoint(broken, to: folder.path + "/x." + ending)
        }
        #expect(folder.contents.isEmpty)
        let source = MemoryCheckpoint([("a", .zeros([2], .f32))])
        for path in ["/absent/x." + ending, "/x.gguf", ""] {
            #expect(throws: CheckpointError.self) {
                try writeCheckpoint(source, to: folder.path + path)
            }
        }
        #expect(folder.contents.isEmpty)
    }
}
