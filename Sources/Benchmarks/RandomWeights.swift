/// Random weights with the real shapes, made on the device.

import Checkpoints
import Ground
import Models
import Tensors

/// The storage of a tensor that has not been made yet.
final class UnmadeStorage: Storage {
    let name: String

    init(_ name: String, byteCount: Int) {
        self.name = name
        super.init(byteCount: byteCount)
    }
}

/// An outline whose tensors carry their names, for the backend that makes them.
final class UnmadeCheckpoint: Checkpoint {
    private let outline: Outline

    init(_ outline: Outline) { self.outline = outline }

    var path: String { outline.path }
    var names: [String] { outline.names }
    func info(_ name: String) -> TensorInfo? { outline.info(name) }

    func tensor(_ name: String) -> Tensor? {
        outline.info(name).map {
            Tensor(
                Shape($0.shape), $0.dtype, storage: UnmadeStorage(name, byteCount: $0.byteCount))
        }
    }
}

/// Makes the tensors of an ``UnmadeCheckpoint``: matrices of normal numbers / sqrt(inputs), small
/// biases, norms near one. The numbers depend only on the seed and on the tensor's name.
final class RandomWeights: ForwardingBackend {
    private let seed: UInt64
    /// Rows used in place of those of an unmade vocabulary. [n, dim]
    private var vocabularyRows: Tensor?

    init(_ base: any Backend, seed: UInt64) {
        self.seed = seed
        super.init(base)
    }

    override func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        base.place(made(host, as: dtype), as: dtype, in: group)
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        guard case .dense(let matrix) = weight else {
            return base.place(weight, as: dtype, in: group)
        }
        return base.place(.dense(made(matrix, as: dtype)), as: dtype, in: group)
    }

    override func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        base.place(made(weight, as: .bf16), quantizedTo: format, in: group)
    }

    override func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        guard kernel.storage is UnmadeStorage else {
            return base.place(convolution: kernel, bias: bias, as: dtype, in: group)
        }
        // Random numbers need no rearranging: they are made with channels last.
        let shape = kernel.shape
        let channelsLast = kernel.reshaped([shape[0], shape[2], shape[3], shape[4], shape[1]])
        return ConvolutionWeight(
            place(channelsLast, as: dtype, in: group),
            bias: bias.map { place($0, as: .f32, in: group) })
    }

    override func run(_ operation: Operation) -> [Tensor] {
        guard case .embedding(let o) = operation, let unmade = o.table.storage as? UnmadeStorage
        else { return super.run(operation) }
        let shape: Shape = [o.ids.count, o.table.shape[1]]
        let rows: Tensor
        if let kept = vocabularyRows, kept.shape == shape {
            rows = kept
        } else {
            rows = base.read(normal(shape, unmade.name, times: 1, as: .bf16))
            vocabularyRows = rows
        }
        return [base.embedding(o.ids.indices.map { Int32($0) }, hostTable: rows, as: o.dtype)]
    }

    /// Makes an unmade tensor; any other is returned as it is.
    private func made(_ tensor: Tensor, as dtype: DType) -> Tensor {
        guard let unmade = tensor.storage as? UnmadeStorage else { return tensor }
        let (shape, name) = (tensor.shape, unmade.name)
        let isVector = shape.count == shape.dimensions.max()
        guard isVector else {
            let inputs = shape.count / shape[0]
            return normal(
                shape, name, times: 1 / Double(inputs).squareRoot(), as: dtype)
        }
        guard !name.hasSuffix("bias"), name.contains("norm") || name.hasSuffix("gamma") else {
            return normal(shape, name, times: 0.02, as: dtype)
        }
        let ones = base.place(
            Tensor([Float](repeating: 1, count: shape.count), shape), as: .f32)
        let noise = normal(shape, name, times: 1, as: .f32)
        return base.combine([ones, noise], [1, 0.1], as: dtype)
    }

    private func normal(_ shape: Shape, _ name: String, times factor: Double, as dtype: DType)
        -> Tensor
    {
        var generator = PhiloxNoise(seed: seed ^ FNV1a.hash(name))
        return base.combine([base.noise(shape, generator: &generator)], [factor], as: dtype)
    }
}
