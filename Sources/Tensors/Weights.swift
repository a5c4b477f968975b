/// Weights as operations take them: how the numbers of a layer are stored.

import Ground

/// How the two factors of a linear layer are stored: its weight, in a file and on a device, and its input, which the
/// operation before it can write in this form directly. The raw values are the names in files and commands.
public enum LinearFormat: String, Sendable, Hashable, CaseIterable {
    /// Floating-point elements: a file's own type, or that of the operation that reads them.
    case plain
    /// int8, with one f32 scale for each block of 128x128; see `Int8Blocks`.
    case int8Blocks = "int8"
    /// fp8 e4m3, with one f32 scale for each row; see `FP8Rows`.
    case fp8Rows = "fp8"

    /// Lower bound of a block's or row's largest magnitude, so that no scale is zero. The original does this for int8;
    /// we do it for fp8 too.
    public static let leastMaximum: Float = 1e-8
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

    /// The format of the activations that this weight is multiplied with.
    public var inputFormat: LinearFormat {
        switch self {
        case .dense: .plain
        case .int8Blocks: .int8Blocks
        case .fp8Rows: .fp8Rows
        }
    }
}

extension LinearWeight: CustomStringConvertible {
    public var description: String { matrix.description }
}

/// The kernel of a convolution. tensor: [out, kernelTime, kernelHeight, kernelWidth, in] (channels last)
public struct ConvolutionWeight: CustomStringConvertible {
    public let tensor: Tensor
    /// bias: [out], f32
    public let bias: Tensor?

    public init(_ tensor: Tensor, bias: Tensor?) {
        ensure(tensor.shape.rank == 5, "ConvolutionWeight: rank 5 expected, \(tensor.shape)")
        self.tensor = tensor
        self.bias = bias
    }

    public var description: String { tensor.description }
    public var outputs: Int { tensor.shape[0] }
    public var time: Int { tensor.shape[1] }
    public var height: Int { tensor.shape[2] }
    public var width: Int { tensor.shape[3] }
    public var inputs: Int { tensor.shape[4] }
}

/// What the weight groups of one model have in common: when their weights are copied to the device.
public final class WeightSet {
    /// Weights in a mapped file are copied to the device when their group is first required, not when they are placed.
    public let isDeferred: Bool
    /// For a backend that defers or streams weights: what it keeps about this set.
    public var attachment: AnyObject?

    public init(isDeferred: Bool = false) { self.isDeferred = isDeferred }
}

/// Weights that are used together, such as those of one transformer block. A backend keeps a whole group on the
/// device, or streams it in while it computes.
public final class WeightGroup {
    public let name: String
    public let set: WeightSet
    /// Used once for each prompt instead of in every step. If the set is deferred, the group leaves the device after
    /// use.
    public let isTransient: Bool
    public private(set) var tensors: [Tensor] = []
    /// For a backend that defers or streams weights: what it keeps about this group.
    public var attachment: AnyObject?

    public init(_ name: String, of set: WeightSet = WeightSet(), isTransient: Bool = false) {
        self.name = name
        self.set = set
        self.isTransient = isTransient
    }

    /// Bytes of the smallest weight that is deferred or streamed. Smaller ones are copied at once and stay: together
    /// they take little memory.
    public static let smallestMoving = 1 << 20

    /// Whether a weight of this many bytes leaves the device after each use.
    public func isVisitor(byteCount: Int) -> Bool {
        set.isDeferred && isTransient && byteCount >= WeightGroup.smallestMoving
    }

    /// Adds a weight that has been placed.
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
