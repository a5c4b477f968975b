/// The linear branch of sparse-linear attention, and the autoencoder's norm, with the vector kernels.

internal import CDrivers
internal import Ground
import Tensors

extension VectorOperations {
    /// added + proj(cq (ck^T v) / (1e-5 + cq . sum ck)), where cq and ck are the softmax of q and k over the width of
    /// the head; the result of every step is rounded to the type of the operands. k, added: [tokens, heads, dim]
    /// → same shape in `dtype`
    func linearBranch(
        _ operands: AttentionOperands, k: Tensor, projection: Tensor, bias: Tensor?, added: Tensor,
        as dtype: DType
    ) -> Tensor {
        let (q, kind) = (operands.q, operands.kind)
        let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        let (threads, memory, size) = (definitions.threads, definitions.memory, q.dtype.byteCount)
        let (blocks, headBytes) = (operands.blocks, dim * size)
        let features = memory.tensor([heads, dim, blocks * 64], q.dtype)
        let states = memory.tensor([heads, dim, dim], q.dtype)
        // For each head: the sum of each block, and the sum of all blocks.
        let sums = memory.tensor([heads, blocks + 1, dim], .f32)
        let packedBytes = cpu_packed_bytes(kind, dim, dim)
        let packedStates = memory.storage(byteCount: heads * packedBytes)
        let packedProjection = PackedMatrix.of(projection, kind, definitions)
        let result = memory.tensor(q.shape, dtype)

        withVector(bias, roundedTo: q.dtype) { bias in
            func job(_ head: Int) -> cpu_linear_branch_job {
                let sum =
                    sums.hostAddress.assumingMemoryBound(to: Float.self)
                    + head * (blocks + 1) * dim
                return cpu_linear_branch_job(
                    kind: kind, head_dim: dim, tokens: tokens, stride: heads * headBytes,
                    packed_values: operands.packedValues(head),
                    features: features.hostAddress + head * dim * blocks * 64 * size,
                    block_sums: sum, state: states.hostAddress + head * dim * headBytes,
                    packed_state: packedStates.hostPointer! + head * packedBytes,
                    packed_projection: packedProjection.bytes, feature_sum: sum + blocks * dim,
                    bias: bias)
            }
            threads.parallel(heads * blocks, grain: 2) { range in
                for index in range {
                    var job = job(index / blocks)
                    kernels.key_features(
                        &job, k.hostAddress + index / blocks * headBytes, index % blocks)
                }
            }
            let rows = 24
            let parts = ceilDivide(dim, rows)
            threads.parallel(heads * parts) { range in
                for index in range {
                    var job = job(index / parts)
                    let first = index % parts * rows
                    kernels.key_state(&job, first, min(dim, first + rows))
                }
            }
            threads.parallel(heads) { range in
                for head in range {
                    cpu_pack_rows(
                        kind, states.hostAddress + head * dim * headBytes, headBytes, dim, dim,
                        dim, packedStates.hostPointer! + head * packedBytes)
                }
            }
            let step = 48
            let steps = ceilDivide(tokens, step)
            let outputHead = dim * dtype.byteCount
            threads.parallel(heads * steps) { range in
                for index in range {
                    let head = index / steps
                    let first = index % steps * step
                    var job = job(head)
                    kernels.linear_branch(
                        &job, q.hostAddress + head * headBytes,
                        added.hostAddress + head * headBytes,
                        result.hostAddress + head * outputHead, heads * outputHead,
                        dtype == .bf16 ? 1 : 0, first, min(tokens, first + step))
                }
            }
        }
        return withExtendedLifetime((k, added, features, states, sums, packedStates)) { result }
    }

    func channelNorm(_ o: Operation.ChannelNorm) -> Tensor? {
        let x = o.x
        guard x.dtype == .f32 || x.dtype == .bf16 else { return nil }
        let (rows, channels) = (x.shape.rows, x.shape.columns)
        let root = Float(channels).squareRoot()
        let factors = definitions.vector(o.gamma).map { $0 * root }
        let result = definitions.memory.tensor(x.shape, x.dtype)
        let (from, to, size) = (x.hostAddress, result.hostAddress, channels * x.dtype.byteCount)
        definitions.threads.parallel(rows, grain: definitions.grain(channels)) { range in
            kernels.channel_norm(
                from + range.lowerBound * size, x.dtype == .bf16 ? 1 : 0, range.count, channels,
                factors, o.silu ? 1 : 0, to + range.lowerBound * size)
        }
        return withExtendedLifetime(x) { result }
    }
}
