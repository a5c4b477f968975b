/// Why something cannot be measured.

import Families
import Ground

/// A measurement that is refused before it begins.
public enum BenchError: Error, Sendable, Hashable {
    /// The host has too little memory for the random weights.
    case memory(model: String, part: String, neededBytes: Int, presentBytes: Int)
    /// More tokens than the model takes.
    case tokens(Int, most: Int)
    /// The recipe does not train models that take a picture.
    case takesPicture(model: String, recipe: String)
    /// The device has no kernels for gradients.
    case gradients(device: String)
    /// What is wrong with the settings of training.
    case settings(String)
}

extension BenchError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .memory(let model, let part, let needed, let present):
            "the weights of \(model)'s \(part) take \(describe(bytes: needed)), but this machine has "
                + "\(describe(bytes: present)); measure other stages, or a smaller model"
        case .tokens(let count, let most):
            "\(count) tokens are more than the model takes (\(most))"
        case .takesPicture(let model, let recipe):
            "recipe \(recipe) does not train \(model), which takes a picture: use --train lora"
        case .gradients(let device):
            "\(device) has no kernels for gradients: use --device cpu"
        case .settings(let fault): "settings of training: \(fault)"
        }
    }
}
