// Operations that move numbers: embedding rows, latents to tokens and back, channels, frames.

import Ground
public import Tensors

enum Layout {
    private static let pairs = ["double", "float", "bf16"].flatMap { from in
        ["float", "bf16"].map { "\(from), \($0)" }
    }
    private static let moved = ["uint4", "u32", "u16", "u8"]

    static let unit = KernelUnit(
        "layout.cu",
        kernels: pairs.map { "patchify<\($0)>" } + pairs.map { "channels_last<\($0)>" }
            + ["float", "bf16"].flatMap { ["unpatchify<\($0)>", "channels_first<\($0)>"] }
            + moved.flatMap { ["embedding<\($0)>", "interleave_time<\($0)>"] }
            + ["u32", "u16"].map { "kernel_channels_last<\($0)>" } + ["compare_bits"])

    static let units = [unit]

    /// The largest unit that divides `byteCount` and the addresses: its C++ type and size.
    static func unit(_ byteCount: Int, _ pointer: DevicePointer) -> (name: String, size: Int) {
        for (name, size) in [("uint4", 16), ("u32", 4), ("u16", 2)]
        where byteCount % size == 0 && pointer.address % UInt64(size) == 0 {
            return (name, size)
        }
        return ("u8", 1)
    }
}

extension CUDABackend {
    public func embedding(_ ids: [Int32], table: Tensor) -> Tensor {
        let columns = table.shape.columns
        for id in ids {
            ensure(
                id >= 0 && Int(id) < table.shape[0], "embedding: row \(id) of \(table.shape)")
        }
        let out = tensor([ids.count, columns], table.dtype)
        let rows = upload(ids)
        let unit = Layout.unit(columns * table.dtype.byteCount, table.pointer)
        let units = out.byteCount / unit.size
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int64, Int32> =
            context.kernel("embedding<\(unit.name)>", of: Layout.unit)
        kernel(
            .elements(units), out.pointer, table.pointer, rows.location, Int64(units),
            Int32(columns * table.dtype.byteCount / unit.size))
        return out
    }

    public func patchify(_ parts: [Tensor], dtype: DType) -> Tensor {
        ensure(
            !parts.isEmpty
                && parts.allSatisfy { $0.shape.rank == 4 && $0.shape.tail == parts[0].shape.tail }
                && parts[0].shape[2] % 2 == 0 && parts[0].shape[3] % 2 == 0,
            "patchify: parts \(parts.map(\.shape))")
        let (t, h, w) = (parts[0].shape[1], parts[0].shape[2], parts[0].shape[3])
        let features = parts.reduce(0) { $0 + $1.shape[0] * 4 }
        let out = tensor([t * (h / 2) * (w / 2), features], dtype)
        var first = 0
        for part in parts {
            let kernel:
                Kernel<
                    DevicePointer, DevicePointer, Int32, Int32, Int32, Int32, Int32, Int32
                > = context.kernel(
                    "patchify<\(Self.typeName(part.dtype)), \(Self.typeName(dtype))>",
                    of: Layout.unit)
            kernel(
                .elements(part.shape.count), out.pointer, part.pointer, Int32(part.shape[0]),
                Int32(t), Int32(h), Int32(w), Int32(features), Int32(first))
            first += part.shape[0] * 4
        }
        return out
    }

    public func unpatchify(_ x: Tensor, size: (t: Int, h: Int, w: Int)) -> Tensor {
        let channels = x.shape.columns / 4
        ensure(
            x.shape.columns % 4 == 0 && size.h % 2 == 0 && size.w % 2 == 0
                && x.shape.rows == size.t * (size.h / 2) * (size.w / 2),
            "unpatchify: x \(x.shape), size \(size)")
        let out = tensor([channels, size.t, size.h, size.w], .f32)
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32, Int32> =
            context.kernel("unpatchify<\(Self.typeName(x.dtype))>", of: Layout.unit)
        kernel(
            .elements(out.shape.count), out.pointer, x.pointer, Int32(channels), Int32(size.t),
            Int32(size.h), Int32(size.w))
        return out
    }

    public func channelsLast(_ x: Tensor, scale: [Float], shift: [Float], dtype: DType) -> Tensor {
        ensure(
            x.shape.rank == 4 && scale.count == x.shape[0] && shift.count == x.shape[0],
            "channelsLast: x \(x.shape), \(scale.count) scales, \(shift.count) shifts")
        let channels = x.shape[0]
        let affine = upload(scale + shift)
        let out = tensor([x.shape[1], x.shape[2], x.shape[3], channels], dtype)
        let kernel:
            Kernel<DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32, Int64> =
                context.kernel(
                    "channels_last<\(Self.typeName(x.dtype)), \(Self.typeName(dtype))>",
                    of: Layout.unit)
        kernel(
            .elements(x.shape.count), out.pointer, x.pointer, affine.location,
            affine.location + 4 * channels, Int32(channels), Int64(x.shape.count / channels))
        return out
    }

    public func channelsFirst(_ x: Tensor, scale: [Float], shift: [Float]) -> Tensor {
        let channels = x.shape.columns
        ensure(
            x.shape.rank == 4 && scale.count == channels && shift.count == channels,
            "channelsFirst: x \(x.shape), \(scale.count) scales, \(shift.count) shifts")
        let affine = upload(scale + shift)
        let out = tensor([channels, x.shape[0], x.shape[1], x.shape[2]], .f32)
        let kernel:
            Kernel<DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32, Int64> =
                context.kernel("channels_first<\(Self.typeName(x.dtype))>", of: Layout.unit)
        kernel(
            .elements(x.shape.count), out.pointer, x.pointer, affine.location,
            affine.location + 4 * channels, Int32(channels), Int64(x.shape.count / channels))
        return out
    }

    public func interleaveTime(_ x: Tensor) -> Tensor {
        ensure(
            x.shape.rank == 4 && x.shape[3] % 2 == 0, "interleaveTime: x \(x.shape)")
        let channels = x.shape[3] / 2
        let out = tensor([2 * x.shape[0], x.shape[1], x.shape[2], channels], x.dtype)
        let bytes = channels * x.dtype.byteCount
        let unit = Layout.unit(bytes, x.pointer)
        let count = x.byteCount / unit.size
        let kernel: Kernel<DevicePointer, DevicePointer, Int64, Int64, Int32> = context.kernel(
            "interleave_time<\(unit.name)>", of: Layout.unit)
        kernel(
            .elements(count), out.pointer, x.pointer, Int64(count),
            Int64(x.shape[1] * x.shape[2]), Int32(bytes / unit.size))
        return out
    }

    public func concatenate(_ parts: [Tensor]) -> Tensor {
        ensure(
            !parts.isEmpty
                && parts.allSatisfy {
                    $0.shape.tail == parts[0].shape.tail && $0.dtype == parts[0].dtype
                },
            "concatenate: \(parts.map { "\($0.shape) \($0.dtype)" })")
        if parts.count == 1 { return parts[0] }
        let rows = parts.reduce(0) { $0 + $1.shape[0] }
        let out = tensor(Shape([rows] + parts[0].shape.tail.dimensions), parts[0].dtype)
        var start = 0
        for part in parts {
            context.stream.copy(part.pointer, to: out.pointer + start, byteCount: part.byteCount)
            start += part.byteCount
        }
        return out
    }

    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool {
        ensure(
            a.shape == b.shape && a.dtype == b.dtype && a.byteCount % 4 == 0,
            "equalBits: \(a.shape) \(a.dtype) and \(b.shape) \(b.dtype)")
        let differs = tensor([1], .i32)
        context.stream.fill(differs.pointer, withWord: 0, count: 1)
        let units = a.byteCount / 4
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int64> = context.kernel(
            "compare_bits", of: Layout.unit)
        kernel(
            LaunchShape(
                grid: Extents(min((units + 255) / 256, 8 * context.properties.multiprocessors)),
                block: 256),
            differs.pointer, a.pointer, b.pointer, Int64(units))
        return read(differs).withElements(Int32.self) { $0[0] == 0 }
    }
}
