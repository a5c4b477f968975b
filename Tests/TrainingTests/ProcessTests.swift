/// Several processes, here threads that share nothing but sockets.

import CPU
import Checkpoints
import Glibc
import Ground
import Models
import Synchronization
import Tensors
import Testing

@testable import Training

/// What some threads do, each as one process.
private final class Work<Value: Sendable>: Sendable {
    let results: Mutex<[Int: Result<Value, any Error>]> = Mutex([:])
    private let body: @Sendable (ProcessPlace) throws -> Value
    private let next = Mutex(0)
    private let count, port: Int

    init(_ count: Int, _ port: Int, _ body: @escaping @Sendable (ProcessPlace) throws -> Value) {
        (self.count, self.port, self.body) = (count, port, body)
    }

    func run() {
        let rank = next.withLock { next in
            defer { next += 1 }
            return next
        }
        let place = ProcessPlace(
            rank: rank, count: count, local: rank, host: "127.0.0.1", port: port)
        let result = Result { try body(place) }
        results.withLock { $0[rank] = result }
    }
}

private final class Box: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
}

/// Runs `body` once for each rank, each on a thread of its own, and returns what they return.
func together<Value: Sendable>(
    _ count: Int, _ body: @escaping @Sendable (ProcessPlace) throws -> Value
) throws -> [Result<Value, any Error>] {
    let work = Work(count, try Listener("127.0.0.1", port: 0).port, body)
    let threads = (0..<count).map { _ in
        var thread = pthread_t()
        pthread_create(
            &thread, nil,
            { argument in
                Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
                return nil
            }, Unmanaged.passRetained(Box { work.run() }).toOpaque())
        return thread
    }
    for thread in threads { pthread_join(thread, nil) }
    return work.results.withLock { results in (0..<count).map { results[$0]! } }
}

/// The samples of `Numbered`; the second one has a number that is none.
final class Poisoned: SampleSource {
    let count: Int
    init(count: Int) { self.count = count }
    func sample(_ index: Int) -> Sample {
        var sample = Numbered().sample(index)
        if index == 1 { sample.latents.values[3] = .nan }
        return sample
    }
}

/// Samples that depend on their number alone.
final class Numbered: SampleSource {
    let count = 8
    func sample(_ index: Int) -> Sample {
        var random = Random(UInt64(index) + 90)
        let latents = random.latents([4, 2, 6, 4])
        func text() -> Text { Text(random.tensor([5, 12])) }
        return Sample(latents: latents, text: text(), negative: text())
    }
}

@Suite struct ProcessTests {
    // MARK: Who is who

    @Test("the variables of torchrun, Slurm and Ray tell a process's place")
    func places() throws {
        func place(_ variables: [String: String]) throws -> ProcessPlace? {
            try ProcessPlace.read { variables[$0] }
        }
        #expect(try place([:]) == nil)
        #expect(try place(["WORLD_SIZE": "1", "RANK": "0"]) == nil)
        let ray = [
            "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "29500",
        ]
        #expect(
            try place(ray)
                == ProcessPlace(rank: 3, count: 4, local: 1, host: "10.0.0.1", port: 29500))
        var torchrun = ray
        torchrun["LOCAL_WORLD_SIZE"] = "2"
        torchrun["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        #expect(
            try place(torchrun)
                == ProcessPlace(
                    rank: 3, count: 4, local: 1, localCount: 2, host: "10.0.0.1", port: 29501))
        torchrun["TURBODIFFUSION_MASTER_PORT"] = "4000"
        #expect(try place(torchrun)?.port == 4000)
        let slurm = [
            "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
            "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "123456",
        ]
        #expect(
            try place(slurm)
                == ProcessPlace(rank: 1, count: 2, host: "10.0.0.7", port: 15000 + 123456 % 20000))
        // A job without srun.
        #expect(try place(["SLURM_NTASKS": "8"]) == nil)
        // A job's script, outside of srun's steps.
        #expect(try place(["SLURM_NTASKS": "8", "SLURM_PROCID": "0"]) == nil)
        var high = ray
        high["MASTER_PORT"] = "65535"
        #expect(try place(high)?.port == 65535)
        high["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        #expect(throws: ProcessError.self) { try place(high) }
        for (change, words) in [
            ("RANK", "RANK is 'x'"), ("WORLD_SIZE", "WORLD_SIZE is 'x'"),
            ("MASTER_PORT", "MASTER_PORT is 'x'"),
        ] {
            var wrong = ray
            wrong[change] = "x"
            #expect { try place(wrong) } throws: { "\($0)".contains(words) }
            wrong[change] = nil
            if change == "WORLD_SIZE" { continue }
            #expect { try place(wrong) } throws: { "\($0)".contains("\(change) is not set") }
        }
        var wrong = ray
        wrong["RANK"] = "4"
        #expect { try place(wrong) } throws: { "\($0)".contains("from 0 to 3") }
    }

    // MARK: Sums

    @Test(
        "all get the sums of all, in the order of ranks and with equal bits", arguments: [2, 4])
    func sums(count: Int) throws {
        let found = try together(count) { place -> [[Float]] in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let device = CPUBackend(threads: 1)
            var random = Random(UInt64(place.rank))
            // More than a socket holds, so that all send and receive at once.
            let tensors = (0..<4).map { index in
                ProcessGroup.Owned(
                    name: "t\(index)", tensor: random.tensor([index == 3 ? 400_000 : 7]),
                    owner: index % count)
            }
            let own = try group.sums(tensors, on: device)
            #expect(
                Set(own.keys)
                    == Set(tensors.filter { $0.owner == place.rank }.map { $0.name }))
            let spread = try group.spread(
                tensors.map {
                    ProcessGroup.Owned(
                        name: $0.name, tensor: own[$0.name] ?? $0.tensor, owner: $0.owner)
                }, on: device)
            let all = own.merging(spread) { a, _ in a }
            let numbers = try group.sum([Double(place.rank), 0.1])
            #expect(numbers[0] == Double(count * (count - 1) / 2))
            let collected = try group.collected(
                tensors.map {
                    ProcessGroup.Owned(
                        name: $0.name, tensor: own[$0.name] ?? $0.tensor, owner: $0.owner)
                }, on: device)
            #expect(collected.count == (place.isFirst ? 4 : 0))
            for (name, tensor) in collected { #expect(tensor.floats() == all[name]!.floats()) }
            #expect(try group.fromFirst(place.isFirst ? [1, 2, 3] : []) == [1, 2, 3])
            return tensors.map { all[$0.name]!.floats() }
        }.map { try $0.get() }
        var expected: [[Float]] = []
        for rank in 0..<count {
            var random = Random(UInt64(rank))
            let values = (0..<4).map { random.tensor([$0 == 3 ? 400_000 : 7]).floats() }
            expected = rank == 0 ? values : zip(expected, values).map { zip($0, $1).map(+) }
        }
        for rank in 0..<count { #expect(found[rank] == expected) }
    }

    @Test("processes with other settings, and those that end, are told of")
    func faults() throws {
        let unlike = try together(2) { place in
            _ = try ProcessGroup.join(place, purpose: "rank \(place.rank)", patience: 20)
        }
        for result in unlike {
            #expect { try result.get() } throws: { "\($0)".contains("other settings") }
        }
        let ended = try together(3) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            if place.rank == 2 { return }
            _ = try group.sum([1])
            _ = try group.sum([1])
        }
        for rank in 0..<2 {
            #expect { try ended[rank].get() } throws: {
                "\($0)".contains("process 2 has ended") || "\($0)".contains("broke")
            }
        }
        let alone = try together(1) { place in
            var place = place
            (place.rank, place.count) = (0, 2)
            _ = try ProcessGroup.join(place, purpose: "test", patience: 1)
        }
        #expect { try alone[0].get() } throws: { "\($0)".contains("process 1 has not come") }
    }

    @Test("what greets with something else is left alone")
    func strangers() throws {
        let results = try together(3) { place -> Double in
            var place = place
            // The last thread is a stranger: it comes first and says something else.
            if place.rank == 2 {
                let connection = try Connection.open(
                    place.host, place.port, peer: "the run", patience: 20)
                try connection.send(Array("GET / HTTP/1.0\r\nHost: somewhere.example\r\n\r\n".utf8))
                usleep(300_000)
                return 0
            }
            place.count = 2
            if place.rank == 1 { usleep(150_000) }
            return try ProcessGroup.join(place, purpose: "test", patience: 20).sum([1])[0]
        }
        #expect(try results[0].get() == 2 && results[1].get() == 2)
    }

    // MARK: Training

    static func settings(_ recipe: TrainingSettings.Recipe, batch: Int) -> TrainingSettings {
        var settings = tinySettings(recipe)
        settings.batch = batch
        settings.largestNorm = 1
        return settings
    }

    static func trainer(
        _ settings: TrainingSettings, _ group: ProcessGroup?,
        samples: any SampleSource = Numbered(), heads: Int = 2, base: LinearFormat = .plain,
        on device: any Backend = CPUBackend(threads: 1)
    ) throws -> Trainer {
        try Trainer(
            settings,
            TrainingModels(
                teacher: randomParameters(seed: 5, isSparse: false),
                options: WanTransformerOptions(heads: heads), roundsTimesteps: true,
                linearFormat: base),
            samples, on: device, group: group)
    }

    struct Course: Sendable, Equatable {
        var losses: [Double] = []
        var norms: [Double] = []
        /// Of what is here.
        var seen: [String: [Float]] = [:]
        var masters = 0
        var state: [String: [Float]]?
    }

    static func course(_ trainer: Trainer, _ steps: Int) throws -> Course {
        var course = Course()
        for _ in 0..<steps {
            let report = try trainer.step()
            #expect(report.skipped == nil)
            course.losses.append(report.loss)
            course.norms.append(report.norm)
        }
        let parameters = trainer.student.parameters
        for name in parameters.names {
            let tensor = parameters.tensor(name)!
            if tensor.isOnHost { course.seen[name] = tensor.floats() }
        }
        course.masters = parameters.masters.values.reduce(0) { $0 + $1.shape.count }
        if let state = try trainer.state() {
            course.state = [:]
            for name in state.names { course.state![name] = try state.tensor(name)!.floats() }
        }
        return course
    }

    static func near(_ a: [Float], _ b: [Float], _ tolerance: Float) -> Bool {
        let size = max(b.map(abs).max() ?? 0, 1e-6)
        return a.count == b.count && zip(a, b).allSatisfy { abs($0 - $1) <= tolerance * size }
    }

    @Test(
        "two processes with half the batch each learn what one learns with the whole",
        arguments: TrainingSettings.Recipe.allCases)
    func halves(_ recipe: TrainingSettings.Recipe) throws {
        let whole = try Self.course(try Self.trainer(Self.settings(recipe, batch: 2), nil), 4)
        let halves = try together(2) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            return try Self.course(
                try Self.trainer(Self.settings(recipe, batch: 1), group), 4)
        }.map { try $0.get() }
        for half in halves {
            for (a, b) in zip(half.losses + half.norms, whole.losses + whole.norms) {
                #expect(abs(a - b) <= 1e-5 * abs(b), "\(a) and \(b)")
            }
            // Steps of Adam are as large for gradients near zero, whose rounding decides their sign.
            for (name, values) in whole.seen {
                #expect(Self.near(half.seen[name]!, values, 2e-3), "\(name)")
            }
        }
        // Both see the same bits, and share the masters out.
        #expect(halves[0].seen == halves[1].seen)
        #expect(halves[0].masters + halves[1].masters == whole.masters)
        #expect(halves.allSatisfy { Double($0.masters) < 0.7 * Double(whole.masters) })
        #expect(halves[1].state == nil)
        #expect(Set(halves[0].state!.keys) == Set(whole.state!.keys))
    }

    @Test("a run goes on with another number of processes", arguments: [1, 3])
    func otherNumber(count: Int) throws {
        let whole = try Self.course(try Self.trainer(Self.settings(.lora, batch: 6), nil), 5)
        // Two processes save, others read.
        let path = "/tmp/training-tests-\(UInt64.random(in: 0 ... .max)).safetensors"
        defer { unlink(path) }
        for result in try together(
            2,
            { place in
                let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
                let trainer = try Self.trainer(Self.settings(.lora, batch: 3), group)
                for _ in 0..<3 { _ = try trainer.step() }
                if let state = try trainer.state() { try writeCheckpoint(state, to: path) }
            })
        { try result.get() }
        let rest = try together(count) { place -> Course in
            let group =
                count == 1 ? nil : try ProcessGroup.join(place, purpose: "test", patience: 20)
            let trainer = try Self.trainer(Self.settings(.lora, batch: 6 / count), group)
            try trainer.restore(try openTrainingState(path))
            #expect(trainer.iteration == 3)
            return try Self.course(trainer, 2)
        }.map { try $0.get() }
        for course in rest {
            for (a, b) in zip(course.losses, whole.losses.suffix(2)) {
                #expect(abs(a - b) <= 1e-5 * abs(b), "\(a) and \(b)")
            }
        }
    }

    @Test("equal processes have equal bits again, and one that is poisoned holds back all")
    func again() throws {
        func run() throws -> [Course] {
            try together(2) { place in
                let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
                return try Self.course(try Self.trainer(Self.settings(.rcm, batch: 1), group), 3)
            }.map { try $0.get() }
        }
        let (first, second) = (try run(), try run())
        #expect(first[0].seen == second[0].seen && first[0].losses == second[0].losses)
        #expect(first[0].state == second[0].state)
        let reports = try together(2) { place in
            let group = try ProcessGroup.join(place, purpose: "test", patience: 20)
            let trainer = try Self.trainer(
                Self.settings(.lora, batch: 1), group, samples: Poisoned(count: 2))
            let before = trainer.student.parameters.version
            let report = try trainer.step(pausing: { place.rank == 1 })
            #expect(trainer.student.parameters.version == before)
            return report
        }.map { try $0.get() }
        #expect(reports.allSatisfy { $0.skipped != nil && $0.isPausing })
    }

    @Test("tensors are shared out evenly, and in all processes alike")
    func owners() {
        let sizes = (0..<20).map { (name: "t\($0)", count: 1 + $0 * $0) }
        let owners = Sharing.owners(sizes, count: 3)
        #expect(owners == Sharing.owners(sizes.reversed(), count: 3))
        let loads = (0..<3).map { rank in
            sizes.filter { owners[$0.name] == rank }.reduce(0) { $0 + $1.count }
        }
        #expect(
            loads.max()! - loads.min()! < 100
                && loads.reduce(0, +) == sizes.reduce(0) { $0 + $1.count })
    }
}
