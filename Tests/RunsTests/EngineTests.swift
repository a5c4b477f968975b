/// Whole runs of nano at a tiny size: events, repeatability, cancelling, stages from files.

import CPU
import Checkpoints
import Families
import FoundationEssentials
import Runs
import Synchronization
import Tensors
import Testing

@Suite(.serialized)
struct EngineTests {
    @Test("Stages start and end in order, and frames come as one and then four by four")
    func order() async throws {
        let events = EventList()
        var counts: [Int] = []
        let report = try await engine().finish(
            try Run(tinyRequest(), try nano()), events: events.add
        ) { chunk in
            counts.append(chunk.count)
            #expect(chunk.bytes.count == chunk.count * 64 * 64 * 3)
        }
        let stages = [
            "load text encoder", "text encoder", "load transformer", "text for transformer",
            "step 1/4", "step 2/4", "step 3/4", "step 4/4", "load VAE", "VAE decode",
        ]
        #expect(events.started == stages)
        #expect(events.finished == stages)
        #expect(report.stages.map(\.stage.title) == stages)
        #expect(report.stages.allSatisfy { $0.seconds >= 0 })
        #expect(report.peakBytes > 0)
        #expect(counts == [1, 4, 4])
    }

    @Test("The same request gives the same frames, whatever the threads; another seed does not")
    func repeatable() async throws {
        let models = try nano()
        let first = try await frames(of: tinyRequest(), models)
        #expect(try await frames(of: tinyRequest(), models, on: engine(threads: 1)) == first)
        let sharing = engine()
        #expect(try await frames(of: tinyRequest(), models, on: sharing) == first)
        let events = EventList()
        #expect(try await frames(of: tinyRequest(), models, on: sharing, events: events) == first)
        #expect(!events.started.contains("load transformer"))
        var other = tinyRequest()
        other.seed = 6
        #expect(try await frames(of: other, models, on: sharing) != first)
    }

    @Test("Runs with different settings, started at once on one engine, each give their own frames")
    func together() async throws {
        let models = try nano()
        var other = tinyRequest("a blue sphere falls")
        other.seed = 9
        other.arithmetic.precision = .f32
        let (a, b) = (tinyRequest(), other)
        let expected = (try await frames(of: a, models), try await frames(of: b, models))
        let sharing = engine()
        async let first = frames(of: a, models, on: sharing)
        async let second = frames(of: b, models, on: sharing)
        async let third = frames(of: a, models, on: sharing)
        let found = try await (first, second, third)
        #expect(found.0 == expected.0)
        #expect(found.1 == expected.1)
        #expect(found.2 == expected.0)

        // Two handles whose steps alternate.
        let handles = [
            sharing.start(try Run(a, models)), sharing.start(try Run(b, models)),
        ]
        var steps = handles.map { $0.steps.makeAsyncIterator() }
        for _ in 0..<4 {
            for index in steps.indices { #expect(try await steps[index].next() != nil) }
        }
        for (handle, expected) in zip(handles, [expected.0, expected.1]) {
            var bytes: [UInt8] = []
            for try await chunk in handle.frames { bytes += chunk.bytes }
            #expect(bytes == expected)
        }
    }

    @Test("The caller's pace is the run's pace, and latents can be looked at between steps")
    func pace() async throws {
        let models = try nano()
        let events = EventList()
        let run = engine().start(try Run(tinyRequest(), models), events: events.add)
        #expect(events.events.isEmpty)
        #expect(try await run.latents() == nil)
        var steps = run.steps.makeAsyncIterator()
        var seen: [[Float]] = []
        while let step = try await steps.next() {
            #expect(events.finished.last == "step \(step.number)/4")
            let latents = try #require(try await run.latents())
            #expect(latents.extent == Extent(t: 3, h: 8, w: 8))
            #expect(latents.values.count == 16 * 3 * 8 * 8)
            seen.append(latents.values)
        }
        #expect(Set(seen).count == 4)
        var bytes: [UInt8] = []
        for try await chunk in run.frames { bytes += chunk.bytes }
        #expect(bytes == (try await frames(of: tinyRequest(), models)))
        #expect(await run.report().stages.count == 10)
    }

    @Test("Several samples come from one draw of noise, one after the other")
    func samples() async throws {
        var request = tinyRequest()
        request.samples = 2
        request.frames = 5
        var samples: [Int: [UInt8]] = [:]
        _ = try await engine().finish(try Run(request, try nano())) { chunk in
            samples[chunk.sample, default: []] += chunk.bytes
        }
        #expect(samples.count == 2)
        #expect(samples[0]?.count == 5 * 64 * 64 * 3)
        #expect(samples[0] != samples[1])
    }

    @Test("Guidance uses both prompts")
    func guidance() async throws {
        var request = tinyRequest()
        request.sampling = euler(steps: 2)
        request.frames = 5
        let (engine, models) = (engine(), try nano())
        let plain = try await frames(of: request, models, on: engine)
        request.sampling = euler(steps: 2, guidance: 3.5)
        let guided = try await frames(of: request, models, on: engine)
        request.negativePrompt = "a blue sphere"
        #expect(guided != plain)
        #expect(try await frames(of: request, models, on: engine) != guided)
    }

    @Test(
        "Each of two experts makes its steps, and the frames do not depend on which of them stay loaded"
    )
    func experts() async throws {
        var models = try nano()
        var request = tinyRequest()
        let plain = try await frames(of: request, models)
        models.lowNoiseTransformer = models.transformer
        request.boundary = 0.9
        let events = EventList()
        let engine = engine()
        #expect(try await frames(of: request, models, on: engine, events: events) == plain)
        #expect(
            events.finished.filter { $0.contains("step") } == [
                "step 1/4 (high noise)", "step 2/4 (high noise)", "step 3/4 (low noise)",
                "step 4/4 (low noise)",
            ])
        var options = RunOptions()
        options.keepsBothExperts = false
        #expect(try await frames(of: request, models, on: engine, options) == plain)
        // The next run on the same device begins with the first expert again.
        #expect(try await frames(of: request, models, on: engine, options) == plain)

        request.boundary = 0
        let one = EventList()
        _ = try await frames(of: request, models, events: one)
        #expect(!one.started.contains("load low-noise transformer"))
    }
}

// MARK: - Cancelling

extension EngineTests {
    private var long: Request {
        var request = tinyRequest()
        request.sampling = euler(steps: 500)
        return request
    }

    @Test("A run ends at once with an error if its task, or the run itself, is cancelled")
    func cancelling() async throws {
        let (engine, models, request) = (engine(), try nano(), long)
        let start = ContinuousClock.now
        let task = Task {
            for try await step in engine.start(try Run(request, models)).steps
            where step.number == 2 {
                withUnsafeCurrentTask { $0?.cancel() }
            }
        }
        await #expect(throws: CancellationError.self) { try await task.value }
        let run = engine.start(try Run(request, models))
        await #expect(throws: CancellationError.self) {
            for try await step in run.steps where step.number == 2 { run.cancel() }
        }
        #expect(ContinuousClock.now - start < .seconds(5))
        // Nothing comes of it any more, and the engine is as good as new.
        for try await _ in run.frames { Issue.record("a frame of a cancelled run") }
        #expect(try await frames(of: tinyRequest(), models, on: engine).count == 9 * 64 * 64 * 3)
    }

    @Test("Wherever a run is cancelled, nothing unfinished is written")
    func cancelledFiles() async throws {
        let folder = try TemporaryFolder()
        let (engine, models) = (engine(), try nano())
        for stage in ["load text encoder", "text encoder", "step 4/4"] {
            var options = RunOptions()
            options.save.text = folder.path + "/text.safetensors"
            options.save.latents = folder.path + "/latents.safetensors"
            let holder = Holder()
            let run = engine.start(try Run(tinyRequest(), models, options)) { event in
                if case .stageStarted(let started) = event, started.title == stage {
                    holder.run?.cancel()
                }
            }
            holder.run = run
            await #expect(throws: CancellationError.self) { for try await _ in run.steps {} }
            holder.run = nil
            let left = try FileManager.default.contentsOfDirectory(atPath: folder.path)
            #expect(left == (stage == "step 4/4" ? ["text.safetensors"] : []))
            for name in left {
                try FileManager.default.removeItem(atPath: "\(folder.path)/\(name)")
            }
        }
    }

}

// MARK: - Files

extension EngineTests {
    @Test("Text embeddings and latents go through files without changing a frame")
    func files() async throws {
        let folder = try TemporaryFolder()
        let (engine, models) = (engine(), try nano())
        var options = RunOptions()
        options.save.text = folder.path + "/text.safetensors"
        options.save.latents = folder.path + "/latents.safetensors"
        let direct = try await frames(of: tinyRequest(), models, on: engine, options)
        var fromText = RunOptions()
        fromText.start.text = options.save.text
        #expect(try await frames(of: tinyRequest(), models, on: engine, fromText) == direct)
        var fromLatents = RunOptions()
        fromLatents.start.latents = options.save.latents
        // The file says how large the video is, not the request.
        var other = tinyRequest()
        (other.width, other.frames, other.samples) = (128, 5, 3)
        let events = EventList()
        #expect(
            try await frames(of: other, models, on: engine, fromLatents, events: events) == direct)
        #expect(events.started == ["VAE decode"])
        let latents = try openCheckpoint(folder.path + "/latents.safetensors")
        #expect(latents.info("latents")?.shape == [1, 16, 3, 8, 8])
    }

    @Test("Latents and embeddings that do not fit are refused with what they are")
    func wrongFiles() throws {
        let folder = try TemporaryFolder()
        let models = try nano()
        func refusal(_ tensor: Tensor, _ name: String) throws -> String? {
            let path = "\(folder.path)/\(UInt64.random(in: 0 ... .max)).safetensors"
            try writeCheckpoint(TensorList([(name, tensor)]), to: path)
            var options = RunOptions()
            if name == "latents" { options.start.latents = path } else { options.start.text = path }
            do {
                _ = try Plan(try Run(tinyRequest(), models, options))
                return nil
            } catch let error as RunError {
                return error.description
            }
        }
        func zeros(_ shape: Shape) -> Tensor { .zeros(shape, .f32) }
        #expect(try refusal(zeros([1, 16, 3, 8, 8]), "latents") == nil)
        #expect(try refusal(zeros([2, 16, 1, 4, 6]), "latents") == nil)
        #expect(try refusal(zeros([16, 3, 8, 8]), "latents") == nil)
        #expect(try refusal(zeros([1, 48, 3, 8, 8]), "latents")?.contains("16") == true)
        #expect(
            try refusal(zeros([1, 16, 0, 8, 8]), "latents")?.contains("[1, 16, 0, 8, 8]") == true)
        #expect(try refusal(zeros([65, 16, 1, 2, 2]), "latents")?.contains("at most 64") == true)
        let nan = Tensor([Float](repeating: .nan, count: 16 * 4), [1, 16, 1, 2, 2])
        #expect(try refusal(nan, "latents")?.contains("NaN") == true)
        #expect(try refusal(zeros([7, 256]), "text_embedding") == nil)
        #expect(try refusal(zeros([7, 128]), "text_embedding")?.contains("[512, 256]") == true)
        #expect(try refusal(zeros([513, 256]), "text_embedding")?.contains("[512, 256]") == true)
        #expect(try refusal(zeros([1, 4, 256]), "text_embedding") == nil)
        #expect(
            try refusal(zeros([2, 4, 256]), "text_embedding")?.contains("[2, 4, 256]") == true)
        // Finite where they are stored, and not where they are used.
        let wide = Tensor.host([1, 16, 1, 2, 2], .f64)
        wide.withMutable(Double.self) { for i in $0.indices { $0[i] = 1e300 } }
        #expect(try refusal(wide, "latents")?.contains("infinity") == true)
        let most = Tensor([Float](repeating: .greatestFiniteMagnitude, count: 256), [1, 256])
        #expect(try refusal(most, "text_embedding")?.contains("that bf16 can hold") == true)
        // Of two tensors without the name, neither is taken.
        let path = folder.path + "/two.safetensors"
        let one = zeros([1, 16, 1, 2, 2])
        try writeCheckpoint(TensorList([("a", one), ("b", one)]), to: path)
        let options = {
            var options = RunOptions()
            options.start.latents = path
            return options
        }()
        #expect {
            try Run(tinyRequest(), models, options)
        } throws: {
            "\($0)".hasSuffix("found a, b")
        }
    }
}

// MARK: - Plans

extension EngineTests {
    @Test("The plan predicts the run: the same work, and no more memory")
    func plan() async throws {
        // As long as the plan takes every prompt to be.
        let prompt = String(repeating: "a red ball falls on a green floor ", count: 100)
        let run = try Run(tinyRequest(prompt), try nano())
        let plan = try Plan(run)
        #expect(plan.stages.map(\.part) == [.textEncoder, .transformer, .decoder])
        #expect(plan.residentWeights == nil)
        #expect(try plan.fitted(to: nil) == plan)

        let flops = Mutex(0)
        let engine = Engine {
            OpenedDevice(
                Counting(CPUBackend()) { count in flops.withLock { $0 += count } },
                sageArchitecture: .sm90)
        }
        let report = try await engine.finish(run) { _ in }
        #expect(
            Double(flops.withLock { $0 }) == plan.stages.reduce(0) { $0 + $1.operations })
        #expect(report.stages.count == 10)

        // On a machine that computes nothing, a device's memory is what models and results take.
        for keepsTransformer in [true, false] {
            let null = Engine { OpenedDevice(NullBackend(), sageArchitecture: .sm90) }
            var run = run
            run.options.keepsTransformer = keepsTransformer
            let planned = try Plan(run).peakBytes
            let taken = try await null.finish(run) { _ in }.peakBytes
            #expect(abs(taken - planned) <= planned / 50, "\(taken) taken, \(planned) planned")
        }
    }

    @Test("Models that do not fit are released, take turns or stream; what cannot fit is refused")
    func fitting() throws {
        let plan = try Plan(try Run(tinyRequest(), try nano()))
        let transformer = plan.stages[1]
        let tight = max(
            plan.stages[0].weightBytes + plan.stages[0].activationBytes,
            plan.stages[2].weightBytes + plan.stages[2].activationBytes,
            transformer.weightBytes + transformer.activationBytes / 2)
        let fitted = try plan.fitted(to: tight)
        #expect(fitted.peakBytes <= tight)
        #expect(!fitted.keepsTransformer)
        #expect(throws: RunError.self) { try plan.fitted(to: 1 << 20) }
    }

    @Test("Two experts take the memory of both, or of one if they take turns")
    func planOfExperts() throws {
        var models = try nano()
        var request = tinyRequest()
        let expert = try Plan(try Run(request, models)).stages[1]
        models.lowNoiseTransformer = models.transformer
        request.boundary = 0.9
        let both = try Plan(try Run(request, models))
        #expect(both.stages.filter(\.part.isTransformer).count == 2)
        // The decoder is loaded behind the last step, beside the experts.
        let decoder = try #require(both.stages.first { $0.part == .decoder })
        let inTurns = try both.fitted(
            to: both.peakBytes - decoder.weightBytes - expert.groupedBytes / 2)
        #expect(inTurns.residentWeights == nil)
        #expect(!inTurns.keepsBothExperts)
        #expect(inTurns.peakBytes < both.peakBytes)
        request.boundary = 0
        #expect(try Plan(try Run(request, models)).stages.count == 3)
    }
}

/// Counts the work that passes.
private final class Counting: ForwardingBackend {
    private let add: @Sendable (Int) -> Void
    init(_ base: any Backend, _ add: @escaping @Sendable (Int) -> Void) {
        self.add = add
        super.init(base)
    }
    override func run(_ operation: Operation) -> [Tensor] {
        add(operation.cost.flops)
        return super.run(operation)
    }
}

/// The handle of a run for its own events.
private final class Holder: @unchecked Sendable { var run: RunHandle? }
