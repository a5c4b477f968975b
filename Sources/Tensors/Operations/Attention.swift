/// Attention over all keys.

extension Operation {
    /// softmax(q k^T * scale) v without a mask. q: [Lq, heads, headDim]; k, v: [Lk, heads, headDim] → as q, or
    /// in the `format` of the next linear layer [Lq, heads * headDim]
    public struct Attention: OperationFacts {
        public static let name = "attention"
        public var q, k, v: Tensor
        public var scale: Float
        /// How often the last keys count, at most two of them (equal rows of a text's padding are one key); the
        /// others count once.
        public var lastKeyCounts: [Int]
        public var format: LinearFormat

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && lastKeyCounts.count <= min(2, k.shape[0])
                && lastKeyCounts.allSatisfy { $0 >= 1 }
        }
        public var results: [ResultType] { [.attended(q, format)] }
        public var flops: Int { 4 * q.shape.count * k.shape[0] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
        }
        public var operation: Operation { .attention(self) }

        public func composed(on device: any Backend) -> Tensor {
            var plain = self
            plain.format = .plain
            return device.quantizeHeads(device.result(of: plain), to: format)
        }
    }

    /// umT5: softmax(q k^T + bias) v, no scaling; bias[h, i, j] = table[bucket(j - i), h].
    /// q, k, v: [L, heads, headDim] → same
    ///
    /// 32 buckets, from 16 up for rel > 0; |rel| < 8 exact, else 8 + floor(log(|rel|/8) / log(16) * 8) up to 15.
    public struct RelativeAttention: OperationFacts {
        public static let name = "relativeAttention"
        public static let buckets = 32
        public var q, k, v: Tensor
        /// f32 [32, heads]
        public var table: Tensor

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && q.shape == k.shape
                && table.shape == [Self.buckets, q.shape[1]]
        }
        public var results: [ResultType] { [ResultType(q.shape, q.dtype)] }
        public var flops: Int { 4 * q.shape.count * k.shape[0] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
            tensor(&table, .parameter)
        }
        public var operation: Operation { .relativeAttention(self) }
    }
}

extension Tensor {
    /// Whether these can be queries [Lq, heads, headDim], keys and values [Lk, heads, headDim].
    static func areHeads(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Bool {
        q.shape.rank == 3 && k.shape.rank == 3 && v.shape == k.shape && k.shape[0] > 0
            && k.shape.tail == q.shape.tail && q.dtype == k.dtype && q.dtype == v.dtype
    }
}

extension Operation.ResultType {
    /// Of attention with such queries.
    static func attended(_ q: Tensor, _ format: LinearFormat) -> Self {
        Self(format == .plain ? q.shape : [q.shape[0], q.shape.tail.count], q.dtype, format)
    }
}

extension Backend {
    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int] = [],
        format: LinearFormat = .plain
    ) -> Tensor {
        result(
            of: Operation.Attention(
                q: q, k: k, v: v, scale: scale, lastKeyCounts: lastKeyCounts, format: format))
    }

    /// What attention gave, [L, heads, headDim], as rows of all heads.
    func quantizeHeads(_ y: Tensor, to format: LinearFormat) -> Tensor {
        quantize(reshape(y, [y.shape[0], y.shape.tail.count]), to: format)
    }

    public func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor {
        result(of: Operation.RelativeAttention(q: q, k: k, v: v, table: table))
    }
}
