// What the attention operations share: the arguments, units and launches of their kernels.

internal import Glibc
internal import Ground
internal import Tensors

/// `AttentionArguments` of attention.cuh.
struct AttentionArguments: BitwiseCopyable {
    var q, k, v, out, addend, outScales, table, indices: DevicePointer
    var queries, keys, heads, dim: Int32
    var scale: Float
    var lastKeys: InlineArray<2, Float>
    var selected, queryBlock, keyBlock, uncommon: Int32

    /// - Parameters:
    ///   - scale: the factor of q.k in the exponent of e.
    ///   - lastKeyCounts: how many times each of the last keys counts; at most two keys.
    init(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, out: Tensor, scale: Float,
        lastKeyCounts: [Int] = []
    ) {
        self.q = q.pointer
        self.k = k.pointer
        self.v = v.pointer
        self.out = out.pointer
        addend = .null
        outScales = out.scales == nil ? .null : out.scalesPointer
        table = .null
        indices = .null
        queries = Int32(q.shape[0])
        keys = Int32(k.shape[0])
        heads = Int32(q.shape[1])
        dim = Int32(q.shape[2])
        let scale = scale * log2e
        self.scale = scale
        // Added to the unscaled logits, so divided by the scale.
        let last = ([1, 1] + lastKeyCounts).suffix(2).map { Float(log2(Double($0))) / scale }
        lastKeys = [last[0], last[1]]
        uncommon = keys - Int32(lastKeyCounts.count)
        selected = 0
        queryBlock = 1
        keyBlock = 1
    }
}

/// log2(e)
let log2e: Float = 1.442_695_040_888_963_4

/// Which keys are visited: `Keys` of attention.cuh.
enum AttentionKeys: String {
    case all, relative, listed
}

enum Attention {
    /// The head dimensions that attention_simt.cu is compiled for, and queries per block.
    static let simtTiles: [(dim: Int, queries: Int)] = [(64, 32), (128, 32), (512, 16)]

    /// A tile of attention_mma.cu: four warps with `rowTiles` times 16 queries each, and `keys` keys.
    struct MmaTile {
        let dim, rowTiles, keys: Int

        func kernel(_ visits: String) -> String {
            "attention_mma<\(dim), \(rowTiles), \(keys), Keys::\(visits)>"
        }
        var queries: Int { 64 * rowTiles }
        /// For queries, K and V.
        var sharedBytes: Int { 2 * dim * (queries + 2 * keys) }
    }
    static let mmaTiles = [
        MmaTile(dim: 64, rowTiles: 1, keys: 64), MmaTile(dim: 128, rowTiles: 2, keys: 32),
    ]
    /// For lists whose blocks have 64 queries, as in training.
    static let narrowTiles = [mmaTiles[0], MmaTile(dim: 128, rowTiles: 1, keys: 32)]

    static let simt = KernelUnit(
        "attention_simt.cu",
        kernels: simtTiles.flatMap { tile in
            ["float", "bf16"].flatMap { type in
                ["all", "relative", "listed"].map {
                    "attention_simt<\(type), \(tile.dim), \(tile.queries), Keys::\($0)>"
                }
            }
        })
    static let mma = KernelUnit(
        "attention_mma.cu",
        kernels: mmaTiles.flatMap { tile in
            ["all", "relative", "listed"].map { tile.kernel($0) }
        } + [narrowTiles[1].kernel("listed")])

    /// A tile of attention_sm90.cu: `keys` keys, in rings of `stages` stages.
    struct HopperTile {
        let dim, keys, stages: Int
        let visits: AttentionKeys

        var kernel: String {
            "attention_sm90<\(dim), \(keys), \(stages), Keys::\(visits.rawValue)>"
        }
        /// For queries, rings of K and V, barriers, maxima.
        var sharedBytes: Int {
            128 * dim * 2 + 2 * stages * keys * dim * 2 + (4 * stages + 2) * 8 + 2 * 8 * 4
        }
    }
    /// The narrow tiles are for few keys, such as those of a prompt without padding.
    static let hopperTiles = [
        HopperTile(dim: 64, keys: 64, stages: 6, visits: .all),
        HopperTile(dim: 128, keys: 64, stages: 4, visits: .all),
        HopperTile(dim: 64, keys: 128, stages: 4, visits: .all),
        HopperTile(dim: 128, keys: 128, stages: 2, visits: .all),
        HopperTile(dim: 64, keys: 64, stages: 6, visits: .listed),
        HopperTile(dim: 128, keys: 64, stages: 4, visits: .listed),
    ]
    static let hopper = KernelUnit(
        "attention_sm90.cu", for: .hopper, kernels: hopperTiles.map(\.kernel))

    /// A tile of attention_wide.cu, for the autoencoder's head dimension. The smaller ones are for cards with 99 KiB of
    /// shared memory per block.
    struct WideTile {
        let dim, groups, keys: Int

        var kernel: String { "attention_wide<\(dim), \(groups), \(keys)>" }
        var queries: Int { 16 * groups }
        /// For queries, K and V, P, maxima and sums.
        var sharedBytes: Int { 2 * dim * (queries + 2 * keys) + queries * (128 + 4 * 4) }
    }
    static let wideTiles = [
        WideTile(dim: 256, groups: 4, keys: 64), WideTile(dim: 256, groups: 2, keys: 32),
        WideTile(dim: 384, groups: 4, keys: 64), WideTile(dim: 384, groups: 2, keys: 32),
        WideTile(dim: 512, groups: 2, keys: 32),
    ]
    static let wide = KernelUnit("attention_wide.cu", kernels: wideTiles.map(\.kernel))

    /// The autoencoder's on Hopper: blocks of 64 queries, tiles of 32 keys.
    static let hopperWide = KernelUnit(
        "attention_wide_sm90.cu", for: .hopper, kernels: ["attention_wide_sm90<384>"])
    static let hopperWideDim = 384
    /// Queries, a tile of K and one of V, barriers.
    static let hopperWideBytes = 2 * hopperWideDim * (64 + 2 * 32) + 5 * 8

    static let units = [simt, mma, hopper, wide, hopperWide]
}

extension Context {
    /// Launches the fastest attention kernel for this card, dtype and head dimension.
    func attention(_ arguments: AttentionArguments, _ dtype: DType, _ keys: AttentionKeys) {
        let dim = arguments.dim
        if dtype == .bf16, hopperAttention(arguments, keys) { return }
        if dtype == .bf16, keys == .all, hopperWideAttention(arguments) { return }
        if dtype == .bf16, dim <= 128, dim % 8 == 0 {
            mmaAttention(arguments, keys)
        } else if dtype == .bf16, dim % 8 == 0, keys == .all, wideAttention(arguments) {
            return
        } else {
            simtAttention(arguments, dtype, keys)
        }
    }

    /// Attention of bf16 tensors with dim above 128.
    /// - Returns: false, without a launch, if no tile fits this card.
    func wideAttention(_ arguments: AttentionArguments) -> Bool {
        let tile = Attention.wideTiles.first {
            $0.dim >= Int(arguments.dim) && $0.sharedBytes <= properties.sharedMemoryPerBlock
        }
        guard let tile else { return false }
        let kernel: Kernel<AttentionArguments> = kernel(tile.kernel, of: Attention.wide)
        kernel(
            LaunchShape(
                grid: Extents(
                    ceilDivide(Int(arguments.queries), tile.queries), Int(arguments.heads)),
                block: Extents(64 * tile.groups), sharedBytes: tile.sharedBytes),
            arguments)
        return true
    }

    /// Attention in f32 arithmetic, of f32 or bf16 tensors; dim: a multiple of 4 up to 512.
    func simtAttention(_ arguments: AttentionArguments, _ dtype: DType, _ keys: AttentionKeys) {
        guard let tile = Attention.simtTiles.first(where: { $0.dim >= Int(arguments.dim) }) else {
            programmingError("attention: headDim \(arguments.dim) is above 512")
        }
        let kernel: Kernel<AttentionArguments> = kernel(
            "attention_simt<\(CUDABackend.typeName(dtype)), \(tile.dim), \(tile.queries), "
                + "Keys::\(keys.rawValue)>", of: Attention.simt)
        let floats = (tile.queries + 32) * (tile.dim + 4) + tile.queries * 33
        kernel(
            LaunchShape(
                grid: Extents(
                    ceilDivide(Int(arguments.queries), tile.queries), Int(arguments.heads)),
                block: Extents(4 * tile.queries), sharedBytes: 4 * floats),
            arguments)
    }

    /// Attention of bf16 tensors on mma.sync; dim: a multiple of 8 up to 128.
    /// - Parameter tiles: of which the first that is wide enough is used.
    func mmaAttention(
        _ arguments: AttentionArguments, _ keys: AttentionKeys,
        tiles: [Attention.MmaTile] = Attention.mmaTiles
    ) {
        guard let tile = tiles.first(where: { $0.dim >= Int(arguments.dim) }) else {
            programmingError("attention: headDim \(arguments.dim) is above 128")
        }
        let kernel: Kernel<AttentionArguments> = kernel(
            tile.kernel(keys.rawValue), of: Attention.mma)
        kernel(
            LaunchShape(
                grid: Extents(
                    ceilDivide(Int(arguments.queries), tile.queries), Int(arguments.heads)),
                block: 128, sharedBytes: tile.sharedBytes),
            arguments)
    }
}

extension Context {
    /// Attention of bf16 tensors on wgmma; dim: 384.
    /// - Returns: false, without a launch, if this card or dim has no such kernel.
    func hopperWideAttention(_ arguments: AttentionArguments) -> Bool {
        let (dim, heads) = (Int(arguments.dim), Int(arguments.heads))
        guard kernelArchitecture == .hopper, dim == Attention.hopperWideDim else { return false }
        let kernel: Kernel<TensorMap, TensorMap, TensorMap, AttentionArguments> =
            kernel("attention_wide_sm90<\(dim)>", of: Attention.hopperWide)
        kernel(
            LaunchShape(
                grid: Extents(ceilDivide(Int(arguments.queries), 64), heads), block: 128,
                sharedBytes: Attention.hopperWideBytes),
            headMap(arguments, arguments.q, arguments.queries, box: 64),
            headMap(arguments, arguments.k, arguments.keys, box: 32),
            headMap(arguments, arguments.v, arguments.keys, box: 32), arguments)
        return true
    }

    /// Describes q, k or v to the copy engine; a box has 64 columns of one head.
    private func headMap(
        _ arguments: AttentionArguments, _ pointer: DevicePointer, _ rows: Int32, box: Int
    ) -> TensorMap {
        let (dim, heads) = (Int(arguments.dim), Int(arguments.heads))
        return tensorMap(
            .bf16, at: pointer, extents: [dim, heads, Int(rows)],
            strides: [dim * 2, heads * dim * 2], box: [64, 1, box])
    }

    /// Attention of bf16 tensors on wgmma; dim: 64 or 128.
    /// - Returns: false, without a launch, if this card or dim has no such kernel.
    func hopperAttention(
        _ arguments: AttentionArguments, _ visits: AttentionKeys
    ) -> Bool {
        let dim = Int(arguments.dim)
        let fitting = Attention.hopperTiles.first {
            $0.dim == dim && $0.visits == visits
                && (visits == .listed || ($0.keys == 64) == (arguments.keys <= 64))
        }
        guard kernelArchitecture == .hopper, let tile = fitting else { return false }
        let heads = Int(arguments.heads)
        let kernel: Kernel<TensorMap, TensorMap, TensorMap, AttentionArguments> =
            kernel(tile.kernel, of: Attention.hopper)
        let items = ceilDivide(Int(arguments.queries), 128) * heads
        kernel(
            LaunchShape(
                grid: Extents(min(properties.multiprocessors, items)), block: 384,
                sharedBytes: tile.sharedBytes),
            headMap(arguments, arguments.q, arguments.queries, box: 128),
            headMap(arguments, arguments.k, arguments.keys, box: tile.keys),
            headMap(arguments, arguments.v, arguments.keys, box: tile.keys), arguments)
        return true
    }
}
