/// Carries out a run and writes its frames to files.

import Glibc
public import Media
public import Runs
import SystemPackage

/// Callbacks about the files of a run.
public struct WriterWatch: Sendable {
    let opened, written: @Sendable (String) -> Void

    /// - Parameters:
    ///   - opened: called with the path of each file when writing it begins.
    ///   - written: called with the path of each finished file, saved products among them, which may have a number; see
    ///     ``VideoWriter/Options/replaces``.
    public init(
        opened: @escaping @Sendable (String) -> Void = { _ in },
        written: @escaping @Sendable (String) -> Void = { _ in }
    ) {
        self.opened = opened
        self.written = written
    }
}

extension Engine {
    /// Carries out a whole run. A file appears only when it is complete; finished samples stay if a later one fails.
    /// - Parameters:
    ///   - outputs: already checked, see ``Outputs/check(metadata:save:triesEncoder:)``.
    ///   - stored: what the files say about how they were made.
    ///   - preview: gets a small picture of the first sample after each step.
    /// - Returns: the run's report, with a stage for the wait for the last encoder. Seconds count from this call.
    /// - Throws: the errors of the run, `MediaError` and ``OutputError`` of its files, `CancellationError`.
    public nonisolated func deliver(
        _ run: Run, to outputs: Outputs, stored: StoredRun, watch: WriterWatch = WriterWatch(),
        preview: (@Sendable (DenoisedStep, RGBImage) -> Void)? = nil,
        events: @escaping @Sendable (RunEvent) -> Void = { _ in }
    ) async throws -> RunReport {
        let start = ContinuousClock.now
        var run = run
        run.options.pixelFormat = outputs.format.pixelFormat
        run.options.keepsPrediction = preview != nil
        let files = OutputFiles(outputs, stored, watch)
        let handle = self.start(run) { event in
            if case .notice(.saved(let path)) = event { return watch.written(path) }
            events(event)
        }
        do {
            if let preview {
                for try await step in handle.steps {
                    if let image = try await handle.preview() { preview(step, image) }
                }
            }
            for try await chunk in handle.frames { try await files.append(chunk) }
            guard run.options.makesFrames else { return await handle.report() }
            let waiting = ContinuousClock.now
            events(.stageStarted(.deliver))
            try await files.finish()
            let stage = StageReport(
                stage: .deliver, seconds: (ContinuousClock.now - waiting) / .seconds(1),
                peakBytes: 0)
            events(.stageFinished(stage))
            var report = await handle.report()
            report.stages.append(stage)
            report.totalSeconds = (ContinuousClock.now - start) / .seconds(1)
            return report
        } catch {
            handle.cancel()
            await files.cancel()
            throw error
        }
    }
}

/// Writes chunks of frames to files, sample after sample.
private final class OutputFiles {
    private let outputs: Outputs
    private let stored: StoredRun
    private let watch: WriterWatch
    private var sample = -1
    private var current: VideoWriter?
    /// The previous sample, whose encoder may still be at work.
    private var ending: (writer: VideoWriter, task: Task<String, any Error>)?
    private var grid: Grid?
    private var madeFolder: FilePath?

    init(_ outputs: Outputs, _ stored: StoredRun, _ watch: WriterWatch) {
        self.outputs = outputs
        self.stored = stored
        self.watch = watch
    }

    func append(_ chunk: FrameChunk) async throws {
        if chunk.sample != sample, !(outputs.isStream && sample >= 0) {
            try await end()
            sample = chunk.sample
            current = try open(
                outputs.isStream ? outputs.path : outputs.files[sample], chunk.width, chunk.height,
                chunk.format,
                sample: outputs.samples == 1 ? nil : sample)
        }
        try await current?.append(chunk.bytes)
        guard outputs.samples > 1, !outputs.isStream else { return }
        if grid == nil { grid = try Grid(outputs, chunk.format) }
        guard let image = try grid?.take(chunk) else { return }
        if gridWriter == nil, let (width, height) = grid?.size {
            gridWriter = try open(outputs.path, width, height, chunk.format, sample: nil)
        }
        try await gridWriter?.append(image)
    }
    private var gridWriter: VideoWriter?

    /// Lets the encoder of the current sample finish while the next sample is computed.
    private func end() async throws {
        try await waitForLast()
        guard let writer = current else { return }
        current = nil
        ending = (writer, Task { try await writer.finish() })
    }

    private func waitForLast() async throws {
        guard let ending else { return }
        watch.written(try await ending.task.value)
        self.ending = nil
    }

    func finish() async throws {
        try await end()
        try await waitForLast()
        guard let gridWriter else { return }
        watch.written(try await gridWriter.finish())
    }

    /// Removes unfinished files.
    func cancel() async {
        for writer in [current, ending?.writer, gridWriter] {
            await writer?.cancel()
        }
        // This removes the folder only if it is empty.
        if let madeFolder { rmdir(madeFolder.string) }
    }

    private func open(
        _ path: String, _ width: Int, _ height: Int, _ format: PixelFormat, sample: Int?
    ) throws -> VideoWriter {
        let folder = FilePath(path).removingLastComponent()
        if outputs.makesFolder, !folder.isEmpty, mkdir(folder.string, 0o777) == 0 {
            madeFolder = folder
        }
        var stored = stored
        stored.sample = sample
        var options = VideoWriter.Options(
            path: path, replaces: outputs.replaces, width: width, height: height)
        options.pixelFormat = format
        options.framesPerSecond = Double(outputs.framesPerSecond)
        options.crf = outputs.crf
        options.metadata = stored.json
        let writer = try VideoWriter(options)
        watch.opened(path)
        return writer
    }
}
