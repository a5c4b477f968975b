/// The handle by which a caller drives a run.

public import Media
public import Tensors

/// One finished step of the sampler.
public struct DenoisedStep: Sendable, Hashable, Codable {
    /// Counts from 1.
    public let number: Int
    public let count: Int
    /// Noise levels before and after the step; 1 is pure noise.
    public let from, to: Double
}

/// Finished frames: one chunk of one sample.
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

/// One run on an engine, with its own steps, frames and report. Nothing is computed until the caller asks for steps or
/// frames, so the caller sets the pace. Releasing the handle ends the run.
public final class RunHandle: Sendable {
    let id: Int
    public let run: Run
    private let engine: Engine
    let cancellation = Cancellation()
    /// Read in the background as soon as the handle exists.
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

    /// Ends the run and drops its results. Whoever waits for its steps or frames gets a `CancellationError`.
    public func cancel() {
        inputs.cancel()
        cancellation.cancel()
    }

    /// The denoising steps. The first one follows the loading of models and the encoding of text and picture. Empty for
    /// a run that starts from latents.
    public var steps: Steps { Steps(run: self) }
    /// The finished frames, sample after sample: a chunk of one frame, then chunks of as many as one latent stands for.
    /// Remaining steps are computed first.
    public var frames: Frames { Frames(run: self) }

    /// The current latents: from the first noise until decoding ends; nil before and after.
    public func latents() async throws -> Latents? { try await engine.latents(id) }
    /// A small picture of the middle of a sample, one pixel for each latent: the video as predicted by the last step
    /// (`RunOptions.keepsPrediction`), or the latents as they are. nil before the first step and after the last frame.
    public func preview(sample: Int = 0) async throws -> RGBImage? {
        try await engine.preview(id, sample: sample)
    }
    /// The time and memory that the run has taken so far.
    public func report() async -> RunReport { await engine.report(id) }

    /// See `steps`.
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

    /// See `frames`.
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
