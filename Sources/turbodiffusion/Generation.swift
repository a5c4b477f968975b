/// What t2v and i2v do: options → model, request and files; then the run.

import Catalog
import Checkpoints
import Delivery
import Families
import Glibc
import Ground
import Media
import Runs
import SystemPackage

/// One call of t2v or i2v.
struct Generation {
    var options: GenerationOptions
    var conditioning: Family.Conditioning
    /// The only transformer, or the high-noise expert.
    var transformer: String?
    var lowNoiseTransformer: String?
    var boundary: Double?
    var image: String?
    var adaptsToImage = false
    var catalog = Catalog.published

    /// Of a prompt file: its own prompt and seed.
    var item: BatchItem?

    private static let defaultPath = "output/generated_video.mp4"
    var execution: ExecutionOptions { options.execution }

    /// Prints the plan, or makes the files.
    func carryOut() async throws {
        let printer = ProgressPrinter(
            json: execution.json, quiet: execution.quiet, verbose: execution.verbose,
            tellsResultsAsNotes: fillsStandardOutput)
        do {
            if execution.dryRun { return try await printPlan() }
            let opening = try OpeningEngine.ahead(execution, tell: printer.showOpening)
            printer.mark("options")
            if options.content.prompts != nil || options.content.seeds != nil {
                return try await makeAll(printer, on: opening)
            }
            let prepared = try await prepare(tell: printer.note)
            printer.mark("request and files")
            try await check(prepared)
            printer.mark("trial of the output")
            try await make([prepared], printer, on: opening)
        } catch {
            let error = UserError(error, takesPicture: conditioning == .firstFrame)
            printer.showFailure(error)
            throw error
        }
    }

    // MARK: Before anything is loaded

    /// A run that can begin, once its outputs have been tried.
    struct Prepared {
        var run: Run
        /// Those that the run was prepared with; some may be missing where it is only planned.
        var models: ModelSet
        var missing: [ModelFile] = []
        var outputs: Outputs
        var stored: StoredRun?
    }

    /// - Parameter tell: given notes.
    func prepare(tell: (String) -> Void = { _ in }) async throws -> Prepared {
        if fillsStandardOutput, execution.json {
            throw UserError(
                "request.conflict",
                "--json and --save_path \(options.output.savePath ?? "-") both write to standard output: "
                    + "give the frames another descriptor (--save_path /dev/fd/3 3>FILE)")
        }
        let repeated = try await repeatedRun()
        let runOptions = try options.runOptions()
        let choice = modelChoice
        let models =
            try repeated?.models(changedBy: choice, in: catalog) ?? catalog.open(choice)
        let resolution = catalog.entry(named: models.name)?.resolution
        var builder = RequestBuilder(options: options, image: image, boundary: boundary)
        if conditioning == .firstFrame, repeated == nil, image == nil, !execution.dryRun,
            runOptions.start.conditioning == nil, runOptions.start.latents == nil
        {
            throw UserError(
                "request.missing",
                "--image_path FILE is needed: the picture that the video starts with")
        }
        if execution.dryRun, let image { _ = try await readImage(path: image) }
        if adaptsToImage { builder.pictureSize = try await pictureSize(repeated?.request.image) }
        var request = try builder.request(
            for: models.family, base: repeated?.request, resolution: resolution)
        if execution.dryRun { completeForPlan(&request, models.family, runOptions) }
        try repeated?.checkInputs(of: request, runOptions.start)
        let (run, missing) = try run(request, models, runOptions)

        let path = savePath(request)
        let format = try VideoFormat(path: path)
        let lines = options.withoutEffect(
            on: run, format: format, resolution: resolution, own: ownOptions)
        for line in lines + ownWithoutEffect(run, models) { tell(line) }
        if let note = try distilledNote(run) { tell(note) }
        if let sample = repeated?.sample, request.samples > 1 {
            tell("the video is sample \(sample) of \(request.samples): all samples are made again")
        }
        let outputs = try Outputs(
            of: run, path: path, crf: options.output.crf ?? repeated?.crf, existing: existing,
            makesFolder: path.hasPrefix("output/") || item != nil)
        let stored =
            execution.dryRun
            ? nil
            : try StoredRun(
                run, of: models, program: "turbodiffusion \(TurboDiffusion.programVersion)",
                crf: outputs.crf)
        return Prepared(
            run: run, models: models, missing: missing, outputs: outputs, stored: stored)
    }

    /// The options that only one of the two commands has, and whether they were given.
    private var ownOptions: [(option: String, isGiven: Bool)] {
        let takesPicture = conditioning == .firstFrame
        return [
            ("--image_path", image != nil), ("--boundary", boundary != nil),
            (ModelFile.transformer.option(takesPicture: takesPicture), transformer != nil),
            (
                ModelFile.lowNoiseTransformer.option(takesPicture: takesPicture),
                lowNoiseTransformer != nil
            ),
        ]
    }

    private func ownWithoutEffect(_ run: Run, _ models: ModelSet) -> [String] {
        // They are told already.
        if run.options.start.latents != nil { return [] }
        var lines: [String] = []
        if boundary != nil, models.experts.count == 1 {
            lines.append("--boundary has no effect: the model has one transformer")
        }
        if image != nil, run.options.start.conditioning != nil {
            lines.append("--image_path has no effect: the conditioning comes from a file")
        }
        return lines
    }

    /// Tries what the run will write.
    func check(_ prepared: Prepared) async throws {
        try await prepared.outputs.check(
            metadata: prepared.stored?.json ?? "", save: prepared.run.options.save)
    }

    /// A plan needs no prompt and no picture.
    private func completeForPlan(
        _ request: inout Request, _ family: Family, _ options: RunOptions
    ) {
        if request.prompt.isEmpty { request.prompt = "." }
        if family.conditioning == .firstFrame, options.start.conditioning == nil {
            request.image = request.image ?? "a picture"
        }
    }

    /// The run, with outlines in place of the files that are missing where it is only planned.
    private func run(_ request: Request, _ models: ModelSet, _ options: RunOptions) throws -> (
        Run, missing: [ModelFile]
    ) {
        let run = try Run(request, models, options)
        // What was named comes first: another file would not help where this one is none.
        let parts = try run.parts
        for (file, path) in modelChoice.files where file != .tokenizer && FilePath(path).exists {
            if let part = parts.first(where: { ModelSet.files(for: [$0]).contains(file) }) {
                _ = try run.models.file(part)
            } else {
                _ = try openCheckpoint(path)
            }
        }
        let files = ModelSet.files(for: parts)
        if execution.dryRun,
            let planned = PlannedModel(models, needing: files, in: catalog)
        {
            var request = request
            // As the published files have it.
            if planned.missing.contains(.transformer), request.arithmetic.linears == .stored {
                request.arithmetic.linears = .int8
            }
            return (try Run(request, planned, options), planned.missing)
        }
        try check(run, models, needing: files)
        return (run, [])
    }

    /// Where a sampler of undistilled models was asked for and the model has what only distilled ones have.
    private func distilledNote(_ run: Run) throws -> String? {
        guard case .flow(let flow) = run.request.sampling, run.options.start.latents == nil,
            options.sampling.sampler != nil,
            case .wanTransformer(let sizes) = try run.models.file(.transformer).model,
            sizes.hasSparseLinearAttention
        else { return nil }
        return "the model looks distilled (it has SLA's linear branch): \(flow.steps) steps of "
            + "\(flow.solver.rawValue) are made for undistilled ones, --sampler rcm takes 1 to 4"
    }

    /// Whether raw frames go to standard output, which nothing else may then use.
    private var fillsStandardOutput: Bool {
        guard let path = options.output.savePath, !execution.dryRun else { return false }
        return (try? VideoFormat(path: path)) == .raw(descriptor: STDOUT_FILENO)
    }

    /// As it was said, with the seed and the prompt in it.
    private func savePath(_ request: Request) -> String {
        if let item { return item.path }
        guard let path = options.output.savePath else { return Self.defaultPath }
        return Batch.name(
            path, number: "1", prompt: request.prompt, seed: .number(request.seed))
    }

    var modelChoice: ModelChoice {
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
        if options.output.force { return .replace }
        return options.output.savePath == nil && item == nil ? .number : .refuse
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

    /// Every file that the run will open must exist.
    private func check(_ run: Run, _ models: ModelSet, needing files: [ModelFile]) throws {
        try models.checkPresence(of: files)
        // A plan needs no picture.
        let isMadeUp = execution.dryRun && image == nil && options.content.from == nil
        for file in run.inputFiles
        where !FilePath(file).exists && !(isMadeUp && file == run.request.image) {
            throw UserError("request.missing", "no such file: \(file)")
        }
    }
}
