// Frames as bytes.

import Tensors

enum Frames {
    static let unit = KernelUnit(
        "frames.cu",
        kernels: ["bf16", "float"].flatMap { t in
            ["rgb8<\(t), 8>", "rgb8<\(t), 1>", "nv12<\(t), 8>", "nv12<\(t), 2>"]
        })

    static let units = [unit]
}

extension CUDABackend {
    func rgb8(_ o: Operation.RGB8) -> Tensor {
        let x = o.x
        requireActivations(x, "rgb8")
        let out = tensor(x.shape, .u8)
        let vector = Elementwise.vector(x.pointer)
        let kernel: Kernel<DevicePointer, DevicePointer, Int64> = context.kernel(
            "rgb8<\(Self.typeName(x.dtype)), \(vector)>", of: Frames.unit)
        kernel(
            .elements(x.shape.count, perThread: vector), out.pointer, x.pointer,
            Int64(x.shape.count))
        return out
    }

    func nv12(_ o: Operation.NV12) -> Tensor {
        let x = o.x
        requireActivations(x, "nv12")
        let s = x.shape
        let out = tensor([s[0], s[1] / 2 * 3, s[2]], .u8)
        let pixels = s[2] % 8 == 0 && x.pointer.address % 16 == 0 ? 8 : 2
        let kernel: Kernel<DevicePointer, DevicePointer, Int64, Int32, Int32> = context.kernel(
            "nv12<\(Self.typeName(x.dtype)), \(pixels)>", of: Frames.unit)
        kernel(
            .elements(s[0] * (s[1] / 2) * (s[2] / pixels)), out.pointer, x.pointer, Int64(s[0]),
            Int32(s[1]), Int32(s[2]))
        return out
    }
}
