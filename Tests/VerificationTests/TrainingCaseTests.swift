/// Cases of training that are made here: what a case asks for is what is compared.

import CPU
import Checkpoints
import Glibc
import Ground
import SystemPackage
import Tensors
import Testing

@testable import Training
@testable import Verification

@Suite struct TrainingCaseTests {
    /// Calls `body` with a folder that holds one case.
    private func withCase<Result>(
        _ operation: String, type: String = "float32", config: String = "{}",
        _ tensors: [(name: String, tensor: Tensor)], files: [String: [UInt8]] = [:],
        _ body: (String) throws -> Result
    ) throws -> Result {
        let folder = FilePath("/tmp/verification-tests-\(UInt64.random(in: 0 ... .max))")
        try folder.makeFolders()
        defer {
            for name in (try? folder.fileNames()) ?? [] { unlink(folder.appending(name).string) }
            rmdir(folder.string)
        }
        let description = """
            {"name": "case", "op": "\(operation)", "file": "case.safetensors", "config": \(config),
             "compute_dtype": "\(type)", "tolerance": {"out": {"max_abs": 2e-6}}}
            """
        for (name, bytes) in files.merging(
            ["case.json": Array(description.utf8)], uniquingKeysWith: { a, _ in a })
        {
            try PendingFile.write(bytes, to: folder.appending(name), overwrite: false)
        }
        try writeCheckpoint(
            TensorCollection("case", tensors), to: folder.appending("case.safetensors").string)
        return try body(folder.string)
    }

    private func failures(_ folder: String) throws -> [String] {
        let verifier = try Verifier(folder: folder, on: CPUBackend(), acceptsLoose: false)
        let results = verifier.run()
        #expect(results.count == 1)
        return results.filter { $0.verdict == .failed }.flatMap(\.failures)
    }

    private func list(_ values: Float...) -> Tensor { Tensor(values, [values.count]) }

    @Test("an optimiser goes on for as many steps as the case says")
    func resumedSteps() throws {
        let gradients: [Float] = [0.5, -0.25, 1, 0.125]
        /// A parameter with its moments.
        struct State {
            var master: Float
            var mean: Float = 0
            var square: Float = 0

            mutating func step(_ number: Int, _ gradient: Float) {
                let (first, second): (Float, Float) = (0.9, 0.999)
                mean = first * mean + (1 - first) * gradient
                square = second * square + (1 - second) * gradient * gradient
                func correction(_ beta: Float) -> Float {
                    Float(1 - pow(Double(beta), Double(number)))
                }
                let length = (square / correction(second)).squareRoot()
                let pull = (mean / correction(first)) / (length + 1e-8)
                master -= 0.1 * (pull + 0.01 * master)
            }
        }
        func rounded(_ x: Float) -> Float { BFloat16(x).float }
        var kept = State(master: 0.75)
        for step in 1...2 { kept.step(step, gradients[step - 1]) }
        let before = kept.master
        var resumed = State(master: rounded(kept.master))
        (resumed.mean, resumed.square) = (rounded(kept.mean), rounded(kept.square))
        for step in 3...4 {
            kept.step(step, gradients[step - 1])
            resumed.step(step, gradients[step - 1])
        }
        var tensors: [(name: String, tensor: Tensor)] = [
            ("in.param.w", list(0.75).converted(to: .bf16)),
            ("out.master_before.w", list(before)), ("out.kept.master.w", list(kept.master)),
            ("out.after.master.w", list(resumed.master)), ("out.after.step", list(4)),
        ]
        for (index, gradient) in gradients.enumerated() {
            tensors.append(
                ("in.step\(index + 1).grad.w", list(gradient).converted(to: .bf16)))
        }
        let config = """
            {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
             "steps_before": 2, "steps_after": 2}
            """
        let found = try withCase(
            "fused_adamw_resume", type: "bfloat16", config: config, tensors, failures)
        #expect(found == [])
    }

    @Test("times are shifted by what the names of the results say")
    func shifts() throws {
        let angle = Float.pi / 4
        let found = try withCase(
            "time_conversions",
            [
                ("in.rf", list(0.5)), ("in.sigma", list(1)), ("in.trig", list(angle)),
                ("out.rf_to_sigma", list(1)), ("out.rf_to_trig", list(angle)),
                ("out.trig_to_sigma", list(1)), ("out.trig_to_rf", list(0.5)),
                ("out.sigma_to_rf", list(0.5)), ("out.sigma_to_trig", list(angle)),
                ("out.shift_rf_7", list(0.875)), ("out.shift_rf_2.5", list(1.25 / 1.75)),
            ],
            failures)
        #expect(found == [])
    }

    @Test("a shard is refused for a tensor that is none, and a good one is told from it")
    func rejectedShards() throws {
        func verdict(_ latents: [UInt8]) throws -> [String] {
            let text = torchArchive(of: .zeros([5, 12], .bf16))
            let shard =
                tarMember("a.latent.pt", latents) + tarMember("a.embed.pt", text)
                + tarMember("a.prompt.txt", []) + tarEnd
            return try withCase(
                "webdataset_rejected", config: "{\"shards\": [\"a.tar\"]}", [("in.none", list(0))],
                files: ["a.tar": shard], failures)
        }
        #expect(try verdict([1, 2, 3]) == [])
        #expect(try verdict(torchArchive(of: .zeros([4, 1, 2, 2], .bf16))).count == 1)
    }

    @Test("a run's batches have all their samples, and go round")
    func batches() throws {
        let values = (0..<8).map { Float($0) }
        try withCase(
            "sla_train_run",
            [
                ("in.x0", Tensor(values, [2, 2, 1, 1, 1, 2])),
                ("in.context", Tensor(values, [2, 2, 1, 2])),
                ("in.uncond", Tensor([Float(1), 2], [1, 2])),
            ]
        ) { path in
            let folder = try FixtureFolder(path)
            let fixture = try Fixture(
                try JSON(path: folder.absolute("case.json")), at: "case.json", in: folder)
            let second = try fixture.samples(3)
            #expect(second.map(\.latents.values) == [[4, 5], [6, 7]])
            #expect(second.map { $0.text.rows.floats() } == [[4, 5], [6, 7]])
            #expect(second.allSatisfy { $0.negative?.rows.floats() == [1, 2] })
            #expect(try fixture.samples(0).map(\.latents.values) == [[0, 1], [2, 3]])
        }
    }
}
