/// Why a valid run failed.

public import Families
import Ground

/// A failure between the first stage and the last.
public enum RunError: Error, Sendable, Hashable, Codable {
    /// A model produced a NaN or an infinity. `tensor`: the first tensor of its checkpoint that contains one, if that
    /// is the cause.
    case notFinite(Stage, tensor: String?)
    /// The tokenizer has more tokens than the text encoder.
    case vocabulary(tokenizer: String, tokens: Int, textEncoder: String, known: Int)
    /// The device cannot compute linear layers of this form.
    case unsupported(linears: LinearChoice, device: String)
    /// A file that should replace a stage contains something else.
    case stored(path: String, expected: String, found: String)
    /// The run needs more device memory than it may take.
    case memory(neededBytes: Int, limitBytes: Int)
}

extension RunError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .notFinite(.load(let part), let tensor?):
            "load \(part.title): tensor \(tensor) contains numbers that are not finite (NaN or infinity): "
                + "the file is damaged; download it again"
        case .notFinite(let stage, let tensor):
            "\(stage.title) produced numbers that are not finite (NaN or infinity)"
                + (tensor.map {
                    ": the weights are damaged, first in tensor \($0); download the file again"
                } ?? "; the weights are finite: try f32 precision")
        case .vocabulary(let tokenizer, let tokens, let textEncoder, let known):
            "\(tokenizer) has \(tokens) tokens, \(textEncoder) knows \(known): they do not belong together"
        case .unsupported(let linears, let device):
            "\(device) cannot compute \(linears.rawValue) linear layers; choose int8"
        case .stored(let path, let expected, let found):
            "\(path): expected \(expected), found \(found)"
        case .memory(let needed, let limit):
            "this request needs at least \(describe(bytes: needed)) of device memory, the limit is "
                + "\(describe(bytes: limit)): choose fewer frames or a smaller size"
        }
    }
}
