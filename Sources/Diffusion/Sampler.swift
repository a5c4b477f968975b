/// What all samplers share: a list of steps, and a function that computes the next state.

public import Tensors

/// One step of a sampler, which evaluates the model once.
public struct DenoisingStep: Sendable, Hashable {
    public let index: Int
    /// Noise levels before and after: 1 is pure noise, 0 is the sample (rectified flow, x = (1-t) x0 + t noise).
    public let t, next: Double
    /// What the model is given, in 0...1000.
    public let timestep: Double
}

/// A solver of the flow dx = v dt from noise to sample. State and velocity: [samples, C, T, H, W]
public protocol Sampler {
    var steps: [DenoisingStep] { get }
    /// The state before the first step. noise: f32, standard normal
    func start(_ noise: Tensor, on device: any Backend) -> Tensor
    /// The state after `step`. `draw` draws new standard normal numbers of the state's shape.
    mutating func advance(
        _ x: Tensor, velocity: Tensor, step: DenoisingStep, draw: () -> Tensor,
        on device: any Backend
    ) -> Tensor
}

/// A setting with which there is no schedule.
public struct SamplerError: Error, Sendable, Hashable, CustomStringConvertible {
    /// The settings that can be wrong.
    public enum Setting: String, Sendable, Hashable { case steps, sigmaMax, shift }

    public let setting: Setting
    public let found, expected: String

    init(_ setting: Setting, found: some CustomStringConvertible, expected: String) {
        self.setting = setting
        self.found = "\(found)"
        self.expected = expected
    }

    public var description: String { "\(setting.rawValue) must be \(expected), not \(found)" }
}
