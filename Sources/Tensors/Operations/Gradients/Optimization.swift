/// What moves parameters: AdamW, and the sums and conversions around it.

import Ground

extension Operation {
    /// x as another floating-point type, to nearest even.
    public struct Cast: OperationFacts {
        public static let name = "cast"
        public var x: Tensor
        public var dtype: DType

        public var fits: Bool { x.dtype.isFloatingPoint && dtype.isFloatingPoint }
        public var results: [ResultType] { [ResultType(x.shape, dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .training(.cast(self)) }
    }

    /// sum a b in f64: norms of gradients, losses. → f64 [1]
    public struct Dot: OperationFacts {
        public static let name = "dot"
        public var a, b: Tensor

        public var fits: Bool { a.shape == b.shape }
        public var results: [ResultType] { [ResultType([1], .f64)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&a, .activation)
            tensor(&b, .activation)
        }
        public var operation: Operation { .training(.dot(self)) }
    }

    /// One step of Adam with decoupled weight decay, all f32 (arXiv 1711.05101; NVIDIA's FusedAdam, `adam_w_mode`):
    /// m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr ((m / (1-b1^n)) / (sqrt(v / (1-b2^n)) + eps) + decay w).
    /// master, mean, square: f32 [...], gradient: [...] → the three again
    public struct AdamW: OperationFacts {
        public static let name = "adamW"
        public var master, mean, square, gradient: Tensor
        public var settings: Settings

        /// The same for all parameters of a step.
        public struct Settings: Sendable, Hashable {
            public var learningRate: Float
            public var beta1, beta2, epsilon, decay: Float
            /// n, from 1.
            public var step: Int
            /// The gradient counts times this (clipping, accumulation).
            public var gradientScale: Float

            public init(
                learningRate: Float, beta1: Float, beta2: Float, epsilon: Float, decay: Float,
                step: Int, gradientScale: Float = 1
            ) {
                self.learningRate = learningRate
                self.beta1 = beta1
                self.beta2 = beta2
                self.epsilon = epsilon
                self.decay = decay
                self.step = step
                self.gradientScale = gradientScale
            }
        }

        public var fits: Bool {
            [master, mean, square].allSatisfy {
                $0.dtype == .f32 && $0.shape.count == gradient.shape.count
            } && settings.step >= 1
        }
        public var results: [ResultType] {
            [ResultType](repeating: ResultType(master.shape, .f32), count: 3)
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&master, .parameter)
            tensor(&mean, .parameter)
            tensor(&square, .parameter)
            tensor(&gradient, .activation)
        }
        public var operation: Operation { .training(.adamW(self)) }
    }
}

extension Backend {
    /// x as another floating-point type; itself where it is one.
    public func cast(_ x: Tensor, to dtype: DType) -> Tensor {
        x.dtype == dtype ? x : result(of: Operation.Cast(x: x, dtype: dtype))
    }

    /// sum a b in f64. → f64 [1]
    public func dot(_ a: Tensor, _ b: Tensor) -> Tensor { result(of: Operation.Dot(a: a, b: b)) }

    /// One AdamW step of one parameter.
    public func adamW(
        master: Tensor, mean: Tensor, square: Tensor, gradient: Tensor,
        _ settings: Operation.AdamW.Settings
    ) -> (master: Tensor, mean: Tensor, square: Tensor) {
        let found = results(
            of: Operation.AdamW(
                master: master, mean: mean, square: square, gradient: gradient, settings: settings))
        return (found[0], found[1], found[2])
    }
}
