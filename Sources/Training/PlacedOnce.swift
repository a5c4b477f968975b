/// Weights that never change, placed once for all nets that are built of them.

import Ground
import Tensors

/// Keeps what it placed of a checkpoint's tensors, and has them stay on the device: a net with adapters is built again
/// after each step, and a net's text projections are asked for with each batch.
final class PlacedOnce: ForwardingBackend {
    private struct Key: Hashable {
        let name: String
        let dtype: DType
        var format = LinearFormat.plain
    }
    private let names: NamedCheckpoint
    private var tensors: [Key: Tensor] = [:]
    private var weights: [Key: LinearWeight] = [:]

    init(_ base: any Backend, names: NamedCheckpoint) {
        self.names = names
        super.init(base)
    }

    override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        guard let name = names.name(of: host) else {
            return super.place(host, as: dtype, in: group)
        }
        let key = Key(name: name, dtype: dtype)
        if let known = tensors[key] { return known }
        let placed = super.place(host, as: dtype, in: nil)
        tensors[key] = placed
        return placed
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        guard let name = names.name(of: weight.matrix) else {
            return super.place(weight, as: dtype, in: group)
        }
        let key = Key(name: name, dtype: dtype, format: weight.inputFormat)
        if let known = weights[key] { return known }
        let placed = super.place(weight, as: dtype, in: nil)
        weights[key] = placed
        return placed
    }

    override func place(_ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?)
        -> LinearWeight
    {
        guard let name = names.name(of: weight) else {
            return super.place(weight, quantizedTo: format, in: group)
        }
        let key = Key(name: name, dtype: .bf16, format: format)
        if let known = weights[key] { return known }
        let placed = super.place(weight, quantizedTo: format, in: nil)
        weights[key] = placed
        return placed
    }
}
