/// Whole transformers on two machines, compared operation by operation.

import CPU
import Checkpoints
import Models
import Tensors
import Testing

/// Runs every operation on another backend too, on the same inputs, and keeps those that differ. Both backends
/// compute in host memory.
private final class Compared: ForwardingBackend {
    private let reference: any Backend
    private let limit: Double
    private(set) var operations = 0
    private(set) var disagreements: [(operation: String, error: Double)] = []

    init(_ base: any Backend, with reference: any Backend, limit: Double) {
        self.reference = reference
        self.limit = limit
        super.init(base)
    }

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        if operation.isView { return results }
        let expected = reference.run(operation)
        let described = operation.facts.results
        #expect(results.count == described.count && expected.count == described.count)
        for (result, (expected, described)) in zip(results, zip(expected, described)) {
            #expect(described.describes(result) && described.describes(expected))
            let error = difference(result.floats(), expected.floats())
            // Written so that an error that is not a number counts.
            if !(error <= limit) { disagreements.append((operation.name, error)) }
        }
        operations += 1
        return results
    }

    /// ||found - expected|| / ||expected||
    private func difference(_ found: [Float], _ expected: [Float]) -> Double {
        let squares = zip(found, expected).reduce(0.0) {
            let d = Double($1.0) - Double($1.1)
            return $0 + d * d
        }
        let norm = expected.reduce(0.0) { $0 + Double($1) * Double($1) }
        if norm == 0 { return squares == 0 ? 0 : .infinity }
        return (squares / norm).squareRoot()
    }
}

/// A machine with one mistake.
private final class Faulty: ForwardingBackend {
    override func run(_ operation: Operation) -> [Tensor] {
        guard case .rmsNorm(var o) = operation else { return super.run(operation) }
        o.epsilon *= 10
        return super.run(.rmsNorm(o))
    }
}

@Suite struct WholeModelTests {
    @Test("the operation that is wrong is named, and no other")
    func namesTheFault() throws {
        let golden = try #require(WanTransformerTests.dense.first { $0.name.contains("1x8x8") })
        let device = Compared(Faulty(CPUBackend()), with: CPUBackend(), limit: 1e-6)
        try run(golden, on: device)
        #expect(device.operations > 20)
        #expect(!device.disagreements.isEmpty)
        #expect(device.disagreements.allSatisfy { $0.operation == "rmsNorm" })
    }

    @Test("the fast operations agree with their definitions in every kind of transformer")
    func fastAgainstDefinitions() throws {
        for golden in [
            WanTransformerTests.dense.first { $0.name.contains("d128h64_2x10x14") },
            WanTransformerTests.quantized.first { $0.name.contains("dense") },
        ] {
            let device = Compared(
                CPUBackend(), with: CPUBackend(engine: .definition), limit: 2e-5)
            try run(try #require(golden), on: device)
            #expect(device.disagreements.isEmpty)
        }
    }

    private func run(_ golden: Golden, on device: any Backend) throws {
        let net = try WanTransformer(
            Weights(golden.checkpoints(), on: device, activations: .f32),
            WanTransformerOptions(heads: golden.config.num_heads))
        let tensors = try golden.tensors()
        let x = device.place(try tensors.need("in.x")[0], as: .f32)
        let rows = device.place(try tensors.need("in.context")[0], as: .f32)
        let context = net.prepare(
            TextEmbedding(rows: rows, count: rows.shape[0]),
            size: Extent(t: x.shape[1], h: x.shape[2], w: x.shape[3]), on: device)
        _ = net([x], timestep: 500, context, on: device)
    }
}
