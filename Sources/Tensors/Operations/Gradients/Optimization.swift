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

extension Operation {
    /// `AdamW` of many parameters at once, with what follows: the numbers that the net sees, and their moving average,
    /// average = w average + (1 - w) seen in f64.
    /// → new masters, means, squares; unless `dtype` is f32, the masters in it; averages
    public struct AdamWList: OperationFacts {
        public static let name = "adamWList"
        /// f32, as many of each.
        public var masters, means, squares: [Tensor]
        public var gradients: [Tensor]
        /// f32; none or all.
        public var averages: [Tensor]
        /// w
        public var averageWeight: Double
        public var dtype: DType
        public var settings: AdamW.Settings

        public var fits: Bool {
            let lists = [masters, means, squares, gradients] + (averages.isEmpty ? [] : [averages])
            return settings.step >= 1 && (dtype == .f32 || dtype == .bf16)
                && lists.allSatisfy { list in
                    list.count == masters.count
                        && zip(list, masters).allSatisfy { $0.shape.count == $1.shape.count }
                }
                && (masters + means + squares + averages).allSatisfy { $0.dtype == .f32 }
        }
        public var results: [ResultType] {
            func all(_ dtype: DType) -> [ResultType] {
                masters.map { ResultType($0.shape, dtype) }
            }
            return all(.f32) + all(.f32) + all(.f32) + (dtype == .f32 ? [] : all(dtype))
                + (averages.isEmpty ? [] : all(.f32))
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            for list in [\Self.masters, \.means, \.squares, \.gradients, \.averages] {
                for index in self[keyPath: list].indices {
                    tensor(&self[keyPath: list][index], .parameter)
                }
            }
        }
        public var operation: Operation { .training(.adamWList(self)) }

        /// One after the other.
        public func composed(on device: any Backend) -> [Tensor] {
            var found: (w: [Tensor], m: [Tensor], v: [Tensor], seen: [Tensor], average: [Tensor]) =
                ([], [], [], [], [])
            for index in masters.indices {
                let moved = device.adamW(
                    master: masters[index], mean: means[index], square: squares[index],
                    gradient: gradients[index], settings)
                found.w.append(moved.master)
                found.m.append(moved.mean)
                found.v.append(moved.square)
                let seen = device.cast(moved.master, to: dtype)
                if dtype != .f32 { found.seen.append(seen) }
                if !averages.isEmpty {
                    found.average.append(
                        device.combine(
                            [averages[index], device.cast(seen, to: .f32)],
                            [averageWeight, 1 - averageWeight], as: .f32))
                }
            }
            return found.w + found.m + found.v + found.seen + found.average
        }
    }

    /// The sum of the squares of all elements of all tensors, in f64. → f64 [1]
    public struct SquareSum: OperationFacts {
        public static let name = "squareSum"
        public var terms: [Tensor]

        public var fits: Bool { !terms.isEmpty }
        public var results: [ResultType] { [ResultType([1], .f64)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            Tensors.visit(&terms, tensor)
        }
        public var operation: Operation { .training(.squareSum(self)) }
    }
}

extension Backend {
    /// One AdamW step of many parameters; averages: [] or as many. See `Operation.AdamWList`.
    /// → new masters, means and squares, the masters in `dtype`, averages
    public func adamW(
        masters: [Tensor], means: [Tensor], squares: [Tensor], gradients: [Tensor],
        averages: [Tensor], averageWeight: Double, seenAs dtype: DType,
        _ settings: Operation.AdamW.Settings
    ) -> (
        masters: [Tensor], means: [Tensor], squares: [Tensor], seen: [Tensor], averages: [Tensor]
    ) {
        let found = results(
            of: Operation.AdamWList(
                masters: masters, means: means, squares: squares, gradients: gradients,
                averages: averages, averageWeight: averageWeight, dtype: dtype,
                settings: settings))
        let count = masters.count
        func list(_ number: Int) -> [Tensor] {
            Array(found[number * count..<(number + 1) * count])
        }
        let isSeen = dtype == .f32
        return (
            list(0), list(1), list(2), isSeen ? list(0) : list(3),
            averages.isEmpty ? [] : list(isSeen ? 3 : 4)
        )
    }

    /// The sum of the squares of all elements. → f64 [1]
    public func squareSum(_ terms: [Tensor]) -> Tensor {
        result(of: Operation.SquareSum(terms: terms))
    }

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
