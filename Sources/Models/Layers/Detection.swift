/// Reading the sizes of a model off its checkpoint.

import Checkpoints

extension Weights {
    /// The stored extents of a tensor that every checkpoint of this model has, at least `rank` of them.
    func extents(_ name: String, rank: Int) throws(CheckpointError) -> [Int] {
        guard let extents = shape(name) else { throw missing(name) }
        guard extents.count >= rank else {
            throw misshapen(
                name, expected: Array(repeating: 1, count: rank), found: extents)
        }
        return extents
    }

    /// [out, in] of the linear layer here, dense or quantised.
    func matrixExtents() throws(CheckpointError) -> (outputs: Int, inputs: Int) {
        let extents = try extents(contains("int8_weight") ? "int8_weight" : "weight", rank: 2)
        return (extents[0], extents[1...].reduce(1, *))
    }

    /// How many numbered places below here hold `name`: 0, 1, ...
    func count(having name: String) -> Int {
        var count = 0
        while self[count].contains(name) { count += 1 }
        return count
    }
}
