/// The denoising loop, for all models, samplers and numbers of samples.

public import Tensors

/// A sampler and its state, which the caller advances step by step.
public struct Denoiser {
    private var sampler: any Sampler
    /// Number of finished steps.
    public private(set) var count = 0
    /// The current state: [samples, C, T, H, W], f64 (rCM) or f32
    public private(set) var state: Tensor

    /// - Parameter noise: f32 [samples, C, T, H, W], standard normal.
    public init(_ sampler: any Sampler, noise: Tensor, on device: any Backend) {
        self.sampler = sampler
        state = sampler.start(noise, on: device)
    }

    /// The step that `advance` takes next; nil at the end.
    public var next: DenoisingStep? { count < sampler.steps.count ? sampler.steps[count] : nil }

    /// Takes one step.
    /// - Parameters:
    ///   - draw: draws new standard normal numbers of the state's shape, for samplers that add noise.
    ///   - velocity: evaluates the model. f32 [samples, C, T, H, W] → same
    public mutating func advance(
        on device: any Backend, draw: () -> Tensor,
        velocity: (Tensor, DenoisingStep) throws -> Tensor
    ) rethrows {
        guard let step = next else { return }
        let answer = try velocity(latents(on: device), step)
        state = sampler.advance(state, velocity: answer, step: step, draw: draw, on: device)
        count += 1
    }

    /// The state in f32. [samples, C, T, H, W]
    public func latents(on device: any Backend) -> Tensor {
        state.dtype == .f32 ? state : device.combine([state], [1], as: .f32)
    }
}

/// Classifier-free guidance: negative + guidance (positive - negative).
public func guided(
    _ positive: Tensor, away negative: Tensor, by guidance: Double, on device: any Backend
) -> Tensor {
    device.combine([negative, positive], [1 - guidance, guidance], as: .f32)
}

/// Whether the low-noise expert is used at noise level `t`, which is strictly below the boundary.
public func usesLowNoiseExpert(at t: Double, boundary: Double) -> Bool { t < boundary }
