/// Attention over all keys.

extension Operation {
    /// softmax(q k^T * scale) v, without a mask. q: [Lq, heads, headDim]; k, v: [Lk, heads, headDim] → shape of q, or,
    /// if `format` quantises it for the next linear layer, [Lq, heads * headDim]
    public struct Attention: OperationFacts {
        public static let name = "attention"
        public var q, k, v: Tensor
        public var scale: Float
        /// How many times each of the last keys counts (at most two keys); all others count once. In this way the equal
        /// rows of a text's padding are given as a single key.
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

    /// The attention of umT5: softmax(q k^T + bias) v, without scaling; bias[h, i, j] = table[bucket(j - i), h].
    /// q, k, v: [L, heads, headDim] → same
    ///
    /// There are 32 buckets. With rel = j - i, |rel| < 8 has the bucket |rel|, larger ones
    /// 8 + floor(log(|rel|/8) / log(16) * 8), at most 15; 16 is added for rel > 0.
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
    /// The result of attention with queries q.
    static func attended(_ q: Tensor, _ format: LinearFormat) -> Self {
        Self(format == .plain ? q.shape : [q.shape[0], q.shape.tail.count], q.dtype, format)
    }
}

extension Backend {
    /// See `Operation.Attention`.
    public func attention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int] = [],
        format: LinearFormat = .plain
    ) -> Tensor {
        result(
            of: Operation.Attention(
                q: q, k: k, v: v, scale: scale, lastKeyCounts: lastKeyCounts, format: format))
    }

    /// Quantises a result of attention, with all heads in one row. y: [L, heads, headDim] → [L, heads * headDim]
    func quantizeHeads(_ y: Tensor, to format: LinearFormat) -> Tensor {
        quantize(reshape(y, [y.shape[0], y.shape.tail.count]), to: format)
    }

    /// See `Operation.RelativeAttention`.
    public func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor {
        result(of: Operation.RelativeAttention(q: q, k: k, v: v, table: table))
    }
}
