// Cases of the matrix products: linear layers in every format, quantisers.

internal import Glibc
internal import Tensors

extension SelfTest {
    static var matmulCases: [SelfTestCase] {
        linearCases + quantizeCases + convolutionCases
    }

    /// Longer than what any cache line or tile divides, so that rows of a tensor differ.
    static let period = 65_521

    static func pattern(_ seed: UInt64, _ make: (inout SelfTestRandom) -> Float) -> [Float] {
        var random = SelfTestRandom(seed: seed)
        return (0..<period).map { _ in make(&random) }
    }

    // MARK: Linear layers

    private static var linearCases: [SelfTestCase] {
        var cases: [SelfTestCase] = []
        func add(
            _ element: LinearProblem.Element, _ output: LinearProblem.Output,
            _ m: Int, _ n: Int, _ k: Int, _ plan: LinearPlan, _ activation: Activation = .none,
            adds: Bool = false, timed: Bool = false
        ) {
            let problem = LinearProblem(
                element: element, output: output, activation: activation, adds: adds, rows: m,
                outputs: n, inputs: k)
            cases.append(linearCase(problem, plan, timed: timed))
        }
        func hopper(_ element: LinearProblem.Element) -> [LinearPlan] {
            LinearPlan.tiles(of: element).map {
                .hopper(height: $0.height, width: $0.width, cluster: $0.cluster)
            }
        }
        for element in [LinearProblem.Element.i8, .e4m3, .bf16] {
            for plan in hopper(element) + [.mma] {
                for (m, n, k) in [
                    (1, 128, 128), (77, 200, 640), (300, 392, 1152), (513, 1544, 208),
                    (1100, 3200, 1536),
                ] { add(element, .bf16, m, n, k, plan) }
                add(element, .bf16, 300, 392, 1152, plan, .geluTanh)
                if element != .e4m3 { add(element, .bf16, 300, 392, 1152, plan, adds: true) }
                if element != .i8 || plan == .mma {
                    add(element, .f32, 300, 392, 1152, plan)
                }
                if element == .bf16 { add(element, .f32, 300, 392, 1152, plan, adds: true) }
                if element == .i8 { add(element, .i8, 300, 384, 1152, plan, .geluTanh) }
            }
            add(element, .bf16, 77, 202, 640, .mma)
            add(element, .f32, 300, 392, 1152, .mma, .silu)
        }
        // The layers of the real models: 1.3B and 14B at 480p, 14B at 720p.
        for (m, d, f) in [(32760, 1536, 8960), (32760, 5120, 13824), (75600, 5120, 13824)] {
            for element in [LinearProblem.Element.i8, .bf16, .e4m3] {
                let plan = hopper(element)[0]
                add(element, .bf16, m, d, d, plan, timed: true)
                let adds = element != .e4m3
                add(element, .bf16, m, d, d, plan, adds: adds, timed: true)
                add(element, element == .i8 ? .i8 : .bf16, m, f, d, plan, .geluTanh, timed: true)
                add(element, .bf16, m, d, f, plan, adds: adds, timed: true)
            }
        }
        add(.i8, .bf16, 32760, 1536, 1536, .mma, timed: true)
        add(.bf16, .bf16, 32760, 1536, 1536, .mma, timed: true)
        // umT5-xxl.
        for plan in hopper(.bf16) {
            for (m, n, k) in [
                (512, 4096, 4096), (512, 10240, 4096), (512, 4096, 10240), (64, 4096, 4096),
            ] { add(.bf16, .bf16, m, n, k, plan, timed: true) }
        }
        return cases
    }

    private static func linearCase(
        _ problem: LinearProblem, _ plan: LinearPlan, timed: Bool
    ) -> SelfTestCase {
        let (m, n, k) = (problem.rows, problem.outputs, problem.inputs)
        let suffix =
            (problem.activation == .none ? "" : " \(problem.activation)")
            + (problem.adds ? " add" : "")
        let way: String
        switch plan {
        case .mma: way = "mma"
        case .hopper(let height, let width, let cluster):
            way = "\(128 * height)x\(width)x\(cluster)"
        }
        let name = "gemm \(problem.element) \(problem.output) \(m)x\(n)x\(k)\(suffix) \(way)"
        return SelfTestCase(name) { context in
            let family: KernelFamily =
                plan != .mma ? .hopper : problem.element == .e4m3 ? .fp8 : .any
            guard family.includes(context.properties.architecture) else { return .notOnThisCard }
            let operands = LinearOperands(problem, context)
            Linear.launch(problem, operands.arguments, context, plan: plan)
            try context.synchronize()
            let comparison = operands.compare(context)
            let time =
                timed
                ? try context.medianMicroseconds {
                    Linear.launch(problem, operands.arguments, context, plan: plan)
                } : nil
            return SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: operands.tolerance, microseconds: time,
                operations: 2 * Double(m) * Double(n) * Double(k))
        }
    }

    // MARK: Quantisers

    private static var quantizeCases: [SelfTestCase] {
        [(300, 392), (1, 128), (129, 77), (75600, 5120)].flatMap { rows, columns in
            [ActivationFormat.int8Blocks, .fp8Rows].map { quantizeCase(rows, columns, $0) }
        }
    }

    private static func quantizeCase(
        _ rows: Int, _ columns: Int, _ format: ActivationFormat
    ) -> SelfTestCase {
        SelfTestCase("quantize \(format) \(rows)x\(columns)") { context in
            let count = rows * columns
            let x = context.repeating(
                pattern(3) { $0.normal() }, count: count, encode: { BFloat16($0) },
                decode: { $0.float })
            let blocks = (rows: ceilDivide(rows, 128), columns: ceilDivide(columns, 128))
            let scaleCount = format == .fp8Rows ? rows : blocks.rows * blocks.columns
            let codes = context.buffer(byteCount: count)
            let scales = context.buffer(byteCount: scaleCount * 4)
            let run = {
                Quantize.launch(
                    x.pointer, .bf16, rows: rows, columns: columns, format, codes: codes.pointer,
                    scales: scales.pointer, context)
            }
            run()
            try context.synchronize()
            let gotScales = context.download(Float.self, scaleCount, from: scales.pointer)
            var comparison = SelfTestComparison()
            // The last block of scales, or the last row.
            let row0 = format == .fp8Rows ? rows - 1 : (blocks.rows - 1) * 128
            let column0 = format == .fp8Rows ? 0 : (blocks.columns - 1) * 128
            var amax = ActivationFormat.leastMaximum
            for row in row0..<rows {
                for column in column0..<columns {
                    amax = max(amax, x[row * columns + column].magnitude)
                }
            }
            comparison.add(gotScales[scaleCount - 1], amax / (format == .fp8Rows ? 448 : 128))
            for row in row0..<rows {
                let got = context.download(
                    UInt8.self, columns - column0,
                    from: codes.pointer + (row * columns + column0))
                for (index, code) in got.enumerated() {
                    let value = x[row * columns + column0 + index]
                    if format == .fp8Rows {
                        comparison.add(
                            Float8E4M3.decode(code),
                            Float8E4M3.decode(Float8E4M3.encode(value * (448 / amax))))
                    } else {
                        let q = (value * (128 / amax)).rounded(.toNearestOrEven)
                        comparison.add(
                            Float(Int8(bitPattern: code)), min(max(q, -128), 127))
                    }
                }
            }
            let time = try context.medianMicroseconds { run() }
            return SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: 1e-6, microseconds: time, bytes: 3 * Double(count))
        }
    }
}

/// Operands of one linear layer on the device, and what the result must be.
private struct LinearOperands {
    let problem: LinearProblem
    let x, w, xScales, wScales, bias, gate, residual: SelfTestArray
    let out, outScales: DeviceBuffer

    init(_ problem: LinearProblem, _ context: Context) {
        self.problem = problem
        let (m, n, k) = (problem.rows, problem.outputs, problem.inputs)
        func matrix(_ seed: UInt64, _ count: Int) -> SelfTestArray {
            let values = SelfTest.pattern(seed) { $0.normal() }
            switch problem.element {
            case .i8:
                return context.repeating(
                    values.map { $0 * 50 }, count: count,
                    encode: { Int8(min(max($0, -128), 127).rounded()) }, decode: { Float($0) })
            case .e4m3:
                return context.repeating(
                    values.map { $0 * 50 }, count: count, encode: { Float8E4M3.encode($0) },
                    decode: { Float8E4M3.decode($0) })
            case .bf16:
                return context.repeating(
                    values, count: count, encode: { BFloat16($0) }, decode: { $0.float })
            }
        }
        func floats(_ seed: UInt64, _ count: Int, _ low: Float, _ high: Float) -> SelfTestArray {
            context.repeating(
                SelfTest.pattern(seed) { low + (high - low) * (0.5 + 0.5 * $0.uniform()) },
                count: count, encode: { $0 }, decode: { $0 })
        }
        x = matrix(1, m * k)
        w = matrix(2, n * k)
        let blocks = ceilDivide(k, 128)
        let scale = 1 / (50 * Float(k).squareRoot().squareRoot())
        let isRows = problem.element == .e4m3
        xScales = floats(
            3, isRows ? m : ceilDivide(m, 128) * blocks, 0.5 * scale, 1.5 * scale)
        wScales = floats(
            4, isRows ? n : ceilDivide(n, 128) * blocks, 0.5 * scale, 1.5 * scale)
        bias = floats(5, n, -1, 1)
        gate = floats(6, n, -1, 1)
        if problem.output == .f32 {
            residual = floats(7, problem.adds ? m * n : 1, -1, 1)
        } else {
            residual = context.repeating(
                SelfTest.pattern(7) { $0.normal() }, count: problem.adds ? m * n : 1,
                encode: { BFloat16($0) }, decode: { $0.float })
        }
        out = context.buffer(byteCount: m * n * (problem.outputRowBytes / n))
        outScales = context.buffer(byteCount: ceilDivide(m, 128) * ceilDivide(n, 128) * 4)
        // What a kernel does not write shows as NaN.
        context.stream.fill(out.pointer, with: 0xFF, byteCount: out.byteCount)
        context.stream.fill(outScales.pointer, with: 0xFF, byteCount: outScales.byteCount)
    }

    var arguments: LinearArguments {
        LinearArguments(
            x: x.pointer, w: w.pointer, out: out.pointer, xScales: xScales.pointer,
            wScales: wScales.pointer, bias: bias.pointer,
            gate: problem.adds ? gate.pointer : .null,
            residual: problem.adds ? residual.pointer : .null, outScales: outScales.pointer,
            rows: Int32(problem.rows), outputs: Int32(problem.outputs),
            inputs: Int32(problem.inputs))
    }

    /// Sums in another order flip a bf16 rounding here and there, and a coarser tanh an int8 code; 128 e4m3
    /// products at a time are summed in about 14 bits by the chip.
    var tolerance: Double {
        switch (problem.element, problem.output) {
        case (.e4m3, _): 3e-3
        case (_, .i8): 8e-3
        case (.bf16, .f32), (.i8, .f32): problem.activation == .none ? 1e-5 : 1e-4
        default: 1.5e-3
        }
    }

    private func rounded(_ x: Float) -> Float {
        problem.output == .f32 ? x : x.roundedToBFloat16
    }

    /// One element of the result, before it is quantised.
    func expected(_ row: Int, _ column: Int) -> Float {
        let k = problem.inputs
        let (a, b) = (row * k, column * k)
        var y: Float = 0
        switch problem.element {
        case .i8:
            let blocks = ceilDivide(k, 128)
            for block in 0..<blocks {
                let start = block * 128
                let sum = x.dot(a + start, w, b + start, count: min(128, k - start))
                y.addProduct(
                    Float(sum),
                    xScales[row / 128 * blocks + block] * wScales[column / 128 * blocks + block])
            }
            y = rounded(y)
            y = rounded(y + rounded(bias[column]))
        case .e4m3, .bf16:
            y = Float(x.dot(a, w, b, count: k))
            if problem.element == .e4m3 { y *= xScales[row] * wScales[column] }
            y = rounded(y + bias[column])
        }
        switch problem.activation {
        case .none: break
        case .geluTanh:
            y = rounded(
                0.5 * y * (1 + tanhf(0.7978845608 * (y + 0.044715 * y * y * y))))
        case .silu: y = rounded(y / (1 + expf(-y)))
        }
        if problem.adds {
            let added = residual[row * problem.outputs + column]
            y = rounded(added + rounded(y * rounded(gate[column])))
        }
        return y
    }

    func compare(_ context: Context) -> SelfTestComparison {
        var comparison = SelfTestComparison()
        let (m, n) = (problem.rows, problem.outputs)
        if problem.output == .i8 {
            for (blockRow, blockColumn) in [
                (0, 0), (ceilDivide(m, 128) - 1, n / 128 - 1), (m / 256, n / 256),
            ] { compareBlock(blockRow, blockColumn, context, &comparison) }
            return comparison
        }
        func sample(_ count: Int) -> [Int] {
            let step = max(1, count / 16)
            return Set(stride(from: 0, to: count, by: step) + [count - 1, count / 2 + 1, 131])
                .filter { $0 < count }.sorted()
        }
        for row in sample(m) {
            let got: [Float]
            if problem.output == .f32 {
                got = context.download(Float.self, n, from: out.pointer + row * n * 4)
            } else {
                got = context.download(BFloat16.self, n, from: out.pointer + row * n * 2)
                    .map(\.float)
            }
            for column in sample(n) { comparison.add(got[column], expected(row, column)) }
            // The others must at least be numbers of a likely size.
            if let wrong = got.first(where: { !($0.magnitude < 1e6) }) {
                comparison.add(wrong, 0)
            }
        }
        return comparison
    }

    private func compareBlock(
        _ blockRow: Int, _ blockColumn: Int, _ context: Context,
        _ comparison: inout SelfTestComparison
    ) {
        let (m, n) = (problem.rows, problem.outputs)
        let rows = blockRow * 128..<min(blockRow * 128 + 128, m)
        let columns = blockColumn * 128..<blockColumn * 128 + 128
        let values = rows.map { row in columns.map { expected(row, $0) } }
        let amax = max(values.joined().map(\.magnitude).max()!, 1e-8)
        let scale = context.download(
            Float.self, 1, from: outScales.pointer + (blockRow * (n / 128) + blockColumn) * 4)[0]
        comparison.add(scale, amax / 128)
        for (row, line) in zip(rows, values) {
            let got = context.download(
                Int8.self, 128, from: out.pointer + (row * n + columns.lowerBound))
            for (code, value) in zip(got, line) {
                let expected = min(max((value / scale).rounded(.toNearestOrEven), -128), 127)
                comparison.add(Float(code), expected)
            }
        }
    }
}
