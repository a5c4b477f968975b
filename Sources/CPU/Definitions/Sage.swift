/// The arithmetic of SageAttention's kernels: what they quantise, and how they round inside a tile.

import Glibc
import Ground
import Tensors

extension Definitions {
    func sageOperands(_ o: Operation.SageOperands) -> SageOperands {
        func half(_ x: Tensor) -> Tensor { converted(x, to: .bf16) }
        return sageOperands(half(o.q), half(o.k), half(o.v), o.spec, o.architecture)
    }

    /// q, k, v: bf16 [L, heads, headDim]
    func sageOperands(
        _ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention,
        _ architecture: SageArchitecture
    ) -> SageOperands {
        let keyMean = mean(k)
        let (queryCodes, queryScales) = blockCodes(q, spec.queryBlock, minus: nil)
        let (keyCodes, keyScales) = blockCodes(k, spec.keyBlock, minus: keyMean)
        let values = architecture == .sm80 ? nil : channelCodes(v)
        return SageOperands(
            keyMean: keyMean, queryCodes: queryCodes, keyCodes: keyCodes, queryScales: queryScales,
            keyScales: keyScales, valueCodes: values?.0, valueScales: values?.1)
    }

    /// int8 codes of x - center, with one scale for each head and block of rows: scale = max|x| / 127 + 1e-7, codes
    /// rounded to nearest, halves away from zero. x: [L, heads, dim] → i8 [L, heads, dim], f32 [heads, blocks]
    private func blockCodes(_ x: Tensor, _ block: Int, minus center: Tensor?) -> (Tensor, Tensor) {
        let (tokens, heads, dim) = (x.shape[0], x.shape[1], x.shape[2])
        let blocks = ceilDivide(tokens, block)
        let rows = Rows(x)
        let center = center.map { vector($0) }
        let codes = memory.tensor(x.shape, .i8)
        let scales = memory.tensor([heads, blocks], .f32)
        let code = codes.hostAddress.assumingMemoryBound(to: Int8.self)
        let scale = scales.hostAddress.assumingMemoryBound(to: Float.self)
        threads.parallel(heads * blocks) { range in
            scratch(block * dim) { tile in
                for index in range {
                    let (head, first) = (index / blocks, index % blocks * block)
                    let count = min(block, tokens - first)
                    for row in 0..<count {
                        let line = tile + row * dim
                        rows.load((first + row) * heads + head, dim, into: line)
                        if let center {
                            for i in 0..<dim { line[i] -= center[head * dim + i] }
                            round(line, dim, to: x.dtype)
                        }
                    }
                    let step = Vector.maximumMagnitude(tile, count * dim) / 127 + 1e-7
                    scale[index] = step
                    for row in 0..<count {
                        let line = tile + row * dim
                        let out = code + ((first + row) * heads + head) * dim
                        Vector.map(line, dim) { Int8Code.roundHalfAway($0 / step) }
                        Int8Code.write(line, dim, 1, to: out)
                    }
                }
            }
        }
        return (codes, scales)
    }

    /// e4m3 codes, with one scale for each head and channel: scale = max|v| / 2.25, code = e4m3(v * 2.25 / max|v|).
    /// v: [L, heads, dim] → f8e4m3 [L, heads, dim], f32 [heads, dim]
    private func channelCodes(_ v: Tensor) -> (Tensor, Tensor) {
        let (tokens, heads, dim) = (v.shape[0], v.shape[1], v.shape[2])
        let width = heads * dim
        let rows = Rows(v, columns: width)
        var largest = [Float](repeating: 0, count: width)
        scratch(width) { line in
            for token in 0..<tokens {
                rows.load(token, width, into: line)
                Vector.map(&largest, line, width) { old, x in
                    let x = Vector.magnitude(x)
                    return old.replacing(with: x, where: x .> old)
                }
            }
        }
        let scales = memory.tensor([heads, dim], .f32)
        scales.withMutable(Float.self) { scale in
            for i in 0..<width { scale[i] = largest[i] / 2.25 }
        }
        // A channel of zeros would give 0 * inf = NaN in the original; here its codes are zeros.
        let inverse = largest.map { $0 == 0 ? 0 : 2.25 / $0 }
        let codes = mapRows([tokens, width], .f8e4m3) { range, out in
            rows.load(range, into: out)
            Vector.mapRows(out, rows: range.count, inverse, width) { $0 * $1 }
        }
        return (codes.reshaped(v.shape), scales)
    }
}

/// How an attention kernel computes with a tile of queries and one block of keys.
struct TileArithmetic {
    /// Factor of q.k in the exponent of 2: headDim^-0.5 log2 e.
    var logitScale: Float
    /// Added to the exponent of the probabilities P, so that 8-bit P uses its whole range.
    var exponentOffset: Float = 0
    /// Initial values of the running maximum and the running denominator.
    var maximumStart: Float = -.infinity
    var denominatorStart: Float = 0
    /// The type that P is rounded to before it is multiplied by V, and whether the denominator sums the rounded values.
    var probabilities: DType = .f32
    var sumsRounded = false
    /// Number of keys after which the accumulator of a block is rounded to f16; nil for f32 accumulators.
    var halfAccumulatorStep: Int?

    init(_ arithmetic: SparseAttention.Arithmetic, headDim: Int) {
        logitScale = Float(1.4426950408889634 / Double(headDim).squareRoot())
        switch arithmetic {
        case .exact: break
        case .bf16: probabilities = .bf16
        case .sage(let architecture):
            maximumStart = -5e6
            denominatorStart = 1
            if architecture == .sm80 {
                probabilities = .f16
                sumsRounded = true
                halfAccumulatorStep = 16
            } else {
                probabilities = .f8e4m3
                exponentOffset = 8.807
                halfAccumulatorStep = architecture == .sm89Accumulate16 ? 32 : nil
            }
        }
    }
}

/// What a sparse attention kernel reads: tokens * heads rows of `dim` elements, and the scales of 8-bit operands.
struct TileOperands {
    let arithmetic: TileArithmetic
    let q, k, v: Rows
    let tokens, heads, dim: Int
    /// [heads][blocks], [heads][blocks] and [heads][dim]; nil for 1
    let queryScales, keyScales, valueScales: [Float]?
    let queryBlocks, keyBlocks: Int

    init(
        _ definitions: Definitions, _ q: Tensor, _ k: Tensor, _ v: Tensor, _ spec: SparseAttention
    ) {
        (tokens, heads, dim) = (q.shape[0], q.shape[1], q.shape[2])
        queryBlocks = ceilDivide(tokens, spec.queryBlock)
        keyBlocks = ceilDivide(tokens, spec.keyBlock)
        arithmetic = TileArithmetic(spec.arithmetic, headDim: dim)
        guard case .sage(let architecture) = spec.arithmetic else {
            (self.q, self.k, self.v) = (Rows(q), Rows(k), Rows(v))
            (queryScales, keyScales, valueScales) = (nil, nil, nil)
            return
        }
        let operands = definitions.sageOperands(q, k, v, spec, architecture)
        self.q = Rows(operands.queryCodes)
        self.k = Rows(operands.keyCodes)
        self.v = Rows(operands.valueCodes ?? definitions.converted(v, to: .f16))
        queryScales = operands.queryScales.floats()
        keyScales = operands.keyScales.floats()
        valueScales = operands.valueScales?.floats()
    }
}

/// Softmax over one block of keys after the other, with a running maximum (the recurrence of FlashAttention).
enum OnlineSoftmax {
    /// Attention of `queries`, which belong to one query block, to the listed key blocks.
    /// panels: the keys of the head, [blocks][width / 16][dim][16]; values: [tokens][dim]
    static func run(
        _ operands: TileOperands, head: Int, queries: Range<Int>, queryBlock: Int,
        keyBlocks: UnsafeBufferPointer<Int32>, keyBlock: Int, panels: UnsafePointer<Float>,
        width: Int, values: UnsafePointer<Float>,
        store: (_ query: Int, _ line: UnsafePointer<Float>) -> Void
    ) {
        let arithmetic = operands.arithmetic
        let (dim, heads) = (operands.dim, operands.heads)
        let m = queries.count
        scratch(m * (2 * dim + width + 4) + m * dim) { memory in
            let q = memory
            let sums = q + m * dim
            let block = sums + m * dim
            let logits = block + m * dim
            let top = logits + m * width
            let newTop = top + m
            let rescale = newTop + m
            let denominator = rescale + m
            for (row, query) in queries.enumerated() {
                operands.q.load(query * heads + head, dim, into: q + row * dim)
                top[row] = arithmetic.maximumStart
                denominator[row] = arithmetic.denominatorStart
            }
            sums.update(repeating: 0, count: m * dim)
            let queryScale = operands.queryScales?[head * operands.queryBlocks + queryBlock] ?? 1
            for index in keyBlocks {
                let first = Int(index) * keyBlock
                let count = min(keyBlock, operands.tokens - first)
                let keyScale = operands.keyScales?[head * operands.keyBlocks + Int(index)] ?? 1
                let scale = queryScale * keyScale * arithmetic.logitScale
                Panels.multiply(
                    m: m, k: dim, columns: width, a: q, aStride: dim,
                    panels: panels + Int(index) * width * dim, c: logits, cStride: width)
                for row in 0..<m {
                    newTop[row] = max(top[row], Vector.maximum(logits + row * width, count) * scale)
                    rescale[row] = top[row] - newTop[row]
                    top[row] = newTop[row]
                }
                Vector.map(rescale, m) { exp2($0) }
                for row in 0..<m {
                    let line = logits + row * width
                    let shift = arithmetic.exponentOffset - top[row]
                    Vector.map(line, count) { exp2($0 * scale + shift) }
                    var total: Float
                    if arithmetic.sumsRounded {
                        roundProbabilities(line, count, arithmetic.probabilities)
                        total = Vector.sum(line, count)
                    } else {
                        total = Vector.sum(line, count)
                        roundProbabilities(line, count, arithmetic.probabilities)
                    }
                    total += denominator[row] * rescale[row]
                    denominator[row] = total
                    Vector.scale(sums + row * dim, dim, by: rescale[row])
                }
                accumulate(
                    arithmetic, m, dim, count, logits, width, values + first * dim, sums, block)
            }
            for (row, query) in queries.enumerated() {
                let line = sums + row * dim
                Vector.scale(line, dim, by: 1 / denominator[row])
                if let scales = operands.valueScales {
                    for i in 0..<dim { line[i] *= scales[head * dim + i] }
                }
                store(query, line)
            }
        }
    }

    /// sums += P V for one block of keys.
    private static func accumulate(
        _ arithmetic: TileArithmetic, _ m: Int, _ dim: Int, _ count: Int,
        _ p: UnsafePointer<Float>, _ width: Int, _ values: UnsafePointer<Float>,
        _ sums: UnsafeMutablePointer<Float>, _ block: UnsafeMutablePointer<Float>
    ) {
        guard let step = arithmetic.halfAccumulatorStep else {
            MatrixProduct.run(
                m: m, n: dim, k: count, a: p, aStride: width, b: values, bStride: dim, c: sums,
                cStride: dim, accumulate: true)
            return
        }
        block.update(repeating: 0, count: m * dim)
        for start in stride(from: 0, to: count, by: step) {
            MatrixProduct.run(
                m: m, n: dim, k: min(step, count - start), a: p + start, aStride: width,
                b: values + start * dim, bStride: dim, c: block, cStride: dim, accumulate: true)
            round(block, m * dim, to: .f16)
        }
        Vector.add(sums, block, m * dim)
    }

    private static func roundProbabilities(
        _ x: UnsafeMutablePointer<Float>, _ n: Int, _ dtype: DType
    ) {
        if dtype == .f8e4m3 { Vector.map(x, n, roundToE4M3) } else { round(x, n, to: dtype) }
    }

    /// The e4m3 value nearest to x, ties to even. x: 0...448
    @inline(__always)
    static func roundToE4M3(_ x: Lanes) -> Lanes {
        let bits = unsafeBitCast(x, to: SIMD8<UInt32>.self)
        let odd = (bits &>> 20) & SIMD8(repeating: 1)
        let normal = unsafeBitCast(
            (bits &+ 0x7FFFF &+ odd) & SIMD8(repeating: 0xFFF0_0000), to: Lanes.self)
        // Below 2^-6 the step is always 2^-9, which is the unit in the last place of 1.5 * 2^14.
        let magic = Lanes(repeating: 24_576)
        let value = normal.replacing(with: (x + magic) - magic, where: x .< 0x1p-6)
        return value.replacing(with: 448, where: value .> 448)
    }
}
