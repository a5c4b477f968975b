/// What a run opens: each file once, and text encoders in 8 bits.

import CPU
import Catalog
import Checkpoints
import Families
import FoundationEssentials
import Glibc
import Runs
import Tensors
import Testing

@Suite struct FileTests {
    @Test("plan, checks and loading share one reading of each file")
    func openedOnce() async throws {
        let folder = try TemporaryFolder()
        let source = projectFolder + "/Models/nano"
        for name in try FileManager.default.contentsOfDirectory(atPath: source) {
            try FileManager.default.copyItem(
                atPath: source + "/" + name, toPath: folder.path + "/" + name)
        }
        let models = try Catalog.published.open(ModelChoice(folder.path))
        let paths = [models.transformer, models.textEncoder, models.vae]
        /// How often each file is mapped now.
        func mappings() throws -> [Int] {
            let maps = try #require(fopen("/proc/self/maps", "r"))
            var (counts, line, size) = ([0, 0, 0], UnsafeMutablePointer<CChar>?.none, 0)
            while getline(&line, &size, maps) > 0 {
                let text = line.map { String(cString: $0) } ?? ""
                for index in 0..<3 where text.hasSuffix(paths[index] + "\n") { counts[index] += 1 }
            }
            free(line)
            fclose(maps)
            return counts
        }
        #expect(try mappings() == [0, 0, 0])
        do {
            let run = try Run(tinyRequest(), models)
            _ = try Plan(run)
            #expect(try mappings() == [1, 1, 1])
            let opened = try ModelPart.allCases.filter { $0 != .lowNoiseTransformer }
                .map { try run.models.file($0) }
            // The halves of the autoencoder are in one file.
            #expect(opened[1] === opened[3])
            // Another run at the same time, another engine: the same files.
            let other = try Run(tinyRequest("a blue ball"), models)
            _ = try await engine().finish(other) { _ in
                let now = try mappings()
                #expect(now == [1, 1, 1])
                let (transformer, decoder) = (
                    try run.models.file(.transformer), try other.models.file(.decoder)
                )
                #expect(transformer === opened[2] && decoder === opened[3])
            }
        }
        // Devices are closed, and checksums compared, on threads of their own.
        for _ in 0..<200 where try mappings() != [0, 0, 0] {
            try await Task.sleep(for: .milliseconds(20))
        }
        #expect(try mappings() == [0, 0, 0])
    }

    @Test(
        "an 8-bit text encoder says nearly the same, and takes half the memory",
        arguments: [(LinearFormat.int8Blocks, 0.05), (.fp8Rows, 0.1)])
    func textEncoder(format: LinearFormat, most: Double) async throws {
        let folder = try TemporaryFolder()
        var models = try nano()
        func embedding(_ name: String) async throws -> [Float] {
            let path = folder.path + "/\(name).safetensors"
            var options = RunOptions()
            options.save.text = path
            _ = try await engine().finish(try Run(tinyRequest(), models, options)) { _ in }
            let file = try openCheckpoint(path)
            return try #require(try file.tensor("text_embedding")).floats()
        }
        func weights() throws -> Int {
            try #require(try Plan(try Run(tinyRequest(), models)).stages.first).weightBytes
        }
        let (plain, whole) = (try await embedding("plain"), try weights())
        let path = folder.path + "/text_encoder_\(format.rawValue).safetensors"
        let encoder = try openCheckpoint(models.textEncoder)
        try writeCheckpoint(try quantized(encoder, to: format).checkpoint, to: path)
        models.textEncoder = path
        let (found, half) = (try await embedding("quantized"), try weights())
        #expect(Double(half) < 0.52 * Double(whole), "\(half) of \(whole)")
        let difference = zip(plain, found).reduce(0) { $0 + Double(($1.0 - $1.1) * ($1.0 - $1.1)) }
        let size = plain.reduce(0) { $0 + Double($1 * $1) }
        let relative = (difference / size).squareRoot()
        #expect(relative > 0 && relative < most, "\(format): \(relative)")
    }

    /// The models' text encoder in other sizes, all of whose numbers are zero.
    private func textEncoder(
        of models: ModelSet, _ change: (inout UMT5Architecture) -> Void
    ) throws -> TensorList {
        let model = try models.file(.textEncoder).model
        let own: UMT5Architecture? = if case .umT5(let sizes) = model { sizes } else { nil }
        var sizes = try #require(own)
        change(&sizes)
        return TensorList(
            DetectedModel.umT5(sizes).tensors().map {
                ($0.name, Tensor.zeros(Shape($0.shape), .bf16))
            })
    }

    @Test("a table of one token is planned, and refused with the tokenizer's count")
    func oneToken() async throws {
        let folder = try TemporaryFolder()
        var models = try nano()
        let encoder = try textEncoder(of: models) { $0.vocabulary = 1 }
        models.textEncoder = folder.path + "/one.safetensors"
        try writeCheckpoint(encoder, to: models.textEncoder)
        let run = try Run(tinyRequest(), models)
        _ = try Plan(run)
        await #expect(throws: RunError.self) { _ = try await engine().finish(run) { _ in } }
    }

    @Test("8-bit layers of an odd width are refused in a text encoder, too, before any work")
    func oddTextEncoder() throws {
        let folder = try TemporaryFolder()
        var models = try nano()
        let encoder = try textEncoder(of: models) { $0.feedForward = 72 }
        for (format, isRefused) in [(LinearFormat.plain, false), (.fp8Rows, true)] {
            models.textEncoder = folder.path + "/\(format.rawValue).safetensors"
            try writeCheckpoint(
                format == .plain ? encoder : try quantized(encoder, to: format).checkpoint,
                to: models.textEncoder)
            let parts: [ModelPart] = [.textEncoder, .transformer]
            guard isRefused else {
                try models.checkFit(parts, attention: .original)
                continue
            }
            let error = #expect(throws: FittingError.self) {
                try models.checkFit(parts, attention: .original)
            }
            #expect(error.map { "\($0)".contains("must be a multiple of 16, not 72") } == true)
        }
    }
}
