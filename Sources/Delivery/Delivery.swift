/// Carrying out a run to its files.

import Glibc
import Media
public import Runs
import SystemPackage

/// Told of the files of a run.
public struct WriterWatch: Sendable {
    let opened, written: @Sendable (String) -> Void

    /// - Parameters:
    ///   - opened: called with the name of a file that is begun.
    ///   - written: called with the name of one that is there, whole, products of stages among them; see
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
    /// Carries out a whole run. A file is there when it is whole; samples that were finished stay where a later one fails.
    /// - Parameters:
    ///   - outputs: as checked before.
    ///   - stored: what the files say about their making.
    public nonisolated func deliver(
        _ run: Run, to outputs: Outputs, stored: StoredRun, watch: WriterWatch = WriterWatch(),
        events: @escaping @Sendable (RunEvent) -> Void = { _ in }
    ) async throws -> RunReport {
        let start = ContinuousClock.now
        var run = run
        run.options.pixelFormat = outputs.format.pixelFormat
        let files = OutputFiles(outputs, stored, watch)
        let handle = self.start(run) { event in
            if case .notice(.saved(let path)) = event { return watch.written(path) }
            events(event)
        }
        do {
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

/// Takes chunks of frames, sample after sample.
private final class OutputFiles {
    private let outputs: Outputs
    private let stored: StoredRun
    private let watch: WriterWatch
    private var sample = -1
    private var current: VideoWriter?
    /// The sample before, whose encoder may still be at work.
    private var ending: (writer: VideoWriter, task: Task<String, any Error>)?
    private var grid: Grid?
    private var madeFolder: FilePath?

    init(_ outputs: Outputs, _ stored: StoredRun, _ watch: WriterWatch) {
        self.outputs = outputs
        self.stored = stored
        self.watch = watch
    }

    func append(_ chunk: FrameChunk) async throws {
        if chunk.sample != sample {
            try await end()
            sample = chunk.sample
            current = try open(
                outputs.files[sample], chunk.width, chunk.height, chunk.format,
                sample: outputs.samples == 1 ? nil : sample)
        }
        try await current?.append(chunk.bytes)
        guard outputs.samples > 1 else { return }
        if grid == nil { grid = try Grid(outputs, chunk.format) }
        guard let image = try grid?.take(chunk) else { return }
        if gridWriter == nil, let (width, height) = grid?.size {
            gridWriter = try open(outputs.path, width, height, chunk.format, sample: nil)
        }
        try await gridWriter?.append(image)
    }
    private var gridWriter: VideoWriter?

    /// Lets the encoder of the current sample come to its end beside the next sample.
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

    /// Removes what is not whole.
    func cancel() async {
        for writer in [current, ending?.writer, gridWriter] {
            await writer?.cancel()
        }
        // Only an empty folder goes.
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
