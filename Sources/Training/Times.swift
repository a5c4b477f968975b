/// Times of a diffusion: three ways to say how much noise there is, and how training draws them.
/// Port of rcm/utils/timestep_utils.py and of the conversions in the trainers.

import Glibc
public import Tensors

/// The same time as the share of noise of a rectified flow, as a ratio of noise to signal, as an angle.
public enum NoiseTime {
    /// sigma = rf / (1 - rf), where rf stays below 1 by the type's epsilon.
    public static func sigma<T: BinaryFloatingPoint>(rectifiedFlow rf: T) -> T {
        let rf = max(0, min(rf, 1 - T.ulpOfOne))
        return rf / (1 - rf)
    }

    /// The angle t with x = cos t x0 + sin t noise.
    public static func angle(rectifiedFlow rf: Double) -> Double { atan(sigma(rectifiedFlow: rf)) }
    public static func angle(rectifiedFlow rf: Float) -> Float { atanf(sigma(rectifiedFlow: rf)) }

    /// The share of noise of a ratio of noise to signal.
    public static func rectifiedFlow<T: BinaryFloatingPoint>(sigma: T) -> T { sigma / (sigma + 1) }

    /// s rf / (1 + (s - 1) rf); no shift for s <= 0.
    public static func shifted<T: BinaryFloatingPoint>(_ rf: T, by shift: T) -> T {
        shift > 0 ? shift * rf / (1 + (shift - 1) * rf) : rf
    }
}

/// How training draws times.
public enum TimeDistribution: Sendable, Hashable, Codable {
    /// sigma = exp(mean + deviation z), z normal.
    case logNormal(mean: Double, deviation: Double)
    /// A uniform share of noise, shifted.
    case uniformShift(Double)

    /// Whether all draws give a share of noise: larger numbers overflow.
    var isPossible: Bool {
        switch self {
        case .logNormal(let mean, let deviation):
            (-100...100).contains(mean) && (0...100).contains(deviation)
        case .uniformShift(let shift): (0...1e6).contains(shift)
        }
    }

    /// The share of noise of a rectified flow. draw: a normal number, or a uniform one in [0, 1)
    public func rectifiedFlow(_ draw: Float) -> Double {
        switch self {
        case .logNormal(let mean, let deviation):
            let sigma = exp(Double(draw) * deviation + mean)
            return max(0, min(sigma / (sigma + 1), 1))
        case .uniformShift(let shift): return NoiseTime.shifted(Double(draw), by: shift)
        }
    }

    /// The same of the distribution that is cut off outside of a range of shares of noise: equal quantiles.
    public func rectifiedFlow(_ draw: Float, within range: ClosedRange<Double>?) -> Double {
        guard let range else { return rectifiedFlow(draw) }
        let (low, high) = (quantile(of: range.lowerBound), quantile(of: range.upperBound))
        let own: Double
        switch self {
        case .logNormal: own = Self.normal(below: Double(draw))
        case .uniformShift: own = Double(draw)
        }
        let wanted = low + (high - low) * own
        // The quantile grows with the share of noise: halving finds it.
        var (a, b) = (range.lowerBound, range.upperBound)
        for _ in 0..<60 {
            let middle = (a + b) / 2
            if quantile(of: middle) < wanted { a = middle } else { b = middle }
        }
        return (a + b) / 2
    }

    /// The probability of a share of noise below t.
    private func quantile(of t: Double) -> Double {
        if t <= 0 { return 0 }
        if t >= 1 { return 1 }
        switch self {
        case .logNormal(let mean, let deviation):
            return Self.normal(below: (log(t / (1 - t)) - mean) / deviation)
        case .uniformShift(let shift): return shift > 0 ? t / (shift - (shift - 1) * t) : t
        }
    }

    private static func normal(below z: Double) -> Double { 0.5 * erfc(-z / 2.0.squareRoot()) }

    /// The angle.
    public func angle(_ draw: Float) -> Double {
        NoiseTime.angle(rectifiedFlow: rectifiedFlow(draw))
    }

    /// One number for each of `count` samples, of the kind that this distribution takes.
    func draws(_ count: Int, from source: any RandomSource) -> [Float] {
        switch self {
        case .logNormal: source.normals(count)
        case .uniformShift: source.uniforms(count)
        }
    }
}

/// Where a training step's random numbers come from. The calls have the original's order.
public protocol RandomSource: AnyObject {
    func normals(_ count: Int) -> [Float]
    /// In [0, 1).
    func uniforms(_ count: Int) -> [Float]
    /// Standard normal latents, one for each sample.
    func noise(_ count: Int, _ shape: Shape) -> [LatentValues]
}
