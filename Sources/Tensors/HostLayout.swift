/// Making and rearranging tensors in host memory.

import Ground

extension Tensor {
    /// A new host tensor of zeros.
    public static func zeros(_ shape: Shape, _ dtype: DType) -> Tensor {
        let out = Tensor.host(shape, dtype)
        out.hostAddress.initializeMemory(as: UInt8.self, repeating: 0, count: out.byteCount)
        return out
    }

    /// A tensor of a size and no memory: for devices to which only sizes matter.
    public static func outline(_ shape: Shape, _ dtype: DType) -> Tensor {
        Tensor(shape, dtype, storage: Storage(byteCount: shape.count * dtype.byteCount))
    }

    /// The kernel of a convolution, with its input channels moved to the last axis.
    /// [out, in, kernelTime, kernelHeight, kernelWidth] → [out, kernelTime, kernelHeight, kernelWidth, in]
    public func kernelChannelsLast() -> Tensor {
        ensure(
            shape.rank == 5, "kernelChannelsLast: [out, in, kT, kH, kW] expected, \(shape)")
        let inputs = shape[1]
        let taps = shape[2] * shape[3] * shape[4]
        let target: Shape = [shape[0], shape[2], shape[3], shape[4], inputs]
        if inputs == 1 || taps == 1 { return reshaped(target) }
        let out = Tensor.host(target, dtype)

        func transposeEachFilter<Word: BitwiseCopyable>(_ word: Word.Type) {
            withElements(Word.self) { x in
                out.withMutable(Word.self) { y in
                    guard let x = x.baseAddress, let y = y.baseAddress else { return }
                    for filter in 0..<shape[0] {
                        let source = x + filter * inputs * taps
                        let target = y + filter * inputs * taps
                        for tap in 0..<taps {
                            for input in 0..<inputs {
                                target[tap &* inputs &+ input] = source[input &* taps &+ tap]
                            }
                        }
                    }
                }
            }
        }
        switch dtype.byteCount {
        case 1: transposeEachFilter(UInt8.self)
        case 2: transposeEachFilter(UInt16.self)
        case 4: transposeEachFilter(UInt32.self)
        default: transposeEachFilter(UInt64.self)
        }
        return out
    }

    /// Copies the rows `ids` of this host table. [rows, ...] → [ids.count, ...]
    public func gatheredRows(_ ids: [Int32]) -> Tensor {
        let row = shape.tail
        let bytes = row.count * dtype.byteCount
        let out = Tensor.host(Shape([ids.count] + row.dimensions), dtype)
        for (index, id) in ids.enumerated() {
            ensure(
                id >= 0 && Int(id) < shape[0], "gatheredRows: row \(id) of \(shape)")
            (out.hostAddress + index * bytes).copyMemory(
                from: hostAddress + Int(id) * bytes, byteCount: bytes)
        }
        return out
    }
}
