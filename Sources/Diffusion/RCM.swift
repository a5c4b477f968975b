/// The sampler of rCM-distilled models: one to four steps.

import Glibc
public import Tensors

/// Consistency sampling of rCM (arXiv 2510.08431), in rectified-flow parametrisation.
///
/// The angles a = atan(sigma_max), 1.5, 1.4, 1.0, 0 become noise levels t = sin a / (cos a + sin a). The state is f64
/// and starts as noise * t[0]. Source: turbodiffusion/inference/wan2.1_t2v_infer.py of thu-ml/TurboDiffusion.
public struct RCMSampler: Sampler, Sendable {
    /// Whether noise is added between steps.
    public enum Solver: String, Sendable, Hashable {
        /// Fresh noise after every step.
        case sde
        /// Deterministic: sharper, less robust.
        case ode
    }

    public let steps: [DenoisingStep]
    public let solver: Solver

    /// - Parameters:
    ///   - count: 1...4.
    ///   - sigmaMax: noise level of the first step, above tan(1.5) = 14.1 so that levels fall; any positive one for a
    ///     single step.
    ///   - roundTimesteps: whether the model is given bf16(1000 t), as in the original's scripts.
    public init(
        count: Int, sigmaMax: Double, solver: Solver = .sde, roundTimesteps: Bool = true
    ) throws(SamplerError) {
        guard (1...4).contains(count) else {
            throw SamplerError(.steps, found: count, expected: "1 to 4 for distilled models")
        }
        guard sigmaMax.isFinite, count == 1 ? sigmaMax > 0 : atan(sigmaMax) > 1.5 else {
            throw SamplerError(
                .sigmaMax, found: sigmaMax, expected: "above 14.1 (the second noise level)")
        }
        let angles = [atan(sigmaMax)] + [1.5, 1.4, 1.0].prefix(count - 1) + [0]
        let levels = angles.map { sin($0) / (cos($0) + sin($0)) }
        steps = (0..<count).map { index in
            let exact = levels[index] * 1000
            let rounded = Double(Float(Double(Float(levels[index])) * 1000).roundedToBFloat16)
            return DenoisingStep(
                index: index, t: levels[index], next: levels[index + 1],
                timestep: roundTimesteps ? rounded : exact)
        }
        self.solver = solver
    }

    public func start(_ noise: Tensor, on device: any Backend) -> Tensor {
        device.combine([noise], [steps[0].t], as: .f64)
    }

    public func advance(
        _ x: Tensor, velocity: Tensor, step: DenoisingStep, draw: () -> Tensor,
        on device: any Backend
    ) -> Tensor {
        // The original also draws in the last step, where noise has the factor 0. So do we, to keep the generator in
        // the same state.
        let noise = solver == .sde ? draw() : nil
        return device.rcmStep(x, velocity: velocity, noise: noise, t: step.t, next: step.next)
    }
}
