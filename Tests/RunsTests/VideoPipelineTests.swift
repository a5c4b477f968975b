/// Whole runs of nano at a tiny size: events, repeatability, cancelling, stages from files.

import CPU
import Checkpoints
import Pipelines
import Tensors
import Testing

@Suite(.serialized)
struct VideoPipelineTests {
    @Test("Stages start and end in order, and frames come as one and then four by four")
    func order() async throws {
        let events = EventList()
        let pipeline = pipeline(try nano())
        var counts: [Int] = []
        let report = try await pipeline.generate(tinyRequest(), events: events.add) { chunk in
            counts.append(chunk.count)
            #expect(chunk.bytes.count == chunk.count * 64 * 64 * 3)
        }
        let stages = [
            "load text encoder", "text encoder", "load transformer", "text for transformer",
            "step 1/4", "step 2/4", "step 3/4", "step 4/4", "load VAE", "VAE decode",
        ]
        #expect(events.started == stages)
        #expect(events.finished == stages)
        #expect(report.stages.map(\.stage.name) == stages)
        #expect(report.stages.allSatisfy { $0.seconds >= 0 })
        #expect(report.peakBytes > 0)
        #expect(counts == [1, 4, 4])
    }

    @Test("The same request gives the same frames, whatever the threads; another seed does not")
    func repeatable() async throws {
        let models = try nano()
        let first = try await frames(of: tinyRequest(), pipeline(models))
        let again = try await frames(of: tinyRequest(), pipeline(models, threads: 1))
        #expect(first == again)
        let sharing = pipeline(models)
        #expect(try await frames(of: tinyRequest(), sharing) == first)
        #expect(try await frames(of: tinyRequest(), sharing) == first)
        var other = tinyRequest()
        other.seed = 6
        #expect(try await frames(of: other, sharing) != first)
    }

    @Test("Several samples come from one draw of noise, one after the other")
    func samples() async throws {
        var request = tinyRequest()
        request.samples = 2
        request.frames = 5
        var samples: [Int: [UInt8]] = [:]
        _ = try await pipeline(try nano()).generate(request) { chunk in
            samples[chunk.sample, default: []] += chunk.bytes
        }
        #expect(samples.count == 2)
        #expect(samples[0]?.count == 5 * 64 * 64 * 3)
        #expect(samples[0] != samples[1])
    }

    @Test("A cancelled run ends at once and says so")
    func cancelling() async throws {
        let pipeline = pipeline(try nano())
        var request = tinyRequest()
        request.sampler = .euler
        request.steps = 500
        request.sigmaMax = nil
        request.guidance = 1
        let cancelled = request
        let task = Task {
            for try await step in try await pipeline.started(cancelled).steps where step.number == 2
            {
                withUnsafeCurrentTask { $0?.cancel() }
            }
        }
        let start = ContinuousClock.now
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(ContinuousClock.now - start < .seconds(5))
        // The pipeline is as good as new.
        #expect(try await frames(of: tinyRequest(), pipeline).count == 9 * 64 * 64 * 3)
    }

    @Test("Text embeddings and latents go through files without changing a frame")
    func files() async throws {
        let folder = try TemporaryFolder()
        let pipeline = pipeline(try nano())
        var options = RunOptions()
        options.saveTextEmbedding = folder.path + "/text.safetensors"
        options.saveLatents = folder.path + "/latents.safetensors"
        let direct = try await frames(of: tinyRequest(), pipeline, options)
        var fromText = RunOptions()
        fromText.textEmbedding = options.saveTextEmbedding
        #expect(try await frames(of: tinyRequest(), pipeline, fromText) == direct)
        var fromLatents = RunOptions()
        fromLatents.latents = options.saveLatents
        #expect(try await frames(of: tinyRequest(), pipeline, fromLatents) == direct)
        let latents = try openCheckpoint(options.saveLatents!)
        #expect(latents.info("latents")?.shape == [1, 16, 3, 8, 8])
    }

    @Test("Guidance asks about both prompts")
    func guidance() async throws {
        var request = tinyRequest()
        request.sampler = .euler
        request.steps = 2
        request.sigmaMax = nil
        request.frames = 5
        let pipeline = pipeline(try nano())
        let plain = try await frames(of: request, pipeline)
        request.guidance = 3.5
        let guided = try await frames(of: request, pipeline)
        request.negativePrompt = "a blue sphere"
        let away = try await frames(of: request, pipeline)
        #expect(guided != plain)
        #expect(away != guided)
    }

    @Test("Of two experts each takes its steps, and the frames do not depend on which of them stay")
    func experts() async throws {
        var models = try nano()
        models.lowNoiseTransformer = models.transformer
        var request = tinyRequest()
        let plain = try await frames(of: request, pipeline(try nano()))
        request.boundary = 0.9
        let events = EventList()
        let pipeline = pipeline(models)
        var both: [UInt8] = []
        _ = try await pipeline.generate(request, events: events.add) { both += $0.bytes }
        #expect(both == plain)
        #expect(
            events.finished.filter { $0.contains("step") } == [
                "step 1/4 (high noise)", "step 2/4 (high noise)", "step 3/4 (low noise)",
                "step 4/4 (low noise)",
            ])
        var options = RunOptions()
        options.keepsBothExperts = false
        #expect(try await frames(of: request, pipeline, options) == plain)
        // The next run on the same device begins with the first expert again.
        #expect(try await frames(of: request, pipeline, options) == plain)

        request.boundary = 0
        let one = EventList()
        _ = try await PipelinesTests.pipeline(models).generate(request, events: one.add) { _ in }
        #expect(!one.started.contains("load low-noise transformer"))
    }

    @Test("Two experts take the memory of both, or of one where they take turns")
    func planOfExperts() throws {
        var models = try nano()
        models.lowNoiseTransformer = models.transformer
        var request = tinyRequest()
        request.boundary = 0.9
        let both = try MemoryPlan(models, request, RunOptions())
        var one = try MemoryPlan(try nano(), request, RunOptions())
        one.stages.removeAll { $0.name != "transformer" }
        let expert = one.stages[0]
        #expect(both.stages.map(\.name).filter { $0.contains("transformer") }.count == 2)
        let inTurns = try both.fitted(
            to: both.peakBytes - expert.groupedBytes / 2, RunOptions())
        #expect(inTurns.residentWeights == nil)
        #expect(!inTurns.options.keepsBothExperts)
        #expect(inTurns.peakBytes < both.peakBytes)
        request.boundary = 0
        #expect(try MemoryPlan(models, request, RunOptions()).stages.count == 3)
    }

    @Test("The plan is what the run then takes, and weights stream where it must be less")
    func plan() async throws {
        let models = try nano()
        let request = tinyRequest()
        let plan = try MemoryPlan(models, request, RunOptions())
        #expect(plan.stages.map(\.name) == ["text encoder", "transformer", "VAE"])
        #expect(plan.residentWeights == nil)
        #expect(try plan.fitted(to: nil, RunOptions()) == plan)
        let transformer = plan.stages[1]
        let tight = max(
            plan.stages[0].weightBytes + plan.stages[0].activationBytes,
            plan.stages[2].weightBytes + plan.stages[2].activationBytes,
            transformer.weightBytes + transformer.activationBytes / 2)
        let fitted = try plan.fitted(to: tight, RunOptions())
        #expect(fitted.peakBytes <= tight)
        #expect(!fitted.options.keepsTransformer)
        #expect(throws: RequestError.self) { try plan.fitted(to: 1 << 20, RunOptions()) }
    }
}

extension VideoPipeline {
    fileprivate nonisolated func started(_ request: VideoRequest) async throws -> VideoPipeline {
        try await begin(request)
        return self
    }
}
