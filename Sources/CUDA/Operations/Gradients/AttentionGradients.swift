// Derivatives of dense attention, and of attention to listed blocks.

internal import Glibc
internal import Ground
internal import Tensors

/// `GradientArguments` of attention_gradient.cuh.
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
    /// The steps of a derivative: `Pass` of attention_gradient.cuh.
    enum Pass: String, CaseIterable {
        case reverseStatistics = "reverse_statistics"
        case forwardStatistics = "forward_statistics"
        case queryGradient = "query_gradient"
        case keyGradient = "key_gradient"
        case tangent
    }

    /// Rows that a block of threads owns, and of the other side's tiles.
    struct Tile: Hashable {
        /// Plain f32, bf16 on mma.sync, bf16 on wgmma.
        enum Arithmetic { case f32, bf16, hopper }
        let arithmetic: Arithmetic
        /// The widest head.
        let dim: Int
        let owned, visited: Int

        /// attention_gradient.cu: eight threads for each row.
        static func f32(dim: Int, rows: Int) -> Tile {
            Tile(arithmetic: .f32, dim: dim, owned: rows, visited: rows)
        }
        /// attention_gradient_mma.cu: 64 rows for four warps.
        static func bf16(dim: Int, visited: Int) -> Tile {
            Tile(arithmetic: .bf16, dim: dim, owned: 64, visited: visited)
        }
        /// attention_gradient_sm90.cu: 64 rows for each warpgroup.
        static func hopper(dim: Int, groups: Int) -> Tile {
            Tile(arithmetic: .hopper, dim: dim, owned: 64 * groups, visited: 64)
        }

        func kernel(_ pass: Pass) -> String {
            switch arithmetic {
            case .f32: "attention_gradient<\(dim), \(owned), Pass::\(pass.rawValue)>"
            case .bf16: "attention_gradient_mma<\(dim), \(visited), Pass::\(pass.rawValue)>"
            case .hopper: "attention_gradient_sm90<\(dim), \(owned / 64), Pass::\(pass.rawValue)>"
            }
        }

        var unit: KernelUnit {
            switch arithmetic {
            case .f32: AttentionGradients.unit
            case .bf16: AttentionGradients.mma
            case .hopper: AttentionGradients.sm90
            }
        }

        /// Threads of a block.
        private var threads: Int {
            switch arithmetic {
            case .f32: 8 * owned
            case .bf16: 128
            case .hopper: 2 * owned
            }
        }

        func sharedBytes(_ pass: Pass) -> Int {
            switch arithmetic {
            // Two tiles of each side; P and D.
            case .f32: 4 * (4 * owned * (dim + 4) + 2 * owned * (owned + 1))
            // Two own tiles; two stages of the other side's.
            case .bf16: 2 * dim * (2 * owned + 2 * (pass == .tangent ? 4 : 2) * visited)
            // `Layout`: two own tiles; stages of two tiles with statistics, a row and two barriers each; one
            // barrier more, and where loading is.
            case .hopper:
                4 * dim * owned + stages * (4 * dim * visited + 8 * visited + 24) + 8 + 64
            }
        }

        /// Tiles of the other side that are there or on their way.
        private var stages: Int { arithmetic == .hopper && owned > 64 ? 4 : 2 }

        /// Queries of a head for which there is room among the statistics.
        func statistics(_ queries: Int) -> Int {
            arithmetic == .hopper ? roundUp(queries, to: 128) : queries
        }

        /// - Parameter parts: of the other side's rows.
        func shape(_ pass: Pass, rows: Int, heads: Int, parts: Int = 1) -> LaunchShape {
            LaunchShape(
                grid: Extents(ceilDivide(rows, owned), heads, parts),
                block: Extents(threads),
                sharedBytes: sharedBytes(pass))
        }
    }
    static let tiles: [Tile] = [
        .f32(dim: 64, rows: 32), .f32(dim: 128, rows: 32), .f32(dim: 256, rows: 16),
    ]
    static let halfTiles: [Tile] = [.bf16(dim: 64, visited: 64), .bf16(dim: 128, visited: 32)]

    static let unit = KernelUnit(
        "attention_gradient.cu",
        kernels: tiles.flatMap { tile in Pass.allCases.map { tile.kernel($0) } }
            + ["invert_lists"])
    static let mma = KernelUnit(
        "attention_gradient_mma.cu",
        kernels: halfTiles.flatMap { tile in Pass.allCases.map { tile.kernel($0) } })

    /// Tiles of 128 rows read the other side half as often; lists and few rows want those of 64.
    static let hopperTiles: [Tile] = [.hopper(dim: 128, groups: 1), .hopper(dim: 128, groups: 2)]
    static let sm90 = KernelUnit(
        "attention_gradient_sm90.cu", for: .hopper,
        kernels: hopperTiles.flatMap { tile in
            [Pass.reverseStatistics, .queryGradient, .keyGradient].map { tile.kernel($0) }
        })

    static let units = [unit, mma, sm90]

    /// In how many parts the queries are taken for the gradients of few keys, so that there are blocks of threads
    /// enough; by the shapes alone, so that sums are the same on every card.
    static func queryParts(_ tile: Tile, queries: Int, keys: Int, heads: Int) -> Int {
        let blocks = ceilDivide(keys, tile.owned) * heads
        let wanted = min(128 / max(1, blocks), ceilDivide(queries, tile.visited) / 8)
        return max(1, wanted)
    }

    /// The tile of Hopper's kernels for bf16 operands; nil if they do not take them.
    /// - Parameter blocks: queries and keys of the lists' blocks; nil for all keys.
    static func hopperTile(
        dim: Int, queries: Int, keys: Int, blocks: (queries: Int, keys: Int)?
    ) -> Tile? {
        guard (65...128).contains(dim), dim % 8 == 0 else { return nil }
        guard let blocks else {
            return .hopper(dim: 128, groups: min(queries, keys) >= 1024 ? 2 : 1)
        }
        let areWhole = blocks.queries % 64 == 0 && blocks.keys % 64 == 0
        return areWhole ? .hopper(dim: 128, groups: 1) : nil
    }

    /// The tile for heads of this width; nil if no kernel is for them.
    /// - Parameters:
    ///   - isHalf: whether all operands are bf16, with rows in multiples of 16 bytes.
    ///   - blocks: queries and keys of the lists' blocks; nil for all keys.
    static func tile(dim: Int, isHalf: Bool, blocks: (queries: Int, keys: Int)?) -> Tile? {
        func suits(_ tile: Tile) -> Bool {
            guard let (queries, keys) = blocks else { return true }
            let side = max(tile.owned, tile.visited)
            return queries % side == 0 && keys % side == 0
        }
        guard dim % 4 == 0 else { return nil }
        let half = isHalf && dim % 8 == 0 ? halfTiles.first { $0.dim >= dim && suits($0) } : nil
        return half ?? tiles.first { $0.dim >= dim && suits($0) }
    }
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
        let found = blockGradients(
            o.q, o.k, o.v, o.cotangent, scale: o.scale, lastKeyCounts: o.lastKeyCounts, lists: nil)
        return zip(found, [o.q, o.k, o.v]).map { converted($0, to: $1.dtype) }
    }

    func attentionTangent(_ o: Operation.AttentionTangent) -> Tensor {
        let found = blockTangent(
            o.q, o.k, o.v, (o.queryTangent, o.keyTangent, o.valueTangent), scale: o.scale,
            lastKeyCounts: o.lastKeyCounts, lists: nil)
        return converted(found, to: o.q.dtype)
    }

    /// x in f32, from a multiple of 16 bytes on: kernels read four numbers at once.
    func full(_ x: Tensor) -> Tensor {
        guard x.dtype == .f32, x.byteOffset % 16 != 0 else { return converted(x, to: .f32) }
        let out = tensor(x.shape, .f32)
        context.stream.copy(x.pointer, to: out.pointer, byteCount: x.byteCount)
        return out
    }

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

    /// q, g: [Lq, heads, dim]; k, v: [Lk, heads, dim] → f32, of q, k, v
    func blockGradients(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ g: Tensor, scale: Float,
        lastKeyCounts: [Int] = [], lists: BlockLists?
    ) -> [Tensor] {
        let (tile, x) = gradientTile([q, k, v, g], lists, "attentionGradient", isReverse: true)
        let statistics = storage(byteCount: q.shape[1] * tile.statistics(q.shape[0]) * 8)
        let found = [q, k, v].map { tensor($0.shape, .f32) }
        var arguments = AttentionGradientArguments(
            x[0]!, x[1]!, x[2]!, scale: scale, lastKeyCounts: lastKeyCounts)
        arguments.g = x[3]!.pointer
        arguments.statistics = statistics.location
        arguments.out = found[0].pointer
        let (keys, heads) = (k.shape[0], k.shape[1])
        let parts =
            lists == nil
            ? AttentionGradients.queryParts(tile, queries: q.shape[0], keys: keys, heads: heads) : 1
        let sums =
            parts == 1
            ? Array(found[1...]) : [k, v].map { tensor([parts, $0.shape.count], .f32) }
        arguments.dk = sums[0].pointer
        arguments.dv = sums[1].pointer
        if let lists { arguments.list(lists) }
        withExtendedLifetime((x, statistics)) {
            if tile.arithmetic == .hopper {
                launchHopper(tile, x.map { $0! }, arguments, parts: parts)
            } else {
                launch(.reverseStatistics, tile, arguments)
                launch(.queryGradient, tile, arguments)
                launch(.keyGradient, tile, arguments, parts: parts)
            }
        }
        if parts > 1 {
            for (sum, whole) in zip(sums, found[1...]) { join(sum, into: whole) }
        }
        return found
    }

    /// The tangent of attention along those of q, k, v; nil for constants. → f32, as q
    func blockTangent(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ tangents: (q: Tensor?, k: Tensor?, v: Tensor?),
        scale: Float, lastKeyCounts: [Int] = [], lists: BlockLists?
    ) -> Tensor {
        let (tile, x) = gradientTile(
            [q, k, v, tangents.q, tangents.k, tangents.v], lists, "attentionTangent")
        let statistics = storage(byteCount: q.shape[1] * q.shape[0] * 8)
        let out = tensor(q.shape, .f32)
        var arguments = AttentionGradientArguments(
            x[0]!, x[1]!, x[2]!, scale: scale, lastKeyCounts: lastKeyCounts)
        arguments.tq = x[3]?.pointer ?? .null
        arguments.tk = x[4]?.pointer ?? .null
        arguments.tv = x[5]?.pointer ?? .null
        arguments.statistics = statistics.location
        arguments.out = out.pointer
        if let lists { arguments.list(lists) }
        withExtendedLifetime((x, statistics)) {
            launch(.forwardStatistics, tile, arguments)
            launch(.tangent, tile, arguments)
        }
        return out
    }

    private func launch(
        _ pass: AttentionGradients.Pass, _ tile: AttentionGradients.Tile,
        _ arguments: AttentionGradientArguments, parts: Int = 1
    ) {
        let kernel: Kernel<AttentionGradientArguments> = context.kernel(
            tile.kernel(pass), of: tile.unit)
        let rows = pass == .keyGradient ? arguments.keys : arguments.queries
        kernel(
            tile.shape(pass, rows: Int(rows), heads: Int(arguments.heads), parts: parts), arguments)
    }

    /// The passes of reverse mode on wgmma. x: q, k, v, g
    private func launchHopper(
        _ tile: AttentionGradients.Tile, _ x: [Tensor], _ arguments: AttentionGradientArguments,
        parts: Int
    ) {
        let maps = x.map { x in
            context.tensorMap(
                .bf16, at: x.pointer, extents: [x.shape[2], x.shape[1], x.shape[0]],
                box: [64, 1, 64])
        }
        func launch(_ pass: AttentionGradients.Pass, _ order: [Int], rows: Int, parts: Int = 1) {
            let kernel:
                Kernel<TensorMap, TensorMap, TensorMap, TensorMap, AttentionGradientArguments> =
                    context.kernel(tile.kernel(pass), of: tile.unit)
            kernel(
                tile.shape(pass, rows: rows, heads: x[0].shape[1], parts: parts),
                maps[order[0]], maps[order[1]], maps[order[2]], maps[order[3]], arguments)
        }
        launch(.reverseStatistics, [0, 3, 1, 2], rows: x[0].shape[0])
        launch(.queryGradient, [0, 3, 1, 2], rows: x[0].shape[0])
        launch(.keyGradient, [1, 2, 0, 3], rows: x[1].shape[0], parts: parts)
    }

    /// The tile for these operands, of which the first is q, and they as its kernels read them.
    private func gradientTile(
        _ operands: [Tensor?], _ lists: BlockLists?, _ operation: String, isReverse: Bool = false
    ) -> (AttentionGradients.Tile, [Tensor?]) {
        let dim = operands[0]!.shape[2]
        let isHalf = operands.allSatisfy {
            $0.map { $0.dtype == .bf16 && $0.byteOffset % 16 == 0 } ?? true
        }
        let blocks = lists.map { ($0.spec.queryBlock, $0.spec.keyBlock) }
        if isReverse, isHalf, context.kernelArchitecture == .hopper,
            let tile = AttentionGradients.hopperTile(
                dim: dim, queries: operands[0]!.shape[0], keys: operands[1]!.shape[0],
                blocks: blocks)
        {
            return (tile, operands)
        }
        guard let tile = AttentionGradients.tile(dim: dim, isHalf: isHalf, blocks: blocks) else {
            programmingError(
                "\(operation): no kernel for headDim \(dim)"
                    + (blocks.map { " and blocks of \($0.0) x \($0.1)" } ?? ""))
        }
        return (tile, tile.arithmetic == .f32 ? operands.map { $0.map(full) } : operands)
    }
}
