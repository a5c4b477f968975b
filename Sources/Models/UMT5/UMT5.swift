/// The umT5 text encoder. Port of Wan2.1 wan/modules/t5.py (T5Encoder).

public import Checkpoints
import Ground
public import Tensors

/// Encodes tokens to the embedding that the transformer attends to. Weights: `models_t5_umt5-xxl-enc-bf16`.
public struct UMT5 {
    public let config: UMT5Architecture
    /// [vocabulary, dim]. Stays in host memory, because a prompt needs only a few hundred of its 256 thousand rows.
    let tokenEmbedding: Tensor
    let blocks: [Block]
    let norm: Tensor
    let activations: DType
    static let epsilon: Float = 1e-6

    /// weights: the root of the checkpoint
    public init(_ weights: Weights) throws(CheckpointError) {
        config = try weights.textEncoder()
        activations = weights.activations
        tokenEmbedding = try weights["token_embedding"].host(
            "weight", [config.vocabulary, config.dim])
        var blocks: [Block] = []
        for layer in 0..<config.layers {
            blocks.append(try Block(weights["blocks"][layer].grouped(), config))
        }
        self.blocks = blocks
        norm = try weights["norm"].tensor("weight", [config.dim], as: .f32)
    }

    /// The weight groups, in the order of their use.
    public var groups: [WeightGroup] { blocks.map(\.group) }

    /// Encodes the tokens of one prompt, with the end token and without padding.
    ///
    /// The original computes all `textLength` rows with a key mask, and then sets those past the prompt to zero. No
    /// token of the prompt attends to these rows, so they are not computed here.
    /// ids: [n], n ≤ textLength → rows: [textLength, dim]
    public func callAsFunction(_ ids: [Int32], textLength: Int = 512, on device: any Backend)
        -> TextEmbedding
    {
        ensure(
            !ids.isEmpty && ids.count <= textLength,
            "UMT5: \(ids.count) tokens for \(textLength) rows")
        var x = device.embedding(ids, hostTable: tokenEmbedding, as: activations)
        for block in blocks {
            device.require(block.group)
            block(&x, on: device)
        }
        x = device.rmsNorm(
            x, weight: norm, epsilon: UMT5.epsilon, kind: .exact, format: .plain)
        if ids.count < textLength {
            let padding: Shape = [textLength - ids.count, config.dim]
            let zeros = device.place(padding, as: activations) { .zeros(padding, activations) }
            x = device.concatenate([x, zeros])
        }
        return TextEmbedding(rows: x, count: ids.count)
    }
}

extension UMT5 {
    /// x += o(attention(norm1 x)); x += fc2(gelu(gate h) * fc1 h), h = norm2 x. No biases.
    struct Block {
        let norm1, norm2: Tensor
        let q, k, v, o: Linear
        /// f32 [32, heads]
        let positionBias: Tensor
        let gate, fc1, fc2: Linear
        let group: WeightGroup
        let config: UMT5Architecture

        init(_ weights: Weights, _ config: UMT5Architecture) throws(CheckpointError) {
            func linear(_ place: Weights, _ inputs: Int, _ outputs: Int) throws(CheckpointError)
                -> Linear
            { try Linear(place, from: inputs, to: outputs, quantizable: true) }

            let (dim, inner) = (config.dim, config.attentionDim)
            let (attention, ffn) = (weights["attn"], weights["ffn"])
            norm1 = try weights["norm1"].tensor("weight", [dim], as: .f32)
            q = try linear(attention["q"], dim, inner)
            k = try linear(attention["k"], dim, inner)
            v = try linear(attention["v"], dim, inner)
            o = try linear(attention["o"], inner, dim)
            positionBias = try weights["pos_embedding"]["embedding"].tensor(
                "weight", [config.buckets, config.heads], as: .f32)
            norm2 = try weights["norm2"].tensor("weight", [dim], as: .f32)
            gate = try linear(ffn["gate"][0], dim, config.feedForward)
            fc1 = try linear(ffn["fc1"], dim, config.feedForward)
            fc2 = try linear(ffn["fc2"], config.feedForward, dim)
            group = weights.group!
            self.config = config
        }

        /// x: [n, dim], the residual stream
        func callAsFunction(_ x: inout Tensor, on device: any Backend) {
            x = o.add(
                attention(normed(x, norm1, for: q, on: device), on: device), to: x, on: device)
            x = fc2.add(
                feedForward(normed(x, norm2, for: gate, on: device), on: device), to: x,
                on: device)
        }

        private func normed(
            _ x: Tensor, _ weight: Tensor, for next: Linear, on device: any Backend
        ) -> Tensor {
            device.rmsNorm(
                x, weight: weight, epsilon: UMT5.epsilon, kind: .exact, format: next.inputFormat)
        }

        /// h: [n, dim] → [n, heads * headDim]
        private func attention(_ h: Tensor, on device: any Backend) -> Tensor {
            let heads: Shape = [h.shape[0], config.heads, config.attentionDim / config.heads]
            let attended = device.relativeAttention(
                device.reshape(q(h, on: device), heads), device.reshape(k(h, on: device), heads),
                device.reshape(v(h, on: device), heads), table: positionBias)
            return device.reshape(attended, [h.shape[0], config.attentionDim])
        }

        /// h: [n, dim] → [n, feedForward]
        private func feedForward(_ h: Tensor, on device: any Backend) -> Tensor {
            device.geluGate(
                gate(h, on: device), fc1(h, on: device), format: fc2.inputFormat)
        }
    }
}
