// Bringing tensors to the device and back.

public import Tensors

extension CUDABackend {
    public func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        streaming.admit(uploaded(host, as: dtype), to: group)
    }

    public func place(
        _ weight: LinearWeight, as dtype: DType, in group: WeightGroup?
    ) -> LinearWeight {
        switch weight {
        case .dense(let matrix): .dense(place(matrix, as: dtype, in: group))
        case .int8Blocks(let codes, let scale):
            .int8Blocks(
                weight: place(codes, as: codes.dtype, in: group),
                scale: place(scale, as: .f32, in: group))
        case .fp8Rows(let codes, let scale):
            .fp8Rows(
                weight: place(codes, as: codes.dtype, in: group),
                scale: place(scale, as: .f32, in: group))
        }
    }

    public func place(
        _ weight: Tensor, quantizedTo format: ActivationFormat, in group: WeightGroup?
    ) -> LinearWeight {
        guard format != .plain else { return place(.dense(weight), as: .bf16, in: group) }
        // Quantisers read bf16, as the original's does.
        let quantized = quantize(uploaded(weight, as: .bf16), to: format)
        guard let scales = quantized.scales else {
            programmingError("place: quantize returned no scales for \(format)")
        }
        let codes = Tensor(quantized.shape, quantized.dtype, storage: quantized.storage)
        let matrix = streaming.admit(codes, to: group)
        switch format {
        case .int8Blocks:
            let blocks: Shape = [(weight.shape[0] + 127) / 128, (weight.shape[1] + 127) / 128]
            return .int8Blocks(weight: matrix, scale: Tensor(blocks, .f32, storage: scales))
        default:
            return .fp8Rows(
                weight: matrix, scale: Tensor([weight.shape[0]], .f32, storage: scales))
        }
    }

    /// The file's layout travels as it is and is turned on the device.
    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        ensure(
            kernel.shape.rank == 5, "place: [out, in, kT, kH, kW] expected, \(kernel.shape)")
        let (outputs, inputs) = (kernel.shape[0], kernel.shape[1])
        let window = Array(kernel.shape.dimensions[2...])
        let taps = window.reduce(1, *)
        let stored = uploaded(kernel, as: dtype)
        let turned = tensor(Shape([outputs] + window + [inputs]), dtype)
        let unit = dtype.byteCount == 4 ? "u32" : "u16"
        let turn: Kernel<DevicePointer, DevicePointer, Int64, Int32, Int32> = context.kernel(
            "kernel_channels_last<\(unit)>", of: Layout.unit)
        turn(
            .elements(turned.shape.count), turned.pointer, stored.pointer,
            Int64(turned.shape.count), Int32(inputs), Int32(taps))
        return ConvolutionWeight(
            streaming.admit(turned, to: group), bias: bias.map { place($0, as: .f32, in: group) })
    }

    public func require(_ group: WeightGroup, next: WeightGroup?) {
        streaming.require(group, next: next)
    }

    public func read(_ x: Tensor) -> Tensor {
        if x.isOnHost { return x }
        let host = Tensor.host(x.shape, x.dtype)
        context.stream.copy(x.pointer, to: host.hostAddress, byteCount: x.byteCount)
        context.stream.drain()
        return host
    }

    public func beginRead(_ x: Tensor) -> HostCopy {
        x.isOnHost ? HostCopy(x) : downloads.begin(x)
    }

    /// A copy on the device as `dtype`: the bytes travel as they are and are converted there.
    private func uploaded(_ host: Tensor, as dtype: DType) -> Tensor {
        if !host.isOnHost { return converted(host, to: dtype) }
        let out = tensor(host.shape, dtype)
        if host.dtype == dtype {
            uploads.copy(host.hostAddress, to: out.pointer, byteCount: host.byteCount)
            return out
        }
        // In pieces, so that the unconverted copy takes little memory.
        let piece = Uploads.chunk / host.dtype.byteCount
        let staging = storage(byteCount: min(piece, host.shape.count) * host.dtype.byteCount)
        var start = 0
        while start < host.shape.count {
            let count = min(piece, host.shape.count - start)
            uploads.copy(
                host.hostAddress + start * host.dtype.byteCount, to: staging.location,
                byteCount: count * host.dtype.byteCount)
            convert(
                staging.location, host.dtype, to: out.pointer + start * dtype.byteCount, dtype,
                count: count)
            start += count
        }
        return out
    }

    /// x in another dtype; itself where nothing changes.
    func converted(_ x: Tensor, to dtype: DType) -> Tensor {
        if x.dtype == dtype { return x }
        let out = tensor(x.shape, dtype)
        convert(x.pointer, x.dtype, to: out.pointer, dtype, count: x.shape.count)
        return out
    }
}
