// Attention to all keys: that of the transformer, of umT5 and of the autoencoder.

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

    /// A tensor for the result of attention with queries q; nil if the kernels cannot write `format`. They can write
    /// int8 if headDim is 128, because their blocks of 128 queries of one head are then the blocks of the int8 scales.
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

    /// Stops the program if there are no kernels for queries like q.
    func requireHeads(_ q: Tensor, _ operation: String) {
        ensure(
            (q.dtype == .bf16 || q.dtype == .f32) && q.shape[2] % 4 == 0 && q.shape[2] <= 512,
            "\(operation): no kernel for \(q.dtype) with headDim \(q.shape[2])")
    }
}
