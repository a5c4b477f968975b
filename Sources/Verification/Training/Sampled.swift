/// Results of which a fixture stores a sample and four numbers over all elements.

import Tensors

extension Checks {
    /// Compares with `name`: whole, or, where fewer elements are stored, stored[j] = flat[(j * 7919) mod n] and
    /// `out.check.…` over all of them.
    func compareSampled(_ name: String, _ actual: [Double], in fixture: Fixture) throws {
        let stored = try fixture.tensor(name).shape.count
        guard stored < actual.count else { return try compare(name, actual, in: fixture) }
        try compare(name, (0..<stored).map { actual[$0 * 7919 % actual.count] }, in: fixture)
        let parts = name.split(separator: ".", maxSplits: 1)
        let check = "\(parts[0]).check.\(parts[1])"
        guard fixture.has(check) else { return fail(check, "the fixture does not hold it") }
        try compare(check, Self.summary(actual), in: fixture)
    }

    func compareSampled(_ name: String, _ actual: Tensor, in fixture: Fixture) throws {
        try compareSampled(name, actual.doubles(), in: fixture)
    }

    /// [L2 norm, s1, s2, s3], s_k = sum_j u_k(j) flat[j],
    /// u_k(j) = (((2k+1) * 2654435761 * j + 40503 * k) mod 2^32) / 2^31 - 1
    private static func summary(_ values: [Double]) -> [Double] {
        let norm = values.reduce(0) { $0 + $1 * $1 }.squareRoot()
        let sums = (1...3).map { k in
            values.enumerated().reduce(0.0) { sum, element in
                let hash =
                    UInt32(truncatingIfNeeded: 2 * k + 1) &* 2_654_435_761
                    &* UInt32(truncatingIfNeeded: element.offset)
                    &+ UInt32(truncatingIfNeeded: 40503 * k)
                return sum + (Double(hash) / 2_147_483_648 - 1) * element.element
            }
        }
        return [norm] + sums
    }
}
