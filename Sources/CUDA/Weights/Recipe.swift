// How a weight in host memory is converted on its way to the device.

import Ground
import Tensors

/// How the bytes of a host tensor become those of a weight.
enum Recipe {
    case copy
    /// Converts to another dtype.
    case convert(DType)
    /// Quantises; the scales are written to `scales`, in memory that stays on the device.
    case quantize(LinearFormat, scales: DevicePointer)

    /// Null where nothing is quantised.
    var scales: DevicePointer {
        if case .quantize(_, let scales) = self { scales } else { .null }
    }

    /// Bytes of the scales of a quantised matrix. shape: [out, in]
    func scaleBytes(of shape: Shape) -> Int {
        guard case .quantize(let format, _) = self else { return 0 }
        return
            (format == .fp8Rows
            ? shape[0] : ceilDivide(shape[0], 128) * ceilDivide(shape[1], 128)) * 4
    }
}

extension Uploads {
    /// Queues in `stream` everything that makes the weight at `target` from `host`. The bytes are copied unconverted
    /// and converted on the device, piece by piece, so that the unconverted copy takes little memory. The result does
    /// not depend on the size of the pieces.
    /// - Parameter scratch: returns device memory of at least so many bytes, for use in `stream` only.
    func carry(
        out recipe: Recipe, of host: Tensor, to target: DevicePointer, in stream: Stream,
        scratch: (Int) -> DevicePointer
    ) {
        let (count, size) = (host.shape.count, host.dtype.byteCount)
        /// Calls `body` for pieces whose lengths are multiples of `unit` elements.
        func pieces(of unit: Int, _ body: (Range<Int>) -> Void) {
            let length = max(Self.chunk / size / unit, 1) * unit
            for start in stride(from: 0, to: count, by: length) {
                body(start..<min(start + length, count))
            }
        }
        func bring(_ range: Range<Int>, to place: DevicePointer) {
            copy(
                host.hostAddress + range.lowerBound * size, to: place,
                byteCount: range.count * size, in: stream)
        }
        switch recipe {
        case .copy: bring(0..<count, to: target)
        case .convert(let dtype):
            let raw = scratch(min(Self.chunk, count * size))
            pieces(of: 1) { range in
                bring(range, to: raw)
                context.launching(in: stream) {
                    Elementwise.convert(
                        raw, host.dtype, to: target + range.lowerBound * dtype.byteCount, dtype,
                        count: range.count, context)
                }
            }
        case .quantize(let format, let scales):
            // Pieces of whole blocks of 128 rows, since each block has its own scales.
            let columns = host.shape[1]
            let unit = 128 * columns
            let most = min(max(Self.chunk, unit * size), count * size)
            // Weights are rounded to bf16 before they are quantised, as in the original.
            let isRead = host.dtype == .bf16
            let memory = scratch(isRead ? most : Arena.rounded(most) + most / size * 2)
            let codesSource = isRead ? memory : memory + Arena.rounded(most)
            pieces(of: unit) { range in
                bring(range, to: memory)
                let (row, rows) = (range.lowerBound / columns, range.count / columns)
                let scale = format == .fp8Rows ? row : row / 128 * ceilDivide(columns, 128)
                context.launching(in: stream) {
                    if !isRead {
                        Elementwise.convert(
                            memory, host.dtype, to: codesSource, .bf16, count: range.count, context)
                    }
                    Quantize.launch(
                        codesSource, .bf16, rows: rows, columns: columns, format,
                        codes: target + range.lowerBound, scales: scales + scale * 4, context)
                }
            }
        }
        withExtendedLifetime(host.storage) {}
    }
}
