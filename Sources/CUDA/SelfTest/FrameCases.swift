// Cases of frames as bytes: small ones in full, and a chunk of 720p for its time.

internal import Tensors

extension SelfTest {
    static var frameCases: [SelfTestCase] {
        let shapes: [(Shape, Bool)] = [
            ([3, 6, 10, 3], false), ([2, 16, 48, 3], false), ([4, 720, 1280, 3], true),
        ]
        return [DType.bf16, .f32].flatMap { dtype in
            shapes.flatMap { shape, timed in
                [
                    frameCase("rgb8", dtype, shape, timed: timed, { $0.rgb8($1) }, rgb8),
                    frameCase("nv12", dtype, shape, timed: timed, { $0.nv12($1) }, nv12),
                ]
            }
        }
    }

    private static func frameCase(
        _ name: String, _ dtype: DType, _ shape: Shape, timed: Bool,
        _ convert: @escaping (CUDABackend, Tensor) -> Tensor,
        _ expected: @escaping ([Float], Shape) -> [Double]
    ) -> SelfTestCase {
        SelfTestCase("frames \(name) \(dtype) \(shape[0])x\(shape[1])x\(shape[2])") { context in
            let device = try CUDABackend(context)
            var random = SelfTestRandom(seed: 7)
            let host = Tensor((0..<shape.count).map { _ in 0.7 * random.normal() }, shape)
                .converted(to: dtype)
            let x = device.place(host, as: dtype)
            let result = convert(device, x)
            let bytes = try device.beginRead(result).wait()
            var comparison = SelfTestComparison()
            // Before rounding to bytes, so that a half may go either way.
            for (got, exact) in zip(bytes.floats(), expected(host.floats(), shape)) {
                let difference = Double(got) - exact
                comparison.add(
                    Float(difference.magnitude > 0.501 ? got : Float(exact)), Float(exact))
            }
            let launch = { _ = convert(device, x) }
            return SelfTestResult(
                relativeError: comparison.relative, maximumError: comparison.maximum,
                tolerance: 0, microseconds: timed ? try context.medianMicroseconds(launch) : nil,
                bytes: Double(x.byteCount + result.byteCount))
        }
    }

    private static func clamped(_ x: Float) -> Double { Double(min(max(x, -1), 1)) }

    private static func rgb8(_ x: [Float], _ shape: Shape) -> [Double] {
        x.map { 127.5 * (clamped($0) + 1) }
    }

    private static func nv12(_ x: [Float], _ shape: Shape) -> [Double] {
        let (height, width) = (shape[1], shape[2])
        var bytes: [Double] = []
        for frame in 0..<shape[0] {
            func color(_ row: Int, _ column: Int, _ c: Int) -> Double {
                clamped(x[((frame * height + row) * width + column) * 3 + c])
            }
            func luma(_ row: Int, _ column: Int) -> Double {
                0.2126 * color(row, column, 0) + 0.7152 * color(row, column, 1)
                    + 0.0722 * color(row, column, 2)
            }
            for row in 0..<height {
                for column in 0..<width { bytes.append(125.5 + 109.5 * luma(row, column)) }
            }
            for row in stride(from: 0, to: height, by: 2) {
                for column in 0..<width {
                    // Cb in even columns, Cr in odd ones.
                    let (c, range) = column % 2 == 0 ? (2, 1.8556) : (0, 1.5748)
                    let left = column / 2 * 2
                    var sum = 0.0
                    for (i, j) in [
                        (row, left), (row, left + 1), (row + 1, left), (row + 1, left + 1),
                    ] {
                        sum += color(i, j, c) - luma(i, j)
                    }
                    bytes.append(128 + 28 / range * sum)
                }
            }
        }
        return bytes
    }
}
