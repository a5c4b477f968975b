/// Latents on the host in f64: what recipes calculate with outside of the nets.

import Ground
public import Tensors

/// [C, T, H, W] in f64.
public struct LatentValues: Sendable {
    public let shape: Shape
    public var values: [Double]

    public init(shape: Shape, values: [Double]) {
        ensure(values.count == shape.count, "LatentValues: \(values.count) values for \(shape)")
        self.shape = shape
        self.values = values
    }

    /// x: on the host, any floating-point dtype
    public init(_ x: Tensor) {
        let values =
            x.dtype == .f64
            ? x.withElements(Double.self) { Array($0) } : x.floats().map { Double($0) }
        self.init(shape: x.shape, values: values)
    }

    /// In f32, as nets take them.
    public var tensor: Tensor { Tensor(values.map { Float($0) }, shape) }

    /// Rounded to f32.
    public var rounded: LatentValues {
        LatentValues(shape: shape, values: values.map { Double(Float($0)) })
    }

    /// The first latent frames of every channel.
    public func prefix(frames: Int) -> LatentValues {
        let (channels, plane) = (shape[0], shape[2] * shape[3])
        ensure(frames <= shape[1], "LatentValues: \(frames) of \(shape[1]) frames")
        let cut = (0..<channels).flatMap { channel in
            let start = channel * shape[1] * plane
            return values[start..<start + frames * plane]
        }
        return LatentValues(shape: [channels, frames, shape[2], shape[3]], values: cut)
    }

    public var zeros: LatentValues {
        LatentValues(shape: shape, values: [Double](repeating: 0, count: values.count))
    }

    public var isFinite: Bool { values.allSatisfy(\.isFinite) }
    public var hasNaN: Bool { values.contains(where: \.isNaN) }
    public var squares: Double { values.reduce(0) { $0 + $1 * $1 } }

    public static func + (a: LatentValues, b: LatentValues) -> LatentValues { a.zip(b, +) }
    public static func - (a: LatentValues, b: LatentValues) -> LatentValues { a.zip(b, -) }
    public static func * (factor: Double, a: LatentValues) -> LatentValues {
        LatentValues(shape: a.shape, values: a.values.map { factor * $0 })
    }

    private func zip(_ other: LatentValues, _ combine: (Double, Double) -> Double) -> LatentValues {
        ensure(shape == other.shape, "LatentValues: \(shape) and \(other.shape)")
        return LatentValues(shape: shape, values: Swift.zip(values, other.values).map(combine))
    }
}
