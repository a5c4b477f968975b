/// Carrying out a request on the command line: device, progress, files, and the table at the end.

import FoundationEssentials
import Glibc
import Media
import Pipelines
import Tensors

/// One request and where its frames go.
struct Generation {
    let models: ModelSet
    let request: VideoRequest
    let runOptions: RunOptions
    let options: GenerationOptions

    private var execution: ExecutionOptions { options.execution }

    /// The request that a video was made from.
    static func repeating(_ path: String, _ options: GenerationOptions) async throws -> Generation {
        guard let text = try await readMetadata(path: path) else {
            throw RequestError("\(path) holds no request: it was not made by this program")
        }
        let stored = try StoredRun(json: text, path: path)
        let runOptions = try options.runOptions()
        try options.checkFiles(stored.models, stored.request, runOptions)
        return Generation(
            models: stored.models, request: stored.request, runOptions: runOptions,
            options: options)
    }

    func run() async throws {
        try request.validate()
        makeDefaultFolder()
        if !execution.dryRun { try VideoWriter.check(path: options.savePath) }
        if runOptions.latents == nil { try models.checkExperts() }
        let plan = try MemoryPlan(models, request, runOptions)
        let fitted = try plan.fitted(to: execution.memoryLimit?.bytes, runOptions)
        if execution.dryRun { return show(fitted) }

        let printer = ProgressPrinter(json: execution.json, quiet: execution.quiet)
        let execution = execution
        let resident = fitted.residentWeights
        let needed = fitted.peakBytes
        let pipeline = VideoPipeline(models) {
            let backend = try execution.device.open(
                threads: execution.threads, memoryLimit: execution.memoryLimit?.bytes,
                residentWeights: resident
            ) { printer.show(.note($0)) }
            try DeviceChoice.checkFreeMemory(needed, on: backend)
            return OpenedDevice(
                backend, sageArchitecture: DeviceChoice.sageArchitecture(of: backend))
        }
        let start = ContinuousClock.now
        var runOptions = fitted.options
        runOptions.pixelFormat = try VideoFormat(path: options.savePath).pixelFormat
        try await pipeline.begin(request, runOptions, events: printer.show)
        for try await _ in pipeline.steps {}
        var report = await pipeline.report()
        let output = try VideoOutput(
            path: options.savePath, samples: request.samples,
            framesPerSecond: request.framesPerSecond, crf: execution.crf,
            metadata: StoredRun(
                program: "turbodiffusion \(TurboDiffusion.programVersion)", request: request,
                models: models
            ).json)
        do {
            for try await chunk in pipeline.frames { try await output.append(chunk) }
            let waiting = ContinuousClock.now
            try await output.finish()
            report = await pipeline.report()
            let encode = StageReport(
                stage: .encode, seconds: (ContinuousClock.now - waiting) / .seconds(1),
                peakBytes: 0)
            printer.show(.finished(encode))
            report.stages.append(encode)
        } catch {
            await output.cancel()
            throw error
        }
        report.totalSeconds = (ContinuousClock.now - start) / .seconds(1)
        show(report, output.paths)
    }

    /// The original makes the folder of its default output.
    private func makeDefaultFolder() {
        if options.savePath.hasPrefix("output/") { mkdir("output", 0o777) }
    }

    // MARK: What is printed

    private struct Summary: Encodable {
        var event = "done"
        var files: [String]
        var report: RunReport
    }

    private func show(_ report: RunReport, _ paths: [String]) {
        if execution.json { return Output.json(Summary(files: paths, report: report)) }
        if execution.quiet { return }
        var rows = [["stage", "time", "peak memory"]]
        for stage in report.stages {
            rows.append([
                stage.stage.name, Output.seconds(stage.seconds),
                stage.peakBytes > 0 ? Output.bytes(stage.peakBytes) : "",
            ])
        }
        rows.append([
            "total", Output.seconds(report.totalSeconds), Output.bytes(report.peakBytes),
        ])
        Output.line(Output.table(rows))
        Output.line(
            "on \(report.device); host memory \(Output.bytes(report.hostPeakBytes)) at most")
        for path in paths { Output.line("wrote \(path)") }
    }

    private func show(_ plan: MemoryPlan) {
        if execution.json { return Output.json(plan) }
        var rows = [["stage", "weights", "activations", "work", "traffic"]]
        for stage in plan.stages {
            rows.append([
                stage.name, Output.bytes(stage.weightBytes), Output.bytes(stage.activationBytes),
                "\(Output.fixed(stage.operations / 1e12, 2)) TFLOP",
                Output.bytes(Int(stage.traffic)),
            ])
        }
        Output.line(Output.table(rows))
        for effect in plan.loras { Output.line(effect) }
        Output.line("peak device memory: \(Output.bytes(plan.peakBytes))")
        if let resident = plan.residentWeights {
            Output.line(
                "weights stream from host memory; \(Output.bytes(resident)) of them stay on the device"
            )
        }
        for (name, tera) in [("a card of 400 TFLOP/s", 400.0), ("a CPU of 0.3 TFLOP/s", 0.3)] {
            let seconds = plan.stages.reduce(0) { $0 + $1.operations } / (tera * 1e12)
            Output.line("at least \(Output.seconds(seconds)) on \(name)")
        }
        Output.line("nothing was loaded")
    }
}

/// The path with symbolic links followed, so that models beside the program are found.
func resolved(_ path: String) -> String {
    guard let real = realpath(path.contains("/") ? path : "/proc/self/exe", nil) else {
        return path
    }
    defer { free(real) }
    return String(cString: real)
}
