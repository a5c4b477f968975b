/// The backend that checks another one, on whole models.

import CPU
import Checkpoints
import Models
import Tensors
import Testing

/// A machine with one mistake.
private final class Faulty: ForwardingBackend {
    override func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor {
        super.rmsNorm(x, weight: weight, epsilon: 10 * epsilon, kind: kind, format: format)
    }
}

@Suite struct CheckedBackendTests {
    @Test("the operation that is wrong is named, and no other")
    func namesTheFault() throws {
        let golden = try #require(WanTransformerTests.dense.first { $0.name.contains("1x8x8") })
        let device = CheckedBackend(
            reference: CPUBackend(), subject: Faulty(CPUBackend()), defaultLimit: 1e-6)
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
            let device = CheckedBackend(
                reference: CPUBackend(engine: .definition), subject: CPUBackend(),
                defaultLimit: 2e-5)
            try run(try #require(golden), on: device)
            #expect(device.firstDisagreement == nil)
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
            size: (x.shape[1], x.shape[2], x.shape[3]), on: device)
        _ = net([x], timestep: 500, context, on: device)
    }
}
