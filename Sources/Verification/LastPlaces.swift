/// A backend with slightly different f32 results, for results that depend on a rounding boundary.

import Tensors

/// A backend whose f32 results are changed by a few units in the last place, each element by a random number of them.
///
/// An operation in f32 may be off by 2e-6; this changes it by at most 5e-7, about as much as another
/// order of summation does. If the exact value lies halfway between two 8-bit codes, this decides
/// which of the two is taken; both are right.
final class LastPlaces: ForwardingBackend {
    private static let most: Int32 = 4
    private var state: UInt64

    init(_ base: any Backend, seed: UInt64) {
        state = seed &* 0x9e37_79b9_7f4a_7c15 | 1
        super.init(base)
    }

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        guard results.count == 1, results[0].dtype == .f32, !operation.isView else {
            return results
        }
        var values = base.read(results[0]).floats()
        for index in values.indices where values[index].isNormal {
            let bits = Int32(bitPattern: values[index].bitPattern)
            values[index] = Float(bitPattern: UInt32(bitPattern: bits &+ draw()))
        }
        return [base.place(Tensor(values, results[0].shape), as: .f32)]
    }

    /// Uniform in -most...most.
    private func draw() -> Int32 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return Int32(truncatingIfNeeded: (state >> 33) % UInt64(2 * Self.most + 1)) - Self.most
    }
}
