/// rCM's other half: what the student makes by itself, judged by the teacher and by a critic (DMD, arXiv 2405.14867).

public import Checkpoints
import Glibc
import Tensors

extension RCM {
    /// Latents that a student has made in some steps, and the last step's pass.
    private struct Simulation {
        var state: LatentValues
        var time: Double
        var times: [Double]
    }

    /// Simulates all steps but the last. → for each sample the state before the last step
    private func simulate(_ batch: [Sample], steps: Int, _ random: any RandomSource)
        throws(CheckpointError) -> [Simulation]
    {
        let shape = batch[0].latents.shape
        let start = Double(Float(Double.pi / 2))
        var runs = random.noise(batch.count, shape).map {
            Simulation(state: $0, time: start, times: [start])
        }
        for step in 1..<max(1, steps) {
            if let fixed = settings.fixedAngles {
                for index in runs.indices { runs[index].times.append(fixed[step - 1]) }
            } else {
                // Times only fall: each draw counts where it is below those before.
                let draws = settings.distributionTimes.draws(batch.count, from: random)
                for index in runs.indices {
                    runs[index].times.append(
                        min(
                            runs[index].times.last!, settings.distributionTimes.angle(draws[index]))
                    )
                }
            }
        }
        for step in 1..<max(1, steps) {
            let now = runs
            var cleans: [LatentValues] = []
            for part in student.passes(batch.count, of: shape) {
                let found = try student.denoised(
                    now[part].map(\.state), at: now[part].map { $0.times[step - 1] },
                    batch[part].map(\.text))
                cleans += eachSample(found.count) { found[$0].clean.rounded }
            }
            let noises = random.noise(batch.count, shape)
            let states = eachSample(batch.count) {
                cos(now[$0].times[step]) * cleans[$0] + sin(now[$0].times[step]) * noises[$0]
            }
            for index in runs.indices {
                runs[index].state = states[index]
                runs[index].time = runs[index].times[step]
            }
        }
        return runs
    }

    /// The student by distribution matching: gradient through the last step of a simulation.
    /// - Parameter steps: of the simulation, from 1.
    public func distributionMatching(
        _ batch: [Sample], steps: Int, _ random: any RandomSource,
        observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        let result = StepResult(on: student.device)
        guard let critic else { return result }
        let runs = try simulate(batch, steps: steps, random)
        let draws = settings.distributionTimes.draws(batch.count, from: random)
        let noises = random.noise(batch.count, batch[0].latents.shape)
        for part in student.passes(batch.count, of: batch[0].latents.shape) {
            let (samples, own) = (Array(batch[part]), Array(runs[part]))
            let texts = samples.map(\.text)
            let pass = try student.recordedTrig(own.map(\.state), at: own.map(\.time), texts)
            let made = eachSample(samples.count) { pass.answers[$0].clean.rounded }
            let ts = part.map { settings.distributionTimes.angle(draws[$0]) }
            let xs = eachSample(samples.count) {
                cos(ts[$0]) * made[$0] + sin(ts[$0]) * noises[part.lowerBound + $0]
            }
            let fakes = try critic.denoised(xs, at: ts, texts)
            let reals = try teacher.guided(xs, at: ts, samples, guidance: settings.guidance)
            let pulls = eachSample(samples.count) {
                let distance = (made[$0] - reals[$0].clean).values.reduce(0) { $0 + abs($1) }
                let weight = max(Double(Float(distance / Double(made[$0].values.count))), 1e-5)
                return (weight, 1 / weight * (fakes[$0].clean - reals[$0].clean))
            }
            var cotangents: [LatentValues] = []
            for (index, (weight, pull)) in pulls.enumerated() {
                observe("dmd.trajectory_times", own[index].times)
                observe("dmd.D_time", [ts[index]])
                observe("dmd.G_x0", made[index].values)
                observe("dmd.D_xt", xs[index].values)
                observe("dmd.x0_fake", fakes[index].clean.values)
                observe("dmd.x0_teacher", reals[index].clean.values)
                observe("dmd.weight", [weight])
                let isMasked = pull.hasNaN || made[index].hasNaN
                if isMasked { result.isSpoiled = true }
                result.losses.append(isMasked ? 0 : settings.distributionLossScale * pull.squares)
                cotangents.append(
                    isMasked ? pull.zeros : 2 * settings.distributionLossScale * pull)
            }
            // What is not finite in one sample spoils the whole pass; the step is skipped then.
            if result.isSpoiled, !settings.keepsPoison { continue }
            result.add(pass.gradients(cleans: cotangents))
        }
        return result
    }

    /// The critic learns to denoise what the student makes: loss = sum (made - x0)^2 / sin^2 t.
    public func criticStep(
        _ batch: [Sample], steps: Int, _ random: any RandomSource,
        observe: StepObserver = { _, _ in }
    ) throws(CheckpointError) -> StepResult {
        let result = StepResult(on: student.device)
        guard let critic else { return result }
        let runs = try simulate(batch, steps: steps, random)
        let draws = settings.distributionTimes.draws(batch.count, from: random)
        let noises = random.noise(batch.count, batch[0].latents.shape)
        for part in student.passes(batch.count, of: batch[0].latents.shape) {
            let own = Array(runs[part])
            let texts = batch[part].map(\.text)
            let found = try student.denoised(own.map(\.state), at: own.map(\.time), texts)
            let made = eachSample(own.count) { found[$0].clean.rounded }
            let ts = part.map { settings.distributionTimes.angle(draws[$0]) }
            let xs = eachSample(own.count) {
                cos(ts[$0]) * made[$0] + sin(ts[$0]) * noises[part.lowerBound + $0]
            }
            let pass = try critic.recordedTrig(xs, at: ts, texts)
            let differences = eachSample(own.count) { pass.answers[$0].clean - made[$0] }
            var cotangents: [LatentValues] = []
            for index in own.indices {
                observe("critic.trajectory_times", own[index].times)
                observe("critic.D_time", [ts[index]])
                observe("critic.G_x0", made[index].values)
                observe("critic.D_xt", xs[index].values)
                observe("critic.x0_fake", pass.answers[index].clean.values)
                let weight = 1 / (sin(ts[index]) * sin(ts[index]))
                let loss = weight * differences[index].squares
                result.losses.append(loss)
                // A draw of no noise at all, or a poisoned sample.
                if !loss.isFinite { result.isSpoiled = true }
                cotangents.append(2 * weight * differences[index])
            }
            if result.isSpoiled, !settings.keepsPoison { continue }
            result.add(pass.gradients(cleans: cotangents))
        }
        return result
    }
}
