/// Noise equal to PyTorch's on a CPU for the same seed.

import Glibc
import Ground
import Tensors

/// The normal numbers of `torch.Generator().manual_seed(seed)`: a Mersenne twister (MT19937, Matsumoto
/// and Nishimura 1998) whose words become uniform numbers of 24 bits, and those, sixteen at a time, pairs
/// of normal numbers.
///
/// Source: `normal_fill` in pytorch aten/src/ATen/native/cpu/DistributionTemplates.h.
struct NoiseStream {
    private var state: [UInt32]
    private var next = NoiseStream.size

    private static let size = 624
    private static let shift = 397
    private static let block = 16

    /// The first `shape` of stream `index`.
    static func draw(_ index: Int, _ shape: Shape) -> Tensor {
        var stream = NoiseStream(seed: UInt32(index))
        return stream.normal(shape)
    }

    init(seed: UInt32) {
        state = [seed]
        state.reserveCapacity(Self.size)
        for index in 1..<Self.size {
            let last = state[index - 1]
            state.append(1_812_433_253 &* (last ^ last >> 30) &+ UInt32(index))
        }
    }

    /// The next `shape` of standard normal numbers, as an f32 host tensor. The count must be a multiple of 16: the
    /// generator treats the rest of other counts differently.
    mutating func normal(_ shape: Shape) -> Tensor {
        ensure(
            shape.count % Self.block == 0, "NoiseStream: \(shape.count) is no multiple of 16")
        let out = Tensor.host(shape, .f32)
        out.withMutable(Float.self) { values in
            for index in values.indices { values[index] = Float(word() & 0xFF_FFFF) * 0x1p-24 }
            let half = Self.block / 2
            for start in stride(from: 0, to: values.count, by: Self.block) {
                for index in start..<start + half {
                    let radius = (-2 * logf(1 - values[index])).squareRoot()
                    let angle = 2 * Float.pi * values[index + half]
                    values[index] = radius * cosf(angle)
                    values[index + half] = radius * sinf(angle)
                }
            }
        }
        return out
    }

    private mutating func word() -> UInt32 {
        if next == Self.size {
            twist()
            next = 0
        }
        var y = state[next]
        next += 1
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C_5680
        y ^= y << 15 & 0xEFC6_0000
        return y ^ y >> 18
    }

    private mutating func twist() {
        for index in 0..<Self.size {
            let following = state[(index + 1) % Self.size]
            let y = state[index] & 0x8000_0000 | following & 0x7FFF_FFFF
            let mixed = state[(index + Self.shift) % Self.size] ^ y >> 1
            state[index] = y & 1 == 0 ? mixed : mixed ^ 0x9908_B0DF
        }
    }
}
