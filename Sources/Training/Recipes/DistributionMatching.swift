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
            let cleans = try runs.indices.map { index throws(CheckpointError) in
                try student.denoised(
                    runs[index].state, at: runs[index].times[step - 1], batch[index].text
                ).clean.rounded
            }
            let noises = random.noise(batch.count, shape)
            for index in runs.indices {
                let t = runs[index].times[step]
                runs[index].state = cos(t) * cleans[index] + sin(t) * noises[index]
                runs[index].time = t
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
        for (index, sample) in batch.enumerated() {
            let pass = try student.recordedTrig(
                runs[index].state, at: runs[index].time, sample.text)
            let made = pass.clean.rounded
            let t = settings.distributionTimes.angle(draws[index])
            let x = cos(t) * made + sin(t) * noises[index]
            let fake = try critic.denoised(x, at: t, sample.text).clean
            let real = try teacher.guided(
                x, at: t, sample.text, negative: sample.negative, guidance: settings.guidance
            ).clean
            let distance = (made - real).values.reduce(0) { $0 + abs($1) }
            let weight = max(Double(Float(distance / Double(made.values.count))), 1e-5)
            observe("dmd.trajectory_times", runs[index].times)
            observe("dmd.D_time", [t])
            observe("dmd.G_x0", made.values)
            observe("dmd.D_xt", x.values)
            observe("dmd.x0_fake", fake.values)
            observe("dmd.x0_teacher", real.values)
            observe("dmd.weight", [weight])
            let pull = 1 / weight * (fake - real)
            let isMasked = pull.hasNaN || made.hasNaN
            if made.hasNaN { result.isSpoiled = true }
            result.losses.append(isMasked ? 0 : settings.distributionLossScale * pull.squares)
            if isMasked, !settings.keepsPoison { continue }
            result.add(
                pass.gradients(
                    clean: isMasked ? pull.zeros : 2 * settings.distributionLossScale * pull))
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
        for (index, sample) in batch.enumerated() {
            let made = try student.denoised(
                runs[index].state, at: runs[index].time, sample.text
            ).clean.rounded
            let t = settings.distributionTimes.angle(draws[index])
            let x = cos(t) * made + sin(t) * noises[index]
            let pass = try critic.recordedTrig(x, at: t, sample.text)
            observe("critic.trajectory_times", runs[index].times)
            observe("critic.D_time", [t])
            observe("critic.G_x0", made.values)
            observe("critic.D_xt", x.values)
            observe("critic.x0_fake", pass.clean.values)
            let difference = pass.clean - made
            let weight = 1 / (sin(t) * sin(t))
            let loss = weight * difference.squares
            result.losses.append(loss)
            // A draw of no noise at all, or a poisoned sample.
            guard loss.isFinite else {
                result.isSpoiled = true
                continue
            }
            result.add(pass.gradients(clean: 2 * weight * difference))
        }
        return result
    }
}
