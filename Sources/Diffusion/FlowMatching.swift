/// Samplers for flow-matching models that are not distilled: Euler and UniPC, with a shifted schedule.

import Glibc
public import Tensors

/// A schedule of noise levels sigma = shift s / (1 + (shift - 1) s), where s falls evenly from a start to zero.
/// Source: `FlowEulerSampler` and `FlowUniPCMultistepSampler` of thu-ml/TurboDiffusion (rcm/samplers), and
/// wan/utils/fm_solvers_unipc.py of Wan-Video/Wan2.1.
public struct FlowSchedule: Sendable, Hashable {
    /// The noise level before each of `count` steps, then 0.
    public let sigmas: [Double]
    /// What the model is given at each step, in 0...1000.
    public let timesteps: [Double]

    /// Makes a schedule.
    /// - Parameter sigmaMax: noise-to-signal ratio of the first step; nil starts from pure noise (sigma 1).
    public init(count: Int, shift: Double, sigmaMax: Double? = nil) throws(SamplerError) {
        try Self.check(count, shift)
        var start = 1.0
        if let sigmaMax {
            guard sigmaMax > 0, sigmaMax.isFinite else {
                throw SamplerError(.sigmaMax, found: sigmaMax, expected: "positive")
            }
            let level = sigmaMax / (sigmaMax + 1)
            start = level / (shift - (shift - 1) * level)
        }
        let levels = Self.levels(count, from: start, shift: shift)
        sigmas = levels.map { Double(Float($0)) } + [0]
        timesteps = levels.map { $0 * 1000 }
    }

    /// Wan2.1's own schedule: starts at sigma 0.999 before the shift, and truncates timesteps to integers.
    public static func wan(count: Int, shift: Double) throws(SamplerError) -> FlowSchedule {
        try check(count, shift)
        // The original makes 1000 training levels from 1 - 1/1000 in f32 and shifts them once to find the largest
        // level; `levels` then shifts again, like the original's set_timesteps.
        let largest = Double(Float(1 - Float(1) / 1000))
        let levels = levels(count, from: largest, shift: shift)
        return FlowSchedule(
            sigmas: levels.map { Double(Float($0)) } + [0],
            timesteps: levels.map { ($0 * 1000).rounded(.towardZero) })
    }

    private init(sigmas: [Double], timesteps: [Double]) {
        self.sigmas = sigmas
        self.timesteps = timesteps
    }

    private static func levels(_ count: Int, from start: Double, shift: Double) -> [Double] {
        (0..<count).map { index in
            let s = start * (1 - Double(index) / Double(count))
            return shift * s / (1 + (shift - 1) * s)
        }
    }

    private static func check(_ count: Int, _ shift: Double) throws(SamplerError) {
        guard (1...1000).contains(count) else {
            throw SamplerError(.steps, found: count, expected: "1 to 1000")
        }
        guard shift > 0, shift.isFinite else {
            throw SamplerError(.shift, found: shift, expected: "positive")
        }
    }

    var steps: [DenoisingStep] {
        timesteps.indices.map {
            DenoisingStep(index: $0, t: sigmas[$0], next: sigmas[$0 + 1], timestep: timesteps[$0])
        }
    }
}

/// x <- x + (next - t) v, with the state in f32.
public struct EulerSampler: Sampler, Sendable {
    public let steps: [DenoisingStep]
    public init(_ schedule: FlowSchedule) { steps = schedule.steps }

    public func start(_ noise: Tensor, on device: any Backend) -> Tensor { noise }

    public func advance(
        _ x: Tensor, velocity: Tensor, step: DenoisingStep, draw: () -> Tensor,
        on device: any Backend
    ) -> Tensor {
        device.combine([x, velocity], [1, step.next - step.t], as: .f32)
    }
}

/// UniPC (arXiv 2302.04867) of order two on the predicted sample, variant bh2, with the corrector from the second step
/// on and a last step of order one. The state is f32.
public struct UniPCSampler: Sampler {
    public let steps: [DenoisingStep]
    private let sigmas: [Double]
    /// The predicted samples of the last two steps, the older one first.
    private var predictions: [Tensor] = []
    /// The state before the last prediction, and the order of that.
    private var last: (x: Tensor, order: Int)?

    public init(_ schedule: FlowSchedule) {
        steps = schedule.steps
        sigmas = schedule.sigmas
    }

    public func start(_ noise: Tensor, on device: any Backend) -> Tensor { noise }

    public mutating func advance(
        _ x: Tensor, velocity: Tensor, step: DenoisingStep, draw: () -> Tensor,
        on device: any Backend
    ) -> Tensor {
        let prediction = device.combine([x, velocity], [1, -step.t], as: .f32)
        var x = x
        if let last {
            x = correct(last.x, prediction, order: last.order, at: step.index, on: device)
        }
        predictions = predictions.suffix(1) + [prediction]
        let order = min(2, steps.count - step.index, step.index + 1)
        last = (x, order)
        return predict(x, order: order, at: step.index, on: device)
    }

    /// UniP: predicts the state at level `index + 1` from that at level `index`.
    private func predict(_ x: Tensor, order: Int, at index: Int, on device: any Backend) -> Tensor {
        let move = Move(from: sigmas[index], to: sigmas[index + 1])
        let m0 = predictions[predictions.count - 1]
        guard order == 2 else {
            return device.combine([x, m0], [move.keep, -move.alpha * move.phi1], as: .f32)
        }
        let ratio = move.ratio(to: sigmas[index - 1])
        let weight = -move.alpha * move.phi1 * 0.5 / ratio
        return device.combine(
            [x, m0, predictions[0]],
            [move.keep, -move.alpha * move.phi1 - weight, weight], as: .f32)
    }

    /// UniC: corrects the state at level `index`, from the state before it and the new prediction.
    private func correct(
        _ x: Tensor, _ prediction: Tensor, order: Int, at index: Int, on device: any Backend
    ) -> Tensor {
        let move = Move(from: sigmas[index - 1], to: sigmas[index])
        let m0 = predictions[predictions.count - 1]
        let scale = -move.alpha * move.phi1
        guard order == 2 else {
            return device.combine(
                [x, m0, prediction], [move.keep, scale - scale * 0.5, scale * 0.5], as: .f32)
        }
        // [[1, 1], [ratio, 1]] rho = b
        let ratio = move.ratio(to: sigmas[index - 2])
        let b = move.rightHandSide
        let rho0 = (b.1 - b.0) / (ratio - 1)
        let rho1 = b.0 - rho0
        let older = scale * rho0 / ratio
        return device.combine(
            [x, m0, predictions[0], prediction],
            [move.keep, scale - older - scale * rho1, older, scale * rho1], as: .f32)
    }

    /// The quantities of one step in terms of lambda = log((1 - sigma) / sigma). They are infinite for a sigma of 1 or
    /// 0, but all results computed from them are finite.
    private struct Move {
        let lambda, h: Double
        /// sigma_t / sigma_s
        let keep: Double
        /// 1 - sigma_t
        let alpha: Double
        /// expm1(-h), which is also B(h) of variant bh2.
        let phi1: Double

        init(from s: Double, to t: Double) {
            lambda = Self.lambda(s)
            h = Self.lambda(t) - lambda
            keep = t / s
            alpha = 1 - t
            phi1 = expm1(-h)
        }

        static func lambda(_ sigma: Double) -> Double { log(1 - sigma) - log(sigma) }

        func ratio(to sigma: Double) -> Double { (Self.lambda(sigma) - lambda) / h }

        /// b_1 and b_2 of the system of equations in the paper.
        var rightHandSide: (Double, Double) {
            let first = phi1 / -h - 1
            let second = first / -h - 0.5
            return (first / phi1, 2 * second / phi1)
        }
    }
}
