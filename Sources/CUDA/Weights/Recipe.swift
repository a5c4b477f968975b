// What a weight in host memory goes through on its way to the device.

import Ground
import Tensors

/// How the bytes of a host tensor become those of a weight.
enum Recipe {
    case copy
    /// Into another dtype.
    case convert(DType)
    /// Into codes; the scales are written beside them, to memory that stays.
    case quantize(LinearFormat, scales: DevicePointer)
}

extension Uploads {
    /// Queues in `stream` all that makes a weight of `host` at `target`. The bytes travel as they are and are
    /// converted on the device, piece by piece, so that the unconverted copy takes little memory. Every piece
    /// is computed as the whole would be, so the result does not depend on the pieces.
    /// - Parameter scratch: device memory of at least so many bytes, for all that follows in `stream`.
    func carry(
        out recipe: Recipe, of host: Tensor, to target: DevicePointer, in stream: Stream,
        scratch: (Int) -> DevicePointer
    ) {
        let (count, size) = (host.shape.count, host.dtype.byteCount)
        /// Pieces of a multiple of `unit` elements.
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
            // Blocks of 128 rows have scales of their own.
            let columns = host.shape[1]
            let unit = 128 * columns
            let most = min(max(Self.chunk, unit * size), count * size)
            // Quantisers read bf16, as the original's does.
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
