/// `nano-study`: what steps, attention and 8-bit arithmetic cost nano, measured on captions.

public import ArgumentParser
import Catalog
import Devices
public import Families
import Glibc
import Ground
import Quality
import Runs
import SystemPackage
import Terminal

extension Configuration.Model: ExpressibleByArgument {}
extension DeviceChoice: ExpressibleByArgument {}
extension AttentionChoice: ExpressibleByArgument {}

/// Something that the study needs is missing or unusable.
struct StudyError: Error, Sendable, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

@main
struct NanoStudy: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "nano-study",
        abstract: "Measure what distilling, sparse attention and 8-bit arithmetic cost nano.",
        discussion: """
            Makes videos of captions with every chosen configuration, has a classifier say what is in them, and writes \
            quality.csv, README.md and charts to a folder. FOLDER contains the undistilled teacher \
            (teacher.safetensors), the plain student (student_sla.safetensors), the classifier \
            (classifier.safetensors) and the captions (captions_eval.json). Rows that quality.csv already has are \
            not measured again: a run that was stopped goes on, and partial runs add up. Lists are written with \
            commas: --steps 4,3. On a CPU, slow configurations are measured only on request.
            """)

    @Argument(
        help: "A folder with teacher, student, classifier and captions.", completion: .directory)
    var folder = "."
    @Option(help: "The undistilled transformer.", completion: .file())
    var teacher: String?
    @Option(help: "The distilled transformer, not quantised.", completion: .file())
    var student: String?
    @Option(
        help: "The transformer of the rows 'shipped' (default: the model's own).",
        completion: .file())
    var shipped: String?
    @Option(help: "The classifier.", completion: .file())
    var classifier: String?
    @Option(help: "The captions with their attributes.", completion: .file())
    var captionFile: String?
    @Option(help: "The model whose text encoder, tokenizer and VAE are used: a name or a folder.")
    var model = "nano"

    @Option(
        help: """
            Measure this many captions: the first ones, and if there are not so many, more that are made of the \
            same words.
            """)
    var captions: Int?
    @Option(
        help: "Only the teacher or only the student (implied by the next four options).")
    var only: Configuration.Model?
    @Option(help: "Steps of the student: any of 4,3,2,1.")
    var steps: Choices<StepCount>?
    @Option(name: [.long, .customLong("attention-type")], help: "Any of original,sla,sagesla.")
    var attention: Choices<AttentionChoice>?
    @Option(help: "Any of f32,bf16,int8,fp8,shipped.")
    var linears: Choices<Linears>?
    @Option(
        name: [.customLong("top-k"), .customLong("sla-topk")],
        help: "Shares of key blocks (default 0.05,0.1,0.15,0.2,0.5,1).")
    var topK: Choices<BlockShare>?
    @Flag(
        help:
            "Only scores: do not make the reference's videos, which take longest, for PSNR and SSIM."
    )
    var scoresOnly = false
    @Flag(help: "Measure everything on a CPU too.")
    var all = false

    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.automatic
    @Option(help: "CPU threads (default: all).")
    var threads: Int?
    @Option(
        help: "Videos made side by side on a GPU (default: half the number of cores, at most 8).")
    var lanes: Int?
    @Option(name: .shortAndLong, help: "The folder of the report.", completion: .directory)
    var output = "output/quality"
    @Flag(help: "Write the report from existing rows; measure nothing.")
    var report = false
    @Flag(help: "List what would be measured, in order, and stop.")
    var dryRun = false
    @Flag(help: "Print nothing but errors.")
    var quiet = false

    func validate() throws {
        for (name, value) in [("captions", captions), ("lanes", lanes), ("threads", threads)] {
            if let value, value < 1 {
                throw ValidationError("--\(name) must be at least 1, not \(value)")
            }
        }
    }

    func run() async throws {
        try makeFolder(output)
        var table = try Table(path: output + "/quality.csv")
        if report {
            guard !table.rows.isEmpty else {
                throw StudyError("\(table.path) has no rows: measure some first")
            }
            return try finish(table)
        }
        let known = try Caption.read(captionFile ?? "\(folder)/captions_eval.json")
        let count = captions ?? known.count
        try table.check(captions: count)
        let usesGPU = device.isGPU
        let chosen = selection(usesGPU: usesGPU).configurations
        if dryRun { return list(chosen, table) }
        guard chosen.contains(where: { table[$0] == nil }) else { return try finish(table) }

        let progress = ProgressLine(
            of: chosen.count { table[$0] == nil }, captions: count, quiet: quiet)
        let measurement = try measurement(
            CaptionMaker.extending(known, to: count), lanes: usesGPU ? lanes ?? Self.usualLanes : 1,
            teacherIsNeeded: chosen.contains(.teacher), progress)
        try await measurement.run(chosen, besides: table, events: progress.show) { row in
            try table.append(row)
            // Written after each row, as a run may be stopped at any time.
            try Report(table, command: command).write(to: output)
        }
        progress.end()
        try finish(table)
    }

    // MARK: What is measured

    private static var usualLanes: Int {
        min(8, max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))) / 2))
    }

    private func selection(usesGPU: Bool) -> Selection {
        let isNarrowed = steps != nil || attention != nil || linears != nil || topK != nil
        var selection =
            usesGPU || all || isNarrowed ? Selection() : Selection.brief
        if let only { selection.models = [only] }
        if let steps { selection.steps = steps.values.map(\.count) }
        if let attention { selection.attention = attention.values }
        if let linears { selection.linears = linears.values }
        if let topK { selection.topK = topK.values.map(\.value) }
        // Options that choose among the student's configurations exclude the teacher.
        if isNarrowed, only == nil { selection.models = [.student] }
        return selection
    }

    private func measurement(
        _ captions: [Caption], lanes: Int, teacherIsNeeded: Bool, _ progress: ProgressLine
    ) throws -> Measurement {
        var set = try Catalog.published.open(ModelChoice(model))
        let shipped = shipped ?? set.transformer
        set.transformer = student ?? "\(folder)/student_sla.safetensors"
        let teacher = teacher ?? "\(folder)/teacher.safetensors"
        let classifier = classifier ?? "\(folder)/classifier.safetensors"
        for file in [set.transformer, shipped, classifier] + (teacherIsNeeded ? [teacher] : [])
        where !FilePath(file).exists {
            throw StudyError("no such file: \(file)")
        }
        var options = DeviceOptions()
        options.threads = threads
        let (device, deviceOptions) = (device, options)
        return try Measurement(
            models: StudyModels(student: set, teacher: teacher, shipped: shipped),
            classifier: classifier,
            captions: captions, lanes: lanes,
            comparesFrames: !scoresOnly
        ) {
            let backend = try device.open(deviceOptions) { progress.note("\($0)") }
            return OpenedDevice(backend, sageArchitecture: backend.sageArchitecture)
        }
    }

    // MARK: What is written

    /// The command that makes the rows again, without options that depend on the machine.
    private var command: String {
        let name = "make study FOLDER=…"
        let options =
            (captions.map { ["--captions \($0)"] } ?? []) + (scoresOnly ? ["--scores-only"] : [])
        return options.isEmpty ? name : "\(name) OPTIONS=\"\(options.joined(separator: " "))\""
    }

    private func finish(_ table: Table) throws {
        try Report(table, command: command).write(to: output)
        if !quiet { Output.line("wrote \(output)/README.md: \(table.rows.count) rows") }
    }

    private func list(_ chosen: [Configuration], _ table: Table) {
        for (index, item) in chosen.enumerated() {
            let state = table[item] == nil ? "" : " (measured)"
            Output.line("\(index + 1). \(item.title)\(state)")
        }
    }

    private func makeFolder(_ path: String) throws {
        do { try FilePath(path).makeFolders() } catch {
            throw StudyError("cannot make the folder \(path): \(error)")
        }
    }
}

// MARK: - Lists

/// A list of values such as "4,3", in the order given.
struct Choices<Value: ExpressibleByArgument & Sendable>: ExpressibleByArgument, Sendable {
    let values: [Value]

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
        let values = parts.compactMap { Value(argument: String($0)) }
        guard !values.isEmpty, values.count == parts.count else { return nil }
        self.values = values
    }
}

extension Linears: ExpressibleByArgument {}

/// The number of steps of a distilled model, 1 to 4.
struct StepCount: ExpressibleByArgument, Sendable {
    let count: Int
    init?(argument: String) {
        guard let count = Int(argument), (1...4).contains(count) else { return nil }
        self.count = count
    }
}

/// A share in (0, 1].
struct BlockShare: ExpressibleByArgument, Sendable {
    let value: Double
    init?(argument: String) {
        guard let value = Double(argument), value > 0, value <= 1 else { return nil }
        self.value = value
    }
}
