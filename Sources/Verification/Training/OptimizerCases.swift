/// The optimiser, its schedule, clipping, averages, and times.

import Checkpoints
import Glibc
import Tensors
import Training

extension Fixture {
    /// Tensors whose names begin so, under the rest of their names.
    fileprivate func tensors(_ prefix: String) throws -> [(name: String, tensor: Tensor)] {
        try tensorNames.filter { $0.hasPrefix(prefix) }.map {
            (String($0.dropFirst(prefix.count)), try tensor($0))
        }
    }

    fileprivate func optimizer() throws -> Adam.Settings {
        guard let betas = config["betas"]?.doubles, betas.count == 2 else {
            throw FixtureError("config lacks 'betas'")
        }
        return Adam.Settings(
            learningRate: try double("lr"), beta1: betas[0], beta2: betas[1],
            epsilon: try double("eps"), decay: try double("weight_decay"))
    }

    fileprivate var parameterType: DType { computeType.hasPrefix("bfloat16") ? .bf16 : .f32 }
}

/// in.param.*, in.step<n>.grad.* → out.step<n>.{master,exp_avg,exp_avg_sq,param}.*
func checkAdam(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let parameters = Parameters(
        fixture.name, try fixture.tensors("in.param."), as: fixture.parameterType)
    let adam = Adam(try fixture.optimizer(), on: device)
    let schedule = LearningRateSchedule([
        LearningRateSchedule.Cycle(
            warmup: try fixture.int("warm_up_steps"), start: try fixture.double("f_start"),
            highest: try fixture.double("f_max"), lowest: try fixture.double("f_min"))
    ])
    let start = parameters.masters
    var rates: [Double] = []
    for step in 1...(try fixture.int("steps")) {
        let factor = schedule.factor(step - 1)
        rates.append(Double(Float(adam.settings.learningRate * factor)))
        let gradients = Dictionary(
            uniqueKeysWithValues: try fixture.tensors("in.step\(step).grad.").map {
                ($0.name, device.place($0.tensor, as: $0.tensor.dtype))
            })
        adam.step(parameters, gradients, factor: factor)
        for name in parameters.names {
            let found = [
                ("master", parameters.masters[name]!), ("exp_avg", adam.means[name]!),
                ("exp_avg_sq", adam.squares[name]!), ("param", parameters.tensor(name)!),
            ]
            for (kind, tensor) in found {
                let full = "out.step\(step).\(kind).\(name)"
                if fixture.has(full) {
                    try checks.compare(full, device.read(tensor), in: fixture)
                }
            }
            let full = "out.step\(step).delta.\(name)"
            guard fixture.has(full) else { continue }
            let now = device.read(parameters.masters[name]!).floats()
            let moved = zip(now, start[name]!.floats()).map { Double($0 - $1) }
            try checks.compare(full, moved, in: fixture)
        }
    }
    if fixture.has("out.lr") { try checks.compare("out.lr", rates, in: fixture) }
}

/// Some steps, then more with the masters kept, and as many as the original resumes: from what nets see of the parameters,
/// and with moments that loading has rounded to the parameters' type.
func checkAdamResume(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let type = fixture.parameterType
    let parameters = Parameters(fixture.name, try fixture.tensors("in.param."), as: type)
    let adam = Adam(try fixture.optimizer(), on: device)
    func gradients(_ step: Int) throws -> [String: Tensor] {
        Dictionary(
            uniqueKeysWithValues: try fixture.tensors("in.step\(step).grad.").map {
                ($0.name, device.place($0.tensor, as: $0.tensor.dtype))
            })
    }
    func compare(_ kind: String, _ parameters: Parameters) throws {
        for name in parameters.names {
            try checks.compare(
                "out.\(kind).\(name)", device.read(parameters.masters[name]!), in: fixture)
        }
    }
    let before = try fixture.int("steps_before")
    for step in 1...before { adam.step(parameters, try gradients(step), factor: 1) }
    try compare("master_before", parameters)
    let resumed = Parameters(
        fixture.name, parameters.names.map { ($0, device.read(parameters.tensor($0)!)) }, as: type)
    let other = Adam(adam.settings, on: device)
    func rounded(_ moments: [String: Tensor]) -> [String: Tensor] {
        moments.mapValues { device.cast(device.cast($0, to: type), to: .f32) }
    }
    other.restore(
        means: rounded(adam.means), squares: rounded(adam.squares), steps: adam.steps)
    let after = try fixture.int("steps_after")
    for step in before..<before + max(0, after) {
        adam.step(parameters, try gradients(step + 1), factor: 1)
        other.step(resumed, try gradients(step + 1), factor: 1)
    }
    try compare("kept.master", parameters)
    try compare("after.master", resumed)
    try checks.compare("out.after.step", [Double(other.steps)], in: fixture)
}

/// in.grad.* → out.total_norm, out.clipped.*; the reference measures and does not clip.
func checkClipping(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let gradients = Dictionary(
        uniqueKeysWithValues: try fixture.tensors("in.grad.").map {
            ($0.name, device.place($0.tensor, as: .f32))
        })
    let norm = GradientNorm.norm(gradients, on: device)
    let factor = Double(
        GradientNorm.clipping(norm, to: try fixture.double("max_norm")))
    try checks.compare("out.total_norm", [norm], in: fixture)
    for (name, gradient) in gradients {
        let values = device.read(gradient).doubles()
        try checks.compare("out.clipped.\(name)", values.map { $0 * factor }, in: fixture)
        try checks.compare("out.reference.\(name)", values, in: fixture)
    }
}

func checkForceFinite(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    try checks.compare(
        "out.grad", GradientNorm.withoutNonFinite(try fixture.tensor("in.grad")), in: fixture)
}

func checkAverageWeight(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    // Of a run that goes on from another one's weights, the original counts from a later iteration.
    let shift = fixture.config["iteration_shift"]?.int ?? 0
    let iterations = try fixture.tensor("in.iteration").doubles().map { Int($0) + shift }
    for rate in fixture.config["rates"]?.doubles ?? [] {
        try checks.compare("out.gamma_\(rate)", [MovingAverage.exponent(rate)], in: fixture)
        try checks.compare(
            "out.beta_\(rate)", iterations.map { MovingAverage.weight($0, rate: rate) },
            in: fixture)
    }
}

/// in.ema.*, in.step<n>.param.* → out.step<n>.ema.*
func checkAverage(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let start = try fixture.tensors("in.ema.")
    let average = MovingAverage(
        Parameters(fixture.name, start, as: .f32), rate: try fixture.double("rate"), on: device)
    let first = try fixture.int("first_iteration")
    for step in 0..<(try fixture.int("steps")) {
        average.update(
            Parameters(fixture.name, try fixture.tensors("in.step\(step).param."), as: .bf16),
            iteration: first + step)
        for (name, value) in average.values {
            try checks.compare("out.step\(step).ema.\(name)", device.read(value), in: fixture)
        }
    }
}

/// in.n: [n] → out.factor, out.lr; or out.linear and out.cosine
func checkLearningRate(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    func list(_ key: String) throws -> [Double] {
        guard let values = fixture.config[key]?.doubles else {
            throw FixtureError("config lacks '\(key)'")
        }
        return values
    }
    let (warmups, lengths) = (try list("warm_up_steps"), try list("cycle_lengths"))
    let (starts, highest, lowest) = (try list("f_start"), try list("f_max"), try list("f_min"))
    let cycles = warmups.indices.map {
        LearningRateSchedule.Cycle(
            warmup: Int(warmups[$0]), length: Int(lengths[$0]), start: starts[$0],
            highest: highest[$0], lowest: lowest[$0])
    }
    let steps = try fixture.tensor("in.n").doubles().map { Int($0) }
    let linear = steps.map { LearningRateSchedule(cycles).factor($0) }
    if fixture.has("out.factor") {
        let rate = try fixture.double("lr")
        try checks.compare("out.factor", linear, in: fixture)
        try checks.compare("out.lr", linear.map { Double(Float(rate * $0)) }, in: fixture)
    } else {
        try checks.compare("out.linear", linear, in: fixture)
        try checks.compare(
            "out.cosine", steps.map { LearningRateSchedule(cycles, .cosine).factor($0) },
            in: fixture)
    }
}

// MARK: - Times

/// in.normal: [n] → out.rf, out.trig
func checkLogNormal(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    try checkDistribution(
        .logNormal(mean: try fixture.double("p_mean"), deviation: try fixture.double("p_std")),
        "in.normal", fixture, checks)
}

/// in.uniform: [n] → out.rf, out.trig
func checkUniformShift(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    try checkDistribution(
        .uniformShift(try fixture.double("shift")), "in.uniform", fixture, checks)
}

private func checkDistribution(
    _ times: TimeDistribution, _ input: String, _ fixture: Fixture, _ checks: Checks
) throws {
    let draws = try fixture.tensor(input).floats()
    try checks.compare("out.rf", draws.map { times.rectifiedFlow($0) }, in: fixture)
    try checks.compare("out.trig", draws.map { times.angle($0) }, in: fixture)
}

func checkDiscreteTimes(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let skip = try fixture.int("dcm_skipping_interval_steps")
    let rows = try fixture.tensor("in.uniform").floats().map {
        RCM.discreteAngles(
            $0, steps: try fixture.int("dcm_total_steps"), skip: skip,
            shift: try fixture.double("dcm_timestep_shift"))
    }
    try checks.compare(
        "out.trig", (0...skip).flatMap { k in rows.map { Double($0[k]) } }, in: fixture)
}

func checkTimeConversions(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    if try fixture.tensor("in.rf").dtype == .f64 {
        try checkConversions(fixture, checks, Double.self, atan, tan) { Double($0) }
    } else {
        try checkConversions(fixture, checks, Float.self, atanf, tanf) { Float($0) }
    }
}

private func checkConversions<T: BinaryFloatingPoint>(
    _ fixture: Fixture, _ checks: Checks, _ type: T.Type, _ atan: (T) -> T, _ tan: (T) -> T,
    _ number: (Double) -> T
) throws {
    func compare(_ name: String, _ input: String, _ convert: (T) -> T) throws {
        let values = try fixture.tensor(input).doubles().map { Double(convert(number($0))) }
        // Some results at pi / 2 have no meaning and are not stored.
        let count = try fixture.tensor("out.\(name)").shape.count
        try checks.compare("out.\(name)", Array(values.prefix(count)), in: fixture)
    }
    try compare("rf_to_sigma", "in.rf") { NoiseTime.sigma(rectifiedFlow: $0) }
    try compare("rf_to_trig", "in.rf") { atan(NoiseTime.sigma(rectifiedFlow: $0)) }
    try compare("trig_to_sigma", "in.trig") { tan($0) }
    try compare("trig_to_rf", "in.trig") { NoiseTime.rectifiedFlow(sigma: tan($0)) }
    try compare("sigma_to_rf", "in.sigma") { NoiseTime.rectifiedFlow(sigma: $0) }
    try compare("sigma_to_trig", "in.sigma") { atan($0) }
    for name in fixture.tensorNames where name.hasPrefix("out.shift_rf_") {
        guard let shift = Double(name.dropFirst("out.shift_rf_".count)) else { continue }
        try compare(String(name.dropFirst("out.".count)), "in.rf") {
            NoiseTime.shifted($0, by: T(shift))
        }
    }
}

/// in.t: [n] → coefficients of the wrapper around a net, and their derivatives for a tangent cos t sin t.
func checkTrigScaling(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let scalings = try fixture.tensor("in.t").doubles().map { TrigScaling($0) }
    func compare(_ name: String, _ value: (TrigScaling) -> Double) throws {
        try checks.compare("out.\(name)", scalings.map(value), in: fixture)
    }
    func speed(_ s: TrigScaling) -> Double { s.cosine * s.sine }
    for name in ["c_skip", "c_in"] {
        try compare(name) { 1 / $0.sum }
        try compare("tangent.\(name)") { $0.inputSlope * speed($0) }
    }
    try compare("c_out") { -$0.sine / $0.sum }
    try compare("tangent.c_out") { -speed($0) / ($0.sum * $0.sum) }
    try compare("c_noise") { $0.timestep }
    try compare("tangent.c_noise") { $0.timestepSlope * speed($0) }
    try compare("c_noise_f32") { Double(Float($0.timestep)) }
    try compare("c_noise_bf16") { Double(BFloat16(Float($0.timestep)).float) }
}
