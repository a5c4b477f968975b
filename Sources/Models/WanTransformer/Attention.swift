/// The two attentions of a Wan transformer block. Port of Wan2.1 wan/modules/model.py
/// (WanSelfAttention, WanT2VCrossAttention) and of TurboDiffusion's SLA/core.py.

import Checkpoints
import Tensors

/// Every token attends to all others, or to a share of their blocks plus a linear branch.
struct SelfAttention {
    let q, k, v, o: Linear
    /// RMS norms over all heads together. f32 [dim]
    let normQ, normK: Tensor
    let kind: Kind
    let heads: Int
    let norms: NormKind

    enum Kind {
        case dense
        /// SLA, whose linear branch passes through `projection`, [headDim, headDim].
        case sparse(SparseAttention, projection: Linear)
    }

    init(_ weights: Weights, _ config: WanTransformerArchitecture, _ options: WanTransformerOptions)
        throws(CheckpointError)
    {
        let dim = config.dim
        q = try Linear(weights["q"], from: dim, to: dim, quantizable: true)
        k = try Linear(weights["k"], from: dim, to: dim, quantizable: true)
        v = try Linear(weights["v"], from: dim, to: dim, quantizable: true)
        o = try Linear(weights["o"], from: dim, to: dim, quantizable: true)
        normQ = try weights["norm_q"].tensor("weight", [dim], as: .f32)
        normK = try weights["norm_k"].tensor("weight", [dim], as: .f32)
        switch options.attention {
        case .original: kind = .dense
        case .sparse(let spec):
            kind = .sparse(
                spec,
                projection: try Linear(
                    weights["attn_op"]["local_attn"]["proj_l"], from: config.headDim,
                    to: config.headDim))
        }
        heads = config.heads
        norms = options.norms
    }

    /// y: [tokens, dim], plain or in `q.inputFormat` → [tokens, dim] in `o.inputFormat`, for the projection `o`
    ///
    /// Of a group of devices each has some rows of all heads; attention wants all rows and is content with some heads.
    func callAsFunction(
        _ y: consuming Tensor, _ positions: Positions, on device: any Backend
    ) -> Tensor {
        let rows = positions.tokens
        let own = y.shape[0]
        // The norms of q and k need both their input and their result; v comes last and needs one.
        let q = device.exchangeToHeads(query(y, positions, on: device), rows: rows)
        let k = device.exchangeToHeads(key(y, positions, on: device), rows: rows)
        let v = device.exchangeToHeads(
            device.reshape(
                v(consume y, on: device), [own, heads, normQ.shape.count / heads]),
            rows: rows)
        // Codes travel where they do not depend on the heads of other devices.
        let headDim = q.shape[2]
        let isLocal = o.inputFormat == .int8Blocks && headDim % Int8Blocks.side == 0
        let format = device.membership.isAlone || isLocal ? o.inputFormat : .plain
        let attended = device.exchangeToRows(
            attend(q, k, v, positions.samples, format: format, on: device), heads: heads,
            headDim: headDim)
        return device.joinHeads(attended, format: o.inputFormat)
    }

    /// The queries and keys, normalised and rotated. y: [tokens, dim] → [tokens, heads, headDim] each
    func query(_ y: Tensor, _ positions: Positions, on device: any Backend) -> Tensor {
        rotated(q(y, on: device), normQ, positions, on: device)
    }

    /// y: [tokens, dim] → [tokens, heads, headDim], normalised and rotated
    func key(_ y: Tensor, _ positions: Positions, on device: any Backend) -> Tensor {
        rotated(k(y, on: device), normK, positions, on: device)
    }

    private func rotated(
        _ x: Tensor, _ weight: Tensor, _ positions: Positions, on device: any Backend
    ) -> Tensor {
        device.rmsNormRope(
            x, weight: weight, epsilon: WanTransformer.epsilon, kind: norms,
            rope: positions.rope, heads: heads)
    }

    /// q, k, v: [tokens, heads, headDim] → same, or joined in `format`
    private func attend(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ samples: Int, format: LinearFormat,
        on device: any Backend
    ) -> Tensor {
        if samples > 1 {
            // Each sample has heads of its own.
            let wide = [q, k, v].map { device.withHeads(of: samples, $0) }
            return device.reshape(
                attend(wide[0], wide[1], wide[2], 1, format: .plain, on: device), q.shape)
        }
        return switch kind {
        case .dense:
            device.attention(
                q, k, v, scale: 1 / Float(q.shape[2]).squareRoot(), format: format)
        case .sparse(let spec, let projection):
            device.sparseLinearAttention(
                q, k, v, projection: projection.weight, bias: projection.bias, spec,
                format: format)
        }
    }
}

/// Every token attends to the text.
struct CrossAttention {
    let q, o: Linear
    /// f32 [dim]
    let normQ: Tensor
    let heads: Int
    let norms: NormKind

    init(_ weights: Weights, _ config: WanTransformerArchitecture, _ options: WanTransformerOptions)
        throws(CheckpointError)
    {
        q = try Linear(weights["q"], from: config.dim, to: config.dim, quantizable: true)
        o = try Linear(weights["o"], from: config.dim, to: config.dim, quantizable: true)
        normQ = try weights["norm_q"].tensor("weight", [config.dim], as: .f32)
        heads = config.heads
        norms = options.norms
    }

    /// y: [tokens, dim], plain or in `q.inputFormat` → [tokens, dim] in `o.inputFormat`, for the projection `o`
    func callAsFunction(_ y: Tensor, _ text: TextKeys, on device: any Backend) -> Tensor {
        let q = device.rmsNorm(
            q(y, on: device), weight: normQ, epsilon: WanTransformer.epsilon, kind: norms,
            format: .plain)
        let (tokens, dim) = (q.shape[0], q.shape[1])
        // The texts of a batch: each sample has heads of its own.
        let samples = text.key.shape[1] / heads
        let attended = device.attention(
            device.reshape(q, [tokens / samples, samples * heads, dim / heads]), text.key,
            text.value, scale: 1 / Float(dim / heads).squareRoot(),
            lastKeyCounts: text.lastKeyCounts, format: samples == 1 ? o.inputFormat : .plain)
        return device.joinHeads(
            samples == 1 ? attended : device.reshape(attended, [tokens, heads, dim / heads]),
            format: o.inputFormat)
    }
}

extension Backend {
    /// What attention gave as rows of all heads in `format`; those that it quantised are.
    /// y: [tokens, heads, headDim] → [tokens, dim]
    fileprivate func joinHeads(_ y: Tensor, format: LinearFormat) -> Tensor {
        y.format == .plain
            ? quantize(reshape(y, [y.shape[0], y.shape.tail.count]), to: format) : y
    }
}

/// The keys and values of a prompt for the cross attention of one block. key, value: [rows, heads, headDim]
struct TextKeys {
    let key, value: Tensor
    /// How many equal rows each of the last rows stands for: the padding of the text.
    let lastKeyCounts: [Int]
}

/// Makes the keys and values of one block's cross attention. It has its own weight group, because it is used once for
/// each prompt instead of in every step.
struct TextProjection {
    let k, v: Linear
    /// f32 [dim]
    let normK: Tensor
    let group: WeightGroup
    let heads: Int
    let norms: NormKind

    /// weights: grouped
    init(_ weights: Weights, _ config: WanTransformerArchitecture, _ options: WanTransformerOptions)
        throws(CheckpointError)
    {
        k = try Linear(weights["k"], from: config.dim, to: config.dim, quantizable: true)
        v = try Linear(weights["v"], from: config.dim, to: config.dim, quantizable: true)
        normK = try weights["norm_k"].tensor("weight", [config.dim], as: .f32)
        group = weights.group!
        heads = config.heads
        norms = options.norms
    }

    /// text: parts [rows, dim], after the text embedding, which together are the rows of the keys
    /// - Parameter samples: prompts whose rows take turns.
    func callAsFunction(
        _ text: [Tensor], lastKeyCounts: [Int], samples: Int = 1, on device: any Backend
    ) -> TextKeys {
        func projected(_ linear: Linear) -> Tensor {
            let parts = text.map { linear($0, on: device) }
            return parts.count == 1 ? parts[0] : device.concatenate(parts)
        }
        let key = device.rmsNorm(
            projected(k), weight: normK, epsilon: WanTransformer.epsilon, kind: norms,
            format: .plain)
        let (rows, dim) = (key.shape[0], key.shape[1])
        let split: Shape = [rows / samples, samples * heads, dim / heads]
        return TextKeys(
            key: device.reshape(key, split), value: device.reshape(projected(v), split),
            lastKeyCounts: lastKeyCounts)
    }
}
