/// Normal numbers in PyTorch's order.

import Tensors

extension Definitions {
    /// See `Backend.noise`.
    func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        let draw = generator.draw(shape.count)
        let result = memory.tensor(shape, .f32)
        let values = UnsafeMutableBufferPointer(
            start: result.hostAddress.assumingMemoryBound(to: Float.self), count: shape.count)
        threads.parallel(draw.threads, grain: 4096) { draw.fill(values, threads: $0) }
        return result
    }
}
