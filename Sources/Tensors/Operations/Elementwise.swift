/// Element-wise operations: gated sums, sampler steps, noise.

extension Operation {
    /// x + y * gate; the gate and the product are rounded to the dtype of x. x, y: [tokens, dim] → same
    public struct GatedAdd: OperationFacts {
        public static let name = "gatedAdd"
        public var x, y: Tensor
        /// f32 [dim]; nil for 1.
        public var gate: Tensor?

        public var fits: Bool { x.shape == y.shape && gate.isVector(of: x.shape.columns) }
        public var results: [ResultType] { [ResultType(x.shape, x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&y, .activation)
            Tensors.visit(&gate, .parameter, tensor)
        }
        public var operation: Operation { .gatedAdd(self) }
    }

    /// gelu_tanh(gate) * up, as in umT5's feed-forward; gelu's result is rounded to the dtype of gate.
    /// gate, up: of equal shape → same
    public struct GELUGate: OperationFacts {
        public static let name = "geluGate"
        public var gate, up: Tensor
        /// Quantises the result for the next linear layer.
        public var format: LinearFormat

        public var fits: Bool { gate.shape == up.shape && gate.dtype == up.dtype }
        public var results: [ResultType] { [ResultType(gate.shape, gate.dtype, format)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&gate, .activation)
            tensor(&up, .activation)
        }
        public var operation: Operation { .geluGate(self) }
    }

    /// One rCM step in f64. With noise (SDE): (1 - next) * (x - t v) + next * noise; without (ODE): x - (t - next) * v.
    public struct RCMStep: OperationFacts {
        public static let name = "rcmStep"
        /// f64 and f32, of equal shape
        public var x, velocity: Tensor
        /// f32
        public var noise: Tensor?
        public var t, next: Double

        public var fits: Bool {
            x.dtype == .f64 && velocity.dtype == .f32 && x.shape == velocity.shape
                && noise.map { $0.shape == x.shape && $0.dtype == .f32 } ?? true
        }
        public var results: [ResultType] { [ResultType(x.shape, .f64)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            tensor(&velocity, .activation)
            Tensors.visit(&noise, .activation, tensor)
        }
        public var operation: Operation { .rcmStep(self) }
    }

    /// sum_i coefficients[i] * terms[i], accumulated in f64, rounded to `dtype` (samplers, guidance).
    public struct Combine: OperationFacts {
        public static let name = "combine"
        /// 1 to 5 tensors of equal shape, f32 or f64
        public var terms: [Tensor]
        public var coefficients: [Double]
        public var dtype: DType

        public var fits: Bool {
            (1...5).contains(terms.count) && terms.count == coefficients.count
                && terms.allSatisfy {
                    $0.shape == terms[0].shape && ($0.dtype == .f32 || $0.dtype == .f64)
                }
        }
        public var results: [ResultType] { [ResultType(terms[0].shape, dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            Tensors.visit(&terms, tensor)
        }
        public var operation: Operation { .combine(self) }
    }

    /// Standard normal numbers equal to `torch.randn(device: "cuda")`; see `PhiloxNoise`. → f32
    public struct Noise: OperationFacts {
        public static let name = "noise"
        public var shape: Shape
        public var draw: PhiloxNoise.Draw

        public var fits: Bool { true }
        public var results: [ResultType] { [ResultType(shape, .f32)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {}
        public var operation: Operation { .noise(self) }
    }
}

extension Backend {
    /// See `Operation.GatedAdd`.
    public func gatedAdd(_ x: Tensor, _ y: Tensor, gate: Tensor?) -> Tensor {
        result(of: Operation.GatedAdd(x: x, y: y, gate: gate))
    }

    /// x + y, of equal shape, in the dtype of x.
    public func add(_ x: Tensor, _ y: Tensor) -> Tensor { gatedAdd(x, y, gate: nil) }

    /// See `Operation.GELUGate`.
    public func geluGate(_ gate: Tensor, _ up: Tensor, format: LinearFormat) -> Tensor {
        result(of: Operation.GELUGate(gate: gate, up: up, format: format))
    }

    /// See `Operation.RCMStep`.
    public func rcmStep(
        _ x: Tensor, velocity: Tensor, noise: Tensor?, t: Double, next: Double
    ) -> Tensor {
        result(of: Operation.RCMStep(x: x, velocity: velocity, noise: noise, t: t, next: next))
    }

    /// See `Operation.Combine`.
    public func combine(_ terms: [Tensor], _ coefficients: [Double], as dtype: DType) -> Tensor {
        result(of: Operation.Combine(terms: terms, coefficients: coefficients, dtype: dtype))
    }

    /// See `Operation.Noise`.
    public func noise(_ shape: Shape, generator: inout PhiloxNoise) -> Tensor {
        result(of: Operation.Noise(shape: shape, draw: generator.draw(shape.count)))
    }
}
