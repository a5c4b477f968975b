/// Several videos of one size in one pass, as training wants them.
///
/// Their tokens take turns: row i * samples + s is token i of sample s. So linear layers and norms see one long
/// sequence, attention sees one of usual length with as many times the heads, and what belongs to a sample (its
/// modulation) is a vector of rows that are samples * dim wide. Nothing is moved for it.

import Checkpoints
import Ground
public import Tensors

extension WanTransformer {
    /// Projects the prompts of a batch. Rows that all of them only pad with are one key that counts as often.
    /// texts: rows [textLength, textDim] on the host, equal past `count`
    public func prepare(
        batch texts: [TextEmbedding], size: Extent, on device: any Backend
    ) -> Context {
        let (samples, length) = (texts.count, texts[0].rows.shape[0])
        let longest = texts.map(\.count).max() ?? 0
        let rows = min(length, max(longest, 1) + (longest < length && longest > 0 ? 1 : 0))
        let width = texts[0].rows.shape[1]
        let whole = Tensor.host([rows * samples, width], .f32)
        whole.withMutable(Float.self) { out in
            for (sample, text) in texts.enumerated() {
                let values = text.rows.floats()
                ensure(
                    text.rows.shape == texts[0].rows.shape, "prepare: texts of different sizes")
                for row in 0..<rows {
                    let to = (row * samples + sample) * width
                    for i in 0..<width { out[to + i] = values[row * width + i] }
                }
            }
        }
        let embedded = embed(device.place(whole, as: activations), on: device)
        let keys = textProjections.map { projection in
            device.require(projection.group)
            return projection(
                [embedded], lastKeyCounts: length > rows ? [length - rows + 1] : [],
                samples: samples, on: device)
        }
        return Context(
            text: keys,
            positions: RotaryEmbedding.positions(
                Extent(t: size.t, h: size.h / config.patch, w: size.w / config.patch),
                headDim: config.headDim, samples: samples, on: device))
    }

    /// Latents of several samples, each [C, T, H, W] → tokens in turns, [tokens * samples, dim]
    public func embed(batch samples: [Tensor], on device: any Backend) -> Tensor {
        let tokens = samples.map { device.patchify([$0], dtype: activations, patch: config.patch) }
        let (count, width) = (tokens[0].shape[0], tokens[0].shape[1])
        let turns = device.swapRows(
            device.reshape(device.concatenate(tokens), [samples.count, count, width]))
        return patchEmbedding(device.reshape(turns, [count * samples.count, width]), on: device)
    }

    /// Undoes the turns after the head. x: f32 [tokens * samples, p*p * C] → f32 [C, T, H, W] of each sample
    public func latents(
        batch x: Tensor, samples: Int, size: Extent, on device: any Backend
    ) -> [Tensor] {
        let (count, width) = (x.shape[0] / samples, x.shape[1])
        let apart = device.swapRows(device.reshape(x, [count, samples, width]))
        return (0..<samples).map {
            device.unpatchify(device.entry(apart, $0), size: size, patch: config.patch)
        }
    }
}

extension TimeEmbedding {
    /// The modulation of several samples. e: [samples, dim], e0: [samples, 6 * dim]
    func batch(_ e: Tensor, _ e0: Tensor, on device: any Backend) -> Modulation {
        let (samples, dim) = (e.shape[0], e.shape[1])
        /// Every row as often as there are samples. x: [rows, dim] → [rows, samples * dim]
        func repeated(_ x: Tensor) -> Tensor {
            let rows = x.shape.count / dim
            let copies = device.concatenate(
                [Tensor](repeating: device.reshape(x, [rows, dim]), count: samples))
            return device.reshape(
                device.swapRows(device.reshape(copies, [samples, rows, dim])),
                [rows, samples * dim])
        }
        func added(_ offsets: Tensor, _ ones: Tensor, _ e: Tensor, _ shape: Shape) -> Tensor {
            let width = e.shape.count
            let rows: Shape = [offsets.shape.count / width, width]
            return device.reshape(
                device.gatedAdd(
                    device.reshape(offsets, rows), device.reshape(ones, rows), gate: e), shape)
        }
        let layers = blockOffsets.shape[0]
        let wide = device.reshape(
            device.swapRows(device.reshape(e0, [samples, 6, dim])), [6 * samples * dim])
        return Modulation(
            blocks: added(
                repeated(blockOffsets), repeated(blockOnes), wide, [layers, 6, samples * dim]),
            head: added(
                repeated(headOffsets), repeated(headOnes), device.reshape(e, [samples * dim]),
                [2, samples * dim]))
    }
}

extension Backend {
    /// x as a sequence in which each sample has heads of its own. x: [tokens * samples, heads, headDim]
    /// → [tokens, samples * heads, headDim]
    func withHeads(of samples: Int, _ x: Tensor) -> Tensor {
        reshape(x, [x.shape[0] / samples, samples * x.shape[1], x.shape[2]])
    }

    /// LN(x) * (1 + scale) + shift. x: [rows, dim], shift, scale: f32 [dim], or [samples * dim] where rows take turns
    func modulated(
        _ x: Tensor, shift: Tensor, scale: Tensor, kind: NormKind, format: LinearFormat,
        dtype: DType? = nil
    ) -> Tensor {
        let (rows, dim) = (x.shape[0], x.shape[1])
        let samples = scale.shape.count / dim
        if samples == 1 {
            return modulatedLayerNorm(
                x, shift: shift, scale: scale, epsilon: WanTransformer.epsilon, kind: kind,
                format: format, dtype: dtype)
        }
        // 8-bit layers quantise what they take by themselves.
        let zeros = place(.zeros([dim], .f32), as: .f32)
        let normed = modulatedLayerNorm(
            x, shift: zeros, scale: zeros, epsilon: WanTransformer.epsilon, kind: kind,
            format: .plain, dtype: dtype)
        return reshape(
            modulateColumns(
                reshape(normed, [rows / samples, samples * dim]), shift: shift, scale: scale),
            [rows, dim])
    }

    /// x + (y W^T + b) * gate. gate: f32 [dim], or [samples * dim] where rows take turns
    func gated(_ linear: Linear, _ y: Tensor, to x: Tensor, gate: Tensor) -> Tensor {
        let (rows, dim) = (x.shape[0], x.shape[1])
        let samples = gate.shape.count / dim
        if samples == 1 { return linear.add(y, to: x, gate: gate, on: self) }
        let wide: Shape = [rows / samples, samples * dim]
        return reshape(
            gatedAdd(reshape(x, wide), reshape(linear(y, on: self), wide), gate: gate), x.shape)
    }
}
