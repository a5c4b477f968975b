/// What happens during a run: one stream of events, the same for a terminal, a program and a service.

public import Families
import Ground

/// Something that happened during a run.
public enum RunEvent: Sendable, Hashable {
    case stageStarted(Stage)
    /// Share of the stage that is done, in 0...1.
    case stageProgress(Stage, fraction: Double)
    case stageFinished(StageReport)
    /// Something the user should know; the run goes on.
    case notice(Notice)
}

/// Something the user should know, although the run goes on.
public enum Notice: Sendable, Hashable, Codable {
    /// The prompt was cut to the model's length.
    case promptCut(kept: Int, dropped: Int)
    /// How many tensors the LoRAs change.
    case loras(part: ModelPart, tensors: Int, files: [String])
    /// The request asks for what a small model has never seen: words, a size, a length.
    case untrained(model: String, subject: String, excess: [String], page: String?)
    /// Keys of LoRAs that belong to nothing in the model.
    case unmatchedKeys(part: ModelPart, names: [String])
    /// Tensors of a checkpoint that its model does not use.
    case unusedTensors(part: ModelPart, names: [String])
    /// The checksum of a checkpoint is wrong: do not trust what was made with it. Names the file.
    case damaged(String)
    /// A decision made while reading a checkpoint.
    case checkpoint(part: ModelPart, note: String)
    /// A result was saved.
    case saved(path: String)
    /// A result could not be saved; the video is still made.
    case notSaved(path: String, reason: String)
    /// A message of a device or a library.
    case device(String)

    /// One line for people. It may contain names from files, so control characters are made visible.
    public var message: String { line.printable }

    private var line: String {
        func list(_ names: [String]) -> String {
            names.prefix(3).joined(separator: ", ")
                + (names.count > 3 ? " and \(names.count - 3) more" : "")
        }
        return switch self {
        case .promptCut(let kept, let dropped):
            "the prompt is too long: the first \(kept) tokens are used, \(dropped) are dropped"
        case .loras(let part, let tensors, let files):
            "\(part.title): \(tensors) tensors changed by \(files.joined(separator: ", "))"
        case .untrained(let model, let subject, let excess, let page):
            "\(model) was made for \(subject); it has never seen \(excess.joined(separator: ", ")): expect noise"
                + (page.map { " (\($0) says what it knows)" } ?? "")
        case .unmatchedKeys(let part, let names):
            "keys that match no tensor of the \(part.title): \(list(names))"
        case .unusedTensors(let part, let names):
            "tensors that the \(part.title) does not use: \(list(names))"
        case .damaged(let text), .checkpoint(_, let text): text
        case .saved(let path): "wrote \(path)"
        case .notSaved(let path, let reason): "\(path) was not written: \(reason)"
        case .device(let text): text
        }
    }
}

/// `{"event": "stage.progress", "stage": {"id": "decode"}, "fraction": 0.5}`
extension RunEvent: Codable {
    private enum Name: String, Codable {
        case started = "stage.started"
        case progress = "stage.progress"
        case finished = "stage.finished"
        case notice
    }
    private enum Key: CodingKey { case event, stage, fraction, seconds, peakBytes, notice, message }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        func stage() throws -> Stage { try values.decode(Stage.self, forKey: .stage) }
        switch try values.decode(Name.self, forKey: .event) {
        case .started: self = .stageStarted(try stage())
        case .progress:
            self = .stageProgress(
                try stage(), fraction: try values.decode(Double.self, forKey: .fraction))
        case .finished:
            self = .stageFinished(
                StageReport(
                    stage: try stage(), seconds: try values.decode(Double.self, forKey: .seconds),
                    peakBytes: try values.decode(Int.self, forKey: .peakBytes)))
        case .notice: self = .notice(try values.decode(Notice.self, forKey: .notice))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        switch self {
        case .stageStarted(let stage):
            try values.encode(Name.started, forKey: .event)
            try values.encode(stage, forKey: .stage)
        case .stageProgress(let stage, let fraction):
            try values.encode(Name.progress, forKey: .event)
            try values.encode(stage, forKey: .stage)
            try values.encode(fraction, forKey: .fraction)
        case .stageFinished(let report):
            try values.encode(Name.finished, forKey: .event)
            try values.encode(report.stage, forKey: .stage)
            try values.encode(report.seconds, forKey: .seconds)
            try values.encode(report.peakBytes, forKey: .peakBytes)
        case .notice(let notice):
            try values.encode(Name.notice, forKey: .event)
            try values.encode(notice, forKey: .notice)
            try values.encode(notice.message, forKey: .message)
        }
    }
}
