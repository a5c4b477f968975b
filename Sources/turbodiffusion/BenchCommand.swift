/// `turbodiffusion bench`: how fast this machine runs a model, its stages and its operations.

public import ArgumentParser
public import Benchmarks
import Catalog
import Devices
import Families
import Media
import Models
import Runs
import Tensors
import Terminal

struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench",
        abstract: "Measure a model on this machine: time, arithmetic and memory.",
        discussion: """
            The named models are measured with random weights of the real shapes, made on the \
            device: nothing is downloaded. Times are medians; the first run, which loads kernels \
            and fills pools, is shown apart. The ceiling of an operation is the larger of two \
            times: its arithmetic at the machine's measured rate, its traffic at that of copying.
            """)

    @Option(
        help: .init(
            Catalog.published.names.joined(separator: ", ") + ", or a folder with a config.json."))
    var model = "nano"
    @Option(name: [.long, .customLong("size")], help: "480p, 720p, 480, 512, 720 or WIDTHxHEIGHT.")
    var resolution: String?
    @Option(help: "Of a named resolution: 16:9, 9:16, 4:3, 3:4 or 1:1.")
    var aspectRatio = "16:9"
    @Option(help: "Frames, 4n + 1.")
    var numFrames: Int?
    @Option(help: "Steps of the sampler, 1 to 4.")
    var numSteps = 4
    @Option(help: "Tokens of the prompt.")
    var tokens: Int?
    @Option(help: "Self-attention: original, sla or sagesla.")
    var attentionType: AttentionChoice?
    @Option(help: "Share of key blocks that SLA and SageSLA attend exactly.")
    var slaTopk: Double?
    @Option(help: "Linear layers: bf16, int8 or fp8 (default: int8, or as a folder's files are).")
    var linear: BenchLinears?
    @Option(help: "Arithmetic: f32 or bf16.")
    var precision = Precision.bf16
    @Option(help: "Norms: exact, or the original's fast ones (reference).")
    var norms = NormChoice.exact
    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.automatic
    @Option(help: "Threads of the CPU (default: all).")
    var threads: Int?
    @Option(help: "What to measure: all, text, transformer, decode, encode or load.")
    var stage = BenchStage.all
    @Flag(inversion: .prefixedNo, help: "Measure single operations too.")
    var operations = true
    @Option(name: .customLong("repeat"), help: "Runs after the first one.")
    var repeats = 3
    @Option(help: "Determines the weights.")
    var seed: UInt64 = 0
    @Flag(help: "Print JSON, one object a line.")
    var json = false
    @Option(name: .shortAndLong, help: "Write a table of all figures, as CSV.", completion: .file())
    var output: String?

    func validate() throws {
        try checkThreads(threads)
        if repeats < 1 { throw ValidationError("--repeat must be at least 1, not \(repeats)") }
        if let tokens, tokens < 1 {
            throw ValidationError("--tokens must be at least 1, not \(tokens)")
        }
    }

    func run() async throws {
        let model = try benchModel()
        let request = try request(model)
        if let output { try BenchTable.checkWritable(output) }
        let start = ContinuousClock.now
        var options = DeviceOptions()
        options.threads = threads
        let backend = try device.open(options) { Output.note("\($0)") }
        let opening = (ContinuousClock.now - start) / .seconds(1)
        let bench = try Bench(
            model, request, stage,
            on: OpenedDevice(backend, sageArchitecture: backend.sageArchitecture),
            tokens: tokens, repeats: repeats)
        let printer = BenchPrinter(
            .init(
                program: "turbodiffusion \(TurboDiffusion.programVersion)", Machine(backend),
                model.name, request, openingSeconds: opening), json: json)
        let ceilings =
            operations && stage != .load
            ? try Ceilings.measure(backend, threads: threads) : nil
        if let ceilings { printer.show(ceilings) }
        try bench.measure(against: ceilings) { printer.show($0, against: ceilings) }
        printer.finish()
        if let output { try printer.table.write(to: output) }
    }

    func benchModel() throws -> BenchModel {
        if let entry = Catalog.published.entry(named: model) { return BenchModel(random: entry) }
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
        request.sampling.steps = numSteps
        request.arithmetic = Arithmetic(
            precision: precision, linears: (linear ?? (model.isRandom ? .int8 : .bf16)).choice,
            attention: attentionType ?? request.arithmetic.attention,
            topK: slaTopk ?? request.arithmetic.topK,
            norms: norms == .reference ? .reference : .exact)
        return request
    }
}

extension BenchStage: ExpressibleByArgument {}

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
