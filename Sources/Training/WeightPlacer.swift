/// A backend that does one thing with all weights of a checkpoint, in whatever form they are placed.

import Tensors

/// The ways of placing a tensor or a linear layer as one. Convolutions pass by: transformers have none.
class WeightPlacer: ForwardingBackend {
    /// A tensor of the checkpoint as it lies on a device.
    struct Form: Hashable {
        let name: String
        let dtype: DType
        let format: LinearFormat
    }

    /// For subclasses to override.
    /// - Parameters:
    ///   - host: the elements.
    ///   - place: places them on a device, in no group.
    /// - Returns: nil for what is no weight of the checkpoint; the backend below places it.
    func weight(
        _ host: Tensor, as dtype: DType, _ format: LinearFormat, in group: WeightGroup?,
        _ place: (any Backend) -> LinearWeight
    ) -> LinearWeight? { nil }

    override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        weight(host, as: dtype, .plain, in: group) { .dense($0.place(host, as: dtype)) }?.matrix
            ?? super.place(host, as: dtype, in: group)
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        self.weight(weight.matrix, as: dtype, weight.inputFormat, in: group) {
            $0.place(weight, as: dtype, in: nil)
        } ?? super.place(weight, as: dtype, in: group)
    }

    override func place(_ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?)
        -> LinearWeight
    {
        self.weight(weight, as: weight.dtype, format, in: group) {
            $0.place(weight, quantizedTo: format, in: nil)
        } ?? super.place(weight, quantizedTo: format, in: group)
    }
}
