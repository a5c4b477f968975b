/// Weights and gradients that are split over processes, here threads that share nothing but sockets.

import CPU
import Checkpoints
import Glibc
import Ground
import Models
import Tensors
import Testing

@testable import Training

@Suite struct ShardingTests {
    private typealias Course = ProcessTests.Course

    private static func settings(
        _ recipe: TrainingSettings.Recipe, batch: Int = 1, _ shard: Sharding = .full
    ) -> TrainingSettings {
        var settings = ProcessTests.settings(recipe, batch: batch)
        settings.shard = shard
        return settings
    }

    private static func courses(_ settings: TrainingSettings, processes: Int = 2, _ steps: Int)
        throws -> [Course]
    {
        try together(processes) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            return try ProcessTests.course(try ProcessTests.trainer(settings, group), steps)
        }.map { try $0.get() }
    }

    // MARK: The same numbers

    @Test(
        "what is split learns what is whole, to the same bits",
        arguments: [TrainingSettings.Recipe.sla, .lora], [false, true])
    func bits(_ recipe: TrainingSettings.Recipe, isHalf: Bool) throws {
        for recomputation in Recomputation.allCases {
            var settings = Self.settings(recipe, .none)
            settings.isHalf = isHalf
            settings.recomputation = recomputation
            let whole = try Self.courses(settings, 3)
            settings.shard = .full
            let split = try Self.courses(settings, 3)
            for (a, b) in zip(split, whole) {
                #expect(a.losses == b.losses && a.norms == b.norms)
            }
            #expect(split[0].state == whole[0].state)
            // Adapters stay whole.
            if recipe == .lora { continue }
            let names = split.map { Set($0.seen.keys) }
            #expect(names[0].isDisjoint(with: names[1]))
            #expect(names[0].union(names[1]) == Set(whole[0].seen.keys))
            let counts = split.map { $0.seen.values.reduce(0) { $0 + $1.count } }
            #expect(abs(counts[0] - counts[1]) * 50 < counts[0] + counts[1])
        }
    }

    /// A step of two closures adds up processes first and closures then, so bits differ.
    @Test("distillation with split nets learns what it does with whole ones", arguments: [2, 3])
    func distillation(count: Int) throws {
        func courses(_ shard: Sharding, _ steps: Int) throws -> [Course] {
            var settings = Self.settings(.rcm, shard)
            // Otherwise rounding decides the sign of the steps of gradients near zero.
            settings.optimizer.epsilon = 1
            settings.criticOptimizer.epsilon = 1
            return try Self.courses(settings, processes: count, steps)
        }
        let first = try [Sharding.none, .full].map { try courses($0, 1) }
        #expect(first[0][0].losses == first[1][0].losses && first[0][0].norms == first[1][0].norms)
        #expect(first[0][0].state == first[1][0].state)
        let runs = try [Sharding.none, .full].map { try courses($0, 4) }
        for (a, b) in zip(runs[1], runs[0]) {
            for (a, b) in zip(a.losses + a.norms, b.losses + b.norms) {
                #expect(abs(a - b) <= 1e-6 * abs(b), "\(a) and \(b)")
            }
        }
    }

    @Test("batches and micro-batches of split nets are those of one process")
    func passes() throws {
        var settings = Self.settings(.sla, batch: 4)
        settings.accumulation = 2
        let whole = try ProcessTests.course(try ProcessTests.trainer(settings, nil), 3)
        settings.batch = 2
        for split in try Self.courses(settings, 3) {
            for (a, b) in zip(split.losses + split.norms, whole.losses + whole.norms) {
                #expect(abs(a - b) <= 1e-5 * abs(b), "\(a) and \(b)")
            }
            for (name, values) in split.seen {
                #expect(ProcessTests.near(values, whole.seen[name]!, 2e-3), "\(name)")
            }
        }
    }

    @Test("samples of unlike sizes take as many passes in all processes")
    func sizes() throws {
        let net = Net(
            randomParameters(seed: 5, isSparse: false), WanTransformerOptions(heads: 2),
            activations: .f32, on: CPUBackend(threads: 1))
        #expect(net.passes(3, of: [4, 2, 6, 4]).count == 1)
        net.leastTokens = 40_000
        #expect(net.passes(3, of: [4, 2, 6, 4]) == [0..<1, 1..<2, 2..<3])
        final class Unlike: SampleSource {
            let count = 4
            func sample(_ index: Int) -> Sample {
                var random = Random(UInt64(index))
                let latents = random.latents([4, index % 2 + 1, 4, 4])
                return Sample(latents: latents, text: Text(random.tensor([5, 12])))
            }
        }
        let tokens = try together(2) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            return try group.largest(10 + place.rank)
        }.map { try $0.get() }
        #expect(tokens == [11, 11])
        let losses = try together(2) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let trainer = try ProcessTests.trainer(
                Self.settings(.sla), group, samples: Unlike())
            return try (0..<4).map { _ in try trainer.step().loss }
        }.map { try $0.get() }
        #expect(losses[0] == losses[1] && losses[0].allSatisfy { $0.isFinite })
    }

    // MARK: To a file and back

    @Test("a split run goes on with any number of processes, split or whole, and the other way")
    func resumed() throws {
        let path = "/tmp/training-tests-\(UInt64.random(in: 0 ... .max)).safetensors"
        defer { unlink(path) }
        func saved(_ shard: Sharding, _ count: Int) throws {
            unlink(path)
            for result in try together(
                count,
                { place in
                    let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
                    let settings = Self.settings(.sla, batch: 6 / count, shard)
                    let trainer = try ProcessTests.trainer(settings, group)
                    for _ in 0..<2 { _ = try trainer.step() }
                    if let state = try trainer.state() { try writeCheckpoint(state, to: path) }
                })
            { try result.get() }
        }
        func rest(_ shard: Sharding, _ count: Int) throws -> [Course] {
            try together(count) { place in
                let group =
                    count == 1 ? nil : try ProcessGroup.join(place, purpose: "test", patience: 20)
                let settings = Self.settings(.sla, batch: 6 / count, shard)
                let trainer = try ProcessTests.trainer(settings, group)
                try trainer.restore(try openTrainingState(path))
                return try ProcessTests.course(trainer, 2)
            }.map { try $0.get() }
        }
        try saved(.full, 2)
        let again = try rest(.full, 2)
        let unbroken = try Self.courses(Self.settings(.sla, batch: 3), 4)
        #expect(again[0].losses == Array(unbroken[0].losses.suffix(2)))
        #expect(again[0].state == unbroken[0].state)
        for (shard, count) in [(Sharding.none, 1), (.none, 2), (.full, 3)] {
            for course in try rest(shard, count) {
                for (a, b) in zip(course.losses, again[0].losses) {
                    #expect(abs(a - b) <= 1e-5 * abs(b), "\(a) and \(b)")
                }
            }
        }
        try saved(.none, 2)
        #expect(try rest(.full, 2)[0].state == again[0].state)
    }

    // MARK: What goes wrong

    @Test(
        "a poisoned sample in one process holds back all, and the next step is made",
        arguments: TrainingSettings.Recipe.allCases)
    func poison(_ recipe: TrainingSettings.Recipe) throws {
        let reports = try together(2) { place -> [IterationReport] in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let trainer = try ProcessTests.trainer(
                Self.settings(recipe), group, samples: Poisoned(count: 4))
            return try (0..<2).map { _ in
                let before = trainer.student.parameters.version
                let report = try trainer.step(pausing: { place.rank == 1 })
                #expect((trainer.student.parameters.version == before) == (report.skipped != nil))
                return report
            }
        }.map { try $0.get() }
        // An epoch of two batches has the sample once.
        for reports in reports {
            #expect(reports.count { $0.skipped != nil } == 1)
            #expect(reports.allSatisfy { $0.isPausing })
        }
        #expect(reports[0].map(\.skipped) == reports[1].map(\.skipped))
    }

    @Test("where a process ends, the others tell and end", arguments: Recomputation.allCases)
    func ended(_ recomputation: Recomputation) throws {
        final class Ending: SampleSource {
            let count = 8
            let rank: Int
            init(_ rank: Int) { self.rank = rank }
            func sample(_ index: Int) throws(DataError) -> Sample {
                if rank == 2 { throw DataError("the disk is gone") }
                return Numbered().sample(index)
            }
        }
        let results = try together(3) { place in
            var settings = Self.settings(.sla)
            settings.recomputation = recomputation
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            _ = try ProcessTests.trainer(
                settings, group, samples: Ending(place.rank)
            ).step()
        }
        #expect { try results[2].get() } throws: { "\($0)".contains("the disk is gone") }
        for rank in 0..<2 {
            #expect { try results[rank].get() } throws: {
                "\($0)".contains("has ended") || "\($0)".contains("broke")
            }
        }
    }

    // MARK: Memory

    /// Watches what passes between processes.
    private final class Watched: ShardExchange {
        private let group: ProcessGroup
        var gathered: [Int] = []
        var summed: [(names: [String], count: Int)] = []
        init(_ group: ProcessGroup) { self.group = group }
        var rank: Int { group.rank }
        var count: Int { group.count }

        func spread(_ tensors: [ProcessGroup.Owned], on device: any Backend) throws -> [String:
            Tensor]
        {
            gathered.append(tensors.reduce(0) { $0 + $1.tensor.byteCount })
            return try group.spread(tensors, on: device)
        }

        func sums(_ tensors: [ProcessGroup.Owned], on device: any Backend) throws -> [String:
            Tensor]
        {
            summed.append((tensors.map(\.name), tensors.reduce(0) { $0 + $1.tensor.shape.count }))
            return try group.sums(tensors, on: device)
        }
    }

    @Test("a process holds its share of the nets and one unit of them", arguments: [2, 3])
    func held(count: Int) throws {
        for result in try together(
            count,
            { place in
                let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
                let watched = Watched(group)
                let device = CPUBackend(threads: 1)
                let teacher = randomParameters(seed: 5, isSparse: false, layers: 12)
                let trainer = try Trainer(
                    Self.settings(.sla),
                    TrainingModels(
                        teacher: teacher, options: WanTransformerOptions(heads: 2),
                        roundsTimesteps: true), Numbered(), on: device, group: group,
                    shards: ShardedDevice(device, watched))
                for _ in 0..<2 { _ = try trainer.step() }
                let parameters = trainer.student.parameters
                let all = parameters.elementCount + teacher.elementCount
                let shards = trainer.shards!
                // f32; within 2 % of an equal share.
                let share = Double(4 * all) / Double(count)
                #expect(abs(Double(shards.ownBytes) - share) < 0.02 * share)
                // A block, or what is in none.
                let block = parameters.names.filter { $0.hasPrefix("blocks.0.") }.reduce(0) {
                    $0 + parameters.info($1)!.shape.reduce(1, *)
                }
                let blocks = parameters.names.filter { $0.hasPrefix("blocks.") }.reduce(0) {
                    $0 + parameters.info($1)!.shape.reduce(1, *)
                }
                let modulations = 12 * 6 * 32
                let unit = max(block, parameters.elementCount - blocks + modulations)
                #expect(watched.gathered.allSatisfy { $0 <= 4 * unit })
                #expect(watched.gathered.max()! < parameters.elementCount)
                // Each gradient is summed once a step, those of a block before those of the block below.
                #expect(watched.summed.allSatisfy { $0.count <= unit })
                let names = watched.summed.flatMap(\.names)
                let moved = Set(names)
                #expect(names.count == 2 * moved.count && moved == Set(parameters.names))
                let places = (0..<12).map { layer in
                    watched.summed.firstIndex { $0.names.contains("blocks.\(layer).ffn.0.weight") }!
                }
                #expect(zip(places, places.dropFirst()).allSatisfy { $0 > $1 })
            })
        { try result.get() }
    }

    @Test("a plan counts shares and a unit", arguments: TrainingSettings.Recipe.allCases)
    func plan(_ recipe: TrainingSettings.Recipe) throws {
        let models = TrainingModels(
            teacher: randomParameters(seed: 5, isSparse: false, layers: 24),
            options: WanTransformerOptions(heads: 2), roundsTimesteps: true)
        func memory(_ shard: Sharding, _ processes: Int) throws -> Double {
            var settings = Self.settings(recipe, shard)
            settings.isHalf = true
            return Double(
                try TrainingPlan(
                    settings, models, Numbered().sample(0), processes: processes
                ).memory)
        }
        #expect(try memory(.full, 1) == memory(.none, 1))
        let split = try [2, 4, 8].map { try memory(.full, $0) }
        for (count, split) in zip([2, 4, 8], split) {
            #expect(try split < memory(.none, count))
        }
        // a / N + b
        let (first, second) = (split[0] - split[1], split[1] - split[2])
        #expect(abs(first - 2 * second) < 0.1 * first, "\(split)")
    }
}
