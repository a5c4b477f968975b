/// Processes that share out the tokens of each sample, against one that has them all.

import CPU
import Checkpoints
import Glibc
import Models
import Tensors
import Testing

@testable import Training

/// Samples of 160 tokens a frame, which depend on their number alone. Blocks of 128 tokens stay whole, so 2 frames are
/// shared out as 128 and 192.
private final class Long: SampleSource {
    let count = 4
    private let frames: Int
    init(frames: Int) { self.frames = frames }

    func sample(_ index: Int) -> Sample {
        var random = Random(UInt64(index) + 400)
        let latents = random.latents([4, frames, 32, 20])
        func text() -> Text { Text(random.tensor([5, 12])) }
        return Sample(latents: latents, text: text(), negative: text())
    }
}

@Suite struct SequenceTests {
    // MARK: Derivatives

    /// Attention between own heads of all rows, as models do it: own rows [own, 3, 4] → all rows [rows, 12]
    private static func mixed(_ x: Tensor, rows: Int, on device: any Backend) -> Tensor {
        let heads = device.exchangeToHeads(x, rows: rows)
        let attended = device.exchangeToRows(
            device.attention(heads, heads, heads, scale: 0.7), heads: 3, headDim: 4)
        return device.gather(
            device.reshape(attended, [x.shape[0], 12]), device.membership.sequence(rows))
    }

    @Test("what processes give to each other has the derivatives that differences say, both ways")
    func differences() throws {
        let rows = 700
        var random = Random(7)
        let (x, t, c) = (
            random.tensor([rows, 3, 4]), random.tensor([rows, 3, 4]), random.tensor([rows, 12])
        )
        let whole = Self.mixed(x, rows: rows, on: CPUBackend(threads: 1)).floats()
        struct Found: Sendable {
            var values: [Float]
            var forward, backward, difference: Double
        }
        let values = (x.floats(), t.floats(), c.floats())
        let found = try together(2) { place -> Found in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let device = SequenceDevice(CPUBackend(threads: 1), group, members: 2)
            let own = device.membership.sequence(rows)[place.rank]
            // Uneven on purpose: two heads and one, 384 rows and 316.
            #expect(own.count == (place.rank == 0 ? 384 : 316))
            func part(_ values: [Float]) -> Tensor { Tensor(values, [rows, 3, 4]).slice(own) }
            let (x, t, c) = (part(values.0), part(values.1), Tensor(values.2, [rows, 12]))
            let recorder = Recorder(device)
            recorder.watch(x)
            let result = Self.mixed(x, rows: rows, on: recorder)
            let gradient = recorder.backward([(result, c)]).take(x)!
            let tangents = Tangents(device)
            tangents.move(x, along: t)
            let tangent = tangents.tangent(of: Self.mixed(x, rows: rows, on: tangents))!
            let h: Float = 1.0 / 512
            func at(_ h: Float) -> Double {
                inner(c, Self.mixed(moved(x, h, t), rows: rows, on: device))
            }
            // Two central differences: the error of the fourth order is left.
            let slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * Double(h))
            try device.check()
            return Found(
                values: result.floats(), forward: inner(c, tangent), backward: inner(gradient, t),
                difference: slope)
        }.map { try $0.get() }
        // All have the same bits, and those of one process.
        #expect(found.allSatisfy { $0.values == whole })
        #expect(found[0].forward == found[1].forward)
        let backward = found[0].backward + found[1].backward
        #expect(abs(backward - found[0].forward) < 1e-5 * abs(backward))
        #expect(abs(backward - found[0].difference) < 3e-4 * abs(backward))
    }

    private static func net(_ parameters: Parameters, on device: any Backend) -> Net {
        Net(
            parameters, WanTransformerOptions(attention: .sparse(sparse(0.4)), heads: 2),
            activations: .f32, recomputation: .block, on: device)
    }

    @Test(
        "the sums of a sample's gradients over processes are those of one, its velocity the same bits"
    )
    func gradients() throws {
        struct Found: Sendable {
            var velocity, moved, tangent: [Float]
            var gradients: [String: [Float]] = [:]
        }
        @Sendable func pass(_ net: Net) throws -> (Found, [String: Tensor]) {
            let sample = Long(frames: 2).sample(1)
            var random = Random(3)
            let (x, along) = (sample.latents.tensor, random.tensor(sample.latents.shape))
            let moving = try net.moving(x, along: along, at: 400, along: 300, sample.text)
            let pass = try net.recorded(x, at: 400, sample.text)
            return (
                Found(
                    velocity: pass.velocity.floats(), moved: moving.velocity.floats(),
                    tangent: moving.tangent.floats()),
                pass.gradients(random.tensor(sample.latents.shape)).parameters
            )
        }
        let (whole, gradients) = try pass(
            Self.net(randomParameters(seed: 8, isSparse: true), on: CPUBackend(threads: 1)))
        let found = try together(2) { place -> Found in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let device = SequenceDevice(CPUBackend(threads: 1), group, members: 2)
            let parameters = randomParameters(seed: 8, isSparse: true)
            let (values, own) = try pass(Self.net(parameters, on: device))
            try device.check()
            #expect(Set(own.keys) == Set(parameters.names))
            let sums = try group.sums(
                parameters.names.map {
                    ProcessGroup.Owned(name: $0, tensor: own[$0]!, owner: 0)
                }, on: device)
            var found = values
            found.gradients = sums.mapValues { $0.floats() }
            return found
        }.map { try $0.get() }
        for one in found {
            #expect(one.velocity == whole.velocity && one.moved == whole.moved)
            #expect(one.tangent == whole.tangent)
        }
        for (name, gradient) in gradients {
            let (a, b) = (found[0].gradients[name]!, gradient.floats())
            #expect(a.count == b.count)
            let error = zip(a, b).reduce(0.0) { $0 + Double($1.0 - $1.1) * Double($1.0 - $1.1) }
            let norm = b.reduce(0.0) { $0 + Double($1) * Double($1) }
            // Gradients of keys' biases are small sums of large terms.
            let tolerance = name.hasSuffix("self_attn.k.bias") ? 1e-4 : 5e-6
            #expect(norm > 0 && (error / norm).squareRoot() < tolerance, "\(name)")
        }
    }

    @Test("a teacher with int8 layers has the bits of one process, too")
    func codes() throws {
        @Sendable func velocity(_ device: any Backend) throws -> [Float] {
            let plain = randomParameters(seed: 9, isSparse: false, dim: 256)
            let coded = try quantized(plain, to: .int8Blocks).checkpoint
            let sample = Long(frames: 2).sample(0)
            let net = Net(
                coded, WanTransformerOptions(heads: 2), activations: .f32, on: device)
            return try net.velocity(sample.latents.tensor, at: 300, sample.text).floats()
        }
        let whole = try velocity(CPUBackend(threads: 1))
        let found = try together(2) { place -> [Float] in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let device = SequenceDevice(CPUBackend(threads: 1), group, members: 2)
            let found = try velocity(device)
            try device.check()
            return found
        }.map { try $0.get() }
        #expect(found.allSatisfy { $0 == whole })
    }

    // MARK: Training

    private static func trainer(
        _ settings: TrainingSettings, _ group: ProcessGroup?, frames: Int = 2, heads: Int = 2,
        base: LinearFormat = .plain, on device: any Backend = CPUBackend(threads: 1)
    ) throws -> Trainer {
        try ProcessTests.trainer(
            settings, group, samples: Long(frames: frames), heads: heads, base: base, on: device)
    }

    struct Setup: Sendable, CustomTestStringConvertible {
        var recipe: TrainingSettings.Recipe
        var processes, members, frames, heads: Int
        var base = LinearFormat.plain
        var shard = Sharding.none
        /// Samples of all groups.
        var batch = 2
        var testDescription: String {
            "\(recipe.rawValue) (\(base)), \(processes) processes, \(members) for a sample, "
                + "shard \(shard.rawValue)"
        }
    }

    @Test(
        "processes that share out tokens learn what one process does",
        arguments: [
            Setup(recipe: .sla, processes: 2, members: 2, frames: 2, heads: 2),
            Setup(recipe: .lora, processes: 3, members: 3, frames: 3, heads: 4),
            // Samples that go through the nets together share the scales of 128 rows: here it is one.
            Setup(
                recipe: .lora, processes: 2, members: 2, frames: 2, heads: 2, base: .int8Blocks,
                batch: 1),
            Setup(recipe: .rcm, processes: 2, members: 2, frames: 2, heads: 2),
            Setup(recipe: .sla, processes: 4, members: 2, frames: 2, heads: 2),
            Setup(recipe: .sla, processes: 4, members: 2, frames: 2, heads: 2, shard: .full),
            Setup(recipe: .rcm, processes: 2, members: 2, frames: 2, heads: 2, shard: .full),
        ])
    func alike(_ sharing: Setup) throws {
        func settings(groups: Int) -> TrainingSettings {
            var settings = tinySettings(sharing.recipe)
            settings.batch = sharing.batch / groups
            settings.largestNorm = 1
            settings.sequenceParallel = sharing.members
            settings.shard = sharing.shard
            return settings
        }
        var alone = settings(groups: 1)
        alone.sequenceParallel = 1
        let whole = try ProcessTests.course(
            try Self.trainer(
                alone, nil, frames: sharing.frames, heads: sharing.heads, base: sharing.base), 4)
        let shared = settings(groups: sharing.processes / sharing.members)
        let found = try together(sharing.processes) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            return try ProcessTests.course(
                try Self.trainer(
                    shared, group, frames: sharing.frames, heads: sharing.heads, base: sharing.base),
                4)
        }.map { try $0.get() }
        for one in found {
            for (a, b) in zip(one.losses + one.norms, whole.losses + whole.norms) {
                #expect(abs(a - b) <= 5e-6 * abs(b), "\(a) and \(b)")
            }
            // Each keeps other weights where they are split.
            #expect(one.losses == found[0].losses && one.norms == found[0].norms)
            #expect(sharing.shard == .full || one.seen == found[0].seen)
        }
        // Before the first step there are the same bits.
        if sharing.recipe == .sla, sharing.processes == sharing.members {
            #expect(found[0].losses[0] == whole.losses[0])
        }
    }

    @Test("a run goes on with another number of processes for a sample")
    func otherNumber() throws {
        var settings = tinySettings(.lora)
        let whole = try ProcessTests.course(try Self.trainer(settings, nil), 4)
        settings.sequenceParallel = 2
        let shared = settings
        let path = "/tmp/training-tests-\(UInt64.random(in: 0 ... .max)).safetensors"
        defer { unlink(path) }
        for result in try together(
            2,
            { place in
                let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
                let trainer = try Self.trainer(shared, group)
                for _ in 0..<2 { _ = try trainer.step() }
                if let state = try trainer.state() { try writeCheckpoint(state, to: path) }
            })
        { try result.get() }
        settings.sequenceParallel = 1
        let trainer = try Self.trainer(settings, nil)
        try trainer.restore(try openTrainingState(path))
        for (a, b) in zip(try ProcessTests.course(trainer, 2).losses, whole.losses.suffix(2)) {
            #expect(abs(a - b) <= 5e-6 * abs(b), "\(a) and \(b)")
        }
    }

    @Test("equal runs have equal bits again")
    func again() throws {
        func run() throws -> [ProcessTests.Course] {
            try together(2) { place in
                let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
                var settings = tinySettings(.sla)
                settings.batch = 1
                settings.sequenceParallel = 2
                return try ProcessTests.course(try Self.trainer(settings, group), 3)
            }.map { try $0.get() }
        }
        #expect(try run() == run())
    }

    @Test("a net computes whole samples by itself where the others do not take part")
    func apart() throws {
        @Sendable func velocity(_ trainer: Trainer) throws -> [Float] {
            let sample = Long(frames: 2).sample(0)
            return try trainer.student.net.velocity(sample.latents.tensor, at: 500, sample.text)
                .floats()
        }
        var settings = tinySettings(.sla)
        let whole = try velocity(try Self.trainer(settings, nil))
        settings.sequenceParallel = 2
        let shared = settings
        let found = try together(2) { place -> [Float]? in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let trainer = try Self.trainer(shared, group)
            guard place.isFirst else { return nil }
            trainer.isApart = true
            defer { trainer.isApart = false }
            return try velocity(trainer)
        }
        #expect(try found[0].get() == whole)
    }

    // MARK: Refusals and failures

    @Test("what cannot be shared out is refused by name")
    func refusals() throws {
        var settings = tinySettings(.sla)
        settings.sequenceParallel = 2
        #expect {
            try Self.trainer(settings, nil)
        } throws: {
            "\($0)".contains("2 processes")
                && "\($0)".contains("the run has 1: start a multiple of 2")
        }
        #expect(throws: DataError.self) { try Trainer.batch(settings, of: 8, 3) }
        #expect(try Trainer.batch(settings, of: 8, 4) == 2 * settings.batch)
        settings.sequenceParallel = 0
        #expect(settings.fault == "sequenceParallel is 0, expected 1 to 4096")
        // A plan says so before work begins.
        settings.sequenceParallel = 3
        func plan(_ heads: Int) throws -> TrainingPlan {
            try TrainingPlan(
                settings,
                TrainingModels(
                    teacher: randomParameters(seed: 5, isSparse: false),
                    options: WanTransformerOptions(heads: heads), roundsTimesteps: true),
                Long(frames: 2).sample(0), processes: settings.sequenceParallel)
        }
        #expect { try plan(2) } throws: { "\($0)".contains("2 heads: expected at most 2") }
        #expect {
            try plan(4)
        } throws: {
            "\($0)".contains("320 tokens make 2 blocks of 128: expected at most 2")
        }
        settings.sequenceParallel = 1
        let one = try plan(4)
        settings.sequenceParallel = 2
        let two = try plan(4)
        // The larger share is 192 of 320 tokens.
        #expect(two.memory < one.memory)
        #expect(Double(two.flops) < 0.62 * Double(one.flops))
        #expect(Double(two.flops) > 0.5 * Double(one.flops))
    }

    @Test("the others are told where a process ends")
    func ending() throws {
        let results = try together(2) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            if place.rank == 1 { return }
            var settings = tinySettings(.sla)
            settings.batch = 1
            settings.sequenceParallel = 2
            _ = try Self.trainer(settings, group).step()
        }
        #expect {
            try results[0].get()
        } throws: {
            "\($0)".contains("process 1 has ended") || "\($0)".contains("broke")
        }
    }

    /// Cards that cannot exchange anything, nor sum, nor gather weights unless the host does that for them.
    private final class Unable: CardCollectives {
        struct Fault: Error {}
        private unowned let group: ProcessGroup
        var gathers: Bool
        /// Is told of what fails.
        private let tell: () -> Void
        init(_ group: ProcessGroup, gathers: Bool = false, _ tell: @escaping () -> Void) {
            (self.group, self.gathers, self.tell) = (group, gathers, tell)
        }
        func sums(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor?] {
            tell()
            throw Fault()
        }
        func spread(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor] {
            guard gathers else {
                tell()
                throw Fault()
            }
            group.cards = nil
            defer { group.cards = self }
            let found = try group.spread(
                tensors.enumerated().map {
                    ProcessGroup.Owned(
                        name: "\($0)", tensor: $1.tensor, owner: $1.owner)
                }, on: CPUBackend(threads: 1))
            return tensors.enumerated().map { found["\($0)"] ?? $1.tensor }
        }
        func carryOut(_ operation: any Collective, first: Int) throws -> Tensor {
            tell()
            throw Fault()
        }
    }

    /// A device that counts what it computes.
    private final class Counting: ForwardingBackend {
        var count = 0
        override func run(_ operation: Operation) -> [Tensor] {
            count += 1
            return super.run(operation)
        }
    }

    @Test(
        "where a process ends between steps, cards do not wait for what it does not give",
        arguments: zip([2, 1, 2], [Sharding.none, .full, .full]))
    func endingBetweenSteps(members: Int, shard: Sharding) throws {
        let results = try together(2) { place -> Int in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            var exchanges = 0
            let cards = Unable(group, gathers: true) { exchanges += 1 }
            group.cards = cards
            var settings = tinySettings(.sla)
            settings.batch = 1
            (settings.sequenceParallel, settings.shard) = (members, shard)
            // Nets may gather weights while they are made.
            let trainer = try Self.trainer(settings, group)
            if place.rank == 1 { return 0 }
            cards.gathers = false
            #expect(throws: ProcessError.self) { try trainer.step() }
            return exchanges
        }
        #expect(try results[0].get() == 0)
    }

    enum WeightsOfProcess: CaseIterable { case whole, split, splitAndGathered }

    @Test(
        "what cannot be exchanged ends the pass: nothing is computed any more",
        arguments: TrainingSettings.Recipe.allCases,
        WeightsOfProcess.allCases)
    func failedExchange(_ recipe: TrainingSettings.Recipe, _ weights: WeightsOfProcess) throws {
        let results = try together(2) { place -> (atFault: Int, after: Int, faults: Int) in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let device = Counting(CPUBackend(threads: 1))
            var (atFault, faults) = (0, 0)
            group.cards = Unable(group, gathers: weights == .splitAndGathered) {
                (atFault, faults) = (device.count, faults + 1)
            }
            var settings = tinySettings(recipe)
            settings.sequenceParallel = 2
            settings.shard = weights == .whole ? .none : .full
            settings.accumulation = 2
            let trainer = try Self.trainer(settings, group, on: device)
            #expect(throws: Unable.Fault.self) { try trainer.step() }
            return (atFault, device.count, faults)
        }
        for result in results {
            let found = try result.get()
            #expect(found.faults == 1 && found.after == found.atFault)
        }
    }
}
