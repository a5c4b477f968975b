/// Operations as values: what models ask of a machine.

import Ground

/// One operation with all that it takes: activations, weights and attributes.
///
/// The struct of a case says what is true of it on every machine. Each family of them is one file of this folder,
/// with the methods of `Backend` by which models ask for them.
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
    // Gradients/Training.swift
    case training(Training)

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
        case .training(let o): o.facts
        }
    }
}

/// What is true of an operation on every machine.
///
/// A fused operation may have a `composed(on:)`: the same by simpler operations, for machines without a kernel of
/// its own.
public protocol OperationFacts {
    /// For reports and tables.
    static var name: String { get }
    /// Whether shapes and types fit each other. Asked before the operation reaches a machine.
    var fits: Bool { get }
    /// Shape and type of each result.
    var results: [Operation.ResultType] { get }
    /// Multiplications and additions of matrix products, attention and convolutions.
    var flops: Int { get }
    /// Shows every tensor that the machine reads, in the order of the arguments, and lets it be replaced.
    mutating func visit(_ tensor: (inout Tensor, Operation.Role) -> Void)
    var operation: Operation { get }
}

extension OperationFacts {
    public var flops: Int { 0 }
}

// MARK: - Facts in terms of each other

extension Operation {
    /// What a result is before it is there.
    public struct ResultType: Sendable, Hashable {
        public var shape: Shape
        /// Of the elements, before `format` quantises them.
        public var dtype: DType
        public var format: ActivationFormat

        public init(_ shape: Shape, _ dtype: DType, _ format: ActivationFormat = .plain) {
            self.shape = shape
            self.dtype = dtype
            self.format = format
        }
    }

    public enum Role: Sendable, Hashable {
        /// Flows through the model: one row for each token, pixel or element.
        case activation
        /// Belongs to a layer or to the whole step: matrices, biases, gains, gates, tables.
        case parameter
    }

    /// What an operation takes at least: each input read once, each result written once.
    public struct Cost: Sendable, Hashable {
        public var launches = 0
        public var flops = 0
        public var bytes = 0

        public init() {}

        public static func += (a: inout Cost, b: Cost) {
            a.launches += b.launches
            a.flops += b.flops
            a.bytes += b.bytes
        }
    }

    public var name: String { type(of: facts).name }

    /// Whether it only looks at its input under another shape: no machine computes anything.
    public var isView: Bool { if case .view = self { true } else { false } }

    /// The activations it reads.
    public var activations: [Tensor] {
        var found: [Tensor] = []
        var facts = facts
        facts.visit { if $1 == .activation { found.append($0) } }
        return found
    }

    /// The same on other tensors.
    public func mapTensors(_ transform: (Tensor) -> Tensor) -> Operation {
        var facts = facts
        facts.visit { tensor, _ in tensor = transform(tensor) }
        return facts.operation
    }

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
        return cost
    }
}

extension Operation.ResultType {
    /// Of the elements as they are stored.
    public var element: DType {
        switch format {
        case .plain: dtype
        case .int8Blocks: .i8
        case .fp8Rows: .f8e4m3
        }
    }

    public var byteCount: Int { shape.count * element.byteCount }

    public func describes(_ x: Tensor) -> Bool {
        x.shape == shape && x.dtype == element && x.scales?.byteCount == scaleBytes
    }

    /// Bytes of the scales of 8-bit activations.
    public var scaleBytes: Int? {
        switch format {
        case .plain: nil
        case .int8Blocks: 4 * Int8Blocks.scaleShape(rows: shape.rows, columns: shape.columns).count
        case .fp8Rows: 4 * shape.rows
        }
    }
}

// MARK: - From the facts to a machine

extension Backend {
    /// Has an operation carried out once its shapes are known to fit.
    func results(of facts: some OperationFacts) -> [Tensor] {
        if !facts.fits { programmingError(misfit(facts)) }
        return run(facts.operation)
    }

    func result(of facts: some OperationFacts) -> Tensor { results(of: facts)[0] }
}

/// The operation with all its arguments: tensors by shape and type.
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

// MARK: - What the facts are written with

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
