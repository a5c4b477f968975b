/// The Wan 2.1 / 2.2 video transformer, which computes a velocity from noisy latents, a timestep and a text.
/// Port of Wan2.1 wan/modules/model.py (WanModel). The image-to-video model of Wan 2.2 is the same network with more
/// input channels.

public import Checkpoints
import Ground
public import Tensors

/// Weights: `Wan2.1-T2V-*`, `Wan2.2-I2V-A14B-*`, and their distilled, sparse and quantised versions.
public struct WanTransformer {
    public let config: WanTransformerArchitecture
    let patchEmbedding: Linear
    let textEmbedding: (first: Linear, second: Linear)
    let timeEmbedding: TimeEmbedding
    let textProjections: [TextProjection]
    let blocks: [Block]
    let head: Linear
    let activations: DType
    static let epsilon: Float = 1e-6

    /// weights: the root of the checkpoint
    public init(_ weights: Weights, _ options: WanTransformerOptions) throws(CheckpointError) {
        let config = try weights.transformer(heads: options.heads, patch: options.patch)
        let dim = config.dim
        self.config = config
        activations = weights.activations
        patchEmbedding = try Linear(
            weights["patch_embedding"], from: config.inputChannels * config.patchCount,
            to: dim)
        textEmbedding = (
            try Linear(weights["text_embedding"][0], from: config.textDim, to: dim),
            try Linear(weights["text_embedding"][2], from: dim, to: dim)
        )
        timeEmbedding = try TimeEmbedding(weights, config)
        var blocks: [Block] = []
        for layer in 0..<config.layers {
            blocks.append(try Block(weights["blocks"][layer].grouped(), config, options))
        }
        var textProjections: [TextProjection] = []
        for layer in 0..<config.layers {
            textProjections.append(
                try TextProjection(
                    weights["blocks"][layer]["cross_attn"].grouped(isTransient: true), config,
                    options))
        }
        self.textProjections = textProjections
        self.blocks = blocks
        head = try Linear(
            weights["head"]["head"], from: dim,
            to: config.outputChannels * config.patchCount, result: .f32)
    }

    /// The weight groups in the order of their use: those used once for each prompt, and those used in every step.
    public var groups: (text: [WeightGroup], blocks: [WeightGroup]) {
        (textProjections.map(\.group), blocks.map(\.group))
    }
}

// MARK: - Once for each prompt and size

extension WanTransformer {
    /// What does not change from step to step.
    public struct Context {
        let text: [TextKeys]
        let positions: Positions
    }

    /// Projects a prompt for all blocks, and computes the rotary table for latents of this size.
    ///
    /// Cross attention has no mask, so the padding of the text counts too. Its rows are zero here, and still equal to
    /// each other after any layer that works row by row. So only one of them is projected, and counted `textLength -
    /// count` times. With int8, 128 rows share a scale; then padding in the last block of the prompt differs from
    /// padding in later blocks, so one row of each is projected and counted.
    /// text.rows: [textLength, textDim] in the dtype of activations
    public func prepare(
        _ text: TextEmbedding, size: Extent, on device: any Backend
    ) -> Context {
        let (count, length) = (text.count, text.rows.shape[0])
        let isBlocked =
            ([textEmbedding.first, textEmbedding.second] + textProjections.flatMap { [$0.k, $0.v] })
            .contains { $0.inputFormat == .int8Blocks }
        let side = isBlocked ? Int8Blocks.side : length
        let shared = min(length, roundUp(max(count, 1), to: side)) - count
        let apart = length - count - shared
        var parts = [device.slice(text.rows, 0..<count + min(shared, 1))]
        if apart > 0 { parts.append(device.slice(text.rows, count..<count + 1)) }
        let embedded = parts.map { embed($0, on: device) }
        let keys = textProjections.map { projection in
            device.require(projection.group)
            return projection(
                embedded, lastKeyCounts: [shared, apart].filter { $0 > 0 }, on: device)
        }
        return Context(
            text: keys,
            positions: RotaryEmbedding.positions(
                Extent(t: size.t, h: size.h / config.patch, w: size.w / config.patch),
                headDim: config.headDim, on: device))
    }

    /// The text embedding. text: [rows, textDim] → [rows, dim]
    public func embed(_ text: Tensor, on device: any Backend) -> Tensor {
        textEmbedding.second(
            textEmbedding.first(text, activation: .geluTanh, on: device), on: device)
    }

    /// The modulation of all blocks at a timestep in 0...1000, which the sampler has rounded as in training.
    public func modulation(at timestep: Double, on device: any Backend) -> Modulation {
        modulation(
            sinusoid: device.place(
                TimeEmbedding.sinusoid(timestep, config.frequencyDim), as: .f32), on: device)
    }

    /// The same from the timestep's sinusoid, for who looks at how the timestep turns it.
    /// sinusoid: f32 [1, frequencyDim]
    package func modulation(sinusoid: Tensor, on device: any Backend) -> Modulation {
        timeEmbedding(sinusoid, on: device)
    }
}

// MARK: - Every step

extension WanTransformer {
    /// The velocity at a timestep in 0...1000.
    ///
    /// Latents are whole on every device of a group, tokens shared out: all between `embed` and `project` is about a
    /// device's own rows of the sequence.
    public func callAsFunction(
        _ parts: [Tensor], timestep: Double, _ context: Context, on device: any Backend
    ) -> Tensor {
        self(parts, modulation(at: timestep, on: device), context, on: device)
    }

    /// The velocity. parts: tensors [C_i, T, H, W] whose channels together are the input: the noisy latents and, for
    /// image to video, mask and picture → f32 [outputChannels, T, H, W]
    public func callAsFunction(
        _ parts: [Tensor], _ modulation: Modulation, _ context: Context, on device: any Backend
    ) -> Tensor {
        let shape = parts[0].shape
        var x = embed(parts, on: device)
        for index in blocks.indices { step(&x, block: index, modulation, context, on: device) }
        return latents(
            x, modulation, context, size: Extent(t: shape[1], h: shape[2], w: shape[3]), on: device)
    }

    /// The head, then all devices' rows as latents. x: own [tokens, dim] → f32 [outputChannels, T, H, W]
    /// - Parameter size: of the latents.
    public func latents(
        _ x: Tensor, _ modulation: Modulation, _ context: Context, size: Extent,
        on device: any Backend
    ) -> Tensor {
        device.unpatchify(
            device.gather(
                project(x, modulation, on: device),
                device.membership.sequence(context.positions.tokens)),
            size: size, patch: config.patch)
    }

    /// parts: [C_i, T, H, W] → own tokens of T * H/p * W/p, [tokens, dim]
    public func embed(_ parts: [Tensor], on device: any Backend) -> Tensor {
        let tokens = device.patchify(parts, dtype: activations, patch: config.patch)
        let own = device.membership.sequence(tokens.shape[0])[device.membership.index]
        return patchEmbedding(device.slice(tokens, own), on: device)
    }

    /// Passes the residual stream through one block. x: [tokens, dim]
    public func step(
        _ x: inout Tensor, block index: Int, _ modulation: Modulation, _ context: Context,
        on device: any Backend
    ) {
        device.require(blocks[index].group)
        blocks[index](
            &x, device.entry(modulation.blocks, index), context.text[index],
            context.positions, on: device)
    }

    /// The head, in f32. x: [tokens, dim] → f32 [tokens, p*p * outputChannels]
    public func project(_ x: Tensor, _ modulation: Modulation, on device: any Backend) -> Tensor {
        head(
            device.modulated(
                x, shift: device.entry(modulation.head, 0), scale: device.entry(modulation.head, 1),
                kind: .exact, format: .plain, dtype: .f32), on: device)
    }

    /// The queries and keys of one block's self-attention, for inspecting its block map.
    /// x: [tokens, dim], the residual stream before that block → [tokens, heads, headDim]
    public func queryKey(
        _ x: Tensor, block index: Int, _ modulation: Modulation, _ context: Context,
        on device: any Backend
    ) -> (q: Tensor, k: Tensor) {
        let (block, m) = (blocks[index], device.entry(modulation.blocks, index))
        device.require(block.group)
        let y = block.normed(
            x, device.entry(m, 0), device.entry(m, 1), for: block.attention.q, on: device)
        return (
            block.attention.query(y, context.positions, on: device),
            block.attention.key(y, context.positions, on: device)
        )
    }
}
