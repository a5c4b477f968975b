// Cases of the norms: the last row against its definition in double precision, and the time.

internal import Tensors

extension SelfTest {
    static var normCases: [SelfTestCase] {
        [(130, 1536, 12), (9, 384, 3), (32760, 1536, 12), (75600, 5120, 40)].flatMap {
            rows, columns, heads in
            [
                normCase("layer", rows, columns, .plain),
                normCase("layer int8", rows, columns, .int8Blocks),
                normCase("layer fp8", rows, columns, .fp8Rows),
                normCase("rms", rows, columns, nil), ropeCase(rows, columns, heads),
            ]
        }
    }

    /// - Parameter format: of a modulated layer norm's result; nil for an RMS norm.
    private static func normCase(
        _ name: String, _ rows: Int, _ columns: Int, _ format: ActivationFormat?
    ) -> SelfTestCase {
        SelfTestCase("norm \(name) \(rows)x\(columns)") { context in
            let backend = try CUDABackend(context)
            let x = backend.attentionOperand([rows, columns], .bf16, seed: 1)
            let shift = backend.attentionOperand([columns], .f32, seed: 2)
            let scale = backend.attentionOperand([columns], .f32, seed: 3)
            let run = {
                guard let format else {
                    return backend.rmsNorm(
                        x.tensor, weight: scale.tensor, epsilon: 1e-6, kind: .exact,
                        format: .plain)
                }
                return backend.modulatedLayerNorm(
                    x.tensor, shift: shift.tensor, scale: scale.tensor, epsilon: 1e-6,
                    kind: .exact, format: format, dtype: nil)
            }
            let last = (rows - 1) * columns
            let row = (0..<columns).map { Double(x.values[last + $0]) }
            let mean = format == nil ? 0 : row.reduce(0, +) / Double(columns)
            let squares = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
            let inverse = 1 / (squares / Double(columns) + 1e-6).squareRoot()
            let got = try lastRow(run(), context)
            var comparison = SelfTestComparison()
            for (column, value) in row.enumerated() {
                let weight = Double(scale.values[column])
                let expected =
                    format == nil
                    ? (value - mean) * inverse * weight
                    : (value - mean) * inverse * (1 + weight) + Double(shift.values[column])
                comparison.add(got[column], Float(expected))
            }
            let codeBytes = format == nil || format == .plain ? 2 : 1
            return SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                // Roundings of 8 bits of mantissa, of codes, of e4m3.
                tolerance: format == .int8Blocks ? 0.02 : format == .fp8Rows ? 0.05 : 5e-3,
                microseconds: try context.medianMicroseconds { _ = run() },
                bytes: Double((2 + codeBytes) * rows * columns))
        }
    }

    private static func ropeCase(_ rows: Int, _ columns: Int, _ heads: Int) -> SelfTestCase {
        SelfTestCase("norm rope \(rows)x\(columns)") { context in
            let backend = try CUDABackend(context)
            let half = columns / heads / 2
            let x = backend.attentionOperand([rows, columns], .bf16, seed: 1)
            let weight = backend.attentionOperand([columns], .f32, seed: 2)
            let cosine = backend.attentionOperand([rows, half], .f32, seed: 3)
            let sine = backend.attentionOperand([rows, half], .f32, seed: 4)
            let table = RotaryTable(cosine: cosine.tensor, sine: sine.tensor)
            let run = {
                backend.rmsNormRope(
                    x.tensor, weight: weight.tensor, epsilon: 1e-6, kind: .exact, rope: table,
                    heads: heads)
            }
            let last = (rows - 1) * columns
            let row = (0..<columns).map { Double(x.values[last + $0]) }
            let squares = row.reduce(0) { $0 + $1 * $1 }
            let inverse = 1 / (squares / Double(columns) + 1e-6).squareRoot()
            let got = try lastRow(run().reshaped([rows, columns]), context)
            var comparison = SelfTestComparison()
            for column in stride(from: 0, to: columns, by: 2) {
                let place = (rows - 1) * half + column % (2 * half) / 2
                let (c, d) = (Double(cosine.values[place]), Double(sine.values[place]))
                let a = row[column] * inverse * Double(weight.values[column])
                let b = row[column + 1] * inverse * Double(weight.values[column + 1])
                comparison.add(got[column], Float(a * c - b * d))
                comparison.add(got[column + 1], Float(a * d + b * c))
            }
            return SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: 5e-3, microseconds: try context.medianMicroseconds { _ = run() },
                bytes: Double(4 * rows * columns + 8 * rows * half))
        }
    }

    /// The last row of a result, codes times their scales.
    private static func lastRow(_ x: Tensor, _ context: Context) throws -> [Float] {
        try context.synchronize()
        let (rows, columns) = (x.shape.rows, x.shape.columns)
        let start = x.pointer + (rows - 1) * columns * x.dtype.byteCount
        guard let scales = (x.scales as? DeviceStorage)?.location else {
            return context.download(BFloat16.self, columns, from: start).map(\.float)
        }
        let codes = context.download(UInt8.self, columns, from: start)
        if x.dtype == .f8e4m3 {
            let scale = context.download(Float.self, 1, from: scales + (rows - 1) * 4)[0]
            return codes.map { Float8E4M3.decode($0) * scale }
        }
        let across = ceilDivide(columns, 128)
        let block = context.download(
            Float.self, across, from: scales + (rows - 1) / 128 * across * 4)
        return codes.enumerated().map { Float(Int8(bitPattern: $1)) * block[$0 / 128] }
    }
}
