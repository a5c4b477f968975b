/// `turbodiffusion bench`: how fast this machine runs a model, its stages and its operations.

public import ArgumentParser
public import Benchmarks
public import CUDA
import Catalog
import Devices
import Families
import Ground
import Media
import Models
import Runs
import Tensors
import Terminal
import Training

struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Measure a model on this machine: time, arithmetic and memory.",
        discussion: """
            The named models are measured with random weights of the real shapes, made on the \
            device: nothing is downloaded. Times are medians; the first run, which loads kernels \
            and fills pools, is shown separately. The ceiling of an operation is the larger of two \
            times: its arithmetic at the machine's measured rate, and its memory traffic at the \
            measured rate of copying.

            Example:
              turbodiffusion bench --model Wan2.1-14B --resolution 720p
              turbodiffusion bench --model Wan2.1-14B --train lora --sla-topk 0.1
            """)

    @Option(
        help: .init(
            Catalog.published.names.joined(separator: ", ") + ", or a folder with a config.json."))
    var model = "nano"
    @Option(name: [.long, .customLong("size")], help: "480p, 720p, 480, 512, 720 or WIDTHxHEIGHT.")
    var resolution: String?
    @Option(help: "Aspect ratio of a named resolution: 16:9, 9:16, 4:3, 3:4 or 1:1.")
    var aspectRatio = "16:9"
    @Option(help: "Number of frames: 4n + 1.")
    var numFrames: Int?
    @Option(help: "Sampling steps, 1 to 4 (default: 4).")
    var numSteps: Int?
    @Option(help: "Number of prompt tokens.")
    var tokens: Int?
    @Option(help: "Self-attention: original, sla or sagesla.")
    var attentionType: AttentionChoice?
    @Option(help: "Share of key blocks that SLA and SageSLA attend to exactly.")
    var slaTopk: Double?
    @Option(
        help: "Linear layers: bf16, int8 or fp8 (default: int8; for a folder, as in its files).")
    var linear: BenchLinears?
    @Option(help: "Arithmetic: f32 or bf16.")
    var precision = Precision.bf16
    @Option(help: "Norms: exact (default), or the original's fast ones (reference).")
    var norms: NormChoice?
    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.usual
    @Option(help: "Measure several devices that compute together: 0,1, cuda:all or cpu,cpu.")
    var devices: DeviceGroup?
    @Option(
        help: """
            How bytes travel between GPUs: engines (copy engines, as runs do), kernel or host (pinned memory).
            """)
    var route = Route.engines
    @Option(help: "CPU threads (default: all).")
    var threads: Int?
    @Option(help: "What to measure: all, text, transformer, decode, encode or load.")
    var stage = BenchStage.all
    @Option(help: "Measure iterations of training in place of a run.")
    var train: TrainingSettings.Recipe?
    @Option(help: "With --train: samples of an iteration (default: 1).")
    var batchSize: Int?
    @Flag(inversion: .prefixedNo, help: "Measure each operation too.")
    var operations = true
    @Option(name: .customLong("repeat"), help: "Timed runs after the first one.")
    var repeats = 3
    @Option(help: "Seed of the random weights.")
    var seed: UInt64 = 0
    @Flag(
        help: """
            Measure nothing: reckon what 1 to N devices (--devices N) of a --card would take, with --link between them.
            """)
    var simulate = false
    @Option(help: "With --simulate: GB/s from a device to the others.")
    var link = 300.0
    @Option(help: "With --simulate: the card, such as H200.")
    var card = "H200"
    @Option(help: "With --simulate: seconds that one device was measured to take for all steps.")
    var measured: Double?
    @Flag(help: "Print JSON, one object per line.")
    var json = false
    @Option(name: .shortAndLong, help: "Write all figures to this CSV file.", completion: .file())
    var output: String?
    @Flag(help: "Replace the CSV file if it exists.")
    var force = false

    func validate() throws {
        try checkThreads(threads)
        try Machines.check(device, devices)
        if let (option, reason) = unheeded.first {
            throw ValidationError("\(reason): leave out \(option)")
        }
        if let batchSize, batchSize < 1 {
            throw ValidationError("--batch-size must be at least 1, not \(batchSize)")
        }
        if repeats < 1 { throw ValidationError("--repeat must be at least 1, not \(repeats)") }
        if let tokens, tokens < 1 {
            throw ValidationError("--tokens must be at least 1, not \(tokens)")
        }
    }

    /// Options that mean nothing for what is to be measured, and why.
    private var unheeded: [(option: String, reason: String)] {
        guard let train else {
            return batchSize == nil ? [] : [("--batch-size", "samples are those of --train")]
        }
        let whole = "--train measures iterations on one device"
        let given: [(isGiven: Bool, option: String, reason: String)] = [
            (simulate, "--simulate", whole), (devices != nil, "--devices", whole),
            (stage != .all, "--stage", whole),
            (numSteps != nil, "--num-steps", "--train measures iterations, not sampling steps"),
            (norms != nil, "--norms", "--train has exact norms"),
            (
                attentionType != nil, "--attention-type",
                "--train sla has SLA, rcm dense attention, lora SLA where --sla-topk is given"
            ),
            (train == .rcm && slaTopk != nil, "--sla-topk", "--train rcm has dense attention"),
            (
                train != .lora && linear != nil, "--linear",
                "--train \(train.rawValue) has linear layers in \(precision.rawValue)"
            ),
        ]
        return given.filter(\.isGiven).map { ($0.option, $0.reason) }
    }

    func run() async throws {
        let model = try benchModel()
        let request = try request(model)
        if simulate { return try showSimulation(model, request) }
        if let output {
            do { try BenchTable.checkWritable(output, overwrite: force) } catch {
                throw UserError(error, takesPicture: false)
            }
        }
        if let train { return try measure(train, model, request) }
        let start = ContinuousClock.now
        var options = DeviceOptions()
        options.threads = threads
        options.cuda.route = route
        let machines = Machines(device: device, group: devices)
        let openers = try machines.openers(options) { Output.note("\($0)") }
        let (stage, tokens, repeats) = (stage, tokens, repeats)
        let opened = openers.map { open in
            { @Sendable () throws -> OpenedDevice in
                let backend = try open()
                return OpenedDevice(backend, sageArchitecture: backend.sageArchitecture)
            }
        }
        try GroupBench.run(opened) { device in
            let backend = device.backend
            let opening = (ContinuousClock.now - start) / .seconds(1)
            let bench = try Bench(
                model, request, stage, on: device, tokens: tokens, repeats: repeats)
            let printer = BenchPrinter(
                .init(
                    program: "turbodiffusion \(TurboDiffusion.programVersion)", Machine(backend),
                    model.name, request, openingSeconds: opening, devices: openers.count),
                json: json)
            let ceilings =
                operations && stage != .load
                ? try Ceilings.measure(backend, threads: threads) : nil
            if let ceilings { printer.show(ceilings) }
            _ = backend.membership.share(ceilings)
            try bench.measure(against: ceilings) { printer.show($0, against: ceilings) }
            printer.finish()
            if let output { try printer.table.write(to: output, overwrite: force) }
        } others: { device in
            let bench = try Bench(
                model, request, stage, on: device, tokens: tokens, repeats: repeats)
            let ceilings: Ceilings? = device.backend.membership.share(nil)
            try bench.measure(against: ceilings) { _ in }
        }
    }

    /// Iterations of a recipe.
    private func measure(
        _ recipe: TrainingSettings.Recipe, _ model: BenchModel, _ request: Request
    ) throws {
        var settings = TrainingSettings(recipe)
        settings.batch = batchSize ?? 1
        settings.seed = seed
        settings.isHalf = precision == .bf16
        if let slaTopk { settings.topK = slaTopk }
        var request = request
        // Only a LoRA's base may be quantised.
        if recipe != .lora { request.arithmetic.linears = .stored }
        let start = ContinuousClock.now
        var options = DeviceOptions()
        options.threads = threads
        let backend = try device.open(options) { Output.note("\($0)") }
        let opening = (ContinuousClock.now - start) / .seconds(1)
        let bench = try TrainingBench(
            model, request, settings, on: backend, tokens: tokens, repeats: repeats)
        try bench.plan.require(on: device) {
            "a smaller --batch-size, fewer --num-frames, or a lower --resolution"
        }
        let printer = BenchPrinter(
            .init(
                program: "turbodiffusion \(TurboDiffusion.programVersion)", Machine(backend),
                model.name, request, openingSeconds: opening, training: settings),
            json: json)
        let ceilings = operations ? try Ceilings.measure(backend, threads: threads) : nil
        if let ceilings { printer.show(ceilings) }
        if !json { Output.line("planned    \(bench.plan.words)") }
        try bench.measure(against: ceilings) { printer.show($0, against: ceilings) }
        printer.finish()
        if let output { try printer.table.write(to: output, overwrite: force) }
    }

    private func showSimulation(_ model: BenchModel, _ request: Request) throws {
        guard let card = Card.named(card) else {
            throw ValidationError(
                "--card \(card) is not known; there are "
                    + Card.known.map(\.shortName).joined(separator: ", "))
        }
        guard link > 0, measured ?? 1 > 0 else {
            throw ValidationError("--link and --measured must be above 0")
        }
        // A single number is how many there are.
        let count =
            switch devices?.members ?? [] {
            case let members where members.count > 1: members.count
            case let members: if case .gpu(let number)? = members.first { number } else { 8 }
            }
        guard (1...64).contains(count) else {
            throw ValidationError("--devices with --simulate must be 1 to 64, not \(count)")
        }
        let found = try Simulation.run(
            model, request, counts: Array(1...count), card: card, link: link * 1e9,
            measured: measured)
        if json { return found.forEach { Output.json($0) } }
        var rows = [["stage", "devices", "time", "times as fast", "sent by each", "waiting"]]
        for line in found {
            rows.append([
                line.stage, "\(line.devices)", describe(seconds: line.seconds),
                fixed(line.speedup, 2), describe(bytes: line.sentBytes),
                describe(seconds: line.waitingSeconds),
            ])
        }
        Output.line(Output.table(rows))
    }

    func benchModel() throws -> BenchModel {
        if let entry = Catalog.published.entry(named: model), !entry.isRepository {
            return BenchModel(random: entry)
        }
        return BenchModel(try Catalog.published.open(ModelChoice(model)))
    }

    /// The request whose work is measured.
    func request(_ model: BenchModel) throws -> Request {
        var request = Request("bench", for: model.family)
        if let resolution {
            let size = try Resolution(resolution, aspectRatio: aspectRatio)
            (request.width, request.height) = (size.width, size.height)
        }
        request.frames = numFrames ?? request.frames
        request.seed = seed
        request.sampling = .distilled(model.family.defaults.distilled)
        request.sampling.steps = numSteps ?? 4
        request.arithmetic = Arithmetic(
            precision: precision, linears: (linear ?? (model.isRandom ? .int8 : .bf16)).choice,
            attention: attentionType ?? request.arithmetic.attention,
            topK: slaTopk ?? request.arithmetic.topK,
            norms: norms == .reference ? .reference : .exact)
        return request
    }
}

extension BenchStage: ExpressibleByArgument {}
extension TrainingSettings.Recipe: ExpressibleByArgument {}
extension Route: ExpressibleByArgument {}

/// The form of the linear layers in the transformer's blocks.
enum BenchLinears: String, ExpressibleByArgument, CaseIterable {
    case bf16, int8, fp8

    var choice: LinearChoice {
        switch self {
        case .bf16: .stored
        case .int8: .int8
        case .fp8: .fp8
        }
    }
}
