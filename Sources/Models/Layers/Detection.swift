/// The sizes of the model in a checkpoint.

import Checkpoints
import Ground
import Tensors

extension Weights {
    /// The sizes of the transformer in this checkpoint.
    /// - Parameters:
    ///   - heads: number of heads, used if the file does not tell; nil for heads of 128.
    ///   - patch: see `WanTransformerOptions`.
    func transformer(heads: Int?, patch: Int) throws(CheckpointError) -> WanTransformerArchitecture
    {
        let found = try model(.wanTransformer, heads: heads, patch: patch)
        guard case .wanTransformer(let sizes) = found else {
            programmingError("transformer: another kind of model")
        }
        return sizes
    }

    /// The sizes of the text encoder in this checkpoint.
    func textEncoder() throws(CheckpointError) -> UMT5Architecture {
        guard case .umT5(let sizes) = try model(.umT5) else {
            programmingError("textEncoder: another kind of model")
        }
        return sizes
    }

    /// The sizes of the autoencoder in this checkpoint, or of the half that it contains.
    func autoencoder() throws(CheckpointError) -> WanVAEArchitecture {
        guard case .wanVAE(let sizes) = try model(.wanVAE) else {
            programmingError("autoencoder: another kind of model")
        }
        return sizes
    }

    private func model(
        _ kind: DetectedModel.Kind, heads: Int? = nil, patch: Int = 2
    ) throws(CheckpointError) -> DetectedModel {
        let model = try CheckpointSummary(checkpoint, heads: heads, patch: patch).require(kind)
        if let refusal = model.refusal {
            throw .incompatible(path: checkpoint.path, reason: refusal)
        }
        return model
    }
}
