// Copying tensors to the device and back.

import Ground
public import Tensors

extension CUDABackend {
    public func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        let recipe = host.dtype == dtype ? Recipe.copy : .convert(dtype)
        return place(host, as: dtype, recipe, in: group) { converted(host, to: dtype) }
    }

    /// - Parameter made: applies `recipe` to a tensor that is already on the device.
    private func place(
        _ x: Tensor, as dtype: DType, _ recipe: Recipe, in group: WeightGroup?,
        _ made: () -> Tensor
    ) -> Tensor {
        if let group, x.isOnHost, let storage = weights.promise(x, recipe, as: dtype, to: group) {
            return Tensor(x.shape, dtype, storage: storage)
        }
        return weights.admit(x.isOnHost ? uploaded(x, as: dtype, recipe) : made(), to: group)
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
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        guard format != .plain else { return place(.dense(weight), as: .bf16, in: group) }
        let (rows, columns) = (weight.shape[0], weight.shape[1])
        let shape: Shape =
            format == .fp8Rows ? [rows] : [ceilDivide(rows, 128), ceilDivide(columns, 128)]
        let scale = tensor(shape, .f32)
        let matrix = place(
            weight, as: format == .fp8Rows ? .f8e4m3 : .i8,
            .quantize(format, scales: scale.pointer),
            in: group
        ) {
            let codes = tensor(weight.shape, format == .fp8Rows ? .f8e4m3 : .i8)
            // Weights are rounded to bf16 before they are quantised, as in the original.
            Quantize.launch(
                converted(weight, to: .bf16).pointer, .bf16, rows: rows, columns: columns, format,
                codes: codes.pointer, scales: scale.pointer, context)
            return codes
        }
        return format == .fp8Rows
            ? .fp8Rows(weight: matrix, scale: scale) : .int8Blocks(weight: matrix, scale: scale)
    }

    /// Copies the kernel in the layout of the file and transposes it on the device.
    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        ensure(
            kernel.shape.rank == 5, "place: [out, in, kT, kH, kW] expected, \(kernel.shape)")
        let (outputs, inputs) = (kernel.shape[0], kernel.shape[1])
        let window = Array(kernel.shape.dimensions[2...])
        let taps = window.reduce(1, *)
        let stored = place(kernel, as: dtype, in: nil)
        let turned = tensor(Shape([outputs] + window + [inputs]), dtype)
        let unit = dtype.byteCount == 4 ? "u32" : "u16"
        let turn: Kernel<DevicePointer, DevicePointer, Int64, Int32, Int32> = context.kernel(
            "kernel_channels_last<\(unit)>", of: Layout.unit)
        turn(
            .elements(turned.shape.count), turned.pointer, stored.pointer,
            Int64(turned.shape.count), Int32(inputs), Int32(taps))
        return ConvolutionWeight(
            weights.admit(turned, to: group), bias: bias.map { place($0, as: .f32, in: group) })
    }

    public func require(_ group: WeightGroup) { weights.require(group) }

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

    /// Copies a host tensor to the device and applies `recipe`.
    private func uploaded(_ host: Tensor, as dtype: DType, _ recipe: Recipe) -> Tensor {
        let out = tensor(host.shape, dtype)
        // Memory is reused in the order of the main stream, so scratch memory may be released when everything is
        // queued.
        var scratch: [DeviceStorage] = []
        uploads.carry(out: recipe, of: host, to: out.pointer, in: context.stream) {
            scratch.append(storage(byteCount: $0))
            return scratch.last!.location
        }
        return out
    }

    /// x in another dtype; x itself if the dtype is the same.
    func converted(_ x: Tensor, to dtype: DType) -> Tensor {
        if x.dtype == dtype { return x }
        let out = tensor(x.shape, dtype)
        Elementwise.convert(
            x.pointer, x.dtype, to: out.pointer, dtype, count: x.shape.count, context)
        return out
    }
}
