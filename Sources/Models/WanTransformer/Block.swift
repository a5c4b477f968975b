/// One block of the Wan transformer. Port of Wan2.1 wan/modules/model.py (WanAttentionBlock).

import Checkpoints
import Tensors

/// Self-attention, cross attention and feed-forward. The norms before self-attention and feed-forward are modulated by
/// the timestep.
struct Block {
    let attention: SelfAttention
    let crossAttention: CrossAttention
    /// The norm before cross attention is the only one with weights. f32 [dim]
    let norm3: (weight: Tensor, bias: Tensor)
    let up, down: Linear
    let group: WeightGroup
    let norms: NormKind

    /// weights: grouped
    init(_ weights: Weights, _ config: WanTransformerArchitecture, _ options: WanTransformerOptions)
        throws(CheckpointError)
    {
        let (dim, ffn) = (config.dim, weights["ffn"])
        attention = try SelfAttention(weights["self_attn"], config, options)
        crossAttention = try CrossAttention(weights["cross_attn"], config, options)
        norm3 = (
            try weights["norm3"].tensor("weight", [dim], as: .f32),
            try weights["norm3"].tensor("bias", [dim], as: .f32)
        )
        up = try Linear(ffn[0], from: dim, to: config.feedForward, quantizable: true)
        down = try Linear(ffn[2], from: config.feedForward, to: dim, quantizable: true)
        group = weights.group!
        norms = options.norms
    }

    /// x: [tokens, dim], the residual stream; m: f32 [6, samples * dim], with the rows shift, scale and gate of the
    /// self-attention, then of the feed-forward
    func callAsFunction(
        _ x: inout Tensor, _ m: Tensor, _ text: TextKeys, _ positions: Positions,
        on device: any Backend
    ) {
        func row(_ index: Int) -> Tensor { device.entry(m, index) }
        x = device.gated(
            attention.o,
            attention(
                normed(x, row(0), row(1), for: attention.q, on: device), positions, on: device),
            to: x, gate: row(2))
        x = crossAttention.o.add(
            crossAttention(textNormed(x, on: device), text, on: device), to: x, on: device)
        x = device.gated(
            down,
            up(
                normed(x, row(3), row(4), for: up, on: device), activation: .geluTanh,
                format: down.inputFormat, on: device),
            to: x, gate: row(5))
    }

    /// LN(x) * (1 + scale) + shift, in the input format of `next`. x: [tokens, dim] → same
    func normed(
        _ x: Tensor, _ shift: Tensor, _ scale: Tensor, for next: Linear, on device: any Backend
    ) -> Tensor {
        device.modulated(x, shift: shift, scale: scale, kind: norms, format: next.inputFormat)
    }

    /// LN(x) * weight + bias, in the input format of the queries of cross attention. x: [tokens, dim] → same
    private func textNormed(_ x: Tensor, on device: any Backend) -> Tensor {
        device.layerNorm(
            x, weight: norm3.weight, bias: norm3.bias, epsilon: WanTransformer.epsilon, kind: norms,
            format: crossAttention.q.inputFormat)
    }
}
