/// A moving average of parameters in power form (EDM2, arXiv 2312.02696).

import Glibc
public import Tensors

/// f32 averages of what the net sees (not of its f32 masters).
public final class MovingAverage {
    /// The width of the average as a share of the run so far.
    public let rate: Double
    public internal(set) var values: [String: Tensor] = [:]
    private let device: any Backend

    public init(_ parameters: Parameters, rate: Double, on device: any Backend) {
        self.rate = rate
        self.device = device
        // Other processes keep the others.
        for name in parameters.names where parameters.masters[name] != nil {
            values[name] = device.cast(
                device.place(parameters.tensor(name)!, as: parameters.dtype), to: .f32)
        }
    }

    /// The exponent: the largest real root of x^3 + 7 x^2 + (16 - s^-2) x + (12 - s^-2).
    public static func exponent(_ rate: Double) -> Double {
        let inverse = 1 / (rate * rate)
        // Above the root the polynomial is convex and grows: Newton's steps fall towards it.
        var x = inverse
        for _ in 0..<200 {
            let value = ((x + 7) * x + (16 - inverse)) * x + (12 - inverse)
            let slope = (3 * x + 14) * x + (16 - inverse)
            let next = x - value / slope
            if next == x { break }
            x = next
        }
        return x
    }

    /// The old average's weight after iteration i, from 0: nothing before the second.
    public static func weight(_ iteration: Int, rate: Double) -> Double {
        iteration < 1 ? 0 : pow(1 - 1 / Double(iteration + 1), exponent(rate) + 1)
    }

    /// The old average's weight after this iteration.
    public func weight(_ iteration: Int) -> Double { Self.weight(iteration, rate: rate) }

    public func update(_ parameters: Parameters, iteration: Int) {
        update(parameters, parameters.names, weight: weight(iteration))
    }

    func update(_ parameters: Parameters, _ names: [String], weight beta: Double) {
        for name in names where values[name] != nil {
            let now = device.cast(
                device.place(parameters.tensor(name)!, as: parameters.dtype), to: .f32)
            values[name] = device.combine([values[name]!, now], [beta, 1 - beta], as: .f32)
        }
    }

    func set(_ name: String, _ value: Tensor) { values[name] = value }

    public func restore(_ values: [String: Tensor]) { self.values = values }
}
