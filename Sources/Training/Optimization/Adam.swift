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

    /// Moves the parameters that have a gradient, and the average of what the net sees of all of them.
    /// - Parameters:
    ///   - factor: of the learning rate.
    ///   - scale: by which the gradients count.
    ///   - average: with the old average's weight.
    public func step(
        _ parameters: Parameters, _ gradients: [String: Tensor], factor: Double, scale: Float = 1,
        average: (mean: MovingAverage, weight: Double)? = nil
    ) {
        steps += 1
        let now = Operation.AdamW.Settings(
            learningRate: Float(settings.learningRate * factor), beta1: Float(settings.beta1),
            beta2: Float(settings.beta2), epsilon: Float(settings.epsilon),
            decay: Float(settings.decay), step: steps, gradientScale: scale)
        let moving = parameters.names.filter { gradients[$0] != nil }
        for names in Self.lists(of: moving, parameters) {
            let masters = names.map { device.place(parameters.masters[$0]!, as: .f32) }
            func state(_ values: [String: Tensor]) -> [Tensor] {
                zip(names, masters).map { name, master in
                    values[name] ?? device.place(.zeros(master.shape, .f32), as: .f32)
                }
            }
            let found = device.adamW(
                masters: masters, means: state(means), squares: state(squares),
                gradients: names.map { gradients[$0]! },
                averages: average.map { average in names.map { average.mean.values[$0]! } } ?? [],
                averageWeight: average?.weight ?? 0, seenAs: parameters.dtype, now)
            for (index, name) in names.enumerated() {
                means[name] = found.means[index]
                squares[name] = found.squares[index]
                parameters.set(name, found.masters[index], seen: found.seen[index])
                if let average { average.mean.set(name, found.averages[index]) }
            }
        }
        if let average {
            let still = parameters.names.filter { gradients[$0] == nil }
            average.mean.update(parameters, still, weight: average.weight)
        }
    }

    /// Parameters that are moved together: many small ones, so that there are few launches; not many large ones,
    /// because the old numbers are in memory beside the new ones.
    private static func lists(of names: [String], _ parameters: Parameters) -> [[String]] {
        var (lists, size): ([[String]], Int) = ([], 0)
        for name in names {
            let count = parameters.masters[name]!.shape.count
            if lists.isEmpty || lists[lists.count - 1].count == 36 || size + count > 1 << 25 {
                lists.append([])
                size = 0
            }
            lists[lists.count - 1].append(name)
            size += count
        }
        return lists
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
        let terms = gradients.keys.sorted().map { gradients[$0]! }
        if terms.isEmpty { return 0 }
        return device.read(device.squareSum(terms)).withElements(Double.self) { $0[0] }
            .squareRoot()
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
