// Attention over all keys: the transformer's, umT5's, the autoencoder's.

import Ground
import Tensors

extension CUDABackend {
    func attention(_ o: Operation.Attention) -> Tensor {
        requireHeads(o.q, "attention")
        guard let out = attended(o.q, o.format) else { return o.composed(on: self) }
        let arguments = AttentionArguments(
            o.q, o.k, o.v, out: out, scale: o.scale, lastKeyCounts: o.lastKeyCounts)
        context.attention(arguments, o.q.dtype, .all)
        return out
    }

    /// Memory for what attention with such queries gives; nil where its kernels do not write `format`. Their blocks
    /// of 128 queries of a head of 128 are the blocks of int8 scales.
    func attended(_ q: Tensor, _ format: LinearFormat) -> Tensor? {
        if format == .plain { return tensor(q.shape, q.dtype) }
        guard format == .int8Blocks, q.dtype == .bf16, q.shape[2] == 128 else { return nil }
        let (rows, heads) = (q.shape[0], q.shape[1])
        return tensor(
            [rows, heads * 128], .i8,
            scales: storage(byteCount: ceilDivide(rows, 128) * heads * 4))
    }

    func relativeAttention(_ o: Operation.RelativeAttention) -> Tensor {
        requireHeads(o.q, "relativeAttention")
        ensure(o.table.dtype == .f32, "relativeAttention: table \(o.table)")
        let out = tensor(o.q.shape, o.q.dtype)
        var arguments = AttentionArguments(o.q, o.k, o.v, out: out, scale: 1)
        arguments.table = o.table.pointer
        context.attention(arguments, o.q.dtype, .relative)
        return out
    }

    /// There are kernels for such queries, and keys and values like them.
    func requireHeads(_ q: Tensor, _ operation: String) {
        ensure(
            (q.dtype == .bf16 || q.dtype == .f32) && q.shape[2] % 4 == 0 && q.shape[2] <= 512,
            "\(operation): no kernel for \(q.dtype) with headDim \(q.shape[2])")
    }
}
