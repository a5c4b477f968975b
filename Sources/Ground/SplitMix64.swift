/// SplitMix64: random numbers that are the same in every run, for tests and artificial data.
///
/// Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.

public struct SplitMix64: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    /// Numbers of their own for each list: what comes before is mixed before the next number joins it. Seeds that differ
    /// by multiples of the step below would give the same numbers, some places later.
    public init(seed: UInt64, then numbers: [UInt64]) {
        self.init(seed: seed)
        for number in numbers {
            let mixed = next()
            state = mixed ^ number
        }
    }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}
