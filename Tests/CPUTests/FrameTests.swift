/// Frames as bytes, against their formulas written out.

import CPU
import Tensors
import Testing

@Suite struct FrameTests {
    let device = CPUBackend(threads: 2)

    private func frames(_ shape: Shape) -> Tensor {
        var random = Random(31)
        return Tensor(random.tensor(shape).floats().map { 1.2 * $0 }, shape)
    }

    /// Of one frame, before rounding. x: [height, width, 3]
    private func nv12(_ x: [Float], _ height: Int, _ width: Int) -> [Double] {
        func color(_ row: Int, _ column: Int, _ c: Int) -> Double {
            Double(min(max(x[(row * width + column) * 3 + c], -1), 1) + 1) / 2
        }
        func luma(_ row: Int, _ column: Int) -> Double {
            0.2126 * color(row, column, 0) + 0.7152 * color(row, column, 1)
                + 0.0722 * color(row, column, 2)
        }
        var bytes: [Double] = []
        for row in 0..<height {
            for column in 0..<width { bytes.append(16 + 219 * luma(row, column)) }
        }
        for row in 0..<height / 2 {
            for column in 0..<width {
                var sum = 0.0
                for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (r, c) = (2 * row + i, column / 2 * 2 + j)
                    sum +=
                        column % 2 == 0
                        ? (color(r, c, 2) - luma(r, c)) / 1.8556
                        : (color(r, c, 0) - luma(r, c)) / 1.5748
                }
                bytes.append(128 + 224 * sum / 4)
            }
        }
        return bytes
    }

    @Test(
        arguments: [DType.f32, .bf16], [[2, 6, 10, 3], [3, 2, 2, 3], [1, 34, 48, 3]] as [Shape])
    func lumaAndChromaFollowTheirFormulas(dtype: DType, shape: Shape) {
        let x = frames(shape).converted(to: dtype)
        let result = device.nv12(x)
        #expect(result.shape == [shape[0], shape[1] * 3 / 2, shape[2]] && result.dtype == .u8)
        let values = x.floats()
        let count = shape.tail.count
        let expected = (0..<shape[0]).flatMap {
            nv12(Array(values[$0 * count..<($0 + 1) * count]), shape[1], shape[2])
        }
        for (byte, exact) in zip(result.floats(), expected) {
            #expect((Double(byte) - exact).magnitude < 0.501)
        }
    }

    @Test(
        arguments: [
            ([-1, -1, -1], [16, 128, 128]), ([1, 1, 1], [235, 128, 128]),
            ([1, -1, -1], [63, 102, 240]),
            ([-1, 1, -1], [173, 42, 26]), ([-1, -1, 1], [32, 240, 118]),
            ([.nan, -9, -2], [16, 128, 128]),
            ([9, .infinity, 1.01], [235, 128, 128]), ([0, 0, 0], [126, 128, 128]),
        ] as [([Float], [Float])])
    func pureColorsAreTheStandards(color: [Float], expected: [Float]) {
        let pixels = (0..<4).flatMap { _ in color }
        #expect(
            device.nv12(Tensor(pixels, [1, 2, 2, 3])).floats()
                == [expected[0], expected[0], expected[0], expected[0], expected[1], expected[2]])
    }
}
