/// The cursor through a checkpoint: models ask for exact names and shapes and get tensors on a
/// device. And the protocol of checkpoints.

import Ground
public import Tensors

/// An opened checkpoint: named tensors in host memory, mapped rather than copied.
public protocol Checkpoint: AnyObject {
    /// For messages.
    var path: String { get }
    /// Names in file order, without wrapper prefixes such as `net.`.
    var names: [String] { get }
    /// Shape and dtype without touching the elements; nil for an unknown name.
    func info(_ name: String) -> TensorInfo?
    /// The tensor as stored (mapped; contiguous); nil for an unknown name.
    func tensor(_ name: String) throws(CheckpointError) -> Tensor?
    /// Free text in the file (safetensors' `__metadata__`).
    var metadata: [String: String] { get }
    /// The file's format; nil for tensors that do not come from a file.
    var format: CheckpointFormat? { get }
    /// Decisions made while reading that a user should know of.
    var notes: [String] { get }
    /// The types, by name, of tensors with unsupported element types, which are not among `names`.
    var foreignTypes: [String: String] { get }
    /// Compares the tensor's bytes with the checksum in the file, if there is one.
    /// - Throws: `.malformed` if they differ.
    func verify(_ name: String) throws(CheckpointError)
    /// Says that the tensor's bytes will not be needed soon: mapped pages may be dropped; a later
    /// access reads them again.
    func forget(_ name: String)
}

extension Checkpoint {
    public var metadata: [String: String] { [:] }
    public var format: CheckpointFormat? { nil }
    public var notes: [String] { [] }
    public var foreignTypes: [String: String] { [:] }
    public func verify(_ name: String) throws(CheckpointError) {}
    public func forget(_ name: String) {}
}

/// What is known about a tensor before its bytes are read.
public struct TensorInfo: Sendable, Hashable {
    public let name: String
    public let shape: [Int]
    public let dtype: DType
    public init(name: String, shape: [Int], dtype: DType) {
        self.name = name
        self.shape = shape
        self.dtype = dtype
    }
    public var byteCount: Int { shape.reduce(1, *) * dtype.byteCount }
}

/// A position in the tree of names: `weights["blocks"][3]["self_attn"]`.
public struct Weights {
    /// What all cursors into one checkpoint share.
    private final class Context {
        let checkpoint: any Checkpoint
        let device: any Backend
        let activations: DType
        let linearFormat: LinearFormat
        let set: WeightSet
        var read: Set<String> = []

        init(
            _ checkpoint: any Checkpoint, _ device: any Backend, _ activations: DType,
            _ linearFormat: LinearFormat, _ set: WeightSet
        ) {
            self.checkpoint = checkpoint
            self.device = device
            self.activations = activations
            self.linearFormat = linearFormat
            self.set = set
        }
    }

    private let context: Context
    /// The dotted path to this position, without a trailing dot; empty at the root.
    public let path: String
    /// The group that tensors from this position on belong to.
    public let group: WeightGroup?

    /// - Parameters:
    ///   - activations: the dtype that dense linear weights take (f32 or bf16).
    ///   - linearFormat: the format to which dense weights of quantisable layers are converted while loading.
    ///   - set: collects the groups.
    public init(
        _ checkpoint: any Checkpoint, on device: any Backend, activations: DType,
        linearFormat: LinearFormat = .plain, in set: WeightSet = WeightSet()
    ) {
        context = Context(checkpoint, device, activations, linearFormat, set)
        path = ""
        group = nil
    }

    private init(_ context: Context, _ path: String, _ group: WeightGroup?) {
        self.context = context
        self.path = path
        self.group = group
    }

    public subscript(_ name: String) -> Weights { Weights(context, full(name), group) }
    public subscript(_ index: Int) -> Weights { self[String(index)] }

    /// This position, with all tensors from here on collected in one group for `Backend.require`.
    /// - Parameter isTransient: whether they are used once for each prompt, not in every step.
    public func grouped(isTransient: Bool = false) -> Weights {
        Weights(context, path, WeightGroup(path, of: context.set, isTransient: isTransient))
    }

    /// The device that the tensors are placed on.
    public var device: any Backend { context.device }
    /// The dtype of activations and dense linear weights.
    public var activations: DType { context.activations }

    /// Whether the checkpoint has a tensor with this name, relative to this position.
    public func contains(_ name: String) -> Bool { context.checkpoint.info(full(name)) != nil }

    /// The stored shape of a tensor, for models that detect their sizes.
    public func shape(_ name: String) -> [Int]? { context.checkpoint.info(full(name))?.shape }

    /// Names of tensors that nobody has asked for, in file order.
    public var unread: [String] { context.checkpoint.names.filter { !context.read.contains($0) } }

    /// To be called when a model has taken all that it needs.
    /// - Returns: unused tensors that do not belong to the model.
    /// - Throws: `.incompatible` if an unused tensor would change the result.
    public func finish() throws(CheckpointError) -> [String] {
        let checkpoint = context.checkpoint
        guard let model = DetectedModel(checkpoint) else { return [] }
        // Known tensors may be unused: half of a VAE, or the linear branch with dense attention.
        let known = Set(model.tensors(storedAs: checkpoint).map(\.name))
        let strangers = unread.filter { !known.contains($0) }
        try refuseForeignParts(strangers, model.kind, in: checkpoint)
        return strangers
    }

    /// A floating-point tensor in host memory, as stored. `shape` must have the stored extents, ignoring
    /// those of one (`[1, 6, dim]` may be asked for as `[6, dim]`), or with the stored ones after the
    /// first folded into one: the patch embedding `[dim, in, 1, 2, 2]` as `[dim, in * 4]`.
    /// - Throws: `.missing`, `.shape`, `.dtype`, `.malformed`.
    public func host(_ name: String, _ shape: Shape) throws(CheckpointError) -> Tensor {
        try host(name, shape, nil)
    }

    /// A floating-point tensor on the device, as `dtype`. Shapes and errors are those of `host`.
    public func tensor(_ name: String, _ shape: Shape, as dtype: DType) throws(CheckpointError)
        -> Tensor
    {
        let placed = context.device.place(try host(name, shape), as: dtype, in: group)
        group?.append(placed)
        return placed
    }

    /// The linear layer at this position: `weight`, `int8_weight` + `scale` (the original's `-quant`
    /// checkpoints) or `fp8_weight` + `scale` (one per row), and `bias` if there is one (f32 on the
    /// device, [outputs]).
    /// - Parameters:
    ///   - quantizable: whether a dense weight is converted to the cursor's `linearFormat`.
    ///   - dtype: the type for a dense weight; nil: the dtype of activations.
    public func linear(
        from inputs: Int, to outputs: Int, quantizable: Bool = false, as dtype: DType? = nil
    ) throws(CheckpointError) -> (weight: LinearWeight, bias: Tensor?) {
        let dtype = dtype ?? context.activations
        let device = context.device
        let weight: LinearWeight
        if contains("int8_weight") {
            let codes = try host("int8_weight", [outputs, inputs], .i8)
            let scale = try scales([ceilDivide(outputs, 128), ceilDivide(inputs, 128)])
            weight = device.place(.int8Blocks(weight: codes, scale: scale), as: dtype, in: group)
        } else if contains("fp8_weight") {
            let codes = try host("fp8_weight", [outputs, inputs], .f8e4m3)
            let scale = try scales([outputs])
            weight = device.place(.fp8Rows(weight: codes, scale: scale), as: dtype, in: group)
        } else {
            let dense = try host("weight", [outputs, inputs], nil)
            if quantizable, context.linearFormat != .plain {
                // Taking a maximum ignores NaNs, so the codes would hide them.
                if dense.isOnHost { try requireFinite(dense, full("weight"), in: checkpoint) }
                weight = device.place(dense, quantizedTo: context.linearFormat, in: group)
            } else {
                weight = device.place(.dense(dense), as: dtype, in: group)
            }
        }
        group?.append(weight.matrix)
        let bias = contains("bias") ? try tensor("bias", [outputs], as: .f32) : nil
        return (weight, bias)
    }

    /// The checkpoint that this cursor walks through.
    public var checkpoint: any Checkpoint { context.checkpoint }

    /// The scales of the layer at this position, as f32.
    private func scales(_ shape: Shape) throws(CheckpointError) -> Tensor {
        let scales = try host("scale", shape)
        // The tensors of an outline have no memory.
        guard scales.isOnHost else { return .outline(shape, .f32) }
        return try positiveScales(full("scale"), in: context.checkpoint).reshaped(shape)
    }

    /// A host tensor of type `dtype`; nil allows floating point of any width.
    private func host(
        _ name: String, _ shape: Shape, _ dtype: DType?
    ) throws(CheckpointError) -> Tensor {
        let name = full(name)
        guard let tensor = try context.checkpoint.tensor(name) else {
            throw .missing(
                name, in: context.checkpoint.path,
                nearest: nearestNames(to: name, in: context.checkpoint))
        }
        context.read.insert(name)
        guard shapesAgree(stored: tensor.shape.dimensions, wanted: shape.dimensions) else {
            throw .shape(
                name, in: context.checkpoint.path, expected: shape.dimensions,
                found: tensor.shape.dimensions)
        }
        guard dtype.map({ $0 == tensor.dtype }) ?? tensor.dtype.isFloatingPoint else {
            throw .dtype(
                name, in: context.checkpoint.path,
                expected: dtype?.description ?? "floating point", found: "\(tensor.dtype)")
        }
        return tensor.reshaped(shape)
    }

    private func full(_ name: String) -> String { path.isEmpty ? name : path + "." + name }
}
