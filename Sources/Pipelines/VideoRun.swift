/// A run in progress: what its stages hand to one another. Lives on the thread of its device.

import Diffusion
import Models
import Tensors

#if canImport(Glibc)
    import Glibc
#elseif canImport(Darwin)
    import Darwin
#endif

/// One request on its way.
final class VideoRun {
    let request: VideoRequest
    let options: RunOptions
    private let events: @Sendable (PipelineEvent) -> Void
    private let started = ContinuousClock.now
    private(set) var reports: [StageReport] = []

    /// The prompt and, where the run is guided, the negative one.
    var texts: (positive: TextEmbedding, negative: TextEmbedding?)?
    /// f32 [20, T, H, W], image to video only
    var conditioning: Tensor?
    var denoiser: Denoiser?
    /// Texts as the transformers that have not had their last step see them.
    var contexts:
        [ModelRole: (positive: WanTransformer.Context, negative: WanTransformer.Context?)] = [:]
    /// The transformer of the last step.
    var active: ModelRole?
    /// Reads files before they are wanted, as long as the run lasts.
    var readAhead: ReadAhead?
    /// f32 [samples, 16, T, H, W], the decoder's input
    var latents: Tensor?
    var decoding: FrameDecoding?
    var decodeSeconds = 0.0
    var decodePeak = 0

    init(
        _ request: VideoRequest, _ options: RunOptions,
        events: @escaping @Sendable (PipelineEvent) -> Void
    ) {
        self.request = request
        self.options = options
        self.events = events
    }

    func tell(_ event: PipelineEvent) { events(event) }

    /// Runs one stage to its end on the device: tells its start, progress and end, and measures it.
    func measure<Result>(
        _ stage: Stage, on device: any Backend, _ body: () throws -> Result
    ) throws -> Result {
        try Task.checkCancellation()
        tell(.started(stage))
        device.resetPeak()
        let start = ContinuousClock.now
        let result = try body()
        try device.synchronize()
        try Task.checkCancellation()
        finish(
            StageReport(
                stage: stage, seconds: (ContinuousClock.now - start) / .seconds(1),
                peakBytes: device.memory.peak))
        return result
    }

    func finish(_ report: StageReport) {
        reports.append(report)
        tell(.finished(report))
    }

    func report(device: String) -> RunReport {
        RunReport(
            device: device, stages: reports,
            totalSeconds: (ContinuousClock.now - started) / .seconds(1),
            hostPeakBytes: residentPeak())
    }
}

/// The largest resident set of this process so far, in bytes.
private func residentPeak() -> Int {
    var usage = rusage()
    #if canImport(Glibc)
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        return usage.ru_maxrss * 1024
    #else
        getrusage(RUSAGE_SELF, &usage)
        return usage.ru_maxrss
    #endif
}
