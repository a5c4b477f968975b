// Attention over all keys: the transformer's, umT5's, the autoencoder's.

import Ground
public import Tensors

extension CUDABackend {
    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int]
    ) -> Tensor {
        checkAttention("attention", q, k, v)
        ensure(
            lastKeyCounts.count <= min(2, k.shape[0]) && lastKeyCounts.allSatisfy { $0 >= 1 },
            "attention: the last of \(k.shape[0]) keys count \(lastKeyCounts) times")
        let out = tensor(q.shape, q.dtype)
        let arguments = AttentionArguments(
            q, k, v, out: out, scale: scale, lastKeyCounts: lastKeyCounts)
        context.attention(arguments, q.dtype, .all)
        return out
    }

    public func relativeAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor
    ) -> Tensor {
        checkAttention("relativeAttention", q, k, v)
        ensure(
            table.shape == [32, q.shape[1]] && table.dtype == .f32,
            "relativeAttention: table \(table.shape) \(table.dtype) for q \(q.shape)")
        let out = tensor(q.shape, q.dtype)
        var arguments = AttentionArguments(q, k, v, out: out, scale: 1)
        arguments.table = table.pointer
        context.attention(arguments, q.dtype, .relative)
        return out
    }

    func checkAttention(_ operation: String, _ q: Tensor, _ k: Tensor, _ v: Tensor) {
        ensure(
            q.shape.rank == 3 && k.shape.rank == 3 && k.shape == v.shape && k.shape[0] > 0
                && q.shape.tail == k.shape.tail && q.dtype == k.dtype && q.dtype == v.dtype,
            "\(operation): q \(q.shape) \(q.dtype), k \(k.shape) \(k.dtype), v \(v.shape) \(v.dtype)"
        )
        ensure(
            (q.dtype == .bf16 || q.dtype == .f32) && q.shape[2] % 4 == 0 && q.shape[2] <= 512,
            "\(operation): no kernel for \(q.dtype) with headDim \(q.shape[2])")
    }
}
