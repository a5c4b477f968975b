/// Weights as operations take them: the one place that knows how a layer's numbers are stored.

import Ground

/// How the two factors of a linear layer are stored: its weight in a file and on a device, and its input, which the
/// operation before it may write in this format at once. The raw values are the names in files and commands.
public enum LinearFormat: String, Sendable, Hashable, CaseIterable {
    /// Floating-point elements: a file's own type, or that of the operation that reads them.
    case plain
    /// int8 with one f32 scale for each 128x128 block (golden rule: q = rne(x * 128/amax), scale = amax/128).
    case int8Blocks = "int8"
    /// fp8 e4m3 with one f32 scale for each row.
    case fp8Rows = "fp8"

    /// The largest magnitude of a block or row counts as at least this much, so that a scale is never zero. The original's
    /// int8 rule, and ours for fp8.
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

/// The kernel of a convolution. weight: [out, kernelTime, kernelHeight, kernelWidth, in] (channels last)
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

/// The groups of one model, and when their weights come to the device.
public final class WeightSet {
    /// Weights that lie in a mapped file come when their group is first required, and not when they
    /// are placed.
    public let isDeferred: Bool
    /// What a backend that defers or streams keeps about this set.
    public var attachment: AnyObject?

    public init(isDeferred: Bool = false) { self.isDeferred = isDeferred }
}

/// Weights that are used together (one transformer block): the unit in which a backend may keep them
/// resident or stream them in behind the computation.
public final class WeightGroup {
    public let name: String
    public let set: WeightSet
    /// Used once for each prompt and not in every step: a deferred set does not keep it on the device.
    public let isTransient: Bool
    public private(set) var tensors: [Tensor] = []
    /// What a backend that defers or streams keeps about this group.
    public var attachment: AnyObject?

    public init(_ name: String, of set: WeightSet = WeightSet(), isTransient: Bool = false) {
        self.name = name
        self.set = set
        self.isTransient = isTransient
    }

    /// Bytes of the smallest weight that is deferred or streamed. Smaller ones come at once and stay:
    /// together they are little.
    public static let smallestMoving = 1 << 20

    /// Whether a weight of so many bytes leaves the device after each use.
    public func isVisitor(byteCount: Int) -> Bool {
        set.isDeferred && isTransient && byteCount >= WeightGroup.smallestMoving
    }

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
