/// Weights as operations take them: the one place that knows how a layer's numbers are stored.

/// How a linear layer wants its input: what the operation before it may write at once.
public enum ActivationFormat: Sendable, Hashable {
    /// The dtype of the operation's own input.
    case plain
    /// int8 with one f32 scale for each 128x128 block (golden rule: q = rne(x * 128/amax), scale = amax/128).
    case int8Blocks
    /// fp8 e4m3 with one f32 scale for each row.
    case fp8Rows
}

/// The matrix of a linear layer, [out, in], row-major.
public enum LinearWeight {
    /// f32, f16 or bf16 elements. weight: [out, in]
    case dense(Tensor)
    /// W8A8. weight: int8 [out, in]; scale: f32 [ceil(out/128), ceil(in/128)]
    case int8Blocks(weight: Tensor, scale: Tensor)
    /// weight: fp8 e4m3 [out, in]; scale: f32 [out]
    case fp8Rows(weight: Tensor, scale: Tensor)

    /// [out, in]
    public var shape: Shape { matrix.shape }
    public var outputs: Int { matrix.shape[0] }
    public var inputs: Int { matrix.shape[1] }

    /// The elements themselves, without scales.
    public var matrix: Tensor {
        switch self {
        case .dense(let weight), .int8Blocks(let weight, _), .fp8Rows(let weight, _): weight
        }
    }

    public var inputFormat: ActivationFormat {
        switch self {
        case .dense: .plain
        case .int8Blocks: .int8Blocks
        case .fp8Rows: .fp8Rows
        }
    }
}

/// The kernel of a convolution. weight: [out, kernelTime, kernelHeight, kernelWidth, in] (channels last)
public struct ConvolutionWeight {
    public let tensor: Tensor
    /// bias: [out], f32
    public let bias: Tensor?

    public init(_ tensor: Tensor, bias: Tensor?) {
        ensure(tensor.shape.rank == 5, "ConvolutionWeight: rank 5 expected, \(tensor.shape)")
        self.tensor = tensor
        self.bias = bias
    }

    public var outputs: Int { tensor.shape[0] }
    public var time: Int { tensor.shape[1] }
    public var height: Int { tensor.shape[2] }
    public var width: Int { tensor.shape[3] }
    public var inputs: Int { tensor.shape[4] }
}

/// Weights that are used together (one transformer block): the unit in which a backend may keep them
/// resident or stream them in behind the computation.
public final class WeightGroup {
    public let name: String
    public private(set) var tensors: [Tensor] = []
    /// What a backend that streams keeps about this group.
    public var attachment: AnyObject?

    public init(_ name: String) { self.name = name }
    public func append(_ tensor: Tensor) { tensors.append(tensor) }
    public var byteCount: Int { tensors.reduce(0) { $0 + $1.byteCount } }
}

extension LinearWeight {
    /// Bytes of the matrix and its scales.
    public var byteCount: Int {
        switch self {
        case .dense(let weight): weight.byteCount
        case .int8Blocks(let weight, let scale), .fp8Rows(let weight, let scale):
            weight.byteCount + scale.byteCount
        }
    }
}
