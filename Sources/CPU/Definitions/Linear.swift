/// Linear layers, and the 8-bit formats of their operands.

import Ground
import Tensors

extension Definitions {
    /// Rows and columns of the result that are computed at a time. Both divide the side of a 128x128 scale block.
    private static let tile = (rows: 128, columns: 64)

    func linear(_ o: Operation.Linear) -> Tensor {
        let (weight, outputType) = (o.weight, o.resultType)
        let x = o.x.format == .plain ? quantize(o.x, to: weight.inputFormat) : o.x
        let result = memory.tensor(x.shape.replacingLast(weight.outputs), outputType)
        let (outputs, inputs) = (weight.outputs, weight.inputs)
        let (input, matrix, output) = (Rows(x), Rows(weight.matrix), Rows(result))
        let scaling = Scaling(x, weight)
        let bias = o.bias.map { vector($0, roundedTo: scaling.isBlocked ? outputType : .f32) }
        let rowTiles = ceilDivide(input.count, Self.tile.rows)
        let columnTiles = ceilDivide(outputs, Self.tile.columns)
        threads.parallel(rowTiles * columnTiles) { range in
            for index in range {
                let row = index % rowTiles * Self.tile.rows
                let column = index / rowTiles * Self.tile.columns
                let rows = row..<min(row + Self.tile.rows, input.count)
                let columns = column..<min(column + Self.tile.columns, outputs)
                scratch(Self.tile.rows * Self.tile.columns) { sums in
                    product(input, matrix, inputs, rows, columns, scaling, into: sums)
                    for (index, row) in rows.enumerated() {
                        let line = sums + index * Self.tile.columns
                        scaling.finish(
                            line, row, columns, bias: bias, activation: o.activation, outputType)
                        output.store(row, from: columns.lowerBound, columns.count, line)
                    }
                }
            }
        }
        return quantize(result, to: o.format)
    }

    /// The dot products of one tile, not yet finished by `scaling`. sums: [rows.count][tile.columns]
    private func product(
        _ x: Rows, _ weight: Rows, _ inputs: Int, _ rows: Range<Int>, _ columns: Range<Int>,
        _ scaling: Scaling, into sums: UnsafeMutablePointer<Float>
    ) {
        let width = Self.tile.columns
        // The sum of int8 products over one block of 128 is exact in f32: at most 128 * 128 * 128 = 2^21.
        let chunk = scaling.isBlocked ? 128 : MatrixProduct.chunk
        sums.update(repeating: 0, count: rows.count * width)
        scratch(chunk * (rows.count + width) + rows.count * width) { memory in
            let a = memory
            let panels = a + chunk * rows.count
            let block = panels + chunk * width
            for start in stride(from: 0, to: inputs, by: chunk) {
                let n = min(chunk, inputs - start)
                for (index, row) in rows.enumerated() {
                    x.load(row, from: start, n, into: a + index * n)
                }
                Panels.pack(
                    weight, first: columns.lowerBound, count: columns.count, from: start, n,
                    into: panels)
                Panels.multiply(
                    m: rows.count, k: n, columns: Panels.columns(columns.count), a: a, aStride: n,
                    panels: panels, c: scaling.isBlocked ? block : sums, cStride: width,
                    accumulate: !scaling.isBlocked)
                if scaling.isBlocked {
                    let scale = Lanes(
                        repeating: scaling.block(rows.lowerBound, columns.lowerBound, start))
                    Vector.map(sums, block, rows.count * width) { $0.addingProduct($1, scale) }
                }
            }
        }
    }

    /// See `Operation.Quantize`; returns x itself if `format` is plain.
    func quantize(_ x: Tensor, to format: LinearFormat) -> Tensor {
        switch format {
        case .plain: x
        case .int8Blocks: int8Blocks(x)
        case .fp8Rows: fp8Rows(x)
        }
    }

    /// See `Int8Blocks`.
    private func int8Blocks(_ x: Tensor) -> Tensor {
        let rows = Rows(x)
        let blockRows = ceilDivide(rows.count, 128)
        let blockColumns = ceilDivide(rows.columns, 128)
        let scales = memory.storage(byteCount: blockRows * blockColumns * 4)
        let result = memory.tensor(x.shape, .i8, scales: scales)
        let scale = scales.hostPointer!.assumingMemoryBound(to: Float.self)
        let codes = result.hostAddress.assumingMemoryBound(to: Int8.self)
        threads.parallel(blockRows * blockColumns) { range in
            scratch(128 * 128) { block in
                for index in range {
                    let start = index % blockColumns * 128
                    let n = min(128, rows.columns - start)
                    let first = index / blockColumns * 128
                    let m = min(128, rows.count - first)
                    for row in 0..<m {
                        rows.load(first + row, from: start, n, into: block + row * n)
                    }
                    let amax = max(
                        Vector.maximumMagnitude(block, m * n), LinearFormat.leastMaximum)
                    scale[index] = amax / 128
                    let inverse = 128 / amax
                    for row in 0..<m {
                        Int8Code.write(
                            block + row * n, n, inverse,
                            to: codes + (first + row) * rows.columns + start)
                    }
                }
            }
        }
        return result
    }

    /// See `FP8Rows`.
    private func fp8Rows(_ x: Tensor) -> Tensor {
        let rows = Rows(x)
        let scales = memory.storage(byteCount: rows.count * 4)
        let result = memory.tensor(x.shape, .f8e4m3, scales: scales)
        let scale = scales.hostPointer!.assumingMemoryBound(to: Float.self)
        let codes = Rows(result)
        threads.parallel(rows.count, grain: grain(rows.columns)) { range in
            scratch(rows.columns) { line in
                for row in range {
                    rows.load(row, rows.columns, into: line)
                    let amax = max(
                        Vector.maximumMagnitude(line, rows.columns), LinearFormat.leastMaximum)
                    scale[row] = amax / 448
                    Vector.scale(line, rows.columns, by: 448 / amax)
                    codes.store(row, rows.columns, line)
                }
            }
        }
        return result
    }

    /// Quantises a weight. weight: [out, in]
    func quantizedWeight(_ weight: Tensor, to format: LinearFormat) -> LinearWeight {
        if format == .plain { return .dense(weight) }
        let quantized = quantize(weight, to: format)
        let codes = Tensor(weight.shape, quantized.dtype, storage: quantized.storage)
        let (outputs, inputs) = (weight.shape[0], weight.shape[1])
        let shape: Shape =
            format == .fp8Rows ? [outputs] : [ceilDivide(outputs, 128), ceilDivide(inputs, 128)]
        let scale = Tensor(shape, .f32, storage: quantized.scales!)
        return format == .fp8Rows
            ? .fp8Rows(weight: codes, scale: scale) : .int8Blocks(weight: codes, scale: scale)
    }
}

/// Rounding f32 values to integers and int8 codes.
enum Int8Code {
    /// codes <- saturate(rne(x * factor))
    static func write(
        _ x: UnsafePointer<Float>, _ n: Int, _ factor: Float, to codes: UnsafeMutablePointer<Int8>
    ) {
        // Adding 1.5 * 2^23 rounds to the nearest integer, which is then in the low byte.
        for i in 0..<n {
            let value = min(max(x[i] * factor, -128), 127)
            codes[i] = Int8(truncatingIfNeeded: (value + 12_582_912).bitPattern)
        }
    }

    /// Rounds to the nearest integer, halves away from zero. |x| < 2^22
    @inline(__always)
    static func roundHalfAway(_ x: Lanes) -> Lanes {
        let sign = unsafeBitCast(x, to: SIMD8<UInt32>.self) & SIMD8(repeating: 0x8000_0000)
        let up = Vector.magnitude(x) + 0.5
        var whole = (up + 8_388_608) - 8_388_608
        whole.replace(with: whole - 1, where: whole .> up)
        return unsafeBitCast(unsafeBitCast(whole, to: SIMD8<UInt32>.self) | sign, to: Lanes.self)
    }
}

/// Turns sums of products into results, with the scales of the operands.
private struct Scaling {
    private enum Kind {
        case dense
        case blocks(x: UnsafePointer<Float>, weight: UnsafePointer<Float>, columns: Int)
        case rows(x: UnsafePointer<Float>, weight: UnsafePointer<Float>)
    }
    private let kind: Kind
    /// Keeps the scales alive.
    private let storages: [Storage?]

    init(_ x: Tensor, _ weight: LinearWeight) {
        func scales(_ weightScale: Tensor) -> (UnsafePointer<Float>, UnsafePointer<Float>) {
            guard let storage = x.scales, let base = storage.hostPointer else {
                programmingError("linear: quantised x \(x.shape) \(x.dtype) without scales")
            }
            return (
                UnsafePointer(base.assumingMemoryBound(to: Float.self)),
                UnsafePointer(weightScale.hostAddress.assumingMemoryBound(to: Float.self))
            )
        }
        switch weight {
        case .dense:
            kind = .dense
            storages = []
        case .int8Blocks(_, let scale):
            let (inputScales, weightScales) = scales(scale)
            kind = .blocks(x: inputScales, weight: weightScales, columns: scale.shape[1])
            storages = [scale.storage, x.scales]
        case .fp8Rows(_, let scale):
            let (inputScales, weightScales) = scales(scale)
            kind = .rows(x: inputScales, weight: weightScales)
            storages = [scale.storage, x.scales]
        }
    }

    var isBlocked: Bool { if case .blocks = kind { true } else { false } }

    /// The product of both scales for the block at a row of x, a row of the weight and an index along k.
    func block(_ row: Int, _ output: Int, _ k: Int) -> Float {
        guard case .blocks(let x, let weight, let columns) = kind else { return 1 }
        return x[row / 128 * columns + k / 128] * weight[output / 128 * columns + k / 128]
    }

    /// Applies scales, bias, rounding and activation to part of a row.
    func finish(
        _ line: UnsafeMutablePointer<Float>, _ row: Int, _ columns: Range<Int>, bias: [Float]?,
        activation: Activation, _ dtype: DType
    ) {
        let n = columns.count
        switch kind {
        case .dense: break
        case .rows(let x, let weight):
            for i in 0..<n { line[i] *= x[row] * weight[columns.lowerBound + i] }
        case .blocks:
            // As in the original, the product and the bias are both rounded to the output dtype and then added in it.
            round(line, n, to: dtype)
        }
        if let bias {
            bias.withUnsafeBufferPointer {
                Vector.add(line, $0.baseAddress! + columns.lowerBound, n)
            }
        }
        if activation != .none {
            round(line, n, to: dtype)
            Vector.apply(activation, line, n)
        }
    }
}
