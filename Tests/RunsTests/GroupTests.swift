/// One video on several devices: the bits of one device, whatever the number of devices, sizes and kinds of arithmetic.

import CPU
import Catalog
import Checkpoints
import Families
import Models
import Runs
import Synchronization
import Tensors
import Testing

/// An engine of `count` CPU backends of one thread each.
private func engine(
    of count: Int, _ kind: CPUBackend.Engine = .automatic,
    wrapped: @escaping @Sendable (any Backend) -> any Backend = { $0 }
) -> Engine {
    let meeting = Meeting(count: count)
    return Engine(
        group: (0..<count).map { index in
            {
                let backend = CPUBackend(
                    threads: 1, engine: kind,
                    membership: count == 1 ? .alone : Membership(index: index, in: meeting))
                return OpenedDevice(wrapped(backend), sageArchitecture: .sm90)
            }
        })
}

/// What a run makes: the last latents, and the frames.
private struct Made: Equatable {
    var latents: [Float] = []
    var frames: [UInt8] = []
    var counts: [Int] = []
}

private func make(
    _ request: Request, _ models: ModelSet, on engine: Engine, _ options: RunOptions = RunOptions()
) async throws -> Made {
    let run = engine.start(try Run(request, models, options))
    var made = Made()
    for try await _ in run.steps {}
    made.latents = try #require(try await run.latents()).values
    for try await chunk in run.frames {
        made.frames += chunk.bytes
        made.counts.append(chunk.count)
    }
    return made
}

/// A request of nano with three blocks of 128 tokens.
private func request(
    _ attention: AttentionChoice, _ linears: LinearChoice = .stored,
    _ precision: Precision = .bf16, width: Int = 256, height: Int = 128
) -> Request {
    Request(
        prompt: "a red cube spins on a green floor", width: width, height: height, frames: 9,
        seed: 5, sampling: euler(steps: 2),
        arithmetic: Arithmetic(
            precision: precision, linears: linears, attention: attention, topK: 0.5))
}

@Suite("Groups of devices", .serialized)
struct GroupTests {
    @Test(
        "Latents and frames of nano are those of one device, bit for bit",
        arguments: [
            request(.sla), request(.sagesla, .int8), request(.original, .stored, .f32),
            request(.sla, width: 208, height: 176),
        ])
    func nanoIsTheSame(request: Request) async throws {
        let models = try nano()
        let expected = try await make(request, models, on: engine(of: 1))
        #expect(Set(expected.frames).count > 16)
        #expect(expected.counts == [1, 4, 4])
        for count in 2...4 {
            let made = try await make(request, models, on: engine(of: count))
            #expect(made == expected, "\(count) devices")
        }
    }

    @Test("Neither guidance nor samples nor the definitions' own arithmetic change that")
    func guided() async throws {
        var request = request(.sla)
        request.sampling = euler(steps: 1, guidance: 3)
        (request.samples, request.frames, request.height) = (2, 5, 160)
        let models = try nano()
        let expected = try await make(request, models, on: engine(of: 1, .definition))
        #expect(try await make(request, models, on: engine(of: 2, .definition)) == expected)
    }

    @Test(
        "Nor do a picture, two experts and heads of any number and width",
        arguments: [(3, 128, LinearChoice.int8), (3, 32, .stored), (5, 16, .fp8)])
    func secondFamily(heads: Int, headDim: Int, linears: LinearChoice) async throws {
        var sizes = SecondFamily.transformer
        (sizes.heads, sizes.dim) = (heads, heads * headDim)
        sizes.hasSparseLinearAttention = headDim == 128
        let second = try SecondFamily(sizes)
        let models = try second.catalog.open(ModelChoice("second"))
        var request = Request("a red ball", for: models.family)
        (request.width, request.height) = (96, 64)
        request.image = try second.folder.picture(width: 96, height: 64)
        request.arithmetic.linears = linears
        if headDim == 128 {
            request.arithmetic.attention = .sagesla
            request.arithmetic.topK = 0.4
        }
        let expected = try await make(request, models, on: engine(of: 1))
        #expect(expected.counts == [1, 2, 2, 2])
        for count in [2, 4] {
            let made = try await make(request, models, on: engine(of: count))
            #expect(made == expected, "\(count) devices")
            var options = RunOptions()
            (options.keepsBothExperts, options.keepsTransformer) = (false, false)
            #expect(
                try await make(request, models, on: engine(of: count), options) == expected)
        }
    }

    @Test("A picture too small to be shared out is made by every device")
    func small() async throws {
        let models = try nano()
        let expected = try await make(tinyRequest(), models, on: engine(of: 1))
        #expect(try await make(tinyRequest(), models, on: engine(of: 4)) == expected)
    }

    @Test("Several runs take turns on a group, and stages go through files")
    func together() async throws {
        let models = try nano()
        var other = request(.sla)
        other.seed = 9
        let (a, b) = (request(.sagesla), other)
        let alone = engine(of: 1)
        let expected = (
            try await frames(of: a, models, on: alone), try await frames(of: b, models, on: alone)
        )
        let group = engine(of: 2)
        async let first = frames(of: a, models, on: group)
        async let second = frames(of: b, models, on: group)
        let found = try await (first, second)
        #expect(found.0 == expected.0)
        #expect(found.1 == expected.1)

        let folder = try TemporaryFolder()
        var options = RunOptions()
        options.save.text = folder.path + "/text.safetensors"
        options.save.latents = folder.path + "/latents.safetensors"
        #expect(try await frames(of: a, models, on: group, options) == expected.0)
        var start = RunOptions()
        start.start.text = options.save.text
        #expect(try await frames(of: a, models, on: group, start) == expected.0)
        start.start = RunOptions.Files(latents: options.save.latents)
        #expect(try await frames(of: a, models, on: group, start) == expected.0)
    }

    @Test("A group that is told to stop stops on all devices, and is as good as new")
    func cancelling() async throws {
        let (models, group) = (try nano(), engine(of: 3))
        var long = request(.sla)
        long.sampling = euler(steps: 200)
        let request = long
        let begin = ContinuousClock.now
        let run = group.start(try Run(request, models))
        await #expect(throws: CancellationError.self) {
            for try await step in run.steps where step.number == 2 { run.cancel() }
        }
        let task = Task {
            for try await step in group.start(try Run(request, models)).steps
            where step.number == 2 {
                withUnsafeCurrentTask { $0?.cancel() }
            }
        }
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(ContinuousClock.now - begin < .seconds(120))
        let short = GroupTests.short
        let expected = try await frames(of: short, models, on: engine(of: 1))
        #expect(try await frames(of: short, models, on: group) == expected)
    }

    private static var short: Request {
        var request = request(.sla)
        request.frames = 5
        return request
    }

    @Test("A device that fails is named, the others do not wait for it, and the next run is whole")
    func failing() async throws {
        let fault = Mutex(true)
        let group = engine(of: 2) { backend in
            backend.membership.isFirst
                ? backend : Faulty(backend) { fault.withLock { $0 } }
        }
        let models = try nano()
        do {
            _ = try await frames(of: Self.short, models, on: group)
            Issue.record("no error")
        } catch let error as GroupError {
            #expect("\(error)" == "device 2 of 2: out of order")
        }
        fault.withLock { $0 = false }
        let expected = try await frames(of: Self.short, models, on: engine(of: 1))
        #expect(try await frames(of: Self.short, models, on: group) == expected)

        let unopened = Engine(group: [
            { OpenedDevice(CPUBackend(threads: 1), sageArchitecture: .sm90) },
            { throw OutOfOrder() },
        ])
        await #expect(throws: GroupError.self) { try await unopened.openDevice() }
        let headless = Engine(group: [
            { throw OutOfOrder() },
            { OpenedDevice(CPUBackend(threads: 1), sageArchitecture: .sm90) },
        ])
        do {
            _ = try await headless.openDevice()
            Issue.record("no error")
        } catch { #expect("\(error)" == "device 1 of 2: out of order") }
    }

    @Test("Models stay and leave on all devices together")
    func residents() async throws {
        let stagesToFailure = Mutex(Int.max)
        let noted = Mutex<[String: Int]>([:])
        func count(_ event: String) -> Int { noted.withLock { $0[event] ?? 0 } }
        let group = engine(of: 3) { backend in
            Watched(backend) { event in
                noted.withLock { $0[event, default: 0] += 1 }
            } fails: {
                guard backend.membership.index == 2 else { return false }
                return stagesToFailure.withLock {
                    $0 -= 1
                    return $0 == 0
                }
            }
        }
        let models = try nano()
        let expected = try await frames(of: Self.short, models, on: group)
        let parts = Set(await group.residents.map(\.part))
        #expect(parts.contains(.transformer))
        // The last device opens another transformer while it waits for the text, and fails. Whether the first one has come to
        // that or not: it stays on all devices or on none.
        var other = Self.short
        other.arithmetic.linears = .int8
        stagesToFailure.withLock { $0 = 1 }
        await #expect(throws: GroupError.self) {
            try await frames(of: other, models, on: group)
        }
        let before = (count("placed on 0"), count("placed on 2"))
        #expect(before.0 > 0 && before.1 > 0)
        _ = try await frames(of: other, models, on: group)
        #expect(count("placed on 2") - before.1 == count("placed on 0") - before.0)
        #expect(try await frames(of: Self.short, models, on: group) == expected)

        await group.unload()
        #expect(await group.residents.isEmpty)
        #expect(try await frames(of: Self.short, models, on: group) == expected)
        #expect((0..<3).map { count("freed on \($0)") } == [1, 1, 1])
    }

    @Test("Each of two devices takes about half of the work and of the memory for activations")
    func plan() throws {
        var request = request(.sla, width: 512, height: 512)
        request.frames = 17
        let run = try Run(request, try nano())
        let (one, two) = (try Plan(run), try Plan(run, devices: 2))
        for (one, two) in zip(one.stages, two.stages) where one.part != .textEncoder {
            // Keys and values of the text, which every device has whole: 10 blocks of [512 rows, 256], bf16.
            let text = one.part.isTransformer ? 10 * 2 * 512 * 256 * 2 : 0
            // Half, and the rows of q, k and v that are on their way.
            #expect(
                two.activationBytes - text < (one.activationBytes - text) * 55 / 100 + (1 << 20),
                "\(one.part)")
            #expect(two.operations < one.operations * 0.55, "\(one.part)")
            #expect(one.sentBytes == 0 && two.sentBytes > 0)
            #expect(two.weightBytes == one.weightBytes)
        }
    }
}

/// Tells when a transformer's matrices are placed and when memory is given back; may fail whenever it is waited for.
private final class Watched: ForwardingBackend {
    private let note: (String) -> Void
    private let fails: () -> Bool

    init(_ base: any Backend, _ note: @escaping (String) -> Void, fails: @escaping () -> Bool) {
        (self.note, self.fails) = (note, fails)
        super.init(base)
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        if group?.name.contains("cross_attn") == true { note("placed on \(membership.index)") }
        return super.place(weight, as: dtype, in: group)
    }

    override func releaseUnusedMemory() {
        super.releaseUnusedMemory()
        note("freed on \(membership.index)")
    }

    override func synchronize() throws {
        try super.synchronize()
        if fails() { throw OutOfOrder() }
    }
}

private struct OutOfOrder: Error, CustomStringConvertible {
    var description: String { "out of order" }
}

/// A device that fails in the middle of the second step, seen when it is waited for.
private final class Faulty: ForwardingBackend {
    private let isFaulty: () -> Bool
    private var attentions = 0

    init(_ base: any Backend, _ isFaulty: @escaping () -> Bool) {
        self.isFaulty = isFaulty
        super.init(base)
    }

    override func run(_ operation: Operation) -> [Tensor] {
        if case .sparseLinearAttention = operation { attentions += 1 }
        return super.run(operation)
    }

    override func synchronize() throws {
        try super.synchronize()
        if attentions > 0, isFaulty() { throw OutOfOrder() }
    }
}
