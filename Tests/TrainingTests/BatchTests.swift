/// Several samples in one pass against one sample after the other.

import CPU
import Ground
import Models
import Tensors
import Testing

@testable import Training

@Suite struct BatchTests {
    private let device = CPUBackend(engine: .definition)
    private let shape: Shape = [4, 2, 8, 6]
    private let timesteps: [Double] = [40, 300, 925]

    private func net(sparse topK: Double? = nil) -> Net {
        Net(
            randomParameters(seed: 7, isSparse: topK != nil),
            WanTransformerOptions(
                attention: topK.map { .sparse(sparse($0)) } ?? .original, heads: 2),
            activations: .f32, recomputation: .block, on: device)
    }

    /// Prompts of different lengths: none, five rows, all rows but one.
    private func texts(_ random: inout Random) -> [Text] {
        [0, 5, 11].map { count in
            let rows = random.tensor([12, 12]).floats().enumerated().map {
                $0 < 12 * count ? $1 : 0
            }
            return Text(rows: Tensor(rows, [12, 12]), count: count)
        }
    }

    private func distance(_ a: Tensor, _ b: Tensor) -> Double {
        let (x, y) = (a.floats(), b.floats())
        let off = zip(x, y).reduce(0.0) { $0 + Double(($1.0 - $1.1) * ($1.0 - $1.1)) }
        return (off / max(1e-30, y.reduce(0.0) { $0 + Double($1 * $1) })).squareRoot()
    }

    @Test("velocities of a batch are those of its samples", arguments: [nil, 0.3])
    func velocities(topK: Double?) throws {
        var random = Random(5)
        let xs = (0..<3).map { _ in random.tensor(shape) }
        let (texts, net) = (texts(&random), net(sparse: topK))
        let together = try net.velocities(xs, at: timesteps, texts)
        for index in 0..<3 {
            let alone = try net.velocity(xs[index], at: timesteps[index], texts[index])
            #expect(distance(together[index], alone) < 1e-5)
        }
    }

    @Test("gradients of a batch are the sums of its samples'", arguments: [nil, 0.3])
    func gradients(topK: Double?) throws {
        var random = Random(6)
        let xs = (0..<3).map { _ in random.tensor(shape) }
        let cotangents = (0..<3).map { _ in random.tensor(shape) }
        let (texts, net) = (texts(&random), net(sparse: topK))
        let pass = try net.recorded(xs, at: timesteps, texts)
        let together = pass.gradients(cotangents)
        let sums = StepResult(on: device)
        for index in 0..<3 {
            let one = try net.recorded(xs[index], at: timesteps[index], texts[index])
            #expect(distance(pass.velocities[index], one.velocity) < 1e-5)
            sums.add(one.gradients(cotangents[index]).parameters)
        }
        #expect(together.count == sums.gradients.count && !together.isEmpty)
        for (name, gradient) in sums.gradients {
            // Gradients of k's biases are small sums of large terms.
            #expect(distance(together[name]!, gradient) < 1e-3, "\(name)")
        }
    }

    @Test("tangents of a batch are those of its samples", arguments: [nil, 0.3])
    func tangents(topK: Double?) throws {
        var random = Random(8)
        let xs = (0..<3).map { _ in random.tensor(shape) }
        let directions = (0..<3).map { _ in random.tensor(shape) }
        let speeds = [0.5, -1, 2.0]
        let (texts, net) = (texts(&random), net(sparse: topK))
        let together = try net.moving(
            xs, along: directions, at: timesteps, along: speeds, texts)
        for index in 0..<3 {
            let alone = try net.moving(
                xs[index], along: directions[index], at: timesteps[index], along: speeds[index],
                texts[index])
            #expect(distance(together[index].velocity, alone.velocity) < 1e-5)
            #expect(distance(together[index].tangent, alone.tangent) < 1e-4)
        }
    }

    @Test("large samples are taken alone, small ones together")
    func passes() {
        let net = net()
        #expect(net.passes(3, of: [16, 21, 60, 104]).map(\.count) == [1, 1, 1])
        #expect(net.passes(60, of: [16, 9, 18, 32]) == [0..<50, 50..<60])
    }

    @Test("noise drawn for several samples at once is what one after the other would be")
    func noise() {
        let (all, each) = (SeededDraws(seed: 3, iteration: 4), SeededDraws(seed: 3, iteration: 4))
        let together = all.noise(4, shape)
        let apart = (0..<4).map { _ in each.normals(shape.count) }
        for (a, b) in zip(together, apart) { #expect(a.values == b.map { Double($0) }) }
        #expect(all.normals(3) == each.normals(3))
    }

    @Test("the sum of squares is that of all tensors, and no tensors have none")
    func norms() {
        var random = Random(9)
        let gradients = ["a": random.tensor([7, 3]), "b": random.tensor([50])]
        let expected = gradients.values.reduce(0) { $0 + inner($1, $1) }.squareRoot()
        #expect(abs(GradientNorm.norm(gradients, on: device) - expected) < 1e-6 * expected)
        #expect(GradientNorm.norm([:], on: device) == 0)
    }

    @Test("many parameters that move together move as each alone, and their averages follow")
    func optimizer() {
        func state() -> (parameters: Parameters, average: MovingAverage, adam: Adam) {
            let parameters = randomParameters(seed: 4, isSparse: false)
            return (
                parameters, MovingAverage(parameters, rate: 0.1, on: device),
                Adam(Adam.Settings(learningRate: 0.01), on: device)
            )
        }
        let (one, all) = (state(), state())
        for step in 1...3 {
            var random = Random(UInt64(step))
            // One parameter has no gradient; its average moves all the same.
            let gradients = Dictionary(
                uniqueKeysWithValues: one.parameters.names.dropFirst().map {
                    ($0, random.tensor(one.parameters.masters[$0]!.shape))
                })
            all.adam.step(
                all.parameters, gradients, factor: 1,
                average: (all.average, all.average.weight(step)))
            for name in one.parameters.names.dropFirst() {
                let settings = Operation.AdamW.Settings(
                    learningRate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.01,
                    step: step)
                let master = one.parameters.masters[name]!
                let zeros = Tensor.zeros(master.shape, .f32)
                let moved = device.adamW(
                    master: master, mean: one.adam.means[name] ?? zeros,
                    square: one.adam.squares[name] ?? zeros, gradient: gradients[name]!, settings)
                one.adam.means[name] = moved.mean
                one.adam.squares[name] = moved.square
                one.parameters.set(name, moved.master)
            }
            one.average.update(one.parameters, iteration: step)
        }
        for name in one.parameters.names {
            #expect(
                device.equalBits(one.parameters.masters[name]!, all.parameters.masters[name]!))
            #expect(device.equalBits(one.average.values[name]!, all.average.values[name]!))
        }
    }
}
