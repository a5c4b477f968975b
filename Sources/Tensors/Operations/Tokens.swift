/// Operations that only move numbers: views, rows of a vocabulary, latents to tokens and back.

extension Operation {
    /// Entries `rows` of the outermost axis of x, or all of them, under another shape. Shares x's memory and computes
    /// nothing; it is an operation only so that a backend that records a model sees where a value comes from.
    public struct View: OperationFacts {
        public static let name = "view"
        public var x: Tensor
        public var rows: Range<Int>?
        public var shape: Shape

        /// The result, the same on every device.
        public var result: Tensor { (rows.map { x.slice($0) } ?? x).reshaped(shape) }

        public var fits: Bool {
            guard let rows else { return shape.count == x.shape.count }
            return x.shape.rank > 0 && rows.lowerBound >= 0 && rows.upperBound <= x.shape[0]
                && shape.count == rows.count * x.shape.tail.count && x.scales == nil
        }
        public var results: [ResultType] { [ResultType(shape, x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .view(self) }
    }

    /// Joins tensors along the outermost axis; a single one is copied too. [a, ...], [b, ...] → [a + b, ...]
    public struct Concatenate: OperationFacts {
        public static let name = "concatenate"
        public var parts: [Tensor]

        public var fits: Bool {
            guard let first = parts.first, first.shape.rank > 0 else { return false }
            return parts.allSatisfy {
                $0.shape.rank == first.shape.rank && $0.shape.tail == first.shape.tail
                    && $0.dtype == first.dtype && $0.scales == nil
            }
        }
        public var shape: Shape {
            parts[0].shape.replacingFirst(parts.reduce(0) { $0 + $1.shape[0] })
        }
        public var results: [ResultType] { [ResultType(shape, parts[0].dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            Tensors.visit(&parts, tensor)
        }
        public var operation: Operation { .concatenate(self) }
    }

    /// Rows of a table that stays in host memory, because a vocabulary is large and a prompt is short.
    /// table: [vocabulary, dim] on the host, ids: [n] → [n, dim] in `dtype`
    public struct Embedding: OperationFacts {
        public static let name = "embedding"
        public var ids: [Int32]
        public var table: Tensor
        public var dtype: DType

        public var fits: Bool {
            table.shape.rank == 2
                && ids.allSatisfy { $0 >= 0 && Int($0) < table.shape[0] }
        }
        public var results: [ResultType] { [ResultType([ids.count, table.shape[1]], dtype)] }
        /// Visits nothing: the table is not on the device.
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {}
        public var operation: Operation { .embedding(self) }

        public func composed(on device: any Backend) -> Tensor {
            device.place(table.gatheredRows(ids), as: dtype)
        }
    }

    /// Latents to tokens, with features in the order (channel, kt, kh, kw).
    /// parts: tensors [C_i, T, H, W] whose channels are concatenated → [T*(H/p)*(W/p), sum C_i * p*p] in `dtype`
    public struct Patchify: OperationFacts {
        public static let name = "patchify"
        public var parts: [Tensor]
        public var dtype: DType
        /// p: rows and columns of a token.
        public var patch: Int

        public var fits: Bool {
            guard let size = parts.first?.shape else { return false }
            return parts.allSatisfy { $0.shape.rank == 4 && $0.shape.tail == size.tail }
                && size[2] % patch == 0 && size[3] % patch == 0
        }
        public var results: [ResultType] {
            let size = parts[0].shape
            let channels = parts.reduce(0) { $0 + $1.shape[0] }
            let tokens = size[1] * (size[2] / patch) * (size[3] / patch)
            return [ResultType([tokens, patch * patch * channels], dtype)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            Tensors.visit(&parts, tensor)
        }
        public var operation: Operation { .patchify(self) }
    }

    /// The transformer's output back to latents, with features in the order (kt, kh, kw, channel).
    /// x: [T*(H/p)*(W/p), p*p * C] → f32 [C, T, H, W]
    public struct Unpatchify: OperationFacts {
        public static let name = "unpatchify"
        public var x: Tensor
        /// Frames, rows and columns of the latents.
        public var size: Extent
        /// p: rows and columns of a token.
        public var patch: Int

        public var fits: Bool {
            x.shape.rank == 2 && size.h % patch == 0 && size.w % patch == 0
                && x.shape[0] == size.t * (size.h / patch) * (size.w / patch)
                && x.shape[1] % (patch * patch) == 0
        }
        public var results: [ResultType] {
            [ResultType([x.shape[1] / (patch * patch), size.t, size.h, size.w], .f32)]
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .unpatchify(self) }
    }
}

extension Backend {
    /// The same elements under another shape of equal count.
    public func reshape(_ x: Tensor, _ shape: Shape) -> Tensor {
        x.shape == shape ? x : result(of: Operation.View(x: x, rows: nil, shape: shape))
    }

    /// Entries `rows` of the outermost axis. x: [n, ...] → [rows.count, ...]
    public func slice(_ x: Tensor, _ rows: Range<Int>) -> Tensor {
        if x.shape.rank > 0, rows == 0..<x.shape[0] { return x }
        return result(
            of: Operation.View(x: x, rows: rows, shape: x.shape.replacingFirst(rows.count)))
    }

    /// Entry `index` of the outermost axis. x: [n, ...] → [...]
    public func entry(_ x: Tensor, _ index: Int) -> Tensor {
        result(of: Operation.View(x: x, rows: index..<index + 1, shape: x.shape.tail))
    }

    /// See `Operation.Concatenate`.
    public func concatenate(_ parts: [Tensor]) -> Tensor {
        result(of: Operation.Concatenate(parts: parts))
    }

    /// See `Operation.Embedding`.
    public func embedding(_ ids: [Int32], hostTable table: Tensor, as dtype: DType) -> Tensor {
        result(of: Operation.Embedding(ids: ids, table: table, dtype: dtype))
    }

    /// See `Operation.Patchify`.
    public func patchify(_ parts: [Tensor], dtype: DType, patch: Int = 2) -> Tensor {
        result(of: Operation.Patchify(parts: parts, dtype: dtype, patch: patch))
    }

    /// See `Operation.Unpatchify`.
    public func unpatchify(_ x: Tensor, size: Extent, patch: Int = 2) -> Tensor {
        result(of: Operation.Unpatchify(x: x, size: size, patch: patch))
    }
}
