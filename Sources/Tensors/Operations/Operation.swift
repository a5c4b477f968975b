/// Operations as values: what models ask of a device.

import Ground

/// One operation with all its arguments: activations, weights and attributes.
///
/// The struct of each case states what holds on every device. Related operations share a file of this folder, with
/// the methods of `Backend` that models call.
public enum Operation {
    // Linear.swift
    case linear(Linear)
    case linearAdd(LinearAdd)
    case quantize(Quantize)
    // Norms.swift
    case layerNorm(LayerNorm)
    case modulatedLayerNorm(ModulatedLayerNorm)
    case rmsNorm(RMSNorm)
    case rmsNormRope(RMSNormRope)
    case channelNorm(ChannelNorm)
    // Elementwise.swift
    case gatedAdd(GatedAdd)
    case geluGate(GELUGate)
    case rcmStep(RCMStep)
    case combine(Combine)
    case noise(Noise)
    // Attention.swift
    case attention(Attention)
    case relativeAttention(RelativeAttention)
    // SparseAttention.swift
    case blockMap(BlockMap)
    case sparseLinearAttention(SparseLinearAttention)
    case sageOperands(SageOperands)
    // Tokens.swift
    case view(View)
    case concatenate(Concatenate)
    case embedding(Embedding)
    case patchify(Patchify)
    case unpatchify(Unpatchify)
    // Autoencoder.swift
    case channelsLast(ChannelsLast)
    case channelsFirst(ChannelsFirst)
    case convolution(Convolution)
    case interleaveTime(InterleaveTime)
    case rgb8(RGB8)
    case nv12(NV12)
    // Collectives.swift
    case exchange(Exchange)
    case gather(Gather)
    case halo(Halo)
    case joinRows(JoinRows)
    // Gradients/Training.swift
    case training(Training)

    /// The struct of the case.
    public var facts: any OperationFacts {
        switch self {
        case .linear(let o): o
        case .linearAdd(let o): o
        case .quantize(let o): o
        case .layerNorm(let o): o
        case .modulatedLayerNorm(let o): o
        case .rmsNorm(let o): o
        case .rmsNormRope(let o): o
        case .channelNorm(let o): o
        case .gatedAdd(let o): o
        case .geluGate(let o): o
        case .rcmStep(let o): o
        case .combine(let o): o
        case .noise(let o): o
        case .attention(let o): o
        case .relativeAttention(let o): o
        case .blockMap(let o): o
        case .sparseLinearAttention(let o): o
        case .sageOperands(let o): o
        case .view(let o): o
        case .concatenate(let o): o
        case .embedding(let o): o
        case .patchify(let o): o
        case .unpatchify(let o): o
        case .channelsLast(let o): o
        case .channelsFirst(let o): o
        case .convolution(let o): o
        case .interleaveTime(let o): o
        case .rgb8(let o): o
        case .nv12(let o): o
        case .exchange(let o): o
        case .gather(let o): o
        case .halo(let o): o
        case .joinRows(let o): o
        case .training(let o): o.facts
        }
    }
}

/// What holds for an operation on every device.
///
/// A fused operation may have a method `composed(on:)`: the same made of simpler operations, for devices without a
/// kernel for it.
public protocol OperationFacts {
    /// Name for reports and tables.
    static var name: String { get }
    /// Whether the shapes and types of the arguments fit each other. Checked before the operation reaches a device.
    var fits: Bool { get }
    /// Shape and type of each result.
    var results: [Operation.ResultType] { get }
    /// Multiplications and additions in matrix products, attention and convolutions; 0 for all other operations.
    var flops: Int { get }
    /// Calls `tensor` with every tensor that the device reads, in the order of the arguments; it may replace them.
    mutating func visit(_ tensor: (inout Tensor, Operation.Role) -> Void)
    /// This operation as a case of the enum.
    var operation: Operation { get }
}

extension OperationFacts {
    public var flops: Int { 0 }
}

// MARK: - Derived from the facts

extension Operation {
    /// The shape and type of a result, known before it is computed.
    public struct ResultType: Sendable, Hashable {
        public var shape: Shape
        /// The type of the elements before `format` quantises them.
        public var dtype: DType
        public var format: LinearFormat

        public init(_ shape: Shape, _ dtype: DType, _ format: LinearFormat = .plain) {
            self.shape = shape
            self.dtype = dtype
            self.format = format
        }
    }

    /// What a tensor is to an operation.
    public enum Role: Sendable, Hashable {
        /// Flows through the model: one row for each token, pixel or element.
        case activation
        /// Belongs to a layer or to a whole step: matrices, biases, gains, gates, tables.
        case parameter
    }

    /// The least work of an operation: kernel launches, floating-point operations, and bytes moved, with each input
    /// read once and each result written once.
    public struct Cost: Sendable, Hashable {
        public var launches = 0
        public var flops = 0
        public var bytes = 0
        /// Bytes for other devices of a group.
        public var sentBytes = 0

        public init() {}

        public static func += (a: inout Cost, b: Cost) {
            a.launches += b.launches
            a.flops += b.flops
            a.bytes += b.bytes
            a.sentBytes += b.sentBytes
        }
    }

    public var name: String { type(of: facts).name }

    /// Whether the result is its input under another shape, so that no device computes anything.
    public var isView: Bool { if case .view = self { true } else { false } }

    /// The activations that it reads.
    public var activations: [Tensor] {
        var found: [Tensor] = []
        var facts = facts
        facts.visit { if $1 == .activation { found.append($0) } }
        return found
    }

    /// The same operation on other tensors.
    public func mapTensors(_ transform: (Tensor) -> Tensor) -> Operation {
        var facts = facts
        facts.visit { tensor, _ in tensor = transform(tensor) }
        return facts.operation
    }

    /// All zero for a view.
    public var cost: Cost {
        var facts = facts
        var cost = Cost()
        if isView { return cost }
        cost.launches = 1
        cost.flops = facts.flops
        facts.visit { tensor, _ in
            cost.bytes += tensor.byteCount + (tensor.scales?.byteCount ?? 0)
        }
        for result in facts.results { cost.bytes += result.byteCount + (result.scaleBytes ?? 0) }
        cost.sentBytes = collective?.sentBytes ?? 0
        return cost
    }
}

extension Operation.ResultType {
    /// The type of the elements as stored.
    public var element: DType {
        switch format {
        case .plain: dtype
        case .int8Blocks: .i8
        case .fp8Rows: .f8e4m3
        }
    }

    public var byteCount: Int { shape.count * element.byteCount }

    /// The result where it has no elements.
    fileprivate var empty: Tensor {
        Tensor(
            shape, element, storage: HostStorage(byteCount: 0),
            scales: scaleBytes.map { _ in HostStorage(byteCount: 0) })
    }

    /// Whether `x` has this shape and type.
    public func describes(_ x: Tensor) -> Bool {
        x.shape == shape && x.dtype == element && x.scales?.byteCount == scaleBytes
    }

    /// Bytes of the scales of 8-bit activations; nil for plain ones.
    public var scaleBytes: Int? {
        switch format {
        case .plain: nil
        case .int8Blocks: 4 * Int8Blocks.scaleShape(rows: shape.rows, columns: shape.columns).count
        case .fp8Rows: 4 * shape.rows
        }
    }
}

// MARK: - From the facts to a device

extension Backend {
    /// Checks that the arguments fit, then runs the operation. A device of a group may have a share of nothing:
    /// what gives nothing is not carried out, unless others wait for it.
    func results(of facts: some OperationFacts) -> [Tensor] {
        if !facts.fits { programmingError(misfit(facts)) }
        if !membership.isAlone, !(facts is any Collective) {
            let results = facts.results
            if results.allSatisfy({ $0.shape.count == 0 }) { return results.map(\.empty) }
        }
        return run(facts.operation)
    }

    func result(of facts: some OperationFacts) -> Tensor { results(of: facts)[0] }
}

/// An error message with the operation and all its arguments, tensors by shape and type.
@inline(never)
private func misfit<Facts: OperationFacts>(_ facts: Facts) -> String {
    let arguments = Mirror(reflecting: facts).children.compactMap { child -> String? in
        var value = child.value
        let mirror = Mirror(reflecting: value)
        if mirror.displayStyle == .optional {
            guard let some = mirror.children.first else { return nil }
            value = some.value
        }
        return "\(child.label ?? "") \(value)"
    }
    return "\(Facts.name): these do not fit together: \(arguments.joined(separator: ", "))"
}

// MARK: - Helpers for writing the facts

func visit(
    _ tensor: inout Tensor?, _ role: Operation.Role, _ body: (inout Tensor, Operation.Role) -> Void
) {
    guard var some = tensor else { return }
    body(&some, role)
    tensor = some
}

func visit(_ tensors: inout [Tensor], _ body: (inout Tensor, Operation.Role) -> Void) {
    for index in tensors.indices { body(&tensors[index], .activation) }
}

extension LinearWeight {
    mutating func visit(_ body: (inout Tensor, Operation.Role) -> Void) {
        switch self {
        case .dense(var matrix):
            body(&matrix, .parameter)
            self = .dense(matrix)
        case .int8Blocks(var matrix, var scale):
            body(&matrix, .parameter)
            body(&scale, .parameter)
            self = .int8Blocks(weight: matrix, scale: scale)
        case .fp8Rows(var matrix, var scale):
            body(&matrix, .parameter)
            body(&scale, .parameter)
            self = .fp8Rows(weight: matrix, scale: scale)
        }
    }
}

extension ConvolutionWeight {
    mutating func visit(_ body: (inout Tensor, Operation.Role) -> Void) {
        var (kernel, bias) = (tensor, bias)
        body(&kernel, .parameter)
        Tensors.visit(&bias, .parameter, body)
        self = ConvolutionWeight(kernel, bias: bias)
    }
}

extension Tensor? {
    /// Whether this is nil or a vector of `count` elements.
    func isVector(of count: Int) -> Bool { map { $0.shape.count == count } ?? true }
}
