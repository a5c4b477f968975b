/// Derivatives of what moves numbers: each undoes the move.

extension Operation {
    /// Tokens with features in the order (channel, kh, kw) back to latents: undoes `Patchify`.
    /// cotangent: [T*(H/p)*(W/p), C * p*p] → f32 [C, T, H, W]
    public struct PatchifyGradient: OperationFacts {
        public static let name = "patchifyGradient"
        public var cotangent: Tensor
        /// Of the latents.
        public var size: Extent
        public var patch: Int

        public var fits: Bool {
            cotangent.shape.rank == 2 && size.h % patch == 0 && size.w % patch == 0
                && cotangent.shape[0] == size.t * (size.h / patch) * (size.w / patch)
                && cotangent.shape[1] % (patch * patch) == 0
        }
        public var results: [ResultType] {
            [ResultType([cotangent.shape[1] / (patch * patch), size.t, size.h, size.w], .f32)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&cotangent, .activation)
        }
        public var operation: Operation { .training(.patchifyGradient(self)) }
    }

    /// Latents to tokens with features in the order (kh, kw, channel): undoes `Unpatchify`.
    /// cotangent: f32 [C, T, H, W] → [T*(H/p)*(W/p), p*p * C] in `dtype`
    public struct UnpatchifyGradient: OperationFacts {
        public static let name = "unpatchifyGradient"
        public var cotangent: Tensor
        public var dtype: DType
        public var patch: Int

        public var fits: Bool {
            cotangent.shape.rank == 4 && cotangent.shape[2] % patch == 0
                && cotangent.shape[3] % patch == 0
        }
        public var results: [ResultType] {
            let size = cotangent.shape
            return [
                ResultType(
                    [size[1] * (size[2] / patch) * (size[3] / patch), patch * patch * size[0]],
                    dtype)
            ]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&cotangent, .activation)
        }
        public var operation: Operation { .training(.unpatchifyGradient(self)) }
    }
}

extension Operation {
    /// The first two axes in the other order. x: [a, b, ...] → [b, a, ...]
    public struct SwapRows: OperationFacts {
        public static let name = "swapRows"
        public var x: Tensor

        public var fits: Bool { x.shape.rank >= 2 }
        public var results: [ResultType] {
            [ResultType(Shape([x.shape[1], x.shape[0]] + x.shape.dimensions[2...]), x.dtype)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .training(.swapRows(self)) }
    }
}

extension Operation {
    /// Zeros around some rows: undoes a look at them. x: [n, ...] → [before + n + after, ...]
    public struct PadRows: OperationFacts {
        public static let name = "padRows"
        public var x: Tensor
        public var before, after: Int

        public var fits: Bool { x.shape.rank >= 1 && before >= 0 && after >= 0 }
        public var results: [ResultType] {
            [ResultType(x.shape.replacingFirst(before + x.shape[0] + after), x.dtype)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .training(.padRows(self)) }
    }
}

extension Backend {
    /// The first two axes in the other order. x: [a, b, ...] → [b, a, ...]
    public func swapRows(_ x: Tensor) -> Tensor { result(of: Operation.SwapRows(x: x)) }

    /// Zeros around x. x: [n, ...] → [before + n + after, ...]
    public func padRows(_ x: Tensor, before: Int, after: Int) -> Tensor {
        result(of: Operation.PadRows(x: x, before: before, after: after))
    }
}

extension Operation.SwapRows: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        gradients.add(device.swapRows(cotangent), to: x)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? { tangent(x).map(device.swapRows) }
}

extension Operation.View: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        guard let rows else { return gradients.add(cotangent, to: x) }
        // The rows that are not looked at get zeros.
        let seen = device.reshape(cotangent, x.shape.replacingFirst(rows.count))
        gradients.add(
            device.padRows(
                seen, before: rows.lowerBound, after: x.shape[0] - rows.upperBound), to: x)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map {
            device.result(of: Operation.View(x: $0, rows: rows, shape: shape))
        }
    }
}

extension Operation.Concatenate: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        var start = 0
        for part in parts {
            let end = start + part.shape[0]
            if gradients.wants(part) {
                gradients.add(device.slice(cotangent, start..<end), to: part)
            }
            start = end
        }
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let tangents = parts.map(tangent)
        guard tangents.contains(where: { $0 != nil }) else { return nil }
        return device.concatenate(
            zip(tangents, parts).map { $0 ?? device.zeros($1.shape, $1.dtype) })
    }
}

extension Operation.Patchify: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard parts.contains(where: gradients.wants) else { return }
        let size = parts[0].shape
        let latents = device.result(
            of: Operation.PatchifyGradient(
                cotangent: cotangent, size: Extent(t: size[1], h: size[2], w: size[3]),
                patch: patch))
        var channel = 0
        for part in parts {
            let end = channel + part.shape[0]
            if gradients.wants(part) {
                gradients.add(device.slice(latents, channel..<end), to: part)
            }
            channel = end
        }
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        let tangents = parts.map(tangent)
        guard tangents.contains(where: { $0 != nil }) else { return nil }
        return device.patchify(
            zip(tangents, parts).map { $0 ?? device.zeros($1.shape, $1.dtype) }, dtype: dtype,
            patch: patch)
    }
}

extension Operation.Unpatchify: DifferentiableOperation {
    public func reverse(
        _ cotangent: Tensor, result: Tensor, into gradients: Gradients, on device: any Backend
    ) {
        guard gradients.wants(x) else { return }
        gradients.add(
            device.result(
                of: Operation.UnpatchifyGradient(
                    cotangent: cotangent, dtype: x.dtype, patch: patch)), to: x)
    }

    public func forward(
        _ tangent: (Tensor) -> Tensor?, result: Tensor, on device: any Backend
    ) -> Tensor? {
        tangent(x).map { device.unpatchify($0, size: size, patch: patch) }
    }
}
