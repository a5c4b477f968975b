/// One training step each: losses, what leads to them, gradients.

import Checkpoints
import Models
import Tensors
import Training

/// The random numbers of a case, in the order in which the reference drew them.
final class StoredDraws: RandomSource {
    private var tensors: [Tensor]
    /// How many more than there are have been asked for.
    private(set) var missing = 0

    init(_ fixture: Fixture) throws {
        let order = fixture.config["noise_order"]?.array?.compactMap(\.string)
        let names =
            order?.map { String($0.split(separator: ":").last ?? "") } ?? ["normal_t", "eps"]
        tensors = try names.map { try fixture.f32("in.\($0)") }
    }

    var isUsedUp: Bool { tensors.isEmpty && missing == 0 }

    private func next(_ shape: Shape) -> Tensor {
        guard !tensors.isEmpty, tensors[0].shape.count == shape.count else {
            missing += 1
            return .zeros(shape, .f32)
        }
        return tensors.removeFirst()
    }

    func normals(_ count: Int) -> [Float] { next([count, 1]).floats() }
    func uniforms(_ count: Int) -> [Float] { next([count, 1]).floats() }
    func noise(_ count: Int, _ shape: Shape) -> [LatentValues] {
        let all = next(Shape([count] + shape.dimensions))
        return (0..<count).map { LatentValues(all[$0].reshaped(shape)) }
    }
}

extension RCM.Settings {
    /// As a case's configuration says.
    init(_ fixture: Fixture) throws {
        self.init()
        func double(_ key: String, _ path: WritableKeyPath<Self, Double>) {
            if let value = fixture.config[key]?.double { self[keyPath: path] = value }
        }
        func int(_ key: String, _ path: WritableKeyPath<Self, Int>) {
            if let value = fixture.config[key]?.int { self[keyPath: path] = value }
        }
        double("teacher_guidance", \.guidance)
        double("fd_size", \.difference)
        double("loss_scale", \.lossScale)
        double("loss_scale_dmd", \.distributionLossScale)
        double("dcm_timestep_shift", \.discreteShift)
        int("tangent_warmup", \.tangentWarmup)
        int("student_update_freq", \.studentEvery)
        int("max_simulation_steps_fake", \.simulationSteps)
        int("dcm_total_steps", \.discreteSteps)
        int("dcm_skipping_interval_steps", \.discreteSkip)
        if fixture.config["cm_type"]?.string == "dcm" { consistency = .discrete }
        switch fixture.config["fd_type"]?.int {
        case 1: derivative = .differenceInTime
        case 2: derivative = .difference
        default: derivative = .exact
        }
        if fixture.config["dmd_fix_timesteps"]?.bool == true {
            fixedAngles = fixture.config["backward_timesteps"]?.doubles
        }
        if let times = fixture.config["p_G"], let mean = times["p_mean"]?.double,
            let deviation = times["p_std"]?.double
        {
            consistencyTimes = .logNormal(mean: mean, deviation: deviation)
        }
        if let shift = fixture.config["p_D"]?["shift"]?.double {
            distributionTimes = .uniformShift(shift)
        }
    }
}

extension Fixture {
    /// The samples of in.x0, in.context and in.uncond.
    /// - Parameter iteration: of a run, whose batches go round; nil: there is one batch.
    func samples(_ iteration: Int? = nil) throws -> [Sample] {
        var (latents, contexts) = (try f32("in.x0"), try f32("in.context"))
        if let iteration {
            let place = iteration % latents.shape[0]
            (latents, contexts) = (latents[place], contexts[place])
        }
        let negatives = has("in.uncond") ? try f32("in.uncond") : nil
        return (0..<latents.shape[0]).map { index in
            Sample(
                latents: LatentValues(latents[index]), text: Text(contexts[index]),
                negative: negatives.map {
                    // One text for all, or one for each sample.
                    Text($0.shape.rank == 2 ? $0 : $0[min(index, $0.shape[0] - 1)])
                })
        }
    }
}

/// What steps tell, sample after sample.
private final class Observed {
    private(set) var values: [String: [Double]] = [:]
    private(set) var counts: [String: Int] = [:]

    func take(_ name: String, _ more: [Double]) {
        values[name, default: []] += more
        counts[name, default: 0] += 1
    }

    /// Compares with every `mid.…` of the case. Lists of times are stored time by time, not sample by sample.
    func compare(_ checks: Checks, in fixture: Fixture) throws {
        for (name, all) in values where fixture.has("mid.\(name)") {
            var all = all
            if name.hasSuffix("trajectory_times") || name == "dcm.times" {
                let (samples, steps) = (counts[name]!, all.count / counts[name]!)
                all = (0..<all.count).map { all[$0 % samples * steps + $0 / samples] }
            }
            try checks.compareSampled("mid.\(name)", all, in: fixture)
        }
    }
}

/// The nets of an rCM case; the one that the case trains has parameters of its own.
private func rcm(_ fixture: Fixture, on device: any Backend) throws -> RCM {
    func net(_ role: String) throws -> Net {
        try TrainingNet(
            fixture, try fixture.weights.open(role), on: device, attention: .original,
            isTrained: role != "teacher"
        ).net
    }
    var settings = try RCM.Settings(fixture)
    settings.keepsPoison = true
    return RCM(
        student: try net("student"), teacher: try net("teacher"),
        critic: fixture.weights.has("critic") ? try net("critic") : nil, settings)
}

/// Gradients of a step by the trained net's parameters; what is not finite becomes zero, as in the original.
private func compareGradients(
    _ result: StepResult, _ checks: Checks, in fixture: Fixture, on device: any Backend
) throws {
    let names = fixture.tensorNames.filter { $0.hasPrefix("out.grad.") }
    for name in names {
        let parameter = String(name.dropFirst("out.grad.".count))
        guard let gradient = result.gradients[parameter] else {
            checks.fail(name, "the step gives no such gradient")
            continue
        }
        let finite = GradientNorm.withoutNonFinite(device.read(gradient))
        try checks.compareSampled(name, finite, in: fixture)
    }
}

private func checkStep(
    _ fixture: Fixture, _ device: any Backend, _ checks: Checks,
    _ step: (RCM, [Sample], StoredDraws, StepObserver) throws -> StepResult
) throws {
    let rcm = try rcm(fixture, on: device)
    let draws = try StoredDraws(fixture)
    let observed = Observed()
    let result = try step(rcm, try fixture.samples(), draws, observed.take)
    try observed.compare(checks, in: fixture)
    if fixture.has("out.loss") { try checks.compare("out.loss", result.losses, in: fixture) }
    try compareGradients(result, checks, in: fixture, on: device)
    if !draws.isUsedUp { checks.fail("in", "random numbers were drawn in another order") }
}

func checkContinuousStep(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let iteration = try fixture.int("iteration")
    try checkStep(fixture, device, checks) { rcm, batch, draws, observe in
        let schedule = RCMSchedule(rcm.settings, hasCritic: true)
        return try rcm.continuousConsistency(
            batch, warmup: schedule.tangentWeight(iteration), draws, observe: observe)
    }
}

func checkDiscreteStep(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    try checkStep(fixture, device, checks) { rcm, batch, draws, observe in
        try rcm.discreteConsistency(batch, draws, observe: observe)
    }
}

func checkDistributionStep(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let steps = try fixture.int("simulation_steps")
    try checkStep(fixture, device, checks) { rcm, batch, draws, observe in
        try rcm.distributionMatching(batch, steps: steps, draws, observe: observe)
    }
}

func checkCriticStep(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let steps = try fixture.int("simulation_steps")
    try checkStep(fixture, device, checks) { rcm, batch, draws, observe in
        try rcm.criticStep(batch, steps: steps, draws, observe: observe)
    }
}

/// Both closures of a student's iteration: their gradients add up.
func checkJointStep(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let iteration = try fixture.int("iteration")
    try checkStep(fixture, device, checks) { rcm, batch, draws, observe in
        let schedule = RCMSchedule(rcm.settings, hasCritic: true)
        let result = StepResult(on: rcm.student.device)
        if schedule.hasConsistency {
            result.add(
                try rcm.consistency(batch, iteration: iteration, draws, observe: observe))
        }
        for name in ["out.loss.scm", "out.loss.dcm"] where fixture.has(name) {
            try checks.compare(name, result.losses, in: fixture)
        }
        let matching = try rcm.distributionMatching(
            batch, steps: schedule.steps(iteration), draws, observe: observe)
        try checks.compare("out.loss.dmd", matching.losses, in: fixture)
        result.add(matching)
        return result
    }
}

/// F of the student and cos t sin t dF/dt along the teacher's F. in.x0, in.eps, in.F_teacher: [B, 16, T, H, W]; in.t: [B, 1]
func checkStudentField(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let net = try TrainingNet(
        fixture, try fixture.weights.open(), on: device, attention: .original, isTrained: false
    ).net
    let rcm = RCM(student: net, teacher: net, critic: nil, try RCM.Settings(fixture))
    let (clean, noise) = (try fixture.f32("in.x0"), try fixture.f32("in.eps"))
    let (flow, contexts) = (try fixture.f32("in.F_teacher"), try fixture.f32("in.context"))
    var fields: [Double] = []
    var tangents: [Double] = []
    for (index, t) in try fixture.tensor("in.t").doubles().enumerated() {
        let scaling = TrigScaling(t)
        let x =
            scaling.cosine * LatentValues(clean[index]) + scaling.sine * LatentValues(noise[index])
        let found = try rcm.derivative(
            x, t, along: LatentValues(flow[index]), Text(contexts[index]))
        fields += found.field.values
        tangents += found.tangent.values
    }
    try checks.compareSampled("out.F", fields, in: fixture)
    try checks.compareSampled("out.dF", tangents, in: fixture)
}

extension TrainingNet {
    /// The block maps of each layer, sample after sample. noise: [B, C, T, H, W]
    func blockMaps(_ batch: [Sample], at times: [Double], _ noise: Tensor) throws -> [[Double]] {
        var maps: [[Double]] = []
        for (index, t) in times.enumerated() {
            let x = (1 - t) * batch[index].latents + t * LatentValues(noise[index])
            let found = try blockMaps(x.tensor, at: 1000 * t, batch[index].text)
            if maps.isEmpty { maps = found.map { _ in [] } }
            for (layer, map) in found.enumerated() { maps[layer] += map }
        }
        return maps
    }
}

/// A step of white-box tuning.
func checkWhiteBoxStep(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let student = try TrainingNet(
        fixture, try fixture.weights.open("student"), on: device,
        attention: try TrainingNet.attention(fixture), isTrained: true)
    let teacher = try TrainingNet(
        fixture, try fixture.weights.open("teacher"), on: device, attention: .original,
        isTrained: false)
    guard let times = fixture.config["p_t"], let mean = times["p_mean"]?.double,
        let deviation = times["p_std"]?.double
    else { throw FixtureError("config lacks 'p_t'") }
    let recipe = WhiteBox(
        student: student.net, teacher: teacher.net,
        times: .logNormal(mean: mean, deviation: deviation),
        lossScale: fixture.config["loss_scale"]?.double ?? 1, keepsPoison: true)
    let batch = try fixture.samples()
    let observed = Observed()
    var times1: [Double] = []
    let result = try recipe.step(batch, try StoredDraws(fixture)) { name, values in
        observed.take(name, values)
        if name == "t" { times1 += values }
    }
    try observed.compare(checks, in: fixture)
    let noise = try fixture.f32("in.eps")
    for (layer, map) in try student.blockMaps(batch, at: times1, noise).enumerated() {
        try checks.compare("mid.block\(layer).block_map", map, in: fixture)
    }
    try checks.compare("out.loss", result.losses, in: fixture)
    try compareGradients(result, checks, in: fixture, on: device)
}

/// in.iteration: [n]
func checkSchedule(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let schedule = RCMSchedule(
        try RCM.Settings(fixture), hasCritic: fixture.config["has_fake_score"]?.bool ?? true)
    let rate = try fixture.double("ema_rate")
    let iterations = try fixture.tensor("in.iteration").doubles().map { Int($0) }
    func compare(_ name: String, _ value: (Int) -> Double) throws {
        try checks.compare("out.\(name)", iterations.map(value), in: fixture)
    }
    try compare("is_student") { schedule.isStudent($0) ? 1 : 0 }
    try compare("closures") {
        schedule.isStudent($0)
            ? (schedule.hasConsistency ? 1 : 0) + (schedule.matchesDistribution($0) ? 2 : 0) : 4
    }
    try compare("effective_iteration") { Double(schedule.effective($0)) }
    try compare("effective_iteration_fake") { Double(schedule.effectiveCritic($0)) }
    try compare("simulation_steps") { Double(schedule.steps($0)) }
    try compare("warmup_ratio") { schedule.tangentWeight($0) }
    try compare("ema_beta") {
        schedule.isStudent($0)
            ? MovingAverage.weight(schedule.effective($0), rate: rate) : .nan
    }
}
