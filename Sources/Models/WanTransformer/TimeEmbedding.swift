/// The embedding of a timestep, which modulates every block. All of it is f32.

import Checkpoints
import Glibc
public import Tensors

/// Shift, scale and gate vectors for one timestep.
public struct Modulation {
    /// For each block: shift, scale, gate of the attention, then of the feed-forward.
    /// f32 [layers, 6, dim]; of a batch [layers, 6, samples * dim]
    public let blocks: Tensor
    /// Shift and scale before the head. f32 [2, dim]; of a batch [2, samples * dim]
    public let head: Tensor
}

/// Computes the modulation from a timestep.
package struct TimeEmbedding {
    let first, second, projection: Linear
    let frequencyDim: Int
    /// What each block and the head add to the embedding. f32 [layers, 6, dim], [2, dim]
    let blockOffsets, headOffsets: Tensor
    /// Ones in the shapes of the offsets.
    let blockOnes, headOnes: Tensor

    /// weights: the root of the checkpoint
    init(_ weights: Weights, _ config: WanTransformerArchitecture) throws(CheckpointError) {
        let dim = config.dim
        first = try Linear(
            weights["time_embedding"][0], from: config.frequencyDim, to: dim, result: .f32)
        second = try Linear(weights["time_embedding"][2], from: dim, to: dim, result: .f32)
        projection = try Linear(weights["time_projection"][1], from: dim, to: 6 * dim, result: .f32)
        frequencyDim = config.frequencyDim

        var offsets: [Tensor] = []
        for layer in 0..<config.layers {
            offsets.append(
                try weights["blocks"][layer].tensor("modulation", [1, 6, dim], as: .f32))
        }
        let device = weights.device
        func ones(_ shape: Shape) -> Tensor {
            device.place(shape, as: .f32) {
                Tensor([Float](repeating: 1, count: shape.count), shape)
            }
        }
        blockOffsets = device.concatenate(offsets)
        headOffsets = try weights["head"].tensor("modulation", [2, dim], as: .f32)
        blockOnes = ones(blockOffsets.shape)
        headOnes = ones(headOffsets.shape)
    }

    /// e, which modulates the head: [1, dim]; e0, which modulates the blocks: [1, 6 * dim]
    /// sinusoid: f32 [1, frequencyDim]
    package func embedding(_ sinusoid: Tensor, on device: any Backend) -> (e: Tensor, e0: Tensor) {
        let hidden = first(sinusoid, activation: .silu, on: device)
        // Both e and SiLU(e) are needed. Computing the small product twice is cheaper than one more operation.
        let e = second(hidden, on: device)
        let e0 = projection(second(hidden, activation: .silu, on: device), on: device)
        return (e, e0)
    }

    /// Adds e to every row of the offsets, as offset + 1 * e.
    /// sinusoid: f32 [1, frequencyDim]; of a batch [samples, frequencyDim]
    func callAsFunction(_ sinusoid: Tensor, on device: any Backend) -> Modulation {
        let (e, e0) = embedding(sinusoid, on: device)
        if sinusoid.shape[0] > 1 { return batch(e, e0, on: device) }
        let (layers, dim) = (blockOffsets.shape[0], blockOffsets.shape[2])
        let rows: Shape = [layers, 6 * dim]
        let blocks = device.gatedAdd(
            device.reshape(blockOffsets, rows), device.reshape(blockOnes, rows),
            gate: device.reshape(e0, [6 * dim]))
        return Modulation(
            blocks: device.reshape(blocks, blockOffsets.shape),
            head: device.gatedAdd(headOffsets, headOnes, gate: device.reshape(e, [dim])))
    }

    /// [cos(t w_0), ..., sin(t w_0), ...] with w_i = 10000^(-i / half), computed in f64.
    /// → f32 [1, width]
    package static func sinusoid(_ timestep: Double, _ width: Int) -> Tensor {
        let half = width / 2
        let angles = (0..<half).map { timestep * pow(10_000, -Double($0) / Double(half)) }
        return Tensor(angles.map { Float(cos($0)) } + angles.map { Float(sin($0)) }, [1, width])
    }

    /// d sinusoid / d timestep, computed in f64. → f32 [1, width]
    package static func sinusoidSlope(_ timestep: Double, _ width: Int) -> Tensor {
        let half = width / 2
        let frequencies = (0..<half).map { pow(10_000, -Double($0) / Double(half)) }
        return Tensor(
            frequencies.map { Float(-$0 * sin(timestep * $0)) }
                + frequencies.map { Float($0 * cos(timestep * $0)) }, [1, width])
    }
}
