/// What t2v and i2v do: options → model, request and files; then the run.

import Catalog
import Delivery
import Devices
import Families
import Glibc
import Ground
import Media
import Runs
import Synchronization
import SystemPackage
import Tensors
import Terminal

/// One call of t2v or i2v.
struct Generation {
    var options: GenerationOptions
    var conditioning: Family.Conditioning
    /// The only one, or the expert for high noise.
    var transformer: String?
    var lowNoiseTransformer: String?
    var boundary: Double?
    var image: String?
    var adaptsToImage = false
    var catalog = Catalog.published

    private static let defaultPath = "output/generated_video.mp4"
    private var execution: ExecutionOptions { options.execution }

    /// Prints the plan, or makes the files.
    func carryOut() async throws {
        let printer = ProgressPrinter(json: execution.json, quiet: execution.quiet)
        do {
            let prepared = try await prepare(tell: printer.note)
            if execution.dryRun {
                let plan = try fitted(prepared)
                try checkHost(plan, tell: printer.note)
                return printPlan(plan)
            }
            try await make(prepared, printer)
        } catch {
            let error = UserError(error, takesPicture: conditioning == .firstFrame)
            printer.showFailure(error)
            throw error
        }
    }

    // MARK: Before anything is loaded

    /// A run that can begin.
    struct Prepared {
        var run: Run
        var models: ModelSet
        /// nil where nothing is written.
        var outputs: Outputs?
        var stored: StoredRun?
    }

    func prepare(tell: (String) -> Void = { _ in }) async throws -> Prepared {
        let repeated = try await repeatedRun()
        let runOptions = try options.runOptions()
        let choice = modelChoice
        let models =
            try repeated?.models(changedBy: choice, in: catalog) ?? catalog.open(choice)
        let resolution = catalog.entry(named: models.name)?.resolution
        var builder = RequestBuilder(options: options, image: image, boundary: boundary)
        if conditioning == .firstFrame, repeated == nil, image == nil,
            runOptions.start.conditioning == nil, runOptions.start.latents == nil
        {
            throw UserError(
                "request.missing",
                "--image_path FILE is needed: the picture that the video starts with")
        }
        if adaptsToImage { builder.pictureSize = try await pictureSize(repeated?.request.image) }
        let request = try builder.request(
            for: models.family, base: repeated?.request, resolution: resolution)
        try repeated?.checkInputs(of: request, runOptions.start)
        let run = try Run(request, models, runOptions)
        try check(run, models)

        let path = options.output.savePath ?? Self.defaultPath
        let format = try VideoFormat(path: path)
        let isBoundarySaid = boundary != nil && models.experts.count == 1
        for line in options.withoutEffect(on: run, format: format, resolution: resolution)
            + (isBoundarySaid ? ["--boundary has no effect: the model has one transformer"] : [])
        { tell(line) }
        if let sample = repeated?.sample, request.samples > 1 {
            tell("the video is sample \(sample) of \(request.samples): all are made again")
        }
        let outputs = try Outputs(
            of: run, path: path, crf: options.output.crf ?? repeated?.crf, existing: existing,
            makesFolder: path.hasPrefix("output/"))
        if execution.dryRun {
            try await outputs.check(metadata: "", save: runOptions.save)
            return Prepared(run: run, models: models)
        }
        let stored = try StoredRun(
            run, of: models, program: "turbodiffusion \(TurboDiffusion.programVersion)",
            crf: outputs.crf)
        try await outputs.check(metadata: stored.json, save: runOptions.save)
        return Prepared(run: run, models: models, outputs: outputs, stored: stored)
    }

    private var modelChoice: ModelChoice {
        let model = options.model
        let named: [(ModelFile, String?)] = [
            (.transformer, transformer), (.lowNoiseTransformer, lowNoiseTransformer),
            (.textEncoder, model.textEncoderPath), (.tokenizer, model.tokenizerPath),
            (.vae, model.vaePath),
        ]
        return ModelChoice(
            model.model, conditioning: conditioning,
            files: Dictionary(
                uniqueKeysWithValues: named.compactMap { file, path in path.map { (file, $0) } }))
    }

    private var existing: Outputs.Existing {
        options.output.force ? .replace : options.output.savePath == nil ? .number : .refuse
    }

    private func repeatedRun() async throws -> StoredRun? {
        guard let path = options.content.from else { return nil }
        guard let text = try await readMetadata(path: path) else {
            throw StoredRunError.noRequest(path: path)
        }
        return try StoredRun(json: text, path: path)
    }

    private func pictureSize(_ repeated: String?) async throws -> (width: Int, height: Int)? {
        guard let path = image ?? repeated else { return nil }
        let picture = try await readImage(path: path)
        return (picture.width, picture.height)
    }

    /// Every file that the run will open must be there.
    private func check(_ run: Run, _ models: ModelSet) throws {
        try models.checkPresence(of: ModelSet.files(for: try run.parts))
        let start = run.options.start
        var files = [start.latents]
        if start.latents == nil {
            files += [start.text, start.conditioning] + run.request.loras.map(\.path)
            if start.conditioning == nil { files.append(run.request.image) }
        }
        for file in files.compactMap({ $0 }) where !FilePath(file).exists {
            throw UserError("request.missing", "no such file: \(file)")
        }
    }

    private func fitted(_ prepared: Prepared) throws -> Plan {
        try Plan(prepared.run).fitted(to: execution.memoryLimit?.bytes)
    }

    // MARK: The run

    private func make(_ prepared: Prepared, _ printer: ProgressPrinter) async throws {
        guard let outputs = prepared.outputs, let stored = prepared.stored else { return }
        let plan = try fitted(prepared)
        try checkHost(plan, tell: printer.note)
        let run = plan.applied(to: prepared.run)
        printer.showStart(stored, outputs.files)
        let (execution, needed, resident) = (execution, plan.peakBytes, plan.residentWeights)
        let engine = Engine {
            let backend = try execution.device.open(execution.deviceOptions(resident: resident)) {
                printer.show(.notice(.device("\($0)")))
            }
            try backend.checkFreeMemory(needed)
            return OpenedDevice(backend, sageArchitecture: backend.sageArchitecture)
        }
        let files = Mutex<[String]>([])
        let report = try await engine.deliver(
            run, to: outputs, stored: stored,
            watch: WriterWatch(written: { path in
                files.withLock { $0.append(path) }
                Interruption.keeps(path)
            }),
            events: printer.show)
        printer.showEnd(report, files: files.withLock { $0 }, seed: run.request.seed)
    }

    private func printPlan(_ plan: Plan) {
        if execution.json { return Output.json(plan) }
        var rows = [["stage", "weights", "activations", "work", "traffic"]]
        for stage in plan.stages {
            rows.append([
                stage.part.title, describe(bytes: stage.weightBytes),
                describe(bytes: stage.activationBytes),
                "\(fixed(stage.operations / 1e12, 2)) TFLOP",
                describe(bytes: Int(stage.traffic)),
            ])
        }
        Output.line(Output.table(rows))
        for notice in plan.notices { Output.line(notice.message) }
        Output.line("peak device memory: \(describe(bytes: plan.peakBytes))")
        if let resident = plan.residentWeights {
            Output.line(
                "weights stream from host memory; \(describe(bytes: resident)) of them stay on the device"
            )
        }
        for (name, tera) in [("a card of 400 TFLOP/s", 400.0), ("a CPU of 0.3 TFLOP/s", 0.3)] {
            let seconds = plan.stages.reduce(0) { $0 + $1.operations } / (tera * 1e12)
            Output.line("at least \(describe(seconds: seconds)) on \(name)")
        }
        Output.line("nothing was loaded")
    }
}
