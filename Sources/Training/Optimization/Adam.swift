/// AdamW over all parameters of a net.

import Ground
public import Tensors

/// Means and squares of gradients, and the step's number. One group: everything decays, as in the original.
public final class Adam {
    public struct Settings: Sendable, Hashable, Codable {
        public var learningRate: Double
        public var beta1, beta2, epsilon, decay: Double

        public init(
            learningRate: Double, beta1: Double = 0.9, beta2: Double = 0.999,
            epsilon: Double = 1e-8, decay: Double = 0.01
        ) {
            self.learningRate = learningRate
            self.beta1 = beta1
            self.beta2 = beta2
            self.epsilon = epsilon
            self.decay = decay
        }
    }

    public var settings: Settings
    /// f32 by name; absent before the first step.
    public internal(set) var means: [String: Tensor] = [:]
    public internal(set) var squares: [String: Tensor] = [:]
    /// Steps made.
    public internal(set) var steps = 0
    private let device: any Backend

    public init(_ settings: Settings, on device: any Backend) {
        self.settings = settings
        self.device = device
    }

    /// Moves the parameters that have a gradient.
    /// - Parameters:
    ///   - factor: of the learning rate.
    ///   - scale: by which the gradients count.
    public func step(
        _ parameters: Parameters, _ gradients: [String: Tensor], factor: Double, scale: Float = 1
    ) {
        steps += 1
        let now = Operation.AdamW.Settings(
            learningRate: Float(settings.learningRate * factor), beta1: Float(settings.beta1),
            beta2: Float(settings.beta2), epsilon: Float(settings.epsilon),
            decay: Float(settings.decay), step: steps, gradientScale: scale)
        for name in parameters.names {
            guard let gradient = gradients[name], let master = parameters.masters[name] else {
                continue
            }
            let zeros = { [device] in device.place(.zeros(master.shape, .f32), as: .f32) }
            let moved = device.adamW(
                master: device.place(master, as: .f32), mean: means[name] ?? zeros(),
                square: squares[name] ?? zeros(), gradient: gradient, now)
            means[name] = moved.mean
            squares[name] = moved.square
            parameters.set(
                name, moved.master, seen: device.cast(moved.master, to: parameters.dtype))
        }
    }

    /// Takes the state of an earlier run.
    public func restore(means: [String: Tensor], squares: [String: Tensor], steps: Int) {
        self.means = means
        self.squares = squares
        self.steps = steps
    }
}

/// Norms of gradients.
public enum GradientNorm {
    /// The norm over all elements; not finite where one of them is not.
    public static func norm(_ gradients: [String: Tensor], on device: any Backend) -> Double {
        // In the order of names: the same bits each time.
        let sums = gradients.keys.sorted().map { device.dot(gradients[$0]!, gradients[$0]!) }
        let total = sums.reduce(0.0) { sum, tensor in
            sum + device.read(tensor).withElements(Double.self) { $0[0] }
        }
        return total.squareRoot()
    }

    /// By what gradients are scaled so that their norm does not exceed `most`.
    public static func clipping(_ norm: Double, to most: Double) -> Float {
        Float(min(1, most / (norm + 1e-6)))
    }

    /// The original's way with what is not finite: zero. x: f32 on the host
    public static func withoutNonFinite(_ x: Tensor) -> Tensor {
        Tensor(x.floats().map { $0.isFinite ? $0 : 0 }, x.shape)
    }
}
