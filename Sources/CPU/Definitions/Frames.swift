/// Frames as bytes.

import Tensors

extension Definitions {
    /// See `Operation.RGB8`.
    func rgb8(_ x: Tensor) -> Tensor {
        let count = x.shape.count
        let result = memory.tensor(x.shape, .u8)
        let bytes = result.hostAddress.assumingMemoryBound(to: UInt8.self)
        let line = Line(x)
        threads.parallel(count, grain: 16_384) { range in
            scratch(range.count) { values in
                line.rows.load(0, from: range.lowerBound, range.count, into: values)
                let out = bytes + range.lowerBound
                for i in 0..<range.count {
                    let unit = (values[i] + 1) / 2
                    // A NaN fails the comparison and becomes 0; converting it to UInt8 would trap.
                    let clamped = unit > 0 ? min(unit, 1) : 0
                    out[i] = UInt8(clamped * 255 + 0.5)
                }
            }
        }
        return result
    }

    /// See `Operation.NV12`.
    func nv12(_ x: Tensor) -> Tensor {
        let (height, width) = (x.shape[1], x.shape[2])
        let result = memory.tensor([x.shape[0], height / 2 * 3, width], .u8)
        let bytes = result.hostAddress.assumingMemoryBound(to: UInt8.self)
        let rows = Rows(x, columns: 3 * width)
        let pairs = height / 2
        let grain = max(1, 16_384 / (6 * max(width, 1)))
        threads.parallel(x.shape[0] * pairs, grain: grain) { range in
            scratch(8 * width) { colors in
                // luma of both rows, one after the other
                let luma = colors + 6 * width
                for pair in range {
                    rows.load(2 * pair..<2 * pair + 2, into: colors)
                    Vector.map(colors, 6 * width) { clamped($0) }
                    for i in 0..<2 * width {
                        luma[i] =
                            0.2126 * colors[3 * i] + 0.7152 * colors[3 * i + 1]
                            + 0.0722 * colors[3 * i + 2]
                    }
                    let frame = bytes + pair / pairs * (height / 2 * 3) * width
                    let row = pair % pairs
                    let y = frame + 2 * row * width
                    for i in 0..<2 * width { y[i] = UInt8(126 + 109.5 * luma[i]) }
                    let chroma = frame + (height + row) * width
                    for i in stride(from: 0, to: width, by: 2) {
                        let (a, b) = (colors + 3 * i, colors + 3 * (i + width))
                        let mean =
                            (luma[i] + luma[i + 1] + luma[i + width] + luma[i + width + 1]) / 4
                        let red = (a[0] + a[3] + b[0] + b[3]) / 4
                        let blue = (a[2] + a[5] + b[2] + b[5]) / 4
                        chroma[i] = UInt8(128.5 + 112 / 1.8556 * (blue - mean))
                        chroma[i + 1] = UInt8(128.5 + 112 / 1.5748 * (red - mean))
                    }
                }
            }
        }
        return result
    }

    /// x clamped to [-1, 1]; NaN becomes -1.
    @inline(__always)
    private func clamped(_ x: Lanes) -> Lanes {
        let low = Lanes(repeating: -1).replacing(with: x, where: x .> -1)
        return low.replacing(with: 1, where: low .> 1)
    }
}
