/// The noise that PyTorch draws on a CPU for the same seed.

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

    init(seed: UInt32) {
        state = [seed]
        state.reserveCapacity(Self.size)
        for index in 1..<Self.size {
            let last = state[index - 1]
            state.append(1_812_433_253 &* (last ^ last >> 30) &+ UInt32(index))
        }
    }

    /// The next standard normal numbers. `count` must be a multiple of 16: for other counts PyTorch treats the remainder
    /// differently.
    mutating func normal(_ count: Int) -> [Float] {
        ensure(count % Self.block == 0, "NoiseStream: \(count) is not a multiple of 16")
        var values = (0..<count).map { _ in Float(word() & 0xFF_FFFF) * 0x1p-24 }
        let half = Self.block / 2
        for start in stride(from: 0, to: count, by: Self.block) {
            for index in start..<start + half {
                let radius = (-2 * logf(1 - values[index])).squareRoot()
                let angle = 2 * Float.pi * values[index + half]
                values[index] = radius * cosf(angle)
                values[index + half] = radius * sinf(angle)
            }
        }
        return values
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
