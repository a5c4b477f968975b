/// Settings: YAML, files, presets; pictures of losses; what adapters' files say.

import CPU
import Checkpoints
import FoundationEssentials
import Glibc
import Ground
import Models
import SystemPackage
import Tensors
import Testing

@testable import Training

extension SettingsFile {
    /// What it says, over the defaults of its recipe.
    func settings() throws -> TrainingSettings {
        var settings = TrainingSettings(recipe ?? .sla)
        try apply(to: &settings)
        return settings
    }
}

@Suite struct SettingsTests {
    private func file(_ text: String, _ body: (String) throws -> Void) throws {
        let path = "/tmp/training-tests-\(UInt64.random(in: 0 ... .max)).yaml"
        defer { unlink(path) }
        try PendingFile.write(Array(text.utf8), to: FilePath(path), overwrite: true)
        try body(path)
    }

    // MARK: YAML

    @Test("plain YAML is read as others read it")
    func yaml() throws {
        let text = """
            ---
            # a run
            name: nano   # its model
            empty:
            quoted: "a # b\\n\\u00e9"
            single: 'it''s: fine'
            numbers: [1, -2.5, 1e-5, .5, 0x1f, 1.2.3]
            truth: [true, False, yes, null, ~]
            nested:
              deeper:
                - one
                - two: 2
                  three: 3
                -
                  - x
              "quoted key": {a: 1, 'b c': [x, "y, z"]}
            same:
            - at
            - this level
            flow: {times: {mean: 1.5,
              deviation: 1.6}, list: [a,
              b]}
            url: http://x/y
            words: [it's.tar, rock''n]  # isn't it
            "say \\": \\"": "\\b\\f"
            'it''s: so': 1
            """
        #expect(
            try YAMLReader.read(text).json == """
                {"name":"nano","empty":null,"quoted":"a # b\\u000aé","single":"it's: fine",\
                "numbers":[1,-2.5,1e-05,0.5,"0x1f","1.2.3"],"truth":[true,false,"yes",null,null],\
                "nested":{"deeper":["one",{"two":2,"three":3},["x"]],\
                "quoted key":{"a":1,"b c":["x","y, z"]}},"same":["at","this level"],\
                "flow":{"times":{"mean":1.5,"deviation":1.6},"list":["a","b"]},"url":"http://x/y",\
                "words":["it's.tar","rock''n"],"say \\": \\"":"\\u0008\\u000c","it's: so":1}
                """)
        #expect(try YAMLReader.read("").json == "{}")
        #expect(
            try YAMLReader.read("{\n \"a\" : [ 1,\n 2 ],\n \"b\": 18446744073709551615 }").json
                == "{\"a\":[1,2],\"b\":18446744073709551615}")
    }

    @Test(
        "what is not read is refused with its line",
        arguments: [
            ("a: 1\n\tb: 2", 2, "tab"), ("a: &x 1", 1, "'&'"), ("a: |\n  text", 1, "'|'"),
            ("a: 1\na: 2", 2, "twice"), ("a: 1\n  b: 2", 2, "indented further"),
            ("a: [1, 2", 1, "expected ',' or ']'"), ("a: 'x", 1, "quoted"),
            ("a: 1\n---\nb: 2", 2, "second document"), ("a\nb: 1", 2, "nothing more"),
            ("a: 1\nb", 2, "key: value"), ("a: {b 1}", 1, "':'"), ("a: \"\\q\"", 1, "escape"),
            ("- a\n- b\nc: 1", 3, "nothing more"), ("\"a\"b: 1", 1, "after the end"),
            ("{a: 1, a: 2}", 1, "twice"), ("a: [1] x", 1, "after the end"),
        ])
    func faults(_ text: String, line: Int, words: String) {
        do {
            let value = try YAMLReader.read(text)
            Issue.record("\(text) was taken as \(value.json)")
        } catch {
            #expect(error.line == line && error.reason.contains(words), "\(error)")
        }
    }

    @Test("no bytes make the reader stop the program")
    func noise() {
        var random = SplitMix64(seed: 4)
        let letters = Array("ab:- [],{}\"'#\n\t&*|~01.e\\u")
        for _ in 0..<20_000 {
            let text = String(
                (0..<Int(random.next() % 40)).map { _ in
                    letters[Int(random.next() % UInt64(letters.count))]
                })
            guard let value = try? YAMLReader.read(text) else { continue }
            // What was read is JSON that can be read again as the same.
            #expect((try? YAMLReader.read(value.json)) != nil, "\(text) → \(value.json)")
        }
        let deep = String(repeating: "[", count: 100_000)
        #expect(throws: YAMLError.self) { try YAMLReader.read("a: " + deep) }
        #expect(throws: YAMLError.self) {
            try YAMLReader.read(
                (0..<1000).map { String(repeating: " ", count: $0) + "a:" }
                    .joined(separator: "\n"))
        }
    }

    // MARK: Files

    @Test("a file changes what it names and nothing else")
    func partial() throws {
        let text = """
            recipe: sla
            teacher: dense.safetensors
            dataset: [a.tar, b.tar]
            batch: 2
            learning-rate-is-elsewhere: null
            optimizer:
              learning_rate: 3e-5
            times:
              uniform_shift: 5
            top_k: 0.25
            """.replacing("learning-rate-is-elsewhere: null\n", with: "")
        try file(text) { path in
            let file = try SettingsFile(path)
            #expect(file.recipe == .sla && file.files.teacher == "dense.safetensors")
            #expect(file.files.dataset == ["a.tar", "b.tar"])
            var settings = TrainingSettings(.sla)
            try file.apply(to: &settings)
            var expected = TrainingSettings(.sla)
            expected.batch = 2
            expected.optimizer.learningRate = 3e-5
            expected.times = .uniformShift(5)
            expected.topK = 0.25
            #expect(settings == expected)
        }
        for (text, words) in [
            ("recipe: sla\nbatches: 2", "line 2: 'batches' is no setting"),
            ("recipe: sla\noptimizer: {lr: 1}", "'optimizer.lr' is no setting"),
            ("recipe: xyz", "recipe is one of sla, rcm, lora"),
            ("preset: 3b", "preset is one of"),
            ("recipe: sla\nbatch: two", "'batch' is of another type"),
            ("recipe: sla\ntimes: {gauss: 1}", "logNormal"),
            ("recipe: sla\ndataset: 3", "names of shards"), ("- a", "name: value"),
            ("recipe: sla\nbatch: two", "line 2: "),
            ("batch: 1\nseed: -1", "line 2: 'seed' cannot be -1"),
            ("seed: 1.5", "line 1: 'seed' cannot be 1.5"), ("batch:", "line 1: 'batch' is missing"),
            ("frames: 9223372036854775808", "line 1: 'frames' cannot be 9223372036854775808"),
            ("rcm:\n  derivative: none", "line 2: 'rcm.derivative' cannot be \"none\""),
            ("seed: 1\nSeed: 2", "line 2: 'Seed' is the same setting as 'seed' in line 1"),
            (
                "optimizer:\n  learning_rate: 1\n  learningRate: 2",
                "line 3: 'learningRate' is the same"
            ),
        ] {
            try file(text) { path in
                #expect { _ = try SettingsFile(path).settings() } throws: {
                    "\($0)".contains(words)
                }
            }
        }
    }

    @Test(
        "a section without lines changes nothing, nor does a byte-order mark; null empties a place")
    func emptySections() throws {
        let text = "\u{FEFF}batch: 3\nrcm:\n  # guidance: 1\ntimes:\ntop_k: null\noptimizer: {}"
        try file(text) { path in
            var expected = TrainingSettings(.sla)
            expected.batch = 3
            expected.topK = nil
            let found = try SettingsFile(path).settings()
            #expect(found == expected)
        }
    }

    @Test("numbers that no run can use are refused by name")
    func impossible() {
        let changes: [(name: String, change: (inout TrainingSettings) -> Void)] = [
            ("largestNorm", { $0.largestNorm = .infinity }),
            ("optimizer.learningRate", { $0.optimizer.learningRate = 1e300 }),
            ("optimizer.beta2", { $0.optimizer.beta2 = 1 - 1e-12 }),
            ("criticOptimizer.epsilon", { $0.criticOptimizer.epsilon = 1e-300 }),
            ("averageRate", { $0.averageRate = 1e-300 }),
            ("rcm.guidance", { $0.rcm.guidance = .nan }),
            ("rcm.lossScale", { $0.rcm.lossScale = -1 }),
            ("rcm.studentEvery", { $0.rcm.studentEvery = 0 }),
            ("rcm.tangentWarmup", { $0.rcm.tangentWarmup = -1 }),
            ("rcm.discreteSteps", { $0.rcm.discreteSteps = 2_000_000_000 }),
            ("rcm.discreteSteps", { $0.rcm.discreteSkip = 48 }),
            ("rcm.fixedAngles", { $0.rcm.fixedAngles = [1.5, .nan, 1] }),
            ("times", { $0.times = .logNormal(mean: 1, deviation: 1e9) }),
        ]
        for (name, change) in changes {
            var settings = TrainingSettings(.rcm)
            #expect(settings.fault == nil)
            change(&settings)
            #expect(settings.fault?.hasPrefix("\(name) ") == true, "\(settings.fault ?? "")")
        }
    }

    @Test("settings that were written are read back, whatever they are")
    func writtenAndRead() throws {
        for recipe in TrainingSettings.Recipe.allCases {
            var settings = TrainingSettings(recipe)
            settings.seed = .max
            settings.largestNorm = 0.1
            settings.rcm.fixedAngles = [1.5, 1.4, 1.0]
            settings.layout = .peft
            settings.expert = .low
            var files = TrainingFiles()
            files.dataset = ["a b.tar", "c: d.tar"]
            let folder = try RunFolder(
                "/tmp/training-tests-\(UInt64.random(in: 0 ... .max))", kept: 1)
            defer {
                unlink(folder.path.appending("settings.json").string)
                rmdir(folder.path.appending("checkpoints").string)
                rmdir(folder.path.string)
            }
            try folder.write(settings, files)
            let stored = try SettingsFile(folder.path.appending("settings.json").string)
            #expect(try stored.settings() == settings)
            #expect(stored.files == files)
        }
    }

    @Test("presets are the original's experiments")
    func presets() throws {
        // rcm/configs of the original: learning rates, betas, batches, accumulation, frames, times.
        var settings = TrainingSettings(.rcm)
        settings.use(.smallRCM)
        #expect(settings.optimizer.learningRate == 2e-6 && settings.optimizer.beta1 == 0)
        #expect(settings.criticOptimizer.learningRate == 4e-7 && settings.frames == 20)
        #expect(settings.rcm.tangentWarmup == 1000 && settings.rcm.studentEvery == 5)
        #expect(settings.saveEvery == 500 && settings.batch == 1)
        settings.use(.largeRCM)
        #expect(
            settings.optimizer.learningRate == 1e-6 && settings.criticOptimizer.learningRate == 1e-7
        )
        #expect(settings.rcm.consistencyTimes == .logNormal(mean: 1.5, deviation: 1.6))
        #expect(settings.rcm.distributionTimes == .uniformShift(5) && settings.frames == 21)
        #expect(settings.rcm.tangentWarmup == 0 && settings.rcm.studentEvery == 10)
        var tuning = TrainingSettings(.sla)
        tuning.use(.smallSLA)
        #expect(tuning.batch == 4 && tuning.accumulation == 1 && tuning.topK == 0.1)
        tuning.use(.largeSLA)
        #expect(tuning.batch == 1 && tuning.accumulation == 32 && tuning.saveEvery == 250)
        for preset in TrainingSettings.Preset.allCases {
            var settings = TrainingSettings(preset.recipe ?? .lora)
            settings.use(preset)
            #expect(settings.fault == nil)
        }
    }

    // MARK: Times of experts

    @Test(
        "an expert sees its own noise only, as often as the whole distribution has it",
        arguments: [TimeDistribution.logNormal(mean: 1.5, deviation: 1.6), .uniformShift(5)])
    func expertTimes(_ times: TimeDistribution) {
        let draws = SeededDraws(seed: 3, iteration: 0)
        let numbers: [Float] =
            if case .uniformShift = times { draws.uniforms(20_000) } else { draws.normals(20_000) }
        let all = numbers.map { times.rectifiedFlow($0) }
        for (draw, whole) in zip(numbers, all).prefix(500) {
            #expect(abs(times.rectifiedFlow(draw, within: 0...1) - whole) < 1e-9)
        }
        for range in [0...0.875, 0.875...1] {
            let own = numbers.prefix(4000).map { times.rectifiedFlow($0, within: range) }
            #expect(own.allSatisfy { range.contains($0) })
            let wanted = all.filter { range.contains($0) }
            let difference =
                own.reduce(0, +) / Double(own.count) - wanted.reduce(0, +) / Double(wanted.count)
            #expect(abs(difference) < 0.01)
        }
    }

    // MARK: Adapters

    @Test("adapters are trained beside a picture's conditioning")
    func conditioned() throws {
        final class Conditioned: SampleSource {
            let count = 2
            func sample(_ index: Int) -> Sample {
                var random = Random(UInt64(index) + 7)
                return Sample(
                    latents: random.latents([4, 2, 6, 4]), text: Text(random.tensor([5, 12])),
                    conditioning: random.tensor([3, 2, 6, 4]))
            }
        }
        let sizes = WanTransformerArchitecture(
            dim: 32, layers: 2, feedForward: 48, heads: 2, inputChannels: 7, outputChannels: 4,
            textDim: 12, frequencyDim: 16, hasSparseLinearAttention: false)
        var random = Random(3)
        let tensors = DetectedModel.wanTransformer(sizes).tensors().map { expected in
            (name: expected.name, tensor: random.tensor(Shape(expected.shape), scale: 0.2))
        }
        var settings = TrainingSettings(.lora)
        (settings.rank, settings.isHalf, settings.warmup) = (2, false, 0)
        settings.expert = .low
        settings.optimizer.learningRate = 1e-3
        let trainer = try Trainer(
            settings,
            TrainingModels(
                teacher: Parameters("image to video", tensors, as: .f32),
                options: WanTransformerOptions(heads: 2), roundsTimesteps: true),
            Conditioned(), on: CPUBackend())
        let one = Conditioned().sample(0)
        func velocity(_ conditioning: Tensor?) throws -> [Float] {
            try trainer.student.net.velocity(
                one.latents.tensor, at: 300, one.text, conditioning: conditioning
            ).floats()
        }
        let before = try velocity(one.conditioning)
        #expect(try velocity(Conditioned().sample(1).conditioning) != before)
        for _ in 0..<3 {
            let report = try trainer.step()
            #expect(report.skipped == nil && report.norm > 0)
        }
        #expect(try velocity(one.conditioning) != before)
    }

    @Test("PEFT's configuration names rank and layers, and is JSON")
    func peft() throws {
        let adapters = LowRankAdapters(
            of: randomParameters(seed: 5, isSparse: false), rank: 3, alpha: 6,
            targets: ["self_attn.q", "ffn.0"], as: .f32, seed: 1)
        struct Configuration: Decodable {
            var r, lora_alpha: Int
            var target_modules: [String]
            var peft_type: String
        }
        let read = try JSONDecoder().decode(
            Configuration.self, from: Data(Array(adapters.configuration.utf8)))
        #expect(read.r == 3 && read.lora_alpha == 3 && read.peft_type == "LORA")
        #expect(read.target_modules == ["ffn.0", "self_attn.q"])
    }

    // MARK: Pictures

    @Test("losses are drawn, without what was skipped")
    func picture() {
        let head = "iteration,net,loss,gradient_norm,learning_rate,seconds,skipped\n"
        #expect(LossPicture(csv: head).svg == nil)
        let lines = (1...3000).map {
            "\($0),\($0 % 5 == 0 ? "critic" : "student"),\(1000 / Double($0)),1,1,1,"
        }
        let svg = LossPicture(
            csv: head + lines.joined(separator: "\n") + "\n3001,student,nan,1,1,1,\"bad, it was\"\n"
        ).svg!
        #expect(
            svg.contains("loss of the critic, logarithmic") && svg.contains("loss of the student"))
        #expect(!svg.contains("nan") && !svg.contains("inf"))
        #expect(svg.utf8.count < 200_000 && svg.hasSuffix("</svg>\n"))
        let one = LossPicture(csv: head + "1,student,0.5,1,1,1,\n").svg!
        #expect(one.contains("h0") && !one.contains("nan"))
    }

    // MARK: The original's ways

    @Test("as the original, masters are not kept, poison becomes zeros, and nothing is skipped")
    func reference() throws {
        final class Poisoned: SampleSource {
            let count = 1
            func sample(_ index: Int) -> Sample {
                var random = Random(7)
                var latents = random.latents([4, 2, 6, 4])
                latents.values[0] = .nan
                return Sample(latents: latents, text: Text(random.tensor([5, 12])))
            }
        }
        final class Whole: SampleSource {
            let count = 1
            func sample(_ index: Int) -> Sample {
                var random = Random(7)
                return Sample(
                    latents: random.latents([4, 2, 6, 4]), text: Text(random.tensor([5, 12])))
            }
        }
        var settings = TrainingSettings(.lora)
        (settings.rank, settings.warmup, settings.asReference) = (2, 0, true)
        settings.optimizer.learningRate = 1e-3
        func trainer(_ samples: any SampleSource) throws -> Trainer {
            try Trainer(
                settings,
                TrainingModels(
                    teacher: randomParameters(seed: 5, isSparse: false),
                    options: WanTransformerOptions(heads: 2), roundsTimesteps: true),
                samples, on: CPUBackend())
        }
        let poisoned = try trainer(Poisoned())
        #expect(try poisoned.step().skipped == nil)
        #expect(poisoned.student.optimizer.steps == 1)
        let whole = try trainer(Whole())
        for _ in 0..<3 { _ = try whole.step() }
        let state = try whole.state()!
        for name in whole.student.parameters.names {
            let kept = try state.tensor("student.master.\(name)")!.floats()
            #expect(kept == kept.map { BFloat16($0).float })
        }
        settings.largestNorm = 1
        #expect(settings.fault?.contains("clips nothing") == true)
    }
}
