/// Causal convolution of frames with channels last.

import Ground
import Tensors

extension Definitions {
    func convolution(_ o: Operation.Convolution) -> Tensor {
        let (x, weight, geometry) = (o.x, o.weight, o.geometry)
        let shape = geometry.output
        let taps = geometry.kernel.time * geometry.kernel.height * geometry.kernel.width
        let depth = taps * geometry.inputs
        let columns = Panels.columns(weight.outputs)
        let packed = memory.storage(byteCount: columns * depth * 4)
        let panels = packed.hostPointer!.assumingMemoryBound(to: Float.self)
        let kernel = Rows(weight.tensor, columns: depth)
        threads.parallel(weight.outputs, grain: 16) { range in
            Panels.pack(
                kernel, first: range.lowerBound, count: range.count, depth,
                into: panels + range.lowerBound * depth)
        }
        let bias = weight.bias.map { vector($0) }
        let result = memory.tensor(shape, x.dtype)
        let out = Rows(result)
        let added = o.residual.map { Rows($0) }
        let frames = (Rows(x), o.history.map { Rows($0) })
        let (lines, width, outputs) = (shape[0] * shape[1], shape[2], shape[3])
        let block = 32
        let blocks = ceilDivide(width, block)
        threads.parallel(lines * blocks) { range in
            scratch(block * (depth + columns) + outputs) { memory in
                let patches = memory
                let sums = memory + block * depth
                let line = sums + block * columns
                for index in range {
                    let row = index / blocks
                    let first = index % blocks * block
                    let count = min(block, width - first)
                    for pixel in 0..<count {
                        gather(
                            frames.0, frames.1, geometry, frame: row / shape[1],
                            line: row % shape[1], column: first + pixel,
                            into: patches + pixel * depth)
                    }
                    Panels.multiply(
                        m: count, k: depth, columns: columns, a: patches, aStride: depth,
                        panels: panels, c: sums, cStride: columns)
                    for pixel in 0..<count {
                        let target = row * width + first + pixel
                        let y = sums + pixel * columns
                        if let bias { Vector.add(y, bias, outputs) }
                        if let added {
                            round(y, outputs, to: x.dtype)
                            added.load(target, outputs, into: line)
                            Vector.add(y, line, outputs)
                        }
                        out.store(target, outputs, y)
                    }
                }
            }
        }
        return withExtendedLifetime(packed) { result }
    }

    /// Collects the inputs of one output pixel, with zeros outside the frames.
    /// patch: [kernelTime, kernelHeight, kernelWidth, in]
    func gather(
        _ x: Rows, _ history: Rows?, _ geometry: ConvolutionGeometry, frame: Int, line: Int,
        column: Int, into patch: UnsafeMutablePointer<Float>
    ) {
        let n = geometry.inputs
        let scale = geometry.upsample ? 2 : 1
        let (height, width) = (geometry.height, geometry.width)
        var target = patch
        for kt in 0..<geometry.kernel.time {
            let time = frame * geometry.timeStride + kt - geometry.leadingZeros
            let isHistory = time < geometry.historyFrames
            let source = isHistory ? history : x
            let inner = isHistory ? time : time - geometry.historyFrames
            for kh in 0..<geometry.kernel.height {
                let h = line * geometry.spatialStride + kh - geometry.padding.top
                for kw in 0..<geometry.kernel.width {
                    let w = column * geometry.spatialStride + kw - geometry.padding.left
                    if let source, time >= 0, h >= 0, h < height * scale, w >= 0, w < width * scale
                    {
                        source.load(
                            (inner * height + h / scale) * width + w / scale, n, into: target)
                    } else {
                        target.update(repeating: 0, count: n)
                    }
                    target += n
                }
            }
        }
    }
}
