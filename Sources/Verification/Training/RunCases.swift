/// Twenty iterations of training: losses, norms, and how far all parameters have moved.

import Checkpoints
import Models
import Tensors
import Training

/// The random numbers of a whole run: pools that go round, and single numbers that are used up.
private final class PooledDraws: RandomSource {
    private let noises: Tensor
    private var normalDraws: [Float]
    private var uniformDraws: [Float]
    private var used = 0

    init(noises: Tensor, normals: [Float], uniforms: [Float]) {
        self.noises = noises
        normalDraws = normals
        uniformDraws = uniforms
    }

    private func take(_ count: Int, from draws: inout [Float]) -> [Float] {
        let taken = Array(draws.prefix(count))
        draws.removeFirst(taken.count)
        return taken + [Float](repeating: .nan, count: count - taken.count)
    }

    func normals(_ count: Int) -> [Float] { take(count, from: &normalDraws) }
    func uniforms(_ count: Int) -> [Float] { take(count, from: &uniformDraws) }
    func noise(_ count: Int, _ shape: Shape) -> [LatentValues] {
        let one = noises[used % noises.shape[0]]
        used += 1
        return (0..<count).map { LatentValues(one[$0].reshaped(shape)) }
    }
}

extension Fixture {
    fileprivate func optimizer(_ key: String) throws -> Adam.Settings {
        guard let o = config[key], let rate = o["lr"]?.double, let betas = o["betas"]?.doubles,
            let epsilon = o["eps"]?.double, let decay = o["weight_decay"]?.double
        else { throw FixtureError("config lacks '\(key)'") }
        return Adam.Settings(
            learningRate: rate, beta1: betas[0], beta2: betas[1], epsilon: epsilon, decay: decay)
    }

    fileprivate func schedule() throws -> LearningRateSchedule {
        guard let s = config["scheduler"], let warmup = s["warm_up_steps"]?.int,
            let start = s["f_start"]?.double
        else { throw FixtureError("config lacks 'scheduler'") }
        return LearningRateSchedule([LearningRateSchedule.Cycle(warmup: warmup, start: start)])
    }
}

/// A net with its optimiser.
private struct Trained {
    let net: Net
    let optimizer: Adam
    let start: [String: Tensor]

    init(_ net: Net, _ settings: Adam.Settings) {
        self.net = net
        optimizer = Adam(settings, on: net.device)
        start = net.parameters!.masters
    }

    /// As the original, what is not finite becomes zero. → the norm of the gradients, and the factor of the learning
    /// rate
    func step(_ result: StepResult, _ schedule: LearningRateSchedule) -> (
        norm: Double, factor: Double
    ) {
        var gradients = result.gradients
        var norm = GradientNorm.norm(gradients, on: net.device)
        if !norm.isFinite {
            gradients = gradients.mapValues {
                net.device.place(GradientNorm.withoutNonFinite(net.device.read($0)), as: .f32)
            }
            norm = GradientNorm.norm(gradients, on: net.device)
        }
        let factor = schedule.factor(optimizer.steps)
        optimizer.step(net.parameters!, gradients, factor: factor)
        return (norm, factor)
    }

    /// Final numbers minus those of the start.
    func compare(
        _ role: String, _ values: [String: Tensor], _ checks: Checks, in fixture: Fixture
    ) throws {
        for (name, value) in values where fixture.has("out.delta.\(role).\(name)") {
            let moved = zip(net.device.read(value).doubles(), start[name]!.doubles()).map(-)
            try checks.compareSampled("out.delta.\(role).\(name)", moved, in: fixture)
        }
    }
}

func checkWhiteBoxRun(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let student = try TrainingNet(
        fixture, try fixture.weights.open("student"), on: device,
        attention: try TrainingNet.attention(fixture), isTrained: true)
    let teacher = try TrainingNet(
        fixture, try fixture.weights.open("teacher"), on: device, attention: .original,
        isTrained: false)
    guard let p = fixture.config["p_t"], let mean = p["p_mean"]?.double,
        let deviation = p["p_std"]?.double, let rate = fixture.config["ema"]?["rate"]?.double
    else { throw FixtureError("config lacks 'p_t' or 'ema'") }
    let recipe = WhiteBox(
        student: student.net, teacher: teacher.net,
        times: .logNormal(mean: mean, deviation: deviation),
        lossScale: fixture.config["loss_scale"]?.double ?? 1, keepsPoison: true)
    let draws = PooledDraws(
        noises: try fixture.f32("in.eps"), normals: try fixture.tensor("in.normal_t").floats(),
        uniforms: [])
    let trained = Trained(student.net, try fixture.optimizer("optimizer"))
    let average = MovingAverage(student.net.parameters!, rate: rate, on: device)
    let schedule = try fixture.schedule()
    let noises = try fixture.f32("in.eps")
    var (losses, norms, rates): ([Double], [Double], [Double]) = ([], [], [])
    for iteration in 0..<(try fixture.int("steps")) {
        let batch = try fixture.samples(iteration)
        var times: [Double] = []
        let result = try recipe.step(batch, draws) { name, values in
            if name == "t" { times += values }
        }
        if fixture.has("mid.step\(iteration).block0.block_map") {
            let noise = noises[iteration % noises.shape[0]]
            let maps = try student.blockMaps(batch, at: times, noise)
            for (layer, map) in maps.enumerated() {
                try checks.compare(
                    "mid.step\(iteration).block\(layer).block_map", map, in: fixture)
            }
        }
        let step = trained.step(result, schedule)
        average.update(student.net.parameters!, iteration: iteration)
        losses += result.losses
        norms.append(step.norm)
        rates.append(Double(Float(trained.optimizer.settings.learningRate * step.factor)))
    }
    try checks.compare("out.loss", losses, in: fixture)
    try checks.compare("out.grad_norm", norms, in: fixture)
    try checks.compare("out.lr", rates, in: fixture)
    try trained.compare("student", student.net.parameters!.masters, checks, in: fixture)
    try trained.compare("ema", average.values, checks, in: fixture)
}

func checkRCMRun(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    func net(_ role: String) throws -> Net {
        try TrainingNet(
            fixture, try fixture.weights.open(role), on: device, attention: .original,
            isTrained: role != "teacher"
        ).net
    }
    var settings = try RCM.Settings(fixture)
    settings.keepsPoison = true
    let rcm = RCM(
        student: try net("student"), teacher: try net("teacher"),
        critic: fixture.weights.has("critic") ? try net("critic") : nil, settings)
    guard let rate = fixture.config["ema"]?["rate"]?.double else {
        throw FixtureError("config lacks 'ema'")
    }
    let student = Trained(rcm.student, try fixture.optimizer("optimizer"))
    let critic = try rcm.critic.map {
        Trained($0, try fixture.optimizer("optimizer_fake_score"))
    }
    let average = MovingAverage(rcm.student.parameters!, rate: rate, on: device)
    let draws = PooledDraws(
        noises: try fixture.f32("in.noise"), normals: try fixture.tensor("in.normal").floats(),
        uniforms: try fixture.tensor("in.uniform").floats())
    let schedule = RCMSchedule(rcm.settings, hasCritic: critic != nil)
    let ramp = try fixture.schedule()
    var (losses, norms): ([Double], [Double]) = ([], [])
    for iteration in 0..<(try fixture.int("steps")) {
        let result = try rcm.step(
            try fixture.samples(iteration), iteration: iteration, draws)
        let trained = schedule.isStudent(iteration) ? student : critic ?? student
        norms.append(trained.step(result, ramp).norm)
        if schedule.isStudent(iteration) {
            average.update(rcm.student.parameters!, iteration: schedule.effective(iteration))
        }
        losses.append(result.losses.reduce(0, +))
    }
    try checks.compare("out.loss", losses, in: fixture)
    try checks.compare("out.grad_norm", norms, in: fixture)
    try student.compare("student", rcm.student.parameters!.masters, checks, in: fixture)
    try student.compare("ema", average.values, checks, in: fixture)
    if let critic {
        try critic.compare("critic", critic.net.parameters!.masters, checks, in: fixture)
    }
}
