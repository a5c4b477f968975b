// Operations that only move numbers: latents to tokens and back, channels, frames.

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
            + moved.map { "interleave_time<\($0)>" }
            + moved.map { "copy_runs<\($0)>" }
            + ["u32", "u16"].map { "kernel_channels_last<\($0)>" } + ["compare_bits"])

    static let units = [unit]

    /// The largest unit of memory that divides `byteCount` and the address: its C++ type and its bytes.
    static func unit(_ byteCount: Int, _ pointers: DevicePointer...) -> (name: String, size: Int) {
        for (name, size) in [("uint4", 16), ("u32", 4), ("u16", 2)]
        where byteCount % size == 0 && pointers.allSatisfy({ $0.address % UInt64(size) == 0 }) {
            return (name, size)
        }
        return ("u8", 1)
    }
}

extension CUDABackend {
    func patchify(_ o: Operation.Patchify) -> Tensor {
        let (parts, dtype, patch) = (o.parts, o.dtype, o.patch)
        let (t, h, w) = (parts[0].shape[1], parts[0].shape[2], parts[0].shape[3])
        let features = parts.reduce(0) { $0 + $1.shape[0] * patch * patch }
        let out = tensor([t * (h / patch) * (w / patch), features], dtype)
        var first = 0
        for part in parts {
            let kernel:
                Kernel<
                    DevicePointer, DevicePointer, Int32, Int32, Int32, Int32, Int32, Int32, Int32
                > = context.kernel(
                    "patchify<\(Self.typeName(part.dtype)), \(Self.typeName(dtype))>",
                    of: Layout.unit)
            kernel(
                .elements(part.shape.count), out.pointer, part.pointer, Int32(part.shape[0]),
                Int32(t), Int32(h), Int32(w), Int32(patch), Int32(features), Int32(first))
            first += part.shape[0] * patch * patch
        }
        return out
    }

    func unpatchify(_ o: Operation.Unpatchify) -> Tensor {
        let (x, size, patch) = (o.x, o.size, o.patch)
        let channels = x.shape.columns / (patch * patch)
        let out = tensor([channels, size.t, size.h, size.w], .f32)
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32, Int32, Int32> =
            context.kernel("unpatchify<\(Self.typeName(x.dtype))>", of: Layout.unit)
        kernel(
            .elements(out.shape.count), out.pointer, x.pointer, Int32(channels), Int32(size.t),
            Int32(size.h), Int32(size.w), Int32(patch))
        return out
    }

    func channelsLast(_ o: Operation.ChannelsLast) -> Tensor {
        let (x, dtype) = (o.x, o.dtype)
        let channels = x.shape[0]
        let affine = upload(o.scale + o.shift)
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

    func channelsFirst(_ o: Operation.ChannelsFirst) -> Tensor {
        let x = o.x
        let channels = x.shape.columns
        let affine = upload(o.scale + o.shift)
        let out = tensor([channels, x.shape[0], x.shape[1], x.shape[2]], .f32)
        let kernel:
            Kernel<DevicePointer, DevicePointer, DevicePointer, DevicePointer, Int32, Int64> =
                context.kernel("channels_first<\(Self.typeName(x.dtype))>", of: Layout.unit)
        kernel(
            .elements(x.shape.count), out.pointer, x.pointer, affine.location,
            affine.location + 4 * channels, Int32(channels), Int64(x.shape.count / channels))
        return out
    }

    func interleaveTime(_ o: Operation.InterleaveTime) -> Tensor {
        let x = o.x
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

    func concatenate(_ o: Operation.Concatenate) -> Tensor {
        let out = tensor(o.shape, o.parts[0].dtype)
        var start = 0
        for part in o.parts {
            context.stream.copy(part.pointer, to: out.pointer + start, byteCount: part.byteCount)
            start += part.byteCount
        }
        return out
    }

    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool {
        // The kernel compares words of 4 bytes.
        guard a.shape == b.shape, a.dtype == b.dtype, a.byteCount % 4 == 0,
            a.pointer.address % 4 == 0, b.pointer.address % 4 == 0, a.byteCount > 0
        else { return equalOnHost(a, b) }
        let differs = tensor([1], .i32)
        context.stream.fill(differs.pointer, withWord: 0, count: 1)
        let units = a.byteCount / 4
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int64> = context.kernel(
            "compare_bits", of: Layout.unit)
        kernel(
            LaunchShape(
                grid: Extents(min(ceilDivide(units, 256), 8 * context.properties.multiprocessors)),
                block: 256),
            differs.pointer, a.pointer, b.pointer, Int64(units))
        return read(differs).withElements(Int32.self) { $0[0] == 0 }
    }
}
