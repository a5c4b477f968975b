/// Where the random numbers of a run come from.

public import Tensors

/// Standard normal numbers, draw after draw: one for all samples at the start, then one for every step that adds noise.
public enum NoiseSource: Sendable, Hashable {
    /// As PyTorch draws them on CUDA for the same seed.
    case seeded(PhiloxNoise)
    /// Numbers that are known beforehand, one array a draw. A sampler may draw once more in its last step, where noise
    /// counts nothing: it then gets the first ones again.
    case given([[Float]], drawn: Int = 0)

    /// The next draw. → f32 `shape`
    mutating func draw(_ shape: Shape, on device: any Backend) -> Tensor {
        switch self {
        case .seeded(var generator):
            let noise = device.noise(shape, generator: &generator)
            self = .seeded(generator)
            return noise
        case .given(let draws, let drawn):
            self = .given(draws, drawn: drawn + 1)
            return device.place(Tensor(draws[drawn % draws.count], shape), as: .f32)
        }
    }
}
