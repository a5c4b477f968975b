// Schedules and solvers: what must hold whatever the model.

import CPU
import Diffusion
import Tensors
import Testing

@Suite("Samplers")
struct SamplerTests {
    /// Integrates dx/dt = x - c on the line from noise to the constant c, whose exact velocity is
    /// (x - c) / t, and returns the end.
    private func solve(_ sampler: any Sampler, target: Float, noise: [Float]) -> [Float] {
        let device = CPUBackend(threads: 1)
        var sampler = sampler
        var generator = PhiloxNoise(seed: 3)
        let shape: Shape = [1, noise.count]
        var x = sampler.start(Tensor(noise, shape), on: device)
        for step in sampler.steps {
            let now = x.floats()
            let velocity = Tensor(now.map { ($0 - target) / Float(step.t) }, shape)
            x = sampler.advance(
                x, velocity: velocity, step: step, draw: { generator.normal(shape) }, on: device)
        }
        return x.floats()
    }

    @Test("every sampler reaches the target of a straight flow")
    func straightFlow() throws {
        let noise: [Float] = [-1.5, 0.25, 2]
        let samplers: [any Sampler] = [
            try RCMSampler(count: 1, sigmaMax: 80), try RCMSampler(count: 4, sigmaMax: 80),
            try RCMSampler(count: 4, sigmaMax: 200, solver: .ode),
            EulerSampler(try FlowSchedule(count: 7, shift: 3)),
            UniPCSampler(try FlowSchedule(count: 7, shift: 5)),
            UniPCSampler(try FlowSchedule(count: 1, shift: 5)),
            UniPCSampler(try FlowSchedule.wan(count: 8, shift: 5)),
            EulerSampler(try FlowSchedule(count: 5, shift: 3, sigmaMax: 5000)),
        ]
        for sampler in samplers {
            for value in solve(sampler, target: 0.75, noise: noise) {
                #expect(abs(value - 0.75) < 2e-4, "\(sampler): \(value)")
            }
        }
    }

    @Test("rCM levels fall from the start to zero and timesteps are rounded to bf16")
    func rcmLevels() throws {
        let sampler = try RCMSampler(count: 4, sigmaMax: 80)
        #expect(abs(sampler.steps[0].t - 80.0 / 81) < 1e-12)
        for step in sampler.steps {
            #expect(step.next < step.t)
            #expect(Double(Float(step.timestep).roundedToBFloat16) == step.timestep)
        }
        #expect(sampler.steps.last?.next == 0)
        let exact = try RCMSampler(count: 4, sigmaMax: 80, roundTimesteps: false)
        #expect(abs(exact.steps[0].timestep - 1000 * 80.0 / 81) < 1e-9)
    }

    @Test("settings that give no valid schedule are refused with a reason")
    func refusals() {
        #expect(throws: SamplerError.self) { try RCMSampler(count: 5, sigmaMax: 80) }
        #expect(throws: SamplerError.self) { try RCMSampler(count: 0, sigmaMax: 80) }
        #expect(throws: SamplerError.self) { try RCMSampler(count: 2, sigmaMax: 14) }
        #expect(throws: SamplerError.self) { try RCMSampler(count: 1, sigmaMax: -1) }
        #expect(throws: SamplerError.self) { try FlowSchedule(count: 0, shift: 3) }
        #expect(throws: SamplerError.self) { try FlowSchedule(count: 10, shift: .nan) }
        #expect(throws: SamplerError.self) { try FlowSchedule(count: 10, shift: 3, sigmaMax: 0) }
    }

    @Test("schedules fall strictly, a larger shift stays noisy for longer", arguments: [3.0, 5.0])
    func shifts(shift: Double) throws {
        let plain = try FlowSchedule(count: 12, shift: 1)
        let shifted = try FlowSchedule(count: 12, shift: shift)
        #expect(shifted.sigmas.count == 13 && shifted.sigmas.last == 0)
        for i in 0..<12 {
            #expect(shifted.sigmas[i] > shifted.sigmas[i + 1])
            #expect(shifted.sigmas[i] >= plain.sigmas[i])
        }
    }

    @Test("Wan's own schedule has whole timesteps and begins below pure noise")
    func wanSchedule() throws {
        let schedule = try FlowSchedule.wan(count: 50, shift: 5)
        #expect(schedule.timesteps.count == 50 && schedule.timesteps[0] == 999)
        #expect(schedule.sigmas[0] < 1 && schedule.sigmas.last == 0)
        #expect(schedule.timesteps.allSatisfy { $0 == $0.rounded() })
        #expect(zip(schedule.timesteps, schedule.timesteps.dropFirst()).allSatisfy { $0 > $1 })
    }
}
