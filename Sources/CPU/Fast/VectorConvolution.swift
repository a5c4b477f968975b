/// Causal convolutions with the vector kernels.

internal import CDrivers
internal import Ground
import Tensors

extension VectorOperations {
    func convolution(_ o: Operation.Convolution) -> Tensor? {
        convolution(
            o.x, history: o.history, o.weight, o.geometry, residual: o.residual, as: o.x.dtype)
    }

    /// - Parameter dtype: the type of the result and of the residual.
    private func convolution(
        _ x: Tensor, history: Tensor?, _ weight: ConvolutionWeight, _ geometry: ConvolutionGeometry,
        residual: Tensor?, as dtype: DType
    ) -> Tensor? {
        let kernel = geometry.kernel
        guard x.dtype == .f32 || (x.dtype == .bf16 && weight.tensor.dtype == .bf16),
            history?.dtype ?? x.dtype == x.dtype, residual?.dtype ?? dtype == dtype,
            kernel.time * kernel.height * kernel.width <= 128, geometry.inputs > 0,
            !geometry.upsample || geometry.spatialStride == 1
        else { return nil }
        if x.dtype == .bf16, !multipliesBF16 {
            return convolution(
                definitions.converted(x, to: .f32),
                history: history.map { definitions.converted($0, to: .f32) }, weight, geometry,
                residual: residual, as: .bf16)
        }
        if x.dtype == .bf16 && geometry.inputs % 2 != 0 {
            // The bf16 kernels read channels in pairs.
            return evenConvolution(x, history: history, weight, geometry, residual: residual)
        }
        let kind = x.dtype == .f32 ? CPU_F32 : CPU_BF16
        let packed = PackedMatrix.of(weight.tensor, kind, definitions)
        let shape = geometry.output
        let result = definitions.memory.tensor(shape, dtype)
        let inputFrame = geometry.height * geometry.width * geometry.inputs * x.dtype.byteCount
        let outputFrame = shape[1] * shape[2] * shape[3] * dtype.byteCount
        // The addresses of all input frames in order; nil for a frame of zeros.
        var frames = [UnsafeRawPointer?](repeating: nil, count: geometry.leadingZeros)
        for part in [history, x] {
            guard let part else { continue }
            for frame in 0..<part.shape[0] {
                frames.append(UnsafeRawPointer(part.hostAddress + frame * inputFrame))
            }
        }
        withVector(weight.bias) { bias in
            let job = cpu_convolution_job(
                kind: kind, height: geometry.height, width: geometry.width,
                inputs: geometry.inputs, outputs: weight.outputs, kernel_time: kernel.time,
                kernel_height: kernel.height, kernel_width: kernel.width,
                stride: geometry.spatialStride, padding_top: geometry.padding.top,
                padding_left: geometry.padding.left, upsample: geometry.upsample ? 1 : 0,
                out_height: shape[1], out_width: shape[2],
                packed: packed.bytes,
                epilogue: cpu_epilogue(
                    bias: bias, round_first: 0, activation: CPU_NONE, gate: nil, residual: nil,
                    bf16: dtype == .bf16 ? 1 : 0))
            let lines = linesInPiece(shape)
            let chunks = ceilDivide(shape[1], lines)
            frames.withUnsafeBufferPointer { frames in
                pieces(rows: shape[0] * chunks, step: 1, panels: packed.panels) { rows, panels in
                    let frame = rows.lowerBound / chunks
                    let line = rows.lowerBound % chunks * lines
                    let added = residual.map {
                        UnsafeRawPointer($0.hostAddress + frame * outputFrame)
                    }
                    withUnsafePointer(to: job) {
                        kernels.convolution(
                            $0, frames.baseAddress! + frame * geometry.timeStride, added,
                            result.hostAddress + frame * outputFrame, line,
                            min(shape[1], line + lines), panels.lowerBound, panels.upperBound)
                    }
                }
            }
        }
        return withExtendedLifetime((x, history, packed, residual)) { result }
    }

    /// How many rows of the result make one piece of work: about 2048 pixels, or fewer if there would be too few
    /// pieces.
    /// output: [T, H, W, C]
    private func linesInPiece(_ output: Shape) -> Int {
        let large = max(1, 2048 / max(1, output[2]))
        let fair = output[0] * output[1] / (8 * definitions.threads.count)
        return max(1, min(large, fair, 12))
    }

    /// The same convolution with a channel of zeros added to x, the history and the weight.
    private func evenConvolution(
        _ x: Tensor, history: Tensor?, _ weight: ConvolutionWeight, _ geometry: ConvolutionGeometry,
        residual: Tensor?
    ) -> Tensor? {
        let x = withZeroChannel(x)
        let history = history.map(withZeroChannel)
        let weight = ConvolutionWeight(withZeroChannel(weight.tensor), bias: weight.bias)
        var geometry = geometry
        geometry.inputs += 1
        return convolution(
            x, history: history, weight, geometry, residual: residual, as: x.dtype)
    }

    /// x: bf16 [..., C] → [..., C + 1]
    private func withZeroChannel(_ x: Tensor) -> Tensor {
        let columns = x.shape.columns
        let result = definitions.memory.tensor(x.shape.replacingLast(columns + 1), x.dtype)
        let from = x.hostAddress.assumingMemoryBound(to: UInt16.self)
        let to = result.hostAddress.assumingMemoryBound(to: UInt16.self)
        definitions.threads.parallel(x.shape.rows, grain: 4096) { range in
            for row in range {
                (to + row * (columns + 1)).update(from: from + row * columns, count: columns)
                to[row * (columns + 1) + columns] = 0
            }
        }
        return withExtendedLifetime(x) { result }
    }
}
