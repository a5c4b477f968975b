/// The denoising loop: exists once, for every model, sampler and number of samples.

public import Diffusion
package import Models
public import Tensors

/// A sampler, its state and its source of noise. Advanced step by step by whoever wants the result; lives on the
/// thread of its device.
public struct Denoiser {
    private var sampler: any Sampler
    private let device: any Backend
    private let draw: () -> Tensor
    /// Steps done.
    public private(set) var count = 0
    /// state: [samples, 16, T, H, W], f64 (rCM) or f32
    public private(set) var state: Tensor

    /// - Parameters:
    ///   - noise: f32 [samples, 16, T, H, W], standard normal.
    ///   - draw: more of the same, asked for by samplers that add noise.
    public init(
        _ sampler: any Sampler, noise: Tensor, on device: any Backend,
        draw: @escaping () -> Tensor
    ) {
        self.sampler = sampler
        self.device = device
        self.draw = draw
        state = sampler.start(noise, on: device)
    }

    /// The step that `advance` would take, nil at the end.
    public var next: DenoisingStep? { count < sampler.steps.count ? sampler.steps[count] : nil }
    public var stepCount: Int { sampler.steps.count }

    /// Takes one step.
    /// - Parameter velocity: the model's answer, f32 [samples, 16, T, H, W], to a state in f32 of that shape.
    public mutating func advance(velocity: (Tensor, DenoisingStep) throws -> Tensor) rethrows {
        guard let step = next else { return }
        let answer = try velocity(latents, step)
        state = sampler.advance(state, velocity: answer, step: step, draw: draw, on: device)
        count += 1
    }

    /// The state in f32. [samples, 16, T, H, W]
    public var latents: Tensor {
        state.dtype == .f32 ? state : device.combine([state], [1], as: .f32)
    }
}

/// Classifier-free guidance: negative + guidance (positive - negative).
public func guided(
    _ positive: Tensor, away negative: Tensor, by guidance: Double, on device: any Backend
) -> Tensor {
    device.combine([negative, positive], [1 - guidance, guidance], as: .f32)
}

extension WanTransformer {
    /// The velocity with `guidance` away from `negative`, where there is one.
    /// parts: [C_i, T, H, W] → f32 [16, T, H, W]
    package func velocity(
        _ parts: [Tensor], _ modulation: Modulation, _ positive: Context, away negative: Context?,
        by guidance: Double, on device: any Backend
    ) -> Tensor {
        let answer = self(parts, modulation, positive, on: device)
        guard let negative else { return answer }
        return guided(
            answer, away: self(parts, modulation, negative, on: device), by: guidance, on: device)
    }
}

/// Which of two experts answers at noise level `t`: the low-noise one strictly below the boundary.
public func usesLowNoiseExpert(at t: Double, boundary: Double) -> Bool { t < boundary }
