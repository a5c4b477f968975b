/// Everything that a model computes can be followed at the border: what a tape for gradients needs.

import Checkpoints
import Models
import Tensors
import Testing

/// Knows every tensor that was placed or is a result, and keeps operations that read others.
private final class Recorder: ForwardingBackend {
    private var known: Set<Tensor.Identity> = []
    private(set) var operations = 0
    private(set) var strangers: [String] = []

    override func run(_ operation: Operation) -> [Tensor] {
        var facts = operation.facts
        facts.visit { tensor, _ in
            if !known.contains(tensor.identity) { strangers.append("\(operation.name): \(tensor)") }
        }
        operations += 1
        return super.run(operation).map(noted)
    }

    func noted(_ x: Tensor) -> Tensor {
        known.insert(x.identity)
        return x
    }
    private func noted(_ weight: LinearWeight) -> LinearWeight {
        switch weight {
        case .dense(let matrix): _ = noted(matrix)
        case .int8Blocks(let matrix, let scale), .fp8Rows(let matrix, let scale):
            _ = (noted(matrix), noted(scale))
        }
        return weight
    }

    override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        noted(super.place(host, as: dtype, in: group))
    }
    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    { noted(super.place(weight, as: dtype, in: group)) }
    override func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight { noted(super.place(weight, quantizedTo: format, in: group)) }
    override func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        let weight = super.place(convolution: kernel, bias: bias, as: dtype, in: group)
        _ = (noted(weight.tensor), weight.bias.map(noted))
        return weight
    }
}

@Suite struct RecordingTests {
    @Test("every tensor of a transformer comes from an operation or was placed")
    func transformer() throws {
        let device = Recorder(NullBackend())
        var sizes = WanTransformerArchitecture.wan21T2V1B
        sizes.hasSparseLinearAttention = true
        let net = try WanTransformer(
            Weights(
                Outline(.wanTransformer(sizes), numbers: .bf16), on: device, activations: .bf16,
                linearFormat: .int8Blocks),
            WanTransformerOptions(
                attention: .sparse(SparseAttention(topK: 0.1, arithmetic: .bf16))))
        let text = TextEmbedding(
            rows: device.place(.zeros([512, sizes.textDim], .bf16), as: .bf16), count: 60)
        let context = net.prepare(text, size: Extent(t: 3, h: 12, w: 20), on: device)
        let x = device.place(.zeros([16, 3, 12, 20], .f32), as: .f32)
        let v = net([x], timestep: 900, context, on: device)
        #expect(v.shape == x.shape && device.operations > 20 * sizes.layers)
        #expect(device.strangers == [])
    }

    @Test("every tensor of the text encoder comes from an operation or was placed")
    func textEncoder() throws {
        let device = Recorder(NullBackend())
        let encoder = try UMT5(
            Weights(Outline(.umT5(.xxl), numbers: .bf16), on: device, activations: .bf16))
        _ = encoder([1, 2, 3], on: device)
        #expect(device.operations > 200 && device.strangers == [])
    }

    @Test("every tensor of the autoencoder comes from an operation or was placed")
    func autoencoder() throws {
        let device = Recorder(NullBackend())
        let weights = Weights(
            Outline(.wanVAE(WanVAEArchitecture(dim: 24)), numbers: .f32), on: device,
            activations: .bf16)
        let latents = device.place(.zeros([16, 4, 6, 8], .f32), as: .f32)
        for _ in try WanVAE.Decoder(weights)(latents, on: device) {}
        let encoder = try WanVAE.Encoder(weights)
        let picture = device.place(.zeros([48, 64, 3], .bf16), as: .bf16)
        _ = encoder.encodeImage(picture, frameCount: 13, on: device)
        let video = device.place(.zeros([13, 48, 64, 3], .bf16), as: .bf16)
        _ = encoder(video, on: device)
        #expect(device.operations > 1000 && device.strangers == [])
    }
}
