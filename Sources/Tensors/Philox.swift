/// Random numbers equal to those of PyTorch on CUDA for the same seed, on every backend.

import Glibc
import Ground

/// The state of a `torch.Generator(device: "cuda")`: Philox 4x32-10 (Salmon et al., SC'11), with numbers assigned to
/// elements as PyTorch does. That depends on the card: `torch.randn` launches
/// min(ceil(n/256), SMs * threadsPerSM/256) blocks of 256 threads and gives each thread four numbers per round.
///
/// Source: pytorch aten/src/ATen/native/cuda/DistributionTemplates.h (`distribution_nullary_kernel`).
public struct PhiloxNoise: Sendable, Hashable {
    public let seed: UInt64
    /// How many numbers each thread has drawn so far, a multiple of 4.
    public private(set) var offset: UInt64 = 0
    /// Blocks of 256 threads that the imitated card runs at once: 132 SMs * 2048 / 256 on H100 and H200.
    public let residentBlocks: Int

    public init(seed: UInt64, residentBlocks: Int = 132 * 8) {
        self.seed = seed
        self.residentBlocks = residentBlocks
    }

    /// The place of one draw in the random sequence.
    public struct Draw: Sendable, Hashable {
        public let seed: UInt64
        /// Low half of the counter in the first round.
        public let firstRound: UInt64
        /// Number of threads: 256 times the number of blocks.
        public let threads: Int

        /// Writes the numbers drawn by the threads in `range` to their places in `values`, which holds the whole draw.
        public func fill(_ values: UnsafeMutableBufferPointer<Float>, threads range: Range<Int>) {
            for thread in range where thread < values.count {
                var start = thread
                var round = firstRound
                while start < values.count {
                    let four = PhiloxNoise.normals(
                        seed: seed, round: round, thread: UInt64(thread))
                    for j in 0..<4 {
                        let index = start + j * threads
                        if index < values.count { values[index] = four[j] }
                    }
                    start += 4 * threads
                    round += 1
                }
            }
        }
    }

    /// Reserves the next `count` numbers.
    public mutating func draw(_ count: Int) -> Draw {
        ensure(count > 0, "PhiloxNoise: \(count) numbers")
        let threads = 256 * min(ceilDivide(count, 256), residentBlocks)
        let draw = Draw(seed: seed, firstRound: offset / 4, threads: threads)
        offset += 4 * UInt64((count - 1) / (4 * threads) + 1)
        return draw
    }

    /// Draws standard normal numbers into a new f32 host tensor of this shape.
    public mutating func normal(_ shape: Shape) -> Tensor {
        let draw = draw(shape.count)
        let out = Tensor.host(shape, .f32)
        out.withMutable(Float.self) { draw.fill($0, threads: 0..<draw.threads) }
        return out
    }

    /// The four normal numbers of one thread in one round: two Box-Muller pairs.
    static func normals(seed: UInt64, round: UInt64, thread: UInt64) -> SIMD4<Float> {
        let words = philox(
            key: (UInt32(truncatingIfNeeded: seed), UInt32(truncatingIfNeeded: seed >> 32)),
            counter: SIMD4(
                UInt32(truncatingIfNeeded: round), UInt32(truncatingIfNeeded: round >> 32),
                UInt32(truncatingIfNeeded: thread), UInt32(truncatingIfNeeded: thread >> 32)))
        let a = boxMuller(words[0], words[1])
        let b = boxMuller(words[2], words[3])
        return SIMD4(a.0, a.1, b.0, b.1)
    }

    private static func boxMuller(_ x: UInt32, _ y: UInt32) -> (Float, Float) {
        let u = Float(x) * 0x1p-32 + 0x1p-33
        let v = Float(y) * (0x1p-32 * 2 * Float.pi) + 0x1p-33 * 2 * Float.pi
        let s = (-2 * logf(u)).squareRoot()
        return (s * sinf(v), s * cosf(v))
    }

    /// Philox 4x32 with 10 rounds.
    static func philox(key: (UInt32, UInt32), counter: SIMD4<UInt32>) -> SIMD4<UInt32> {
        var (k0, k1) = key
        // Scalars, because extracting vector lanes costs more than the multiplications.
        var (c0, c1, c2, c3) = (counter[0], counter[1], counter[2], counter[3])
        for _ in 0..<10 {
            let a = UInt64(c0) &* 0xD251_1F53
            let b = UInt64(c2) &* 0xCD9E_8D57
            (c0, c1) = (
                UInt32(truncatingIfNeeded: b >> 32) ^ c1 ^ k0, UInt32(truncatingIfNeeded: b)
            )
            (c2, c3) = (
                UInt32(truncatingIfNeeded: a >> 32) ^ c3 ^ k1, UInt32(truncatingIfNeeded: a)
            )
            k0 &+= 0x9E37_79B9
            k1 &+= 0xBB67_AE85
        }
        return SIMD4(c0, c1, c2, c3)
    }
}
