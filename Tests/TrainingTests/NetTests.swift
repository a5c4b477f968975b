/// A whole transformer: its gradients, recomputation, and the recipes around it.

import CPU
import Models
import Tensors
import Testing

@testable import Training

@Suite struct NetTests {
    private let device = CPUBackend(engine: .definition)
    private let shape: Shape = [4, 2, 8, 6]

    private func net(
        seed: UInt64, sparse topK: Double? = nil, recomputation: Recomputation = .none
    ) -> Net {
        Net(
            randomParameters(seed: seed, isSparse: topK != nil),
            WanTransformerOptions(
                attention: topK.map { .sparse(sparse($0)) } ?? .original, heads: 2),
            activations: .f32, recomputation: recomputation, on: device)
    }

    private func text(_ random: inout Random) -> Text {
        // Five rows of a prompt, seven of padding.
        let rows = random.tensor([12, 12]).floats().enumerated().map { $0 < 60 ? $1 : 0 }
        return Text(Tensor(rows, [12, 12]))
    }

    // All blocks are listed: a step could turn a map over.
    @Test("gradients of all parameters together are what differences say", arguments: [nil, 1])
    func differences(topK: Double?) throws {
        var random = Random(2)
        let x = random.tensor(shape)
        let text = text(&random)
        #expect(text.count == 5)
        let cotangent = random.tensor(shape)
        let net = net(seed: 7, sparse: topK)
        let found = try net.recorded(x, at: 300, text).gradients(cotangent).parameters
        #expect(found.count == net.parameters!.names.count)
        let directions = Dictionary(
            uniqueKeysWithValues: net.parameters!.names.map {
                ($0, random.tensor(net.parameters!.masters[$0]!.shape, scale: 0.1))
            })
        let expected = found.reduce(0.0) { $0 + inner($1.value, directions[$1.key]!) }
        let start = net.parameters!.masters
        func loss(_ h: Float) throws -> Double {
            for (name, value) in start {
                net.parameters!.set(name, moved(value, h, directions[name]!))
            }
            return inner(try net.velocity(x, at: 300, text), cotangent)
        }
        let h: Float = 1.0 / 128
        let slope = try (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * Double(h))
        #expect(abs(slope - expected) < 1e-3 * abs(slope))
    }

    @Test("blocks that are computed again give the same bits")
    func recomputation() throws {
        var random = Random(3)
        let (x, cotangent) = (random.tensor(shape), random.tensor(shape))
        let text = text(&random)
        func gradients(_ recomputation: Recomputation) throws -> [String: Tensor] {
            try net(seed: 9, sparse: 0.3, recomputation: recomputation)
                .recorded(x, at: 12, text).gradients(cotangent).parameters
        }
        let (kept, again) = (try gradients(.none), try gradients(.block))
        #expect(kept.count == again.count && !kept.isEmpty)
        for (name, gradient) in kept { #expect(device.equalBits(gradient, again[name]!)) }
    }

    @Test("recomputation keeps less memory")
    func memory() throws {
        var random = Random(3)
        let (x, cotangent) = (random.tensor([4, 3, 16, 16]), random.tensor([4, 3, 16, 16]))
        let text = text(&random)
        func peak(_ recomputation: Recomputation) throws -> Int {
            let device = CPUBackend(engine: .definition)
            let net = Net(
                randomParameters(seed: 1, isSparse: false), WanTransformerOptions(heads: 2),
                activations: .f32, recomputation: recomputation, on: device)
            _ = try net.recorded(x, at: 12, text).gradients(cotangent)
            return device.memory.peak
        }
        #expect(try peak(.block) < peak(.none))
    }

    private func rcm(_ change: (inout RCM.Settings) -> Void = { _ in }) -> RCM {
        var settings = RCM.Settings()
        change(&settings)
        return RCM(
            student: net(seed: 1), teacher: net(seed: 2), critic: net(seed: 3), settings)
    }

    private func batch(_ count: Int) -> [Sample] {
        var random = Random(6)
        return (0..<count).map { _ in
            Sample(
                latents: random.latents(shape), text: text(&random), negative: text(&random))
        }
    }

    @Test("the exact derivative along the flow is what a small difference approaches")
    func flow() throws {
        let sample = batch(1)[0]
        var random = Random(8)
        let flow = random.latents(shape)
        let exact = try rcm().derivative(sample.latents, 0.9, along: flow, sample.text).tangent
        let step = try rcm {
            $0.derivative = .difference
            $0.difference = 4e-4
        }.derivative(sample.latents, 0.9, along: flow, sample.text).tangent
        let finer = try rcm {
            $0.derivative = .difference
            $0.difference = 1e-4
        }.derivative(sample.latents, 0.9, along: flow, sample.text).tangent
        func distance(_ a: LatentValues) -> Double {
            ((a - exact).squares / exact.squares).squareRoot()
        }
        #expect(distance(finer) < 0.3 * distance(step))
        #expect(distance(finer) < 0.1)
    }

    @Test("a poisoned sample spoils the step, says so, and leaves the others' gradients alone")
    func poison() throws {
        var poisoned = batch(2)
        poisoned[1].latents.values[5] = .nan
        let clean = try rcm().continuousConsistency(
            Array(batch(2).prefix(1)), warmup: 1, FirstOfTwo(seed: 4))
        let result = try rcm().continuousConsistency(poisoned, warmup: 1, TestDraws(seed: 4))
        #expect(result.isSpoiled && !clean.isSpoiled)
        #expect(result.losses[1] == 0 && result.losses[0] == clean.losses[0])
        for (name, gradient) in clean.gradients {
            #expect(device.equalBits(gradient, result.gradients[name]!))
        }
    }

    @Test("what the teacher makes of poison spoils the step, too, and dCM keeps it as the original")
    func poisonedTeacher() throws {
        var poisoned = batch(2)
        let rows = [Float](repeating: .nan, count: 12 * 12)
        poisoned[1].negative = Text(Tensor(rows, [12, 12]))
        let rcm = rcm()
        for result in [
            try rcm.continuousConsistency(poisoned, warmup: 1, TestDraws(seed: 4)),
            try rcm.discreteConsistency(poisoned, TestDraws(seed: 4)),
            try rcm.distributionMatching(poisoned, steps: 1, TestDraws(seed: 4)),
        ] {
            #expect(result.isSpoiled && result.losses[0] > 0 && result.losses[1] == 0)
        }
        let kept = try self.rcm { $0.keepsPoison = true }.discreteConsistency(
            poisoned, TestDraws(seed: 4))
        #expect(kept.isSpoiled && kept.losses[0] > 0 && kept.losses[1].isNaN)
    }

    @Test("a closure whose scale is zero is left out, and draws nothing")
    func scales() throws {
        let matching = rcm { $0.lossScale = 0 }
        let step = try matching.step(batch(1), iteration: 0, TestDraws(seed: 1))
        let alone = try matching.distributionMatching(batch(1), steps: 1, TestDraws(seed: 1))
        #expect(step.losses == alone.losses && !step.losses.isEmpty)
        let consistent = rcm { ($0.distributionLossScale, $0.tangentWarmup) = (0, 3) }
        for iteration in [0, 4, 13] {
            let step = try consistent.step(batch(1), iteration: iteration, TestDraws(seed: 1))
            #expect(step.losses.count == 1 && !step.gradients.isEmpty)
        }
        // A critic that never gets a turn is counted as if it did.
        let schedule = RCMSchedule(consistent.settings, hasCritic: true)
        #expect([2, 3, 7, 8, 13].map(schedule.effective) == [2, 3, 3, 4, 5])
        #expect((0..<20).allSatisfy { schedule.isStudent($0) && schedule.steps($0) == 0 })
    }

    @Test("each iteration of rCM trains one net, and the critic none of the student")
    func turns() throws {
        let rcm = rcm { $0.studentEvery = 2 }
        let student = try rcm.step(batch(1), iteration: 0, TestDraws(seed: 1))
        let critic = try rcm.step(batch(1), iteration: 1, TestDraws(seed: 1))
        #expect(student.losses.count == 2 && critic.losses.count == 1)
        #expect(!student.gradients.isEmpty && !critic.gradients.isEmpty)
    }
}

/// The draws of the first of two samples.
private final class FirstOfTwo: RandomSource {
    private let all: TestDraws
    init(seed: UInt64) { all = TestDraws(seed: seed) }
    func normals(_ count: Int) -> [Float] { Array(all.normals(2).prefix(1)) }
    func uniforms(_ count: Int) -> [Float] { Array(all.uniforms(2).prefix(1)) }
    func noise(_ count: Int, _ shape: Shape) -> [LatentValues] {
        Array(all.noise(2, shape).prefix(1))
    }
}
