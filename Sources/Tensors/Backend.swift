/// The border between models and machines: every operation that a model may ask of a device.

import Glibc
import Ground

/// Element-wise function applied after a linear layer.
public enum Activation: Sendable, Hashable {
    case none
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    case geluTanh
    /// x / (1 + exp(-x))
    case silu
}

/// Which definition of the norms is used; see `Backend.layerNorm`.
public enum NormKind: String, Sendable, Hashable {
    /// The textbook definition, in f32.
    case exact
    /// The original's fast kernels: the lanes beyond N, up to the next power of two N2, count in the
    /// layer norm's variance: var = (sum (x-mean)^2 + (N2-N) mean^2) / N.
    case reference
}

/// Rotation angles of the three axes. cosine, sine: f32 [tokens, headDim/2]
public struct RotaryTable {
    public let cosine, sine: Tensor
    public init(cosine: Tensor, sine: Tensor) {
        self.cosine = cosine
        self.sine = sine
    }
}

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

/// Sparse-linear attention (SLA, arXiv 2509.24006): the `topK` share of key blocks attended exactly,
/// plus a linear branch over all keys.
public struct SparseAttention: Sendable, Hashable {
    public enum Arithmetic: Sendable, Hashable {
        /// Exact softmax, nothing rounded: in the dtype of the inputs, f32 statistics.
        case exact
        /// The original's SLA kernel: q, k, v and P in bf16.
        case bf16
        /// The original's SageSLA kernels.
        case sage(SageArchitecture)
    }

    /// Share of the key blocks, in (0, 1]; min(K, Int(topK * K)) blocks are kept, at least 1.
    public var topK: Double
    public var arithmetic: Arithmetic
    /// Rows of queries and keys in a block of the map.
    public var queryBlock, keyBlock: Int

    public init(topK: Double, arithmetic: Arithmetic, queryBlock: Int, keyBlock: Int) {
        self.topK = topK
        self.arithmetic = arithmetic
        self.queryBlock = queryBlock
        self.keyBlock = keyBlock
    }

    /// The block shape that the original uses for this arithmetic: 64x128 on sm90, 128x64 elsewhere.
    public init(topK: Double, arithmetic: Arithmetic) {
        let wide = arithmetic == .sage(.sm90)
        self.init(
            topK: topK, arithmetic: arithmetic, queryBlock: wide ? 64 : 128,
            keyBlock: wide ? 128 : 64)
    }

    /// Blocks of keys kept for each block of queries, out of `blocks`.
    public func selected(of blocks: Int) -> Int {
        max(1, min(blocks, Int(topK * Double(blocks))))
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
}

/// What SageAttention's quantisation makes of q, k and v; for checking a backend against the contract.
public struct SageOperands {
    /// The mean of k over the sequence. [heads, headDim], dtype of k
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
}

/// Zero padding of a convolution in height and width.
public enum SpatialPadding: Sendable, Hashable {
    /// (kernel - 1) / 2 on every side.
    case same
    /// One row at the bottom, one column at the right: the encoder's strided convolutions.
    case bottomRight
}

/// A machine that computes. Operations do not throw: a wrong shape fails with a message that names
/// the operation and both shapes, memory is planned before, device errors surface at `synchronize()`.
///
/// Activations keep the dtype of their input (`x`) unless an operation says otherwise; statistics and
/// accumulators are f32. A requirement with a default in an extension is a fused operation that a backend may
/// replace; the default is its definition.
///
/// Letters: `tokens` rows of the sequence, `dim` model width, T/H/W/C frames, height, width, channels.
public protocol Backend: AnyObject {
    /// For messages and reports: "CPU (2 threads)", "NVIDIA H200".
    var name: String { get }

    /// Whether `sparseLinearAttention` computes in this arithmetic here: some need certain cards.
    func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool
    /// Whether `linear` multiplies weights of this format here.
    func supports(_ format: ActivationFormat) -> Bool

    // MARK: Memory

    /// Brings a host tensor (a mapped file's, say) to this device as `dtype`; read-only from then on.
    /// Weights of a group may be left to stream in when `require` names the group.
    func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor
    /// Brings a linear weight to this device in the layout its kernels want.
    /// A `.dense` weight becomes `dtype`; quantised ones keep their format.
    func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?) -> LinearWeight
    /// Quantises a dense host weight while placing it.
    func place(_ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?)
        -> LinearWeight
    /// Brings the kernel of a convolution to this device in the layout its kernels want.
    /// kernel: [out, in, kernelTime, kernelHeight, kernelWidth], as checkpoints store it; bias: [out] or nil
    func place(convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?)
        -> ConvolutionWeight
    /// Before the operations that use the weights of `group`.
    func require(_ group: WeightGroup)
    /// A copy in host memory, same dtype. Waits for the device.
    func read(_ x: Tensor) -> Tensor
    /// Begins a copy in host memory, behind the work that is queued, and does not wait for it.
    func beginRead(_ x: Tensor) -> HostCopy
    /// Whether two tensors of equal shape and dtype hold the same bits. Waits for the device.
    func equalBits(_ a: Tensor, _ b: Tensor) -> Bool
    /// Waits for all work and throws the first error that the device reported since the last call.
    func synchronize() throws
    /// Bytes of device memory held now and at most since the last `resetPeak()`.
    var memory: MemoryUse { get }
    func resetPeak()

    // MARK: Linear layers and norms

    /// act(x W^T + bias). x: [..., in] (plain, or quantised by an operation that was given this weight's
    /// `inputFormat`) → [..., out] in `dtype` (nil: the dtype of a plain x; bf16 for a quantised one).
    /// f32 activations meet a bf16 matrix in f32 arithmetic.
    /// int8 blocks: y = sum over k-blocks of f32(int32 dot) * xs * ws, rounded to the output dtype, THEN
    /// bias added in the output dtype. `format` quantises the result for the next linear layer.
    func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor

    /// residual + gate * (x W^T + bias). residual: [tokens, out], gate: f32 [out] or nil for 1.
    /// In bf16 the linear's result and the gate are rounded to bf16 before the product, as the original does.
    func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor

    /// Writes x as 8-bit activations. x: [..., columns] → same shape, i8 or f8e4m3, with `scales`.
    func quantize(_ x: Tensor, to format: ActivationFormat) -> Tensor

    /// LN(x) * (1 + scale) + shift, LN without affine parameters, statistics in f32, 1/sqrt(var + epsilon).
    /// x: [tokens, dim]; shift, scale: f32 [dim]. `dtype` of the result as in `linear`.
    func modulatedLayerNorm(
        _ x: Tensor, shift: Tensor, scale: Tensor, epsilon: Float, kind: NormKind,
        format: ActivationFormat, dtype: DType?
    ) -> Tensor

    /// LN(x) * weight + bias. x: [tokens, dim]; weight, bias: f32 [dim] or nil.
    func layerNorm(
        _ x: Tensor, weight: Tensor?, bias: Tensor?, epsilon: Float, kind: NormKind,
        format: ActivationFormat
    ) -> Tensor

    /// x / sqrt(mean(x^2) + epsilon) * weight over the last axis. x: [tokens, dim]; weight: [dim].
    /// In bf16, `.exact` rounds x_hat to bf16 and multiplies by the bf16 weight (WanRMSNorm, T5LayerNorm);
    /// `.reference` multiplies by the f32 weight first and rounds once (FastRMSNorm).
    func rmsNorm(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, format: ActivationFormat
    ) -> Tensor

    /// `rmsNorm` over the whole width, then rotary embedding of interleaved pairs in each head, in f32.
    /// x: [tokens, heads * headDim] → [tokens, heads, headDim]
    func rmsNormRope(
        _ x: Tensor, weight: Tensor, epsilon: Float, kind: NormKind, rope: RotaryTable, heads: Int
    ) -> Tensor

    /// x + y * gate. x, y: [tokens, dim]; gate: f32 [dim] (rounded to x's dtype first) or nil for 1.
    func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor

    /// gelu_tanh(gate) * up, element by element (umT5's feed-forward).
    func geluGate(_ gate: Tensor, _ up: Tensor, format: ActivationFormat) -> Tensor

    // MARK: Attention

    /// softmax(q k^T * scale) v without a mask. q: [Lq, heads, headDim]; k, v: [Lk, heads, headDim] →
    /// [Lq, heads, headDim]. `lastKeyCounts`: how often the last keys count, at most two of them (equal rows of
    /// a text's padding are one key); the others count once.
    func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int])
        -> Tensor

    /// umT5: softmax(q k^T + bias) v, no scaling; bias[h, i, j] = table[bucket(j - i), h].
    /// q, k, v: [L, heads, headDim]; table: f32 [32, heads]; buckets as in golden rule "bucket(rel)":
    /// 16 for rel > 0, |rel| < 8 exact, else 8 + floor(log(|rel|/8) / log(16) * 8) up to 15.
    func relativeAttention(_ q: Tensor, _ k: Tensor, _ v: Tensor, table: Tensor) -> Tensor

    /// The key blocks that each query block attends to: mean-pooled q and (k - mean k), scores in the
    /// dtype of q, top `spec.selected(of:)`; ties go to the lower index. q, k: [L, heads, headDim]
    func blockMap(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockMap

    /// Block-sparse attention plus the projected linear branch (SLA and SageSLA).
    /// q, k, v: [L, heads, headDim] → same; projection: dense [headDim, headDim], bias f32 [headDim].
    func sparseLinearAttention(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, projection: LinearWeight, bias: Tensor?,
        _ spec: SparseAttention
    ) -> Tensor

    /// The 8-bit operands that `sparseLinearAttention` would use; nil where this backend keeps none.
    func sageOperands(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention)
        -> SageOperands?

    // MARK: Tokens and latents

    /// Rows of a table. table: [vocabulary, dim], ids: [n] → [n, dim]
    func embedding(_ ids: [Int32], table: Tensor) -> Tensor
    /// Rows of a table that stays in host memory: a vocabulary is large, a prompt is short.
    /// table: [vocabulary, dim] on the host, ids: [n] → [n, dim] in `dtype`
    func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor

    /// Latents to tokens, features in the order (channel, kt, kh, kw).
    /// parts: tensors [C_i, T, H, W] whose channels are concatenated → [T*(H/2)*(W/2), sum C_i * 4] in `dtype`
    func patchify(_ parts: [Tensor], dtype: DType) -> Tensor

    /// Head rows back to latents; features in the order (kt, kh, kw, channel).
    /// x: [T*(H/2)*(W/2), 4 * C] → f32 [C, T, H, W], `size` = latent (T, H, W)
    func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor

    /// One rCM step in f64. x, noise: [n...] (x f64, v f32, noise f32 or nil) → f64.
    /// SDE (noise given): (1 - next) * (x - t v) + next * noise; ODE: x - (t - next) * v.
    func rcmStep(_ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double) -> Tensor

    /// sum_i coefficients[i] * terms[i], accumulated in f64, rounded to `dtype` (samplers, guidance).
    /// terms: f32 or f64, 1 to 5 of equal shape
    func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor

    /// Standard normal numbers equal to `torch.randn(device: "cuda")`; see `PhiloxNoise`. → f32
    func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor

    // MARK: Video autoencoder, channels last

    /// Latents to frames of channels with a per-channel affine. x: [C, T, H, W] → x * scale + shift as
    /// [T, H, W, C] in `dtype`; scale, shift: C host numbers.
    func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor
    /// The reverse: [T, H, W, C] → (x * scale + shift) as f32 [C, T, H, W]
    func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor

    /// Causal convolution. x: [T, H, W, in]; history: the frames before x, [n, H, W, in], or nil; before those
    /// `leadingZeros` frames of zeros. → [T', H', W', out] with
    /// T' = (leadingZeros + n + T - kernelTime) / timeStride + 1; `upsample` doubles height and width (nearest)
    /// first; `spatialStride` 1 or 2; `residual` (shape of the result) is added.
    func convolution(
        _ x: Tensor, history: Tensor?, leadingZeros: Int, _ weight: ConvolutionWeight,
        timeStride: Int, spatialStride: Int, padding: SpatialPadding, upsample: Bool,
        residual: Tensor?
    ) -> Tensor

    /// x / max(||x||_2, 1e-12) * sqrt(C) * gamma over the channels, then SiLU if asked.
    /// x: [..., C]; gamma: f32 [C]
    func channelNorm(_ x: Tensor, gamma: Tensor, silu: Bool) -> Tensor

    /// Two frames from each: channels [0, C) are the even frame, [C, 2C) the odd one.
    /// x: [T, H, W, 2C] → [2T, H, W, C]
    func interleaveTime(_ x: Tensor) -> Tensor

    /// Copies along the outermost axis. [a, ...], [b, ...] → [a + b, ...]
    func concatenate(_ parts: [Tensor]) -> Tensor

    /// floor(clamp((x + 1) / 2, 0, 1) * 255 + 0.5). x: [T, H, W, 3] → u8
    func rgb8(_ x: Tensor) -> Tensor

    /// Frames as video encoders take them: BT.709 (ITU-R BT.709-6, 3.2 and 3.4), limited range, a chroma sample in
    /// the middle of each 2x2 pixels. x: [T, H, W, 3], H and W even → u8 [T, H * 3 / 2, W]: in each frame H rows
    /// of Y, then H / 2 rows of Cb and Cr in turn. Each number of x is clamped to [-1, 1], NaN to -1; then, in f32,
    ///   y = 0.2126 r + 0.7152 g + 0.0722 b, Y = floor(125.5 + 109.5 y + 0.5), and with means over 2x2 pixels
    ///   Cb = floor(128 + 112 (b - y) / 1.8556 + 0.5), Cr = floor(128 + 112 (r - y) / 1.5748 + 0.5).
    func nv12(_ x: Tensor) -> Tensor
}

/// Bytes of device memory.
public struct MemoryUse: Sendable, Hashable {
    public var current, peak: Int
    public init(current: Int, peak: Int) {
        self.current = current
        self.peak = peak
    }
}

// MARK: - Definitions of the fused operations

extension Backend {
    public func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool { true }
    public func supports(_ format: ActivationFormat) -> Bool { true }

    public func linearAdd(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, to residual: Tensor, gate: Tensor?
    ) -> Tensor {
        let y = linear(
            x, weight, bias: bias, activation: .none, format: .plain, dtype: residual.dtype)
        return gatedAdd(residual, y, gate: gate)
    }

    public func sageOperands(_ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention)
        -> SageOperands?
    { nil }

    public func require(_ group: WeightGroup) {}

    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        ConvolutionWeight(
            place(kernel.kernelChannelsLast(), as: dtype, in: group),
            bias: bias.map { place($0, as: .f32, in: group) })
    }

    public func beginRead(_ x: Tensor) -> HostCopy { HostCopy(x.isOnHost ? x : read(x)) }

    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool {
        ensure(
            a.shape == b.shape && a.dtype == b.dtype,
            "equalBits: \(a.shape) \(a.dtype) and \(b.shape) \(b.dtype)")
        let (a, b) = (read(a), read(b))
        return memcmp(a.hostAddress, b.hostAddress, a.byteCount) == 0
    }

    public func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor {
        place(table.gatheredRows(ids), as: dtype, in: nil)
    }
}

// MARK: - Shorthands with the usual arguments

extension Backend {
    public func linear(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, activation: Activation = .none,
        format: ActivationFormat = .plain
    ) -> Tensor {
        linear(x, weight, bias: bias, activation: activation, format: format, dtype: nil)
    }

    public func attention(_ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float) -> Tensor {
        attention(q, k, v, scale: scale, lastKeyCounts: [])
    }

    public func add(_ x: Tensor, _ y: Tensor) -> Tensor { gatedAdd(x, y, gate: nil) }

    public func place(_ host: Tensor, as dtype: DType) -> Tensor {
        place(host, as: dtype, in: nil)
    }
}
