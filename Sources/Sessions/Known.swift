/// What a session has found out and need not find out again.

import Catalog
import Delivery
import Families
import Ground
import Media
import Runs
import Tensors

/// The last few values by their keys.
struct RecentValues<Key: Hashable & Sendable, Value: Sendable>: Sendable {
    private var values: [Key: (value: Value, turn: Int)] = [:]
    private var turn = 0
    private let capacity: Int

    init(capacity: Int) { self.capacity = capacity }

    subscript(key: Key) -> Value? {
        mutating get {
            guard let entry = values[key] else { return nil }
            turn += 1
            values[key]?.turn = turn
            return entry.value
        }
        set {
            turn += 1
            values[key] = newValue.map { ($0, turn) }
            if values.count > capacity,
                let oldest = values.min(by: { $0.value.turn < $1.value.turn })
            {
                values[oldest.key] = nil
            }
        }
    }
}

/// All that a plan depends on: neither the words nor the seed.
struct PlanKey: Hashable, Sendable {
    let request: Request
    let options: RunOptions
    let models: ModelSet
    let files: [FileStamp]

    init(_ run: Run, _ models: ModelSet) {
        var request = run.request
        (request.prompt, request.negativePrompt, request.image) = ("", nil, nil)
        (request.seed, request.framesPerSecond) = (0, 0)
        self.request = request
        options = run.options
        self.models = models
        files = (ModelFile.allCases.compactMap { models[$0] } + request.loras.map(\.path))
            .compactMap { FileStamp($0) }
    }
}

/// All that decides whether an encoder can do its work.
struct EncoderKey: Hashable, Sendable {
    let format: String
    let width, height, framesPerSecond, samples: Int
    let crf: Int?

    init(_ outputs: Outputs, _ run: Run) {
        format = "\(outputs.format)"
        (width, height) = (run.video.w, run.video.h)
        framesPerSecond = outputs.framesPerSecond
        samples = outputs.samples
        crf = outputs.crf
    }
}

/// What is known of files, as long as they stay as they are.
struct KnownFiles: Sendable {
    var identities = RecentValues<FileStamp, FileIdentity>(capacity: 256)
    private var stamps: [String: FileStamp] = [:]

    /// Those that are not what they were when they were last asked about.
    mutating func changed(among paths: [String]) -> [String] {
        paths.filter { path in
            let (before, now) = (stamps[path], FileStamp(path))
            stamps[path] = now
            return before != nil && before != now
        }
    }
}

/// How fast the device has been, in seconds for each operation of a model.
struct MeasuredRates: Sendable {
    private var rates: [ModelPart: Double] = [:]

    mutating func learn(_ report: RunReport, _ plan: Plan) {
        var seconds: [ModelPart: Double] = [:]
        for stage in report.stages {
            // What they take is not a model's operations.
            if stage.stage.id == .load || stage.stage.id == .projectText { continue }
            if let part = stage.stage.part { seconds[part, default: 0] += stage.seconds }
        }
        for stage in plan.stages where stage.operations > 0 {
            guard let taken = seconds[stage.part] else { continue }
            let rate = taken / stage.operations
            // The last runs count most.
            rates[stage.part] = rates[stage.part].map { 0.5 * $0 + 0.5 * rate } ?? rate
        }
    }

    /// What is not known is what a typical machine takes.
    func seconds(of plan: Plan, isGPU: Bool) -> Double {
        let typical: Progress.Rates = isGPU ? .gpu : .cpu
        let guess = 1 / typical.operations
        return plan.stages.reduce(0) { $0 + $1.operations * (rates[$1.part] ?? guess) }
    }
}
