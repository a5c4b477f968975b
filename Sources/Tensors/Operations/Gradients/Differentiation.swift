/// How derivatives pass an operation: the rules that stand beside the operations, and what they work with.

import Ground

/// An operation with rules for its derivatives. Both are written with operations, so every machine can carry them out.
///
/// What has no rule is constant: block maps, noise, 8-bit codes, embeddings.
public protocol DifferentiableOperation: OperationFacts {
    /// Reverse mode: gives the inputs that `gradients` wants their share of the loss.
    /// - Parameters:
    ///   - cotangent: d loss / d result. Shape and dtype of the result
    ///   - result: what the operation gave.
    func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend)

    /// Forward mode: the tangent of the result; nil where no input has one.
    /// - Parameter tangent: of an input; nil for a constant one. Shape and dtype of the input
    func forward(_ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend) -> Tensor?
}

extension Operation {
    /// The operation with its rules, where it has them.
    public var differentiable: (any DifferentiableOperation)? {
        switch self {
        case .linear(let o): o
        case .linearAdd(let o): o
        case .layerNorm(let o): o
        case .modulatedLayerNorm(let o): o
        case .rmsNorm(let o): o
        case .rmsNormRope(let o): o
        case .gatedAdd(let o): o
        case .combine(let o): o
        case .attention(let o): o
        case .sparseLinearAttention(let o): o
        case .view(let o): o
        case .concatenate(let o): o
        case .patchify(let o): o
        case .unpatchify(let o): o
        case .exchange(let o) where o.x.format == .plain: o
        case .gather(let o) where o.axis == 0: o
        case .training(.activate(let o)) where o.factor == nil: o
        case .training(.rotate(let o)): o
        case .training(.scaleColumns(let o)): o
        case .training(.swapRows(let o)): o
        default: nil
        }
    }

    /// Whether derivatives stop here by definition, and not for want of a rule.
    public var isConstant: Bool {
        switch self {
        case .blockMap, .sageOperands, .noise, .embedding, .rgb8, .nv12: true
        default: false
        }
    }
}

/// Sums of d loss / d value, by value.
public final class Gradients {
    private var sums: [Tensor.Identity: Tensor] = [:]
    private let device: any Backend
    private let isWanted: (Tensor) -> Bool

    public init(on device: any Backend, wanted: @escaping (Tensor) -> Bool) {
        self.device = device
        isWanted = wanted
    }

    /// Whether the loss's derivative by this value is asked for, or leads to one that is.
    public func wants(_ x: Tensor) -> Bool { isWanted(x) }

    public func wants(_ x: Tensor?) -> Bool { x.map(isWanted) ?? false }

    /// Adds a share. gradient: as many elements as x
    public func add(_ gradient: Tensor, to x: Tensor) {
        guard wants(x) else { return }
        let gradient = device.reshape(gradient, x.shape)
        sums[x.identity] = sums[x.identity].map { device.add($0, gradient) } ?? gradient
    }

    /// The sum so far, which is forgotten: the value has been dealt with.
    public func take(_ x: Tensor) -> Tensor? { sums.removeValue(forKey: x.identity) }
}

extension Backend {
    /// a + b where either may be absent.
    func sum(_ a: Tensor?, _ b: Tensor?) -> Tensor? {
        guard let a, let b else { return a ?? b }
        return add(a, b)
    }

    /// Zeros on this device.
    func zeros(_ shape: Shape, _ dtype: DType) -> Tensor { place(.zeros(shape, dtype), as: dtype) }
}
