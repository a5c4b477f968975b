/// Cases of whole sampling runs, with an analytic velocity or a small transformer.

import Diffusion
import Glibc
import Ground
import Tensors

/// Runs a sampler with the noise of the case. → the states x0 … xn in f64, the last of which is the sample
func sample(
    _ fixture: Fixture, _ sampler: any Sampler, on device: any Backend,
    velocity: (Tensor, DenoisingStep) throws -> Tensor
) throws -> [[Double]] {
    var noises = try fixture.noises[...]
    func draw() -> Tensor {
        ensure(!noises.isEmpty, "the sampler draws more noise than the case has")
        return device.place(noises.removeFirst(), as: .f32)
    }
    var denoiser = Denoiser(sampler, noise: draw(), on: device)
    var states = [device.read(denoiser.state).doubles()]
    while denoiser.next != nil {
        try denoiser.advance(on: device, draw: draw, velocity: velocity)
        states.append(device.read(denoiser.state).doubles())
    }
    return states
}

/// Compares states with mid.x0 … and the last one with `output`.
func compare(
    _ states: [[Double]], output: String, in fixture: Fixture, _ checks: Checks
) throws {
    // Euler and UniPC runs are stored without the noise that they start from.
    let first = fixture.has("mid.x\(states.count - 1)") ? 0 : 1
    for (index, state) in states.dropFirst(first).enumerated()
    where fixture.has("mid.x\(index)") {
        try checks.compare("mid.x\(index)", state, in: fixture)
    }
    try checks.compare(output, states.last ?? [], in: fixture)
}

/// The rCM sampler that a case describes.
func rcmSampler(_ fixture: Fixture, roundTimesteps: Bool) throws -> RCMSampler {
    try RCMSampler(
        count: try fixture.int("num_steps"), sigmaMax: try fixture.double("sigma_max"),
        solver: fixture.config["ode"]?.bool == true ? .ode : .sde, roundTimesteps: roundTimesteps)
}

/// Compares which expert is used at each step: 1 for the low-noise one, else 0.
func compareExperts(_ used: [Double], expected: [Double]?, _ checks: Checks) {
    if let expected { checks.compare("low-noise expert", used, expected, .exact) }
}

extension Sampler {
    /// For each step, 1 if the low-noise expert is used, else 0.
    fileprivate func lowNoise(below boundary: Double) -> [Double] {
        steps.map { usesLowNoiseExpert(at: $0.t, boundary: boundary) ? 1 : 0 }
    }
}

/// velocity: tanh(A x + b t / 1000), halved for the low-noise model, in f64 from f32 states.
func checkAnalyticSampler(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let matrix = try fixture.tensor("w.A").doubles()
    let offset = try fixture.tensor("w.b").doubles()
    let channels = offset.count
    let boundary = try fixture.double("boundary")
    let sampler = try rcmSampler(fixture, roundTimesteps: false)
    compareExperts(
        sampler.lowNoise(below: boundary),
        expected: fixture.config["low_noise_model"]?.doubles, checks)
    let states = try sample(fixture, sampler, on: device) { state, step in
        let x = device.read(state).floats()
        let factor = usesLowNoiseExpert(at: step.t, boundary: boundary) ? 0.5 : 1
        let time = Double(Float(Double(Float(step.t)) * 1000)) / 1000
        let inner = state.shape.count / state.shape[0] / channels
        var velocity = [Float](repeating: 0, count: x.count)
        for sample in 0..<state.shape[0] {
            for position in 0..<inner {
                let at = { (channel: Int) in (sample * channels + channel) * inner + position }
                for row in 0..<channels {
                    var sum = offset[row] * time
                    for column in 0..<channels {
                        sum += matrix[row * channels + column] * Double(x[at(column)])
                    }
                    velocity[at(row)] = Float(tanh(sum) * factor)
                }
            }
        }
        return device.place(Tensor(velocity, state.shape), as: .f32)
    }
    try compare(states, output: "out.samples", in: fixture, checks)
}

/// A distilled transformer: timesteps rounded to bf16 or not, and the whole run in bf16.
func checkDistilledSampler(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let variants: [(output: String, rounded: Bool, bf16: Bool)] = [
        ("out.samples", false, false), ("out.samples_fp32_tbf16", true, false),
        ("out.samples_bf16ref", true, true),
    ]
    for variant in variants where fixture.has(variant.output) {
        let sampler = try rcmSampler(fixture, roundTimesteps: variant.rounded)
        let model = try SmallTransformer(
            fixture, try fixture.weights.open(), on: device,
            activations: variant.bf16 ? .bf16 : .f32)
        let context = try fixture.f32("in.context")
        let states = try sample(fixture, sampler, on: device) { state, step in
            try model.velocity(state, at: step.timestep, context: context)
        }
        if variant.output == "out.samples" {
            try compare(states, output: variant.output, in: fixture, checks)
        } else {
            try checks.compare(variant.output, states.last ?? [], in: fixture)
        }
    }
}

/// Two experts: the low-noise one is the other one with its head halved.
func checkExpertSwitch(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let sampler = try rcmSampler(fixture, roundTimesteps: false)
    let boundary = try fixture.double("boundary")
    compareExperts(
        sampler.lowNoise(below: boundary),
        expected: fixture.config["low_noise_used"]?.doubles, checks)
    let weights = try fixture.weights.open()
    let high = try SmallTransformer(fixture, weights, on: device, activations: .f32)
    let low = try SmallTransformer(
        fixture, halvedHead(weights), on: device, activations: .f32)
    let context = try fixture.f32("in.context")
    let conditioning = try fixture.f32("in.y")
    let states = try sample(fixture, sampler, on: device) { state, step in
        try (usesLowNoiseExpert(at: step.t, boundary: boundary) ? low : high).velocity(
            state, at: step.timestep, context: context, conditioning: conditioning)
    }
    try compare(states, output: "out.samples", in: fixture, checks)
}

/// Undistilled models: Euler, UniPC and Wan's own UniPC with guidance.
func checkGuidedSampler(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let count = try fixture.int("steps")
    let shift = try fixture.double("shift")
    let guidance = try fixture.double("guidance")
    let sampler: any Sampler
    switch fixture.operation {
    case "euler_sample_cfg":
        sampler = EulerSampler(
            try FlowSchedule(
                count: count, shift: shift, sigmaMax: fixture.config["sigma_max_arg"]?.double))
    case "unipc_sample_cfg":
        sampler = UniPCSampler(
            try FlowSchedule(
                count: count, shift: shift, sigmaMax: fixture.config["sigma_max_arg"]?.double))
    default:
        let schedule = try FlowSchedule.wan(count: count, shift: shift)
        checks.compare(
            "sigmas", schedule.sigmas, try fixture.tensor("in.sigmas").doubles(),
            Tolerance(maximum: 1e-6))
        checks.compare(
            "timesteps", schedule.timesteps, try fixture.tensor("in.timesteps").doubles(), .exact)
        sampler = UniPCSampler(schedule)
    }
    let model = try SmallTransformer(
        fixture, try fixture.weights.open(), on: device, activations: .f32)
    let context = try fixture.f32("in.context")
    let negative = try fixture.f32("in.neg_context")
    let states = try sample(fixture, sampler, on: device) { state, step in
        guided(
            try model.velocity(state, at: step.timestep, context: context),
            away: try model.velocity(state, at: step.timestep, context: negative), by: guidance,
            on: device)
    }
    try compare(states, output: "out.samples", in: fixture, checks)
}
