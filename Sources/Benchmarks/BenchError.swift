/// Why something cannot be measured.

import Families
import Ground

/// A measurement that is refused before it begins.
public enum BenchError: Error, Sendable, Hashable {
    /// The host has too little memory for the random weights.
    case memory(model: String, part: String, neededBytes: Int, presentBytes: Int)
    /// More tokens than the model takes.
    case tokens(Int, most: Int)
    /// The recipe does not train such a model, or not on this device.
    case training(model: String, device: String)
}

extension BenchError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .memory(let model, let part, let needed, let present):
            "the weights of \(model)'s \(part) take \(describe(bytes: needed)), but this machine has "
                + "\(describe(bytes: present)); measure other stages, or a smaller model"
        case .tokens(let count, let most):
            "\(count) tokens are more than the model takes (\(most))"
        case .training(let model, let device):
            "this recipe does not train \(model) on \(device): models that take a picture are trained "
                + "by lora alone, and the device needs kernels for gradients"
        }
    }
}
