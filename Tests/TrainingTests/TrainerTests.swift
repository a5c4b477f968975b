/// Runs: order, resuming, skipping, adapters, folders.

import CPU
import Checkpoints
import Glibc
import Ground
import Models
import SystemPackage
import Tensors
import Testing

@testable import Training

/// Random samples; some may be poisoned.
private final class MadeSamples: SampleSource {
    let count: Int
    private let poisoned: Set<Int>
    init(_ count: Int, poisoned: Set<Int> = []) { (self.count, self.poisoned) = (count, poisoned) }

    func sample(_ index: Int) -> Sample {
        var random = Random(UInt64(index) + 40)
        var latents = random.latents([4, 2, 6, 4])
        if poisoned.contains(index) { latents.values[3] = .nan }
        func text() -> Text { Text(random.tensor([5, 12])) }
        return Sample(latents: latents, text: text(), negative: text())
    }
}

/// Random samples of some sizes.
private final class Shaped: SampleSource {
    private let shapes: [Shape]
    private let width: Int
    var count: Int { shapes.count }
    init(_ shapes: [Shape], width: Int) { (self.shapes, self.width) = (shapes, width) }

    func sample(_ index: Int) -> Sample {
        var random = Random(UInt64(index) + 70)
        return Sample(
            latents: random.latents(shapes[index]), text: Text(random.tensor([5, width])),
            negative: nil)
    }
}

@Suite struct TrainerTests {
    private func trainer(
        _ settings: TrainingSettings, _ samples: any SampleSource = MadeSamples(5),
        on device: CPUBackend = CPUBackend(), base: LinearFormat = .plain
    ) throws -> Trainer {
        try Trainer(
            settings,
            TrainingModels(
                teacher: randomParameters(seed: 5, isSparse: false),
                options: WanTransformerOptions(heads: 2), roundsTimesteps: true, linearFormat: base),
            samples, on: device)
    }

    private func equal(_ a: Trainer, _ b: Trainer) -> Bool {
        let device = CPUBackend()
        func same(_ x: [String: Tensor], _ y: [String: Tensor]) -> Bool {
            x.count == y.count && x.allSatisfy { device.equalBits($1, y[$0]!) }
        }
        return zip([a.student, a.critic], [b.student, b.critic]).allSatisfy { one, other in
            guard let one, let other else { return one == nil && other == nil }
            return same(one.parameters.masters, other.parameters.masters)
                && same(one.optimizer.means, other.optimizer.means)
                && same(one.average?.values ?? [:], other.average?.values ?? [:])
        }
    }

    @Test(
        "a run that is resumed has the same bits, whatever the threads",
        arguments: TrainingSettings.Recipe.allCases, [false, true])
    func resuming(_ recipe: TrainingSettings.Recipe, isHalf: Bool) throws {
        var settings = tinySettings(recipe)
        settings.isHalf = isHalf
        let whole = try trainer(settings, on: CPUBackend(threads: 1))
        for _ in 0..<5 { #expect(try whole.step().skipped == nil) }
        let first = try trainer(settings, on: CPUBackend(threads: 2))
        for _ in 0..<3 { _ = try first.step() }
        let folder = try RunFolder(temporary(), kept: 1)
        defer { remove(folder.path) }
        try folder.save(try #require(try first.state()), iteration: first.iteration)
        let second = try trainer(settings)
        try second.restore(try openTrainingState(folder.states()[0].path))
        #expect(second.iteration == 3)
        for _ in 0..<2 { _ = try second.step() }
        #expect(equal(whole, second))
    }

    @Test(
        "training lowers the loss of what it is trained on",
        arguments: [LinearFormat.plain, .int8Blocks])
    func learning(base: LinearFormat) throws {
        var settings = tinySettings(.lora)
        settings.batch = 4
        settings.optimizer.learningRate = 5e-3
        // The same times and noise each time: one pass over one batch, again and again.
        let trainer = try trainer(settings, MadeSamples(4), base: base)
        var losses: [Double] = []
        for _ in 0..<30 { losses.append(try trainer.step().loss) }
        let (early, late) = (losses.prefix(5).reduce(0, +), losses.suffix(5).reduce(0, +))
        #expect(late < 0.9 * early)
    }

    @Test("adapters begin as nothing, change nothing of the base, and their file is read back")
    func adapters() throws {
        let trainer = try trainer(tinySettings(.lora))
        var random = Random(1)
        let x = random.tensor([4, 2, 6, 4])
        let text = Text(random.tensor([5, 12]))
        let base = Net(
            randomParameters(seed: 5, isSparse: false), WanTransformerOptions(heads: 2),
            activations: .f32, timestepType: .bf16, on: CPUBackend())
        let before = LatentValues(try base.velocity(x, at: 500, text))
        // A layer with an adapter adds up in another order.
        func distance(_ velocity: Tensor) -> Double {
            ((LatentValues(velocity) - before).squares / before.squares).squareRoot()
        }
        #expect(distance(try trainer.student.net.velocity(x, at: 500, text)) < 1e-6)
        for _ in 0..<3 { _ = try trainer.step() }
        let after = try trainer.student.net.velocity(x, at: 500, text)
        #expect(distance(after) > 1e-4)
        let adapters = trainer.adapters!
        #expect(adapters.layers.count == 20)
        for layout in LowRankAdapters.Layout.allCases {
            let file = adapters.exported(layout, trainer.student.parameters.masters)
            #expect(file.names.count == 20 * (layout == .peft ? 2 : 3))
        }
    }

    @Test("moments in 8 bits learn as well, and a run that is resumed has the same bits")
    func eightBits() throws {
        var settings = tinySettings(.lora)
        settings.batch = 4
        settings.optimizer.learningRate = 5e-3
        func mean(_ losses: ArraySlice<Double>) -> Double {
            losses.reduce(0, +) / Double(losses.count)
        }
        var last: [Double] = []
        for isPacked in [false, true] {
            settings.hasEightBitMoments = isPacked
            let trainer = try trainer(settings, MadeSamples(4))
            let losses = try (0..<30).map { _ in try trainer.step().loss }
            #expect(mean(losses.suffix(5)) < 0.9 * mean(losses.prefix(5)))
            last.append(mean(losses.suffix(5)))
        }
        #expect(abs(last[1] - last[0]) < 0.03 * last[0], "\(last)")
        let whole = try trainer(settings)
        for _ in 0..<5 { _ = try whole.step() }
        let first = try trainer(settings)
        for _ in 0..<3 { _ = try first.step() }
        let second = try trainer(settings)
        try second.restore(try #require(try first.state()))
        for _ in 0..<2 { _ = try second.step() }
        #expect(equal(whole, second))
    }

    @Test(
        "8 bits keep numbers as closely as the table has them, squares above zero, and their own results exactly"
    )
    func packing() {
        var random = SplitMix64(seed: 8)
        func number() -> Float {
            // Over six powers of ten.
            let power = Float(random.next() >> 40) / Float(1 << 24) * 6 - 6
            return expf(power * 2.302585) * (random.next() & 1 == 0 ? 1 : -1)
        }
        for isSigned in [true, false] {
            let table = PackedNumbers.table(isSigned: isSigned)
            #expect(
                table.count == 256 && Set(table).count == 256 && table.contains(0)
                    && table.last == 1)
            let values = (0..<1000).map { _ in isSigned ? number() : abs(number()) }
            let packed = PackedNumbers(Tensor(values, [1000]), isSigned: isSigned)
            #expect(packed.scales.count == 4 && packed.codes.count == 1000)
            let back = packed.unpacked
            for (index, found) in back.floats().enumerated() {
                // Half the distance of the entries of the number's power of ten.
                let scale = abs(packed.scales[index / PackedNumbers.block])
                let power = log10f(abs(values[index]) / scale).rounded(.up)
                guard power > -6 else { continue }
                let entries = Float(1 << (Int(power) + (isSigned ? 6 : 7)))
                #expect(
                    abs(values[index] - found)
                        <= 1.001 * scale * expf(power * 2.3025851) * 0.45 / entries)
            }
            if !isSigned { #expect(back.floats().allSatisfy { $0 > 0 }) }
            let again = PackedNumbers(back, isSigned: isSigned)
            #expect(again.codes == packed.codes && again.scales == packed.scales)
        }
        let zeros = PackedNumbers(.zeros([300], .f32), isSigned: true)
        #expect(zeros.unpacked.floats().allSatisfy { $0 == 0 })
    }

    @Test("a poisoned batch skips its step, says so, and leaves the parameters as they are")
    func skipping() throws {
        var settings = tinySettings(.rcm)
        settings.batch = 1
        let trainer = try trainer(settings, MadeSamples(1, poisoned: [0]))
        let before = trainer.student.parameters.version
        let report = try trainer.step()
        #expect(report.skipped != nil)
        #expect(trainer.student.parameters.version == before && trainer.iteration == 1)
        #expect {
            _ = try trainer.exported(average: false)
        } throws: {
            "\($0)".contains("every iteration was skipped")
        }
    }

    @Test("what is no longer finite is neither kept nor published")
    func overflow() throws {
        var settings = tinySettings(.lora)
        (settings.warmup, settings.optimizer.learningRate) = (0, 1e38)
        settings.optimizer.decay = 1e30
        #expect(settings.fault == nil)
        let trainer = try trainer(settings)
        _ = try trainer.step()
        let ways: [() throws -> (any Checkpoint)?] = [
            trainer.state, { try trainer.exported(average: false) },
        ]
        for write in ways {
            #expect {
                _ = try write()
            } throws: {
                "\($0)".contains("numbers that are not finite, so nothing is written")
            }
        }
    }

    @Test(
        "as the original: a poisoned batch's gradients are zero, and what is left is the decay",
        arguments: [TrainingSettings.Recipe.sla, .lora])
    func poisonedReference(_ recipe: TrainingSettings.Recipe) throws {
        var settings = tinySettings(recipe)
        settings.batch = 1
        settings.asReference = true
        (settings.warmup, settings.optimizer.learningRate) = (0, 0.5)
        let trainer = try trainer(settings, MadeSamples(1, poisoned: [0]))
        let name =
            recipe == .sla ? "blocks.0.ffn.2.weight" : "blocks.0.ffn.2.lora_A.weight"
        let before = try #require(trainer.student.parameters.masters[name]).floats()
        let report = try trainer.step()
        #expect(report.skipped == nil)
        let after = try #require(trainer.student.parameters.masters[name]).floats()
        let kept = Float(1 - 0.5 * settings.optimizer.decay)
        #expect(before.contains { $0 != 0 })
        #expect(zip(before, after).allSatisfy { abs($1 - kept * $0) <= 1e-6 * abs($0) })
    }

    @Test("samples of a batch that differ in size are refused in words; one by one they are taken")
    func sizes() throws {
        var settings = tinySettings(.lora)
        func error(_ shapes: [Shape], width: Int = 12) -> String? {
            do {
                let trainer = try trainer(settings, Shaped(shapes, width: width))
                for _ in shapes { _ = try trainer.step() }
                return nil
            } catch { return "\(error)" }
        }
        let even: [Shape] = [[4, 2, 6, 4], [4, 2, 4, 4]]
        #expect(error(even)?.contains("--batch-size 1") == true)
        settings.batch = 1
        #expect(error(even) == nil)
        #expect(error([[4, 2, 6, 4], [4, 2, 5, 4]])?.contains("multiples of 2") == true)
        #expect(error([[4, 2, 6, 4], [3, 2, 6, 4]])?.contains("4 channels") == true)
        let empty = error([[4, 0, 6, 4]])
        #expect(empty?.contains("no tokens: expected a frame or more") == true)
        #expect(empty?.contains("--sequence-parallel") == false)
        settings.batch = 1 << 20
        #expect(error(even)?.contains("fewer than a batch") == true)
        settings.batch += 1
        #expect(settings.fault?.contains("batch is 1048577, expected 1 to 1048576") == true)
        settings.batch = 1
        settings.expert = .low
        #expect(settings.fault == nil)
        settings.recipe = .sla
        #expect(settings.fault?.contains("only adapters") == true)
    }

    @Test("a pause that is asked for while an iteration computes is taken at its end")
    func pausing() throws {
        final class Watched: SampleSource {
            private let made = MadeSamples(2)
            private(set) var isRead = false
            var count: Int { made.count }
            func sample(_ index: Int) -> Sample {
                isRead = true
                return made.sample(index)
            }
        }
        let samples = Watched()
        let trainer = try trainer(tinySettings(.lora), samples)
        let report = try trainer.step(pausing: { samples.isRead })
        #expect(report.isPausing)
    }

    @Test("layers that are not there are named, and what was trained is not dropped")
    func targets() throws {
        func error(_ body: () throws -> Void) -> String {
            do { try body() } catch { return "\(error)" }
            return "nothing was refused"
        }
        var settings = tinySettings(.lora)
        let state = try #require(try trainer(settings).state())
        settings.targets = ["self_attn.q", "nothing", "ffn.1"]
        #expect(
            error { _ = try trainer(settings) }.contains(
                "no layers called 'nothing', 'ffn.1' (--targets)"))
        settings.targets = ["self_attn.q"]
        let fewer = try trainer(settings)
        #expect(error { try fewer.restore(state) }.contains("which this run does not train"))
        try fewer.restore(try #require(try fewer.state()))
        settings.targets = []
        #expect(settings.fault?.contains("targets is empty") == true)
    }

    @Test("a state without an average, or with an iteration that cannot be, is refused")
    func brokenStates() throws {
        let trainer = try trainer(tinySettings(.lora))
        _ = try trainer.step()
        let state = try #require(try trainer.state())
        func copy(_ change: (inout [String: String]) -> Void, without: String = "") throws
            -> TensorCollection
        {
            var facts = state.metadata
            change(&facts)
            return TensorCollection(
                "a state",
                try state.names.filter { $0 != without }.map {
                    ($0, try #require(try state.tensor($0)))
                },
                metadata: facts)
        }
        try trainer.restore(try copy { _ in })
        let average = try #require(state.names.first { $0.hasPrefix("student.ema.") })
        for (broken, words) in [
            (try copy({ _ in }, without: average), average),
            (try copy { $0["iteration"] = "\(Int.max)" }, "no state"),
            (try copy { $0["student.steps"] = "-1" }, "how many steps"),
        ] {
            do {
                try trainer.restore(broken)
                Issue.record("\(words) was taken")
            } catch { #expect("\(error)".contains(words), "\(error)") }
        }
    }

    @Test("passes that add up equal one larger batch")
    func accumulation() throws {
        var settings = tinySettings(.lora)
        (settings.batch, settings.accumulation) = (1, 2)
        let report = try trainer(settings, MadeSamples(1)).step()
        settings.accumulation = 1
        let single = try trainer(settings, MadeSamples(1)).step()
        // The second pass draws other times: equal data, another loss, and a mean of both.
        #expect(report.loss.isFinite && single.loss.isFinite && report.loss != single.loss)
    }

    @Test("every epoch has every sample once, in an order of its own")
    func order() {
        let order = SampleOrder(count: 7, batch: 2, seed: 3)
        let epochs = (0..<4).map { epoch in (0..<3).flatMap { order.batch(epoch * 3 + $0) } }
        for epoch in epochs { #expect(Set(epoch).count == 6) }
        #expect(Set(epochs).count == 4)
        #expect(order.batch(5) == SampleOrder(count: 7, batch: 2, seed: 3).batch(5))
        // Nor is it the order before, moved by a place.
        let long = SampleOrder(count: 1000, batch: 1000, seed: 3)
        let (first, second) = (long.batch(0), long.batch(1))
        #expect(zip(first.dropFirst(), second).count { $0 == $1 } < 20)
        #expect(zip(first, second.dropFirst()).count { $0 == $1 } < 20)
    }

    @Test("draws depend on seed, iteration and pass, and are normal")
    func draws() {
        func first(_ seed: UInt64, _ iteration: Int, _ part: Int) -> [Float] {
            SeededDraws(seed: seed, iteration: iteration, part: part).normals(4)
        }
        let all = [first(1, 0, 0), first(2, 0, 0), first(1, 1, 0), first(1, 0, 1)]
        #expect(Set(all).count == 4 && all[0] == first(1, 0, 0))
        let many = SeededDraws(seed: 9, iteration: 9).normals(100_000).map { Double($0) }
        let mean = many.reduce(0, +) / 1e5
        let square = many.reduce(0) { $0 + $1 * $1 } / 1e5
        #expect(abs(mean) < 0.02 && abs(square - 1) < 0.02)
    }

    @Test("a plan tells memory and arithmetic without reading a number")
    func plan() throws {
        for recipe in TrainingSettings.Recipe.allCases {
            let models = TrainingModels(
                teacher: randomParameters(seed: 5, isSparse: false),
                options: WanTransformerOptions(heads: 2), roundsTimesteps: true)
            let plan = try TrainingPlan(tinySettings(recipe), models, MadeSamples(1).sample(0))
            #expect(plan.memory > 0 && plan.flops > 0 && plan.parameters > 0)
            let onGPU = try TrainingPlan(
                tinySettings(recipe), models, MadeSamples(1).sample(0), isGPU: true)
            #expect(onGPU.memory >= plan.memory && onGPU.flops == plan.flops)
            #expect(plan.overhead == 0 && onGPU.overhead == 3 << 30)
            // What is written when every net has made a step.
            let trainer = try trainer(tinySettings(recipe))
            for _ in 0..<3 { _ = try trainer.step() }
            let state = try #require(try trainer.state())
            let bytes = state.names.reduce(0) { $0 + (state.info($1)?.byteCount ?? 0) }
            #expect(plan.checkpoint == bytes)
            var settings = tinySettings(recipe)
            (settings.iterations, settings.saveEvery, settings.kept) = (1000, 100, 2)
            #expect(plan.room(for: settings, there: 0) == 3 * bytes)
            #expect(plan.room(for: settings, there: 2) == bytes)
            settings.saveEvery = 1000
            #expect(plan.room(for: settings, there: 0) == bytes)
            (settings.saveEvery, settings.kept) = (1, .max)
            #expect(plan.room(for: settings, there: 5000) == 0)
        }
    }

    // MARK: Folders

    private func temporary() -> String { "/tmp/training-tests-\(UInt64.random(in: 0 ... .max))" }

    private func remove(_ path: FilePath) {
        let checkpoints = path.appending("checkpoints")
        for folder in [checkpoints, path] {
            for name in (try? folder.fileNames()) ?? [] { unlink(folder.appending(name).string) }
            rmdir(folder.string)
        }
    }

    @Test("the last checkpoints are kept, and nothing that is not whole counts")
    func checkpoints() throws {
        let folder = try RunFolder(temporary(), kept: 2)
        defer { remove(folder.path) }
        let state = TensorCollection("x", [("a", Tensor([Float(1)], [1]))])
        for iteration in [5, 10, 200] { try folder.save(state, iteration: iteration) }
        #expect(folder.states().map(\.iteration) == [10, 200])
        try folder.write(tinySettings(.sla))
        let stored = try SettingsFile(folder.path.appending("settings.json").string)
        #expect(try stored.settings() == tinySettings(.sla))
    }

    @Test("a folder belongs to one run at a time")
    func held() throws {
        let path = temporary()
        defer { remove(FilePath(path)) }
        do {
            let first = try RunFolder(path, kept: 1)
            try first.hold()
            #expect { try RunFolder(path, kept: 1).hold() } throws: {
                "\($0)".contains("is in use by another run")
            }
            withExtendedLifetime(first) {}
        }
        try RunFolder(path, kept: 1).hold()
    }

    @Test("settings that are no settings are refused in words")
    func settingsFiles() throws {
        let path = temporary() + ".json"
        defer { unlink(path) }
        for (text, words) in [
            ("{", "expected a key"), ("{\"recipe\": 3}", "recipe is one of"),
        ] {
            try PendingFile.write(Array(text.utf8), to: FilePath(path), overwrite: true)
            do {
                _ = try SettingsFile(path).settings()
                Issue.record("\(text) was taken")
            } catch { #expect("\(error)".contains(words), "\(error)") }
        }
        unlink(path)
        #expect {
            _ = try SettingsFile(path)
        } throws: {
            "\($0)" == "no such file: \(path)"
        }
        var wrong = tinySettings(.lora)
        wrong.rank = 0
        #expect(wrong.fault?.contains("rank is 0") == true)
        // What 32 bits hold as infinity or as zero.
        for (change, words): ((inout TrainingSettings) -> Void, String) in [
            ({ $0.optimizer.learningRate = 1e300 }, "optimizer.learningRate is 1e+300"),
            ({ $0.criticOptimizer.learningRate = 1e39 }, "criticOptimizer.learningRate"),
            ({ $0.optimizer.epsilon = 1e-300 }, "optimizer.epsilon"),
            ({ $0.optimizer.decay = 1e300 }, "optimizer.decay"),
            ({ $0.optimizer.beta2 = 1 - 1e-12 }, "beta2"), ({ $0.lossScale = 1e39 }, "lossScale"),
            ({ $0.alpha = 1e300 }, "alpha"),
        ] {
            var settings = tinySettings(.lora)
            change(&settings)
            #expect(settings.fault?.contains(words) == true, "\(words)")
        }
        var unguided = tinySettings(.rcm)
        unguided.rcm.guidance = -1
        #expect(unguided.fault?.contains("rcm.guidance") == true)
        unguided.recipe = .lora
        #expect(unguided.fault == nil)
        var idle = tinySettings(.rcm)
        (idle.rcm.lossScale, idle.rcm.distributionLossScale) = (0, 0)
        #expect(idle.fault?.contains("rcm.lossScale") == true)
    }

    @Test("curves forget what was lost, and events have TensorFlow's framing")
    func curves() throws {
        let folder = try RunFolder(temporary(), kept: 2)
        defer { remove(folder.path) }
        func report(_ number: Int) -> IterationReport {
            IterationReport(
                iteration: number, net: "student", loss: 0.5, norm: .nan, learningRate: 1e-3,
                skipped: number == 2 ? "why, not" : nil)
        }
        let first = try Curves(in: folder, done: 0)
        for number in 1...4 {
            try first.add(report(number), seconds: 1)
            try first.add([("psnr", 20.5)], iteration: number)
        }
        let validations = folder.path.appending("validation.csv")
        let early = String(decoding: try validations.contents(), as: UTF8.self)
            .replacing("1,20.5,,", with: "1,20.5")
        try PendingFile.write(Array(early.utf8), to: validations, overwrite: true)
        _ = try Curves(in: folder, done: 2)
        #expect(
            String(decoding: try validations.contents(), as: UTF8.self)
                == "iteration,psnr,score,teacher_score\n1,20.5,,\n2,20.5,,\n")
        let text = String(
            decoding: try folder.path.appending("loss.csv").contents(), as: UTF8.self)
        let lines = text.split(separator: "\n")
        #expect(lines.count == 3 && lines[2].hasSuffix("\"why, not\""))
        // CRC-32C of "123456789" (RFC 3720).
        #expect(Curves.castagnoli(Array("123456789".utf8)) == 0xE306_9283)
        let record = Curves.record([1, 2, 3])
        #expect(record.count == 8 + 4 + 3 + 4 && record[0] == 3)
    }

    @Test("what is written as a shard is read back")
    func shards() throws {
        let path = FilePath(temporary() + ".tar")
        defer { unlink(path.string) }
        var random = Random(2)
        let (latents, text) = (random.tensor([4, 2, 6, 4]), random.tensor([5, 12]))
        let writer = try ShardWriter(path)
        try writer.add(7, latents: latents, text: text, prompt: "ein Fuß")
        try writer.finish()
        let shards = try TarShards([path.string])
        let found = try shards.read(0)
        #expect(shards.samples[0].key == "000000007" && found.prompt == "ein Fuß")
        #expect(found.latents.floats() == latents.converted(to: .bf16).floats())
        #expect(found.text.floats() == text.converted(to: .bf16).floats())
        let cut = ShardSamples(shards, frames: 1)
        #expect(try cut.sample(0).latents.shape == [4, 1, 6, 4])
        #expect(throws: DataError.self) { try ShardSamples(shards, frames: 3).sample(0) }
    }

    @Test("a shard whose sample has a part twice, or a prompt that is no text, is refused by name")
    func damagedShards() throws {
        let path = FilePath(temporary() + ".tar")
        defer { unlink(path.string) }
        let parts: [(String, [UInt8])] = [
            ("a.latent.pt", torchArchive(of: .zeros([4, 1, 2, 2], .bf16))),
            ("a.embed.pt", torchArchive(of: .zeros([5, 12], .bf16))),
        ]
        let cases: [(more: [(String, [UInt8])], words: String)] = [
            ([("a.prompt.txt", [0x63]), parts[0]], "'a' has two members called latent.pt"),
            ([("a.prompt.txt", [0x63, 0xE9])], "'a.prompt.txt' is not text"),
        ]
        for (more, words) in cases {
            let members = (parts + more).flatMap { tarMember($0.0, $0.1) }
            try PendingFile.write(members + tarEnd, to: path, overwrite: true)
            do {
                _ = try TarShards([path.string]).read(0)
                Issue.record("\(words) was taken")
            } catch { #expect("\(error)".contains(words), "\(error)") }
        }
    }
}
