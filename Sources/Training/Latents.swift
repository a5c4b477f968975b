/// Latents on the host in f64: what recipes calculate with outside of the nets.

import Ground
public import Tensors

/// [C, T, H, W] in f64.
public struct Latents: Sendable {
    public let shape: Shape
    public var values: [Double]

    public init(shape: Shape, values: [Double]) {
        ensure(values.count == shape.count, "Latents: \(values.count) values for \(shape)")
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
    public var rounded: Latents {
        Latents(shape: shape, values: values.map { Double(Float($0)) })
    }

    public var zeros: Latents {
        Latents(shape: shape, values: [Double](repeating: 0, count: values.count))
    }

    public var isFinite: Bool { values.allSatisfy(\.isFinite) }
    public var hasNaN: Bool { values.contains(where: \.isNaN) }
    public var squares: Double { values.reduce(0) { $0 + $1 * $1 } }

    public static func + (a: Latents, b: Latents) -> Latents { a.zip(b, +) }
    public static func - (a: Latents, b: Latents) -> Latents { a.zip(b, -) }
    public static func * (factor: Double, a: Latents) -> Latents {
        Latents(shape: a.shape, values: a.values.map { factor * $0 })
    }

    private func zip(_ other: Latents, _ combine: (Double, Double) -> Double) -> Latents {
        ensure(shape == other.shape, "Latents: \(shape) and \(other.shape)")
        return Latents(shape: shape, values: Swift.zip(values, other.values).map(combine))
    }
}
