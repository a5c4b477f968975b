/// From a checkpoint to the sizes of the model that it holds.

import Checkpoints

extension Weights {
    /// The transformer in this checkpoint.
    /// - Parameters:
    ///   - heads: where they leave no trace in the file; nil for heads of 128.
    ///   - patch: see `WanTransformerOptions`.
    func transformer(heads: Int?, patch: Int) throws(CheckpointError) -> WanTransformerArchitecture
    {
        let found = DetectedModel(checkpoint, heads: heads, patch: patch)
        guard case .wanTransformer(let sizes) = found else {
            throw refusal(of: .wanTransformer)
        }
        guard !sizes.hasImageBranch, sizes.dim == sizes.heads * sizes.headDim,
            sizes.headDim % 2 == 0
        else {
            throw .wrongModel(
                path: checkpoint.path, expected: "a Wan transformer without a CLIP branch",
                found: sizes.title,
                differences: ["width \(sizes.dim), \(sizes.heads) heads"])
        }
        return sizes
    }

    /// The text encoder in this checkpoint.
    func textEncoder() throws(CheckpointError) -> UMT5Architecture {
        guard case .umT5(let sizes) = DetectedModel(checkpoint),
            sizes.attentionDim % sizes.heads == 0
        else { throw refusal(of: .umT5) }
        return sizes
    }

    /// The autoencoder in this checkpoint, or one half of it.
    func autoencoder() throws(CheckpointError) -> WanVAEArchitecture {
        guard case .wanVAE(let sizes) = DetectedModel(checkpoint) else {
            throw refusal(of: .wanVAE)
        }
        return sizes
    }

    /// Why this checkpoint is not one of `kind`.
    private func refusal(of kind: DetectedModel.Kind) -> CheckpointError {
        let summary = CheckpointSummary(checkpoint)
        do throws(CheckpointError) {
            try summary.require(kind)
            return .wrongModel(
                path: checkpoint.path, expected: "a usable \(kind.rawValue)",
                found: "one of impossible sizes", differences: [])
        } catch {
            return error
        }
    }
}
