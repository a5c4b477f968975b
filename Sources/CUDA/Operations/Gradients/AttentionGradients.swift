// Derivatives of dense attention, and of attention to listed blocks.

internal import Glibc
internal import Ground
internal import Tensors

/// `GradientArguments` of attention_gradient.cu.
struct AttentionGradientArguments: BitwiseCopyable {
    var q, k, v: DevicePointer
    var g = DevicePointer.null
    var tq = DevicePointer.null
    var tk = DevicePointer.null
    var tv = DevicePointer.null
    var statistics = DevicePointer.null
    var out = DevicePointer.null
    var dk = DevicePointer.null
    var dv = DevicePointer.null
    var indices = DevicePointer.null
    var inverted = DevicePointer.null
    var counts = DevicePointer.null
    var queries, keys, heads, dim: Int32
    var scale: Float
    var lastKeys: InlineArray<2, Float>
    var selected: Int32 = 0
    var queryBlock: Int32 = 1
    var keyBlock: Int32 = 1

    /// - Parameter lastKeyCounts: how many times each of the last keys counts; at most two keys.
    init(_ q: Tensor, _ k: Tensor, _ v: Tensor, scale: Float, lastKeyCounts: [Int] = []) {
        self.q = q.pointer
        self.k = k.pointer
        self.v = v.pointer
        queries = Int32(q.shape[0])
        keys = Int32(k.shape[0])
        heads = Int32(q.shape[1])
        dim = Int32(q.shape[2])
        self.scale = scale
        let last = ([1, 1] + lastKeyCounts).suffix(2).map { logf(Float($0)) }
        lastKeys = [last[0], last[1]]
    }
}

enum AttentionGradients {
    /// The steps of a derivative: `Pass` of attention_gradient.cu.
    enum Pass: String, CaseIterable {
        case reverseStatistics = "reverse_statistics"
        case forwardStatistics = "forward_statistics"
        case queryGradient = "query_gradient"
        case keyGradient = "key_gradient"
        case tangent
    }

    /// A tile of attention_gradient.cu.
    struct Tile: Hashable {
        /// The widest head, and rows of both sides.
        let dim, rows: Int

        func kernel(_ pass: Pass) -> String {
            "attention_gradient<\(dim), \(rows), Pass::\(pass.rawValue)>"
        }
        /// Two tiles of each side; P and D.
        var sharedBytes: Int { 4 * (4 * rows * (dim + 4) + 2 * rows * (rows + 1)) }

        func shape(owned: Int, heads: Int) -> LaunchShape {
            LaunchShape(
                grid: Extents(ceilDivide(owned, rows), heads), block: Extents(8 * rows),
                sharedBytes: sharedBytes)
        }
    }
    static let tiles = [
        Tile(dim: 64, rows: 32), Tile(dim: 128, rows: 32), Tile(dim: 256, rows: 16),
    ]

    static let unit = KernelUnit(
        "attention_gradient.cu",
        kernels: tiles.flatMap { tile in Pass.allCases.map { tile.kernel($0) } }
            + ["invert_lists"])

    static let units = [unit]
}

/// Lists of blocks both ways: the key blocks of a query block, and the query blocks of a key block.
struct BlockLists {
    /// i32 [heads, queryBlocks, selected]; [heads, keyBlocks, queryBlocks]; [heads, keyBlocks]
    let indices, inverted, counts: Tensor
    let spec: SparseAttention
}

extension AttentionGradientArguments {
    /// Restricts attention to these blocks.
    mutating func list(_ lists: BlockLists) {
        indices = lists.indices.pointer
        inverted = lists.inverted.pointer
        counts = lists.counts.pointer
        selected = Int32(lists.indices.shape[2])
        queryBlock = Int32(lists.spec.queryBlock)
        keyBlock = Int32(lists.spec.keyBlock)
    }
}

extension CUDABackend {
    func attentionGradient(_ o: Operation.AttentionGradient) -> [Tensor] {
        let (q, k, v) = (full(o.q), full(o.k), full(o.v))
        let found = blockGradients(
            q, k, v, full(o.cotangent), scale: o.scale, lastKeyCounts: o.lastKeyCounts,
            lists: nil)
        return zip(found, [o.q, o.k, o.v]).map { converted($0, to: $1.dtype) }
    }

    func attentionTangent(_ o: Operation.AttentionTangent) -> Tensor {
        let found = blockTangent(
            full(o.q), full(o.k), full(o.v),
            (o.queryTangent.map(full), o.keyTangent.map(full), o.valueTangent.map(full)),
            scale: o.scale, lastKeyCounts: o.lastKeyCounts, lists: nil)
        return converted(found, to: o.q.dtype)
    }

    /// x in f32, in which derivatives of attention are computed.
    func full(_ x: Tensor) -> Tensor { converted(x, to: .f32) }

    /// The blocks that the map selects, both ways. q, k: in their own dtype, in which the map is made.
    func blockLists(_ q: Tensor, _ k: Tensor, _ spec: SparseAttention) -> BlockLists {
        let indices = blockMap(q, k, spec).indices
        let (heads, queryBlocks, selected) = (
            indices.shape[0], indices.shape[1], indices.shape[2]
        )
        let keyBlocks = ceilDivide(k.shape[0], spec.keyBlock)
        let inverted = tensor([heads, keyBlocks, queryBlocks], .i32)
        let counts = tensor([heads, keyBlocks], .i32)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32> =
            context.kernel("invert_lists", of: AttentionGradients.unit)
        kernel(
            LaunchShape(grid: Extents(ceilDivide(keyBlocks, 8), heads), block: 256),
            indices.pointer, inverted.pointer, counts.pointer, Int32(queryBlocks),
            Int32(keyBlocks), Int32(selected))
        return BlockLists(indices: indices, inverted: inverted, counts: counts, spec: spec)
    }

    /// q, g: f32 [Lq, heads, dim]; k, v: f32 [Lk, heads, dim] → f32, of q, k, v
    func blockGradients(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ g: Tensor, scale: Float,
        lastKeyCounts: [Int] = [], lists: BlockLists?
    ) -> [Tensor] {
        let tile = gradientTile(q, lists, "attentionGradient")
        let statistics = storage(byteCount: q.shape[1] * q.shape[0] * 8)
        let found = [q, k, v].map { tensor($0.shape, .f32) }
        var arguments = AttentionGradientArguments(
            q, k, v, scale: scale, lastKeyCounts: lastKeyCounts)
        arguments.g = g.pointer
        arguments.statistics = statistics.location
        arguments.out = found[0].pointer
        arguments.dk = found[1].pointer
        arguments.dv = found[2].pointer
        if let lists { arguments.list(lists) }
        launch(.reverseStatistics, tile, arguments)
        launch(.queryGradient, tile, arguments)
        launch(.keyGradient, tile, arguments)
        return found
    }

    /// The tangent of attention along those of q, k, v; nil for constants. All f32 → f32, as q
    func blockTangent(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ tangents: (q: Tensor?, k: Tensor?, v: Tensor?),
        scale: Float, lastKeyCounts: [Int] = [], lists: BlockLists?
    ) -> Tensor {
        let tile = gradientTile(q, lists, "attentionTangent")
        let statistics = storage(byteCount: q.shape[1] * q.shape[0] * 8)
        let out = tensor(q.shape, .f32)
        var arguments = AttentionGradientArguments(
            q, k, v, scale: scale, lastKeyCounts: lastKeyCounts)
        arguments.tq = tangents.q?.pointer ?? .null
        arguments.tk = tangents.k?.pointer ?? .null
        arguments.tv = tangents.v?.pointer ?? .null
        arguments.statistics = statistics.location
        arguments.out = out.pointer
        if let lists { arguments.list(lists) }
        launch(.forwardStatistics, tile, arguments)
        launch(.tangent, tile, arguments)
        return out
    }

    private func launch(
        _ pass: AttentionGradients.Pass, _ tile: AttentionGradients.Tile,
        _ arguments: AttentionGradientArguments
    ) {
        let kernel: Kernel<AttentionGradientArguments> = context.kernel(
            tile.kernel(pass), of: AttentionGradients.unit)
        let owned = pass == .keyGradient ? arguments.keys : arguments.queries
        kernel(tile.shape(owned: Int(owned), heads: Int(arguments.heads)), arguments)
    }

    private func gradientTile(
        _ q: Tensor, _ lists: BlockLists?, _ operation: String
    ) -> AttentionGradients.Tile {
        let dim = q.shape[2]
        guard dim % 4 == 0, let tile = AttentionGradients.tiles.first(where: { $0.dim >= dim })
        else {
            programmingError("\(operation): no kernel for headDim \(dim)")
        }
        if let spec = lists?.spec {
            ensure(
                spec.queryBlock % tile.rows == 0 && spec.keyBlock % tile.rows == 0,
                "\(operation): blocks of \(spec.queryBlock) x \(spec.keyBlock), multiples of "
                    + "\(tile.rows) wanted")
        }
        return tile
    }
}
