/// Where the random numbers of a run come from.

public import Tensors

/// Standard normal numbers in draws: one for all samples at the start, then one for every step that adds noise.
public enum NoiseSource: Sendable, Hashable {
    /// As PyTorch draws them on CUDA for the same seed.
    case seeded(PhiloxNoise)
    /// Given numbers, one array per draw. A sampler may draw once more in its last step, where noise has the factor 0;
    /// it then gets the first array again.
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
