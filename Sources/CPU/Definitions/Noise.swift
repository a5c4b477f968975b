/// Normal random numbers in PyTorch's order.

import Tensors

extension Definitions {
    func noise(_ o: Operation.Noise) -> Tensor {
        let result = memory.tensor(o.shape, .f32)
        let values = UnsafeMutableBufferPointer(
            start: result.hostAddress.assumingMemoryBound(to: Float.self), count: o.shape.count)
        threads.parallel(o.draw.threads, grain: 4096) { o.draw.fill(values, threads: $0) }
        return result
    }
}
