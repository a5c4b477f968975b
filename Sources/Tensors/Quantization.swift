/// Quantising matrices in host memory. This defines the 8-bit formats of `LinearWeight`.

private import Dispatch
import Ground

/// W8A8 as in the original: int8 codes, with one f32 scale for each block of 128x128.
///
/// q = sat(rne(x * (128 / amax))), scale = amax / 128, amax = max(|x|, 1e-8) over the block (rne rounds to nearest,
/// ties to even; sat clamps to -128...127), so that +amax saturates to 127 and -amax becomes -128. Incomplete blocks
/// at the edges count as padded with zeros.
/// https://github.com/thu-ml/TurboDiffusion/blob/aaecff5/turbodiffusion/ops/core.py
public enum Int8Blocks {
    /// Rows and columns of a block.
    public static let side = 128

    /// The shape of the scales: [ceil(rows/128), ceil(columns/128)].
    public static func scaleShape(rows: Int, columns: Int) -> Shape {
        [ceilDivide(rows, side), ceilDivide(columns, side)]
    }

    /// Quantises `matrix` [rows, columns] of any floating-point type, on several threads.
    /// A NaN makes its block's scale NaN; its own code is arbitrary.
    /// - Returns: codes: i8 [rows, columns]; scale: f32 [ceil(rows/128), ceil(columns/128)]
    public static func quantize(_ matrix: Tensor) -> (codes: Tensor, scale: Tensor) {
        ensure(
            matrix.shape.rank == 2 && matrix.dtype.isFloatingPoint,
            "Int8Blocks.quantize: a matrix of numbers expected, \(matrix.shape) \(matrix.dtype)")
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        let codes = Tensor.host(matrix.shape, .i8)
        let scale = Tensor.host(scaleShape(rows: rows, columns: columns), .f32)
        let blocks = scale.shape[1]
        codes.withMutable(Int8.self) { codes in
            scale.withMutable(Float.self) { scale in
                nonisolated(unsafe) let (codes, scale) = (codes, scale)
                forEachStrip(matrix, of: side) { strip, range in
                    let firstCode = range.lowerBound * columns
                    let firstScale = range.lowerBound / side * blocks
                    quantize(
                        strip, columns: columns,
                        codes: UnsafeMutableBufferPointer(rebasing: codes[firstCode...]),
                        scale: UnsafeMutableBufferPointer(rebasing: scale[firstScale...]))
                }
            }
        }
        return (codes, scale)
    }

    /// Quantises one row of blocks. strip: [at most 128, columns]
    private static func quantize(
        _ strip: UnsafeBufferPointer<Float>, columns: Int,
        codes: UnsafeMutableBufferPointer<Int8>, scale: UnsafeMutableBufferPointer<Float>
    ) {
        let rows = columns == 0 ? 0 : strip.count / columns
        for (block, start) in stride(from: 0, to: columns, by: side).enumerated() {
            let width = min(side, columns - start)
            var largest = LinearFormat.leastMaximum
            for row in 0..<rows {
                let line = UnsafeBufferPointer(rebasing: strip[(row * columns + start)...])
                for column in 0..<width {
                    // A NaN must win against all other values, so that it shows in the scale.
                    let magnitude = line[column].magnitude
                    largest = largest >= magnitude || largest.isNaN ? largest : magnitude
                }
            }
            scale[block] = largest / 128
            let factor = 128 / largest
            for row in 0..<rows {
                let at = row * columns + start
                let line = UnsafeBufferPointer(rebasing: strip[at...])
                let out = UnsafeMutableBufferPointer(rebasing: codes[at...])
                for column in 0..<width {
                    // Adding 1.5 * 2^23 leaves no bits for a fraction, so the sum is rounded to nearest, ties to even.
                    let value = line[column] * factor
                    let bounded = value > 127 ? 127 : value < -128 ? -128 : value
                    let rounded = bounded + 12_582_912
                    out[column] = Int8(
                        truncatingIfNeeded: Int32(bitPattern: rounded.bitPattern) &- 0x4B40_0000)
                }
            }
        }
    }

    /// The numbers that codes stand for, as f32 [rows, columns], on several threads.
    public static func dequantize(_ codes: Tensor, scale: Tensor) -> Tensor {
        let (rows, columns) = (codes.shape[0], codes.shape[1])
        ensure(
            codes.dtype == .i8 && scale.shape == scaleShape(rows: rows, columns: columns),
            "Int8Blocks.dequantize: \(codes.shape) \(codes.dtype) with scales \(scale.shape)")
        let out = Tensor.host(codes.shape, .f32)
        let blocks = scale.shape[1]
        out.withMutable(Float.self) { out in
            codes.withElements(Int8.self) { codes in
                scale.withElements(Float.self) { scale in
                    nonisolated(unsafe) let (out, codes, scale) = (out, codes, scale)
                    DispatchQueue.concurrentPerform(iterations: ceilDivide(rows, side)) { strip in
                        for row in strip * side..<min((strip + 1) * side, rows) {
                            for block in 0..<blocks {
                                let factor = scale[strip * blocks + block]
                                let start = row * columns + block * side
                                let end = min(start + side, (row + 1) * columns)
                                for at in start..<end { out[at] = Float(codes[at]) * factor }
                            }
                        }
                    }
                }
            }
        }
        return out
    }
}

/// fp8 e4m3 codes, with one f32 scale for each row.
///
/// q = e4m3(x * (448 / amax)), rounded to nearest, ties to even; scale = amax / 448, amax = max(|x|, 1e-8) over the
/// row.
public enum FP8Rows {
    /// Quantises `matrix` [rows, columns] of any floating-point type, on several threads.
    /// - Returns: codes: f8e4m3 [rows, columns]; scale: f32 [rows]
    public static func quantize(_ matrix: Tensor) -> (codes: Tensor, scale: Tensor) {
        ensure(
            matrix.shape.rank == 2 && matrix.dtype.isFloatingPoint,
            "FP8Rows.quantize: a matrix of numbers expected, \(matrix.shape) \(matrix.dtype)")
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        let codes = Tensor.host(matrix.shape, .f8e4m3)
        let scale = Tensor.host([rows], .f32)
        codes.withMutable(UInt8.self) { codes in
            scale.withMutable(Float.self) { scale in
                nonisolated(unsafe) let (codes, scale) = (codes, scale)
                forEachStrip(matrix, of: 32) { strip, range in
                    for row in range {
                        let start = (row - range.lowerBound) * columns
                        let line = UnsafeBufferPointer(rebasing: strip[start..<start + columns])
                        var largest = LinearFormat.leastMaximum
                        for value in line {
                            let magnitude = value.magnitude
                            largest = largest >= magnitude || largest.isNaN ? largest : magnitude
                        }
                        scale[row] = largest / 448
                        let factor = 448 / largest
                        for column in 0..<columns {
                            codes[row * columns + column] = Float8E4M3.encode(
                                line[column] * factor)
                        }
                    }
                }
            }
        }
        return (codes, scale)
    }

    /// The numbers that codes stand for, as f32 [rows, columns], on several threads.
    public static func dequantize(_ codes: Tensor, scale: Tensor) -> Tensor {
        let (rows, columns) = (codes.shape[0], codes.shape[1])
        ensure(
            codes.dtype == .f8e4m3 && scale.shape.count == rows,
            "FP8Rows.dequantize: \(codes.shape) \(codes.dtype) with scales \(scale.shape)")
        let table = (0...255).map { Float8E4M3.decode(UInt8($0)) }
        let out = Tensor.host(codes.shape, .f32)
        out.withMutable(Float.self) { out in
            codes.withElements(UInt8.self) { codes in
                scale.withElements(Float.self) { scale in
                    nonisolated(unsafe) let (out, codes, scale) = (out, codes, scale)
                    DispatchQueue.concurrentPerform(iterations: rows) { row in
                        for at in row * columns..<(row + 1) * columns {
                            out[at] = table[Int(codes[at])] * scale[row]
                        }
                    }
                }
            }
        }
        return out
    }
}

/// Runs `body` on strips of `height` rows of a host matrix, widened to f32, on several threads.
private func forEachStrip(
    _ matrix: Tensor, of height: Int,
    _ body: @Sendable (UnsafeBufferPointer<Float>, Range<Int>) -> Void
) {
    let rows = matrix.shape[0]
    nonisolated(unsafe) let matrix = matrix
    DispatchQueue.concurrentPerform(iterations: ceilDivide(rows, height)) { index in
        let range = index * height..<min((index + 1) * height, rows)
        matrix.slice(range).floats().withUnsafeBufferPointer { body($0, range) }
    }
}
