/// Sparse-linear attention (SLA, arXiv 2509.24006), and those of its parts that can be checked alone.

import Ground

/// The 8-bit arithmetic of SageAttention on one family of cards (SpargeAttn's kernels).
public enum SageArchitecture: String, Sendable, Hashable, CaseIterable {
    /// 128x64 blocks, int8 QK, fp16 PV with fp16 accumulators.
    case sm80
    /// 128x64 blocks, int8 QK, fp8 PV with f32 accumulators.
    case sm89
    /// SageAttention2++: as sm89 with fp16 accumulators inside each 64-key block.
    case sm89Accumulate16 = "sm89_pp"
    /// 64x128 blocks, int8 QK, fp8 PV with f32 accumulators.
    case sm90
}

/// Settings of sparse-linear attention: exact attention to the `topK` share of the key blocks, plus a linear branch
/// over all keys.
public struct SparseAttention: Sendable, Hashable {
    /// How the attention to the selected blocks is rounded.
    public enum Arithmetic: Sendable, Hashable {
        /// Exact softmax in the dtype of the inputs, with f32 statistics and without further rounding.
        case exact
        /// The original's SLA kernel: q, k, v and P in bf16.
        case bf16
        /// The original's SageSLA kernels.
        case sage(SageArchitecture)
    }

    /// Share of the key blocks, in (0, 1]; min(K, Int(topK * K)) blocks are kept, at least 1.
    public var topK: Double
    public var arithmetic: Arithmetic
    /// Numbers of queries and keys in a block of the map.
    public var queryBlock, keyBlock: Int

    public init(topK: Double, arithmetic: Arithmetic, queryBlock: Int, keyBlock: Int) {
        self.topK = topK
        self.arithmetic = arithmetic
        self.queryBlock = queryBlock
        self.keyBlock = keyBlock
    }

    /// Chooses the blocks that the original uses for this arithmetic: 64x128 for sm90, 128x64 otherwise.
    public init(topK: Double, arithmetic: Arithmetic) {
        let wide = arithmetic == .sage(.sm90)
        self.init(
            topK: topK, arithmetic: arithmetic, queryBlock: wide ? 64 : 128,
            keyBlock: wide ? 128 : 64)
    }

    /// How many of `blocks` key blocks each query block attends to.
    public func selected(of blocks: Int) -> Int {
        max(1, min(blocks, Int(topK * Double(blocks))))
    }

    /// Numbers of query blocks and key blocks of a sequence, and of key blocks that each query block attends to.
    public func blocks(of tokens: Int) -> (queries: Int, keys: Int, selected: Int) {
        let keys = ceilDivide(tokens, keyBlock)
        return (ceilDivide(tokens, queryBlock), keys, selected(of: keys))
    }
}

/// Which key blocks each query block attends to.
public struct BlockMap {
    /// scores: [heads, queryBlocks, keyBlocks], in the dtype of q
    public let scores: Tensor
    /// Selected key blocks, ascending. indices: i32 [heads, queryBlocks, selected]
    public let indices: Tensor
    public init(scores: Tensor, indices: Tensor) {
        self.scores = scores
        self.indices = indices
    }

    /// In the order of the operation's results.
    public var tensors: [Tensor] { [scores, indices] }
}

/// q, k and v as SageAttention quantises them; for checking a backend against the definition.
public struct SageOperands {
    /// The mean of k over the sequence. bf16 [heads, headDim]
    public let keyMean: Tensor
    /// int8 codes in natural order. [L, heads, headDim]
    public let queryCodes, keyCodes: Tensor
    /// f32 [heads, blocks]
    public let queryScales, keyScales: Tensor
    /// fp8 codes in natural order [L, heads, headDim] and f32 scales [heads, headDim]; nil for fp16 PV.
    public let valueCodes, valueScales: Tensor?

    public init(
        keyMean: Tensor, queryCodes: Tensor, keyCodes: Tensor, queryScales: Tensor,
        keyScales: Tensor, valueCodes: Tensor?, valueScales: Tensor?
    ) {
        self.keyMean = keyMean
        self.queryCodes = queryCodes
        self.keyCodes = keyCodes
        self.queryScales = queryScales
        self.keyScales = keyScales
        self.valueCodes = valueCodes
        self.valueScales = valueScales
    }

    /// In the order of the operation's results.
    public var tensors: [Tensor] {
        [keyMean, queryCodes, keyCodes, queryScales, keyScales]
            + [valueCodes, valueScales].compactMap(\.self)
    }
}

extension Operation {
    /// The key blocks that each query block attends to. Scores are products of the means of q and of k - mean(k) over
    /// each block, in the dtype of q; the `spec.selected(of:)` highest are chosen, and of equal ones the lower index.
    /// q, k: [L, heads, headDim]
    public struct BlockMap: OperationFacts {
        public static let name = "blockMap"
        public var q, k: Tensor
        public var spec: SparseAttention

        public var fits: Bool { Tensor.areHeads(q, k, k) && q.shape == k.shape }
        /// In the order of `BlockMap.tensors`.
        public var results: [ResultType] {
            let (heads, blocks) = (q.shape[1], spec.blocks(of: q.shape[0]))
            return [
                ResultType([heads, blocks.queries, blocks.keys], q.dtype),
                ResultType([heads, blocks.queries, blocks.selected], .i32),
            ]
        }
        public var flops: Int {
            let blocks = spec.blocks(of: q.shape[0])
            return 2 * q.shape[1] * blocks.queries * blocks.keys * q.shape[2]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
        }
        public var operation: Operation { .blockMap(self) }
    }

    /// Block-sparse attention plus the projected linear branch (SLA and SageSLA).
    /// q, k, v: [L, heads, headDim] → same, or, if `format` quantises it for the next linear layer,
    /// [L, heads * headDim]
    ///
    /// The block map is computed in the dtype of the inputs; the rest is rounded as `spec.arithmetic` says.
    public struct SparseLinearAttention: OperationFacts {
        public static let name = "sparseLinearAttention"
        public var q, k, v: Tensor
        /// dense [headDim, headDim]
        public var projection: LinearWeight
        /// f32 [headDim]
        public var bias: Tensor?
        public var spec: SparseAttention
        public var format: LinearFormat

        public var fits: Bool {
            Tensor.areHeads(q, k, v) && q.shape == k.shape
                && projection.shape == [q.shape[2], q.shape[2]] && bias.isVector(of: q.shape[2])
        }
        public var results: [ResultType] { [.attended(q, format)] }
        public var flops: Int {
            let (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
            let blocks = spec.blocks(of: tokens)
            let visited = blocks.queries * blocks.selected * spec.queryBlock * spec.keyBlock
            // Scores of pooled blocks, the visited blocks, then k^T v, q (k^T v) and the projection.
            return heads
                * (2 * blocks.queries * blocks.keys * dim + 4 * visited * dim
                    + 6 * tokens * dim * dim)
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
            projection.visit(tensor)
            Tensors.visit(&bias, .parameter, tensor)
        }
        public var operation: Operation { .sparseLinearAttention(self) }

        public func composed(on device: any Backend) -> Tensor {
            var plain = self
            plain.format = .plain
            return device.quantizeHeads(device.result(of: plain), to: format)
        }
    }

    /// The 8-bit operands that `sparseLinearAttention` uses with the arithmetic of `architecture`.
    /// q, k, v: [L, heads, headDim], rounded to bf16 first
    public struct SageOperands: OperationFacts {
        public static let name = "sageOperands"
        public var q, k, v: Tensor
        public var spec: SparseAttention
        public var architecture: SageArchitecture

        public var fits: Bool { Tensor.areHeads(q, k, v) && q.shape == k.shape }
        /// In the order of `SageOperands.tensors`.
        public var results: [ResultType] {
            let (heads, dim) = (q.shape[1], q.shape[2])
            let blocks = spec.blocks(of: q.shape[0])
            let values = [ResultType(q.shape, .f8e4m3), ResultType([heads, dim], .f32)]
            return [
                ResultType([heads, dim], .bf16), ResultType(q.shape, .i8),
                ResultType(q.shape, .i8), ResultType([heads, blocks.queries], .f32),
                ResultType([heads, blocks.keys], .f32),
            ] + (architecture == .sm80 ? [] : values)
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&q, .activation)
            tensor(&k, .activation)
            tensor(&v, .activation)
        }
        public var operation: Operation { .sageOperands(self) }
    }
}

extension Backend {
    /// See `Operation.BlockMap`.
    public func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap {
        let found = results(of: Operation.BlockMap(q: q, k: k, spec: spec))
        return BlockMap(scores: found[0], indices: found[1])
    }

    /// See `Operation.SparseLinearAttention`.
    public func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention, format: LinearFormat = .plain
    ) -> Tensor {
        result(
            of: Operation.SparseLinearAttention(
                q: q, k: k, v: v, projection: projection, bias: bias, spec: spec, format: format))
    }

    /// nil if the arithmetic of `spec` has no 8-bit operands.
    public func sageOperands(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention)
        -> SageOperands?
    {
        guard case .sage(let architecture) = spec.arithmetic else { return nil }
        let found = results(
            of: Operation.SageOperands(q: q, k: k, v: v, spec: spec, architecture: architecture))
        return SageOperands(
            keyMean: found[0], queryCodes: found[1], keyCodes: found[2], queryScales: found[3],
            keyScales: found[4], valueCodes: found.count > 5 ? found[5] : nil,
            valueScales: found.count > 5 ? found[6] : nil)
    }
}
