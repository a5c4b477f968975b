/// Weights that never change, placed once for all nets that are built of them.

import Tensors

/// Keeps what it placed of a checkpoint's tensors, and has them stay on the device: a net with adapters is built again
/// after each step, and a net's text projections are asked for with each batch.
final class PlacedOnce: WeightPlacer {
    private let names: NamedCheckpoint
    private var weights: [Form: LinearWeight] = [:]

    init(_ base: any Backend, names: NamedCheckpoint) {
        self.names = names
        super.init(base)
    }

    override func weight(
        _ host: Tensor, as dtype: DType, _ format: LinearFormat, in group: WeightGroup?,
        _ place: (any Backend) -> LinearWeight
    ) -> LinearWeight? {
        guard let name = names.name(of: host) else { return nil }
        let form = Form(name: name, dtype: dtype, format: format)
        let placed = weights[form] ?? place(base)
        weights[form] = placed
        return placed
    }
}
