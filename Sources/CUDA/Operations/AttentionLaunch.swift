// What the attention operations share: their kernels' arguments and the units they are compiled in.

internal import Glibc
internal import Tensors

/// `AttentionArguments` of attention.cuh.
struct AttentionArguments: BitwiseCopyable {
    var q, k, v, out, addend, table, indices: DevicePointer
    var queries, keys, heads, dim: Int32
    var scale, lastKey: Float
    var selected, queryBlock, keyBlock: Int32
    var padding: Int32 = 0

    /// - Parameters:
    ///   - scale: of the logits, natural.
    ///   - lastKeyCount: how often the last key counts.
    init(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, out: Tensor, scale: Float, lastKeyCount: Int = 1
    ) {
        self.q = q.pointer
        self.k = k.pointer
        self.v = v.pointer
        self.out = out.pointer
        addend = .null
        table = .null
        indices = .null
        queries = Int32(q.shape[0])
        keys = Int32(k.shape[0])
        heads = Int32(q.shape[1])
        dim = Int32(q.shape[2])
        self.scale = scale * log2e
        // Of the scaled logits, in units of the unscaled ones.
        lastKey = lastKeyCount == 1 ? 0 : Float(log2(Double(lastKeyCount))) / self.scale
        selected = 0
        queryBlock = 1
        keyBlock = 1
    }
}

/// log2(e), as the kernels know it.
let log2e: Float = 1.442_695_040_888_963_4

/// `Keys` of attention.cuh.
enum AttentionKeys: String {
    case all, relative, listed
}

enum Attention {
    /// Head dimensions that the kernels are compiled for, and rows of queries of a block.
    static let simtTiles: [(dim: Int, queries: Int)] = [(64, 32), (128, 32), (512, 16)]
    static let mmaTiles: [(dim: Int, warps: Int)] = [(64, 4), (128, 8)]
    /// Keys of a tile of the kernels on mma.sync.
    static let mmaKeys = 64

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
            ["all", "relative", "listed"].map {
                "attention_mma<\(tile.dim), \(tile.warps), \(mmaKeys), Keys::\($0)>"
            }
        })

    static let units = [simt, mma]
}

extension CUDABackend {
    /// Attention in f32 arithmetic: any dim that is a multiple of 4, f32 or bf16.
    func simtAttention(_ arguments: AttentionArguments, _ dtype: DType, _ keys: AttentionKeys) {
        guard let tile = Attention.simtTiles.first(where: { $0.dim >= Int(arguments.dim) }) else {
            preconditionFailure("attention: headDim \(arguments.dim) is above 512")
        }
        let kernel: Kernel<AttentionArguments> = context.kernel(
            "attention_simt<\(Self.typeName(dtype)), \(tile.dim), \(tile.queries), "
                + "Keys::\(keys.rawValue)>", of: Attention.simt)
        let floats = (tile.queries + 32) * (tile.dim + 4) + tile.queries * 33
        kernel(
            LaunchShape(
                grid: Extents(
                    ceilDivide(Int(arguments.queries), tile.queries), Int(arguments.heads)),
                block: Extents(4 * tile.queries), sharedBytes: 4 * floats),
            arguments)
    }

    /// Attention of bf16 tensors on mma.sync, dim a multiple of 8 up to 128.
    func mmaAttention(_ arguments: AttentionArguments, _ keys: AttentionKeys) {
        guard let tile = Attention.mmaTiles.first(where: { $0.dim >= Int(arguments.dim) }) else {
            preconditionFailure("attention: headDim \(arguments.dim) is above 128")
        }
        let kernel: Kernel<AttentionArguments> = context.kernel(
            "attention_mma<\(tile.dim), \(tile.warps), \(Attention.mmaKeys), "
                + "Keys::\(keys.rawValue)>", of: Attention.mma)
        let queries = 16 * tile.warps
        kernel(
            LaunchShape(
                grid: Extents(ceilDivide(Int(arguments.queries), queries), Int(arguments.heads)),
                block: Extents(32 * tile.warps),
                sharedBytes: 2 * tile.dim * (queries + 2 * Attention.mmaKeys)),
            arguments)
    }
}
