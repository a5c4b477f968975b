/// The values that the stages of a run pass to each other.

package import Diffusion
import Families
import Ground
package import Models
package import Tensors

/// The values that exist between two stages. A stage works on a copy, which replaces this one when the stage is
/// finished; so nobody sees what a cancelled stage has made.
package struct RunState {
    var models: [ModelPart: LoadedModel] = [:]
    /// The embedded prompt and, if the run is guided, the negative one.
    package var texts: (positive: TextEmbedding, negative: TextEmbedding?)?
    /// f32 [conditioningChannels, T', H', W']
    package var conditioning: Tensor?
    var noise: NoiseSource
    package var denoiser: Denoiser?
    /// The texts projected for each transformer that still has steps to compute.
    var contexts:
        [ModelPart: (positive: WanTransformer.Context, negative: WanTransformer.Context?)] = [:]
    /// What the last step has taken the sample to be, where the run keeps it. f32 [samples, C, T', H', W']
    var prediction: Tensor?
    /// f32 [samples, C, T', H', W'], the decoder's input
    package var latents: Tensor?
    var decoding: FrameDecoding?

    init(noise: NoiseSource) { self.noise = noise }

    // A run's program loads each model before the stages that use it.

    func transformer(_ part: ModelPart) -> WanTransformer {
        guard case .transformer(let model)? = models[part] else { missing(part) }
        return model
    }
    var textEncoder: UMT5 {
        guard case .textEncoder(let model)? = models[.textEncoder] else { missing(.textEncoder) }
        return model
    }
    var imageEncoder: WanVAE.Encoder {
        guard case .imageEncoder(let model)? = models[.imageEncoder] else {
            missing(.imageEncoder)
        }
        return model
    }
    var decoder: WanVAE.Decoder {
        guard case .decoder(let model)? = models[.decoder] else { missing(.decoder) }
        return model
    }

    private func missing(_ part: ModelPart) -> Never {
        programmingError("a run's program does not load its \(part.title)")
    }
}
