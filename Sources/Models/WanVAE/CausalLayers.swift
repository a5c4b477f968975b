/// The layers of the Wan autoencoder. Port of Wan2.1 wan/modules/vae.py.

import Checkpoints
import Ground
import Tensors

/// A convolution that reads only earlier frames, with zeros before the first one.
struct CausalConvolution {
    let weight: ConvolutionWeight
    let slot: Int

    init(
        _ weights: Weights, from inputs: Int, to outputs: Int,
        kernel: (t: Int, h: Int, w: Int) = (3, 3, 3), _ slots: inout Slots
    ) throws(CheckpointError) {
        weight = try weights.convolution(from: inputs, to: outputs, kernel: kernel)
        slot = slots.next()
    }

    /// Rows above and below a pixel that it reads.
    var margin: Int { (weight.height - 1) / 2 }

    /// x: [T, H, W, in] and the rows of other devices; residual: [T, H, W, out] or nil → [T, H, W, out]
    func callAsFunction(
        _ x: HaloedFrames, _ history: FeatureHistory, residual: Tensor? = nil,
        on device: any Backend
    ) -> Tensor {
        let past = history[slot]
        let reach = weight.time - 1
        let y = device.convolution(
            x, history: past, leadingZeros: reach - (past?.shape[0] ?? 0), weight, timeStride: 1,
            spatialStride: 1, padding: .same, upsample: false, residual: residual)
        history.remember(x.frames, last: reach, in: slot)
        return y
    }
}

extension CausalConvolution: CausalLayer {
    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        self(
            history.rows.haloed(x, above: margin, below: margin, on: device), history, on: device)
    }
}

/// x / ||x|| * sqrt(C) * gamma over the channels, then SiLU if asked for. gamma: f32 [C]
struct ChannelNorm {
    let gamma: Tensor

    init(_ weights: Weights, _ channels: Int) throws(CheckpointError) {
        gamma = try weights.tensor("gamma", [channels], as: .f32)
    }

    /// x: [..., C] → same
    func callAsFunction(_ x: Tensor, silu: Bool = true, on device: any Backend) -> Tensor {
        device.channelNorm(x, gamma: gamma, silu: silu)
    }

    /// With SiLU, for a convolution: with the rows of other devices that it reads. x: [T, H, W, C]
    func callAsFunction(
        _ x: Tensor, for next: CausalConvolution, _ history: FeatureHistory, on device: any Backend
    ) -> HaloedFrames {
        let margin = history.rows.margin(
            of: x, above: next.margin, below: next.margin, on: device)
        return device.channelNorm(x, margin, gamma: gamma, silu: true)
    }
}

/// shortcut(x) + conv(silu(norm(conv(silu(norm x)))))
struct ResidualBlock: CausalLayer {
    let norm1, norm2: ChannelNorm
    let conv1, conv2: CausalConvolution
    /// Present if the number of channels changes.
    let shortcut: Linear?

    init(_ weights: Weights, from inputs: Int, to outputs: Int, _ slots: inout Slots)
        throws(CheckpointError)
    {
        let residual = weights["residual"]
        norm1 = try ChannelNorm(residual[0], inputs)
        conv1 = try CausalConvolution(residual[2], from: inputs, to: outputs, &slots)
        norm2 = try ChannelNorm(residual[3], outputs)
        conv2 = try CausalConvolution(residual[6], from: outputs, to: outputs, &slots)
        shortcut =
            inputs == outputs
            ? nil : try Linear(pointwise: weights["shortcut"], from: inputs, to: outputs)
    }

    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        let y = conv1(norm1(x, for: conv1, history, on: device), history, on: device)
        return conv2(
            norm2(y, for: conv2, history, on: device), history,
            residual: shortcut?(x, on: device) ?? x, on: device)
    }
}

/// x + proj(attention(norm x)), with one head over the pixels of a frame.
struct AttentionBlock: CausalLayer {
    let norm: ChannelNorm
    let q, k, v, proj: Linear

    init(_ weights: Weights, _ channels: Int) throws(CheckpointError) {
        norm = try ChannelNorm(weights["norm"], channels)
        let qkv = weights["to_qkv"]
        func rows(_ part: Int) throws(CheckpointError) -> Linear {
            try Linear(
                pointwise: qkv, from: channels, to: channels,
                rows: part * channels..<(part + 1) * channels, of: 3 * channels)
        }
        (q, k, v) = (try rows(0), try rows(1), try rows(2))
        proj = try Linear(pointwise: weights["proj"], from: channels, to: channels)
    }

    /// x: [T, H, W, C] → same; each frame by itself. A device's own pixels look at those of the whole picture.
    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        let channels = x.shape[3]
        let flat = device.reshape(x, [x.shape.rows, channels])
        let y = norm(flat, silu: false, on: device)
        func own(_ part: Linear) -> Tensor { device.reshape(part(y, on: device), x.shape) }
        func whole(_ part: Linear) -> Tensor { history.rows.whole(own(part), on: device) }
        func oneHead(_ frames: Tensor, _ index: Int) -> Tensor {
            let frame = device.entry(frames, index)
            return device.reshape(frame, [frame.shape.rows, 1, channels])
        }
        let (q, k, v) = (own(q), whole(k), whole(v))
        let attended = (0..<x.shape[0]).map { frame in
            device.attention(
                oneHead(q, frame), oneHead(k, frame), oneHead(v, frame),
                scale: 1 / Float(channels).squareRoot())
        }
        let joined = attended.count == 1 ? attended[0] : device.concatenate(attended)
        let sum = proj.add(device.reshape(joined, flat.shape), to: flat, on: device)
        return device.reshape(sum, x.shape)
    }
}

/// Halves height and width, and also the number of frames if there is a `timeConv`.
struct Downsample: CausalLayer {
    let conv: ConvolutionWeight
    let timeConv: (weight: ConvolutionWeight, slot: Int)?

    init(_ weights: Weights, _ channels: Int, halvesTime: Bool, _ slots: inout Slots)
        throws(CheckpointError)
    {
        conv = try weights["resample"][1].convolution(
            from: channels, to: channels, kernel: (1, 3, 3))
        timeConv =
            halvesTime
            ? (
                try weights["time_conv"].convolution(
                    from: channels, to: channels, kernel: (3, 1, 1)), slots.next()
            ) : nil
    }

    /// x: [T, H, W, C] → [1, H/2, W/2, C] for the first frame, then [T/2, H/2, W/2, C]
    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        let y = device.convolution(
            history.rows.haloed(x, above: 0, below: 1, on: device), history: nil,
            leadingZeros: 0, conv, timeStride: 1, spatialStride: 2,
            padding: .bottomRight, upsample: false, residual: nil)
        guard let timeConv else { return y }
        let past = history[timeConv.slot]
        history.remember(y, last: 1, in: timeConv.slot)
        // The first frame is not combined with others in time.
        guard let past else { return y }
        return device.convolution(
            y, history: past, leadingZeros: 0, timeConv.weight, timeStride: 2, spatialStride: 1,
            padding: .same, upsample: false, residual: nil)
    }
}

/// Doubles height and width and halves the channels, and also doubles the number of frames if there is a `timeConv`.
struct Upsample: CausalLayer {
    let timeConv: CausalConvolution?
    let conv: ConvolutionWeight

    init(_ weights: Weights, _ channels: Int, doublesTime: Bool, _ slots: inout Slots)
        throws(CheckpointError)
    {
        timeConv =
            doublesTime
            ? try CausalConvolution(
                weights["time_conv"], from: channels, to: 2 * channels, kernel: (3, 1, 1), &slots)
            : nil
        conv = try weights["resample"][1].convolution(
            from: channels, to: channels / 2, kernel: (1, 3, 3))
    }

    /// x: [T, H, W, C] → [T, 2H, 2W, C/2] for the first frame, then [2T, 2H, 2W, C/2]
    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        // The first frame is not doubled in time, and the frames after it do not depend on it here.
        guard let timeConv, !history.isFirstChunk else { return enlarge(x, history, on: device) }
        return enlarge(
            device.interleaveTime(timeConv(x, history, on: device)), history, on: device)
    }

    private func enlarge(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        device.convolution(
            history.rows.haloed(x, above: 1, below: 1, on: device), history: nil, leadingZeros: 0,
            conv, timeStride: 1, spatialStride: 1,
            padding: .same, upsample: true, residual: nil)
    }
}

/// Norm, SiLU, and the convolution to the channels of the result.
struct Head: CausalLayer {
    let norm: ChannelNorm
    let conv: CausalConvolution

    init(_ weights: Weights, from inputs: Int, to outputs: Int, _ slots: inout Slots)
        throws(CheckpointError)
    {
        norm = try ChannelNorm(weights[0], inputs)
        conv = try CausalConvolution(weights[2], from: inputs, to: outputs, &slots)
    }

    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor {
        conv(norm(x, for: conv, history, on: device), history, on: device)
    }
}

extension Weights {
    /// Loads a convolution. Two-dimensional kernels are stored without the axis of time.
    func convolution(from inputs: Int, to outputs: Int, kernel: (t: Int, h: Int, w: Int))
        throws(CheckpointError) -> ConvolutionWeight
    {
        device.place(
            convolution: try host("weight", [outputs, inputs, kernel.t, kernel.h, kernel.w]),
            bias: try host("bias", [outputs]), as: activations, in: group)
    }
}

extension Linear {
    /// A 1x1 convolution, which is a linear layer over the channels. Only `rows` out of its `count` outputs are used.
    init(
        pointwise weights: Weights, from inputs: Int, to outputs: Int, rows: Range<Int>? = nil,
        of count: Int? = nil
    ) throws(CheckpointError) {
        let rows = rows ?? 0..<outputs
        let matrix = try weights.host("weight", [count ?? outputs, inputs]).slice(rows)
        let bias = try weights.host("bias", [count ?? outputs]).slice(rows)
        let device = weights.device
        self.init(
            weight: device.place(.dense(matrix), as: weights.activations, in: weights.group),
            bias: device.place(bias, as: .f32, in: weights.group), dtype: weights.activations)
    }
}
