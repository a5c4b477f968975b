/// A run in the hands of whoever asked for it.

public import Media
public import Tensors

/// One step that the sampler has taken.
public struct DenoisedStep: Sendable, Hashable, Codable {
    /// From 1.
    public let number: Int
    public let count: Int
    /// Noise levels before and after, 1 for pure noise.
    public let from, to: Double
}

/// Finished frames on their way to a file. One chunk of one sample.
public struct FrameChunk: Sendable {
    public let sample: Int
    public let width, height, count: Int
    public let format: PixelFormat
    /// `count` frames in `format`, one after the other.
    public let bytes: [UInt8]
}

/// Latents in host memory, for previews.
public struct Latents: Sendable, Hashable {
    public let samples, channels: Int
    public let extent: Extent
    /// [samples, channels, T, H, W]
    public let values: [Float]
}

/// One run on an engine, with its own steps, frames and report. Nothing happens until somebody asks for steps or
/// frames: the caller's pace is the run's pace. A run that nobody holds any more is given up.
public final class RunHandle: Sendable {
    let id: Int
    public let run: Run
    private let engine: Engine
    let cancellation = Cancellation()
    /// Read as soon as the run is there, while models are loaded.
    let inputs: Task<RunInputs, any Error>
    let tell: @Sendable (RunEvent) -> Void

    init(
        _ id: Int, _ run: Run, on engine: Engine, tell: @escaping @Sendable (RunEvent) -> Void
    ) {
        self.id = id
        self.run = run
        self.engine = engine
        self.tell = tell
        inputs = Task.detached { try await RunInputs(reading: run) }
    }

    deinit {
        inputs.cancel()
        cancellation.cancel()
        let (engine, id) = (engine, id)
        Task { await engine.forget(id) }
    }

    /// Ends the run: whoever waits for its steps or frames gets a `CancellationError`, and what was computed is dropped.
    public func cancel() {
        inputs.cancel()
        cancellation.cancel()
    }

    /// The denoising steps, after models, text and picture. Empty for a run that starts from latents.
    public var steps: Steps { Steps(run: self) }
    /// Finished frames: one, then as many as a latent stands for, sample after sample. Steps that were not taken yet are
    /// taken first.
    public var frames: Frames { Frames(run: self) }

    /// What the sampler has come to: between two steps, and until the first frames are decoded. nil before and after.
    public func latents() async throws -> Latents? { try await engine.latents(id) }
    /// A small picture of the middle of a sample: a pixel for each latent, of what the last step has taken the video to be
    /// (`RunOptions.keepsPrediction`), or of the latents as they are. nil before the first step and after the last frame.
    public func preview(sample: Int = 0) async throws -> RGBImage? {
        try await engine.preview(id, sample: sample)
    }
    /// What the run has taken so far.
    public func report() async -> RunReport { await engine.report(id) }

    public struct Steps: AsyncSequence, Sendable {
        let run: RunHandle
        public func makeAsyncIterator() -> Iterator { Iterator(run: run) }

        public struct Iterator: AsyncIteratorProtocol {
            let run: RunHandle
            public mutating func next() async throws -> DenoisedStep? {
                try await run.engine.nextStep(of: run)
            }
        }
    }

    public struct Frames: AsyncSequence, Sendable {
        let run: RunHandle
        public func makeAsyncIterator() -> Iterator { Iterator(run: run) }

        public struct Iterator: AsyncIteratorProtocol {
            let run: RunHandle
            public mutating func next() async throws -> FrameChunk? {
                try await run.engine.nextFrames(of: run)
            }
        }
    }
}
