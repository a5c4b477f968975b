/// Operations in which all devices of a group take part: each gives parts of its tensor to the others. Alone, all are
/// the identity.

import Ground

/// What one device gives to another: `rows` runs of `width` bytes each.
public struct Transfer: Sendable, Hashable {
    /// A run begins `pitch` bytes after the one before.
    public struct Place: Sendable, Hashable {
        public var offset, pitch: Int
    }
    public var rows, width: Int
    /// In the giver's tensor and in the taker's result.
    public var source, target: Place

    public var byteCount: Int { rows * width }

    /// The first half of its way through memory where one run follows the other, for what carries bytes in one piece.
    public var packing: Transfer { with(target: Place(offset: 0, pitch: width)) }
    /// The second half.
    public var unpacking: Transfer { with(source: Place(offset: 0, pitch: width)) }
    /// Whether the runs follow each other there, so that nothing need be packed.
    public func isOnePiece(at place: Place) -> Bool { rows == 1 || place.pitch == width }

    private func with(source: Place? = nil, target: Place? = nil) -> Transfer {
        Transfer(
            rows: rows, width: width, source: source ?? self.source, target: target ?? self.target)
    }

    /// Carries it out in host memory.
    public func copy(from: UnsafeRawPointer, to: UnsafeMutableRawPointer) {
        for row in 0..<rows {
            (to + target.offset + row * target.pitch).copyMemory(
                from: from + source.offset + row * source.pitch, byteCount: width)
        }
    }
}

/// An operation whose result is made of parts of all devices' tensors. Nothing is computed.
public protocol Collective: OperationFacts {
    /// What this device has.
    var x: Tensor { get set }
    var members: Int { get }
    var member: Int { get }
    /// What `giver` gives to `taker`, which may be the same; nil: nothing. All devices reckon the same.
    func transfer(from giver: Int, to taker: Int) -> Transfer?
    /// The same of the scales of 8-bit codes.
    func scaleTransfer(from giver: Int, to taker: Int) -> Transfer?
}

extension Collective {
    public func scaleTransfer(from giver: Int, to taker: Int) -> Transfer? { nil }

    /// The other devices, with what this one gives to each and takes from it.
    public var others: [(member: Int, given: Transfer?, taken: Transfer?)] {
        (0..<members).filter { $0 != member }.map {
            ($0, transfer(from: member, to: $0), transfer(from: $0, to: member))
        }
    }

    /// Bytes that leave this device.
    public var sentBytes: Int { others.reduce(0) { $0 + ($1.given?.byteCount ?? 0) } }
}

extension Operation {
    /// Between rows of all heads and all rows of some heads, as self-attention wants them. On the way back rows may be int8
    /// codes, [rows, own heads * headDim], where a head has whole blocks of them.
    public struct Exchange: Collective {
        public static let name = "exchange"
        public enum Direction: Sendable, Hashable {
            /// [own rows, heads, headDim] → [rows, own heads, headDim]
            case toHeads
            /// [rows, own heads, headDim] → [own rows, heads, headDim]
            case toRows
        }
        public var x: Tensor
        public var direction: Direction
        public var rows, heads: Shares
        public var headDim: Int
        public var member: Int

        public var members: Int { rows.ranges.count }

        private var isQuantized: Bool { x.format != .plain }
        private func shape(_ rows: Int, _ heads: Int) -> Shape {
            isQuantized ? [rows, heads * headDim] : [rows, heads, headDim]
        }
        public var fits: Bool {
            heads.ranges.count == members
                && (isQuantized
                    ? x.format == .int8Blocks && direction == .toRows
                        && headDim % Int8Blocks.side == 0 : x.scales == nil)
                && x.shape
                    == (direction == .toHeads
                        ? shape(rows[member].count, heads.total)
                        : shape(rows.total, heads[member].count))
        }
        public var results: [ResultType] {
            [
                ResultType(
                    direction == .toHeads
                        ? shape(rows.total, heads[member].count)
                        : shape(rows[member].count, heads.total), x.dtype, x.format)
            ]
        }
        public func transfer(from giver: Int, to taker: Int) -> Transfer? {
            transfer(from: giver, to: taker, rows: rows, head: headDim * x.dtype.byteCount)
        }
        public func scaleTransfer(from giver: Int, to taker: Int) -> Transfer? {
            guard isQuantized else { return nil }
            let side = Int8Blocks.side
            return transfer(
                from: giver, to: taker, rows: rows.blocks(of: side), head: headDim / side * 4)
        }

        /// head: bytes of one head of one row
        private func transfer(from giver: Int, to taker: Int, rows: Shares, head: Int) -> Transfer?
        {
            let (rowOwner, headOwner) = direction == .toHeads ? (giver, taker) : (taker, giver)
            let (rows, part) = (rows[rowOwner], heads[headOwner])
            guard !rows.isEmpty, !part.isEmpty else { return nil }
            let ofAllHeads = Transfer.Place(
                offset: part.lowerBound * head, pitch: heads.total * head)
            let ofAllRows = Transfer.Place(
                offset: rows.lowerBound * part.count * head, pitch: part.count * head)
            return Transfer(
                rows: rows.count, width: part.count * head,
                source: direction == .toHeads ? ofAllHeads : ofAllRows,
                target: direction == .toHeads ? ofAllRows : ofAllHeads)
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .exchange(self) }
    }

    /// All shares of an axis on every device. [..., own, ...] → [..., all, ...]
    public struct Gather: Collective {
        public static let name = "gather"
        public var x: Tensor
        public var axis: Int
        public var shares: Shares
        public var member: Int

        public var members: Int { shares.ranges.count }
        public var fits: Bool {
            axis < x.shape.rank && x.scales == nil && x.shape[axis] == shares[member].count
        }
        public var results: [ResultType] {
            var extents = x.shape.dimensions
            extents[axis] = shares.total
            return [ResultType(Shape(extents), x.dtype)]
        }
        public func transfer(from giver: Int, to taker: Int) -> Transfer? {
            let extents = x.shape.dimensions
            let inner = extents[(axis + 1)...].reduce(x.dtype.byteCount, *)
            let own = shares[giver]
            guard !own.isEmpty else { return nil }
            return Transfer(
                rows: extents[..<axis].reduce(1, *), width: own.count * inner,
                source: .init(offset: 0, pitch: own.count * inner),
                target: .init(offset: own.lowerBound * inner, pitch: shares.total * inner))
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .gather(self) }
    }

    /// The rows of the neighbours' frames that a window reaches into: those above this device's rows, then those below. There
    /// are none past the edges of the picture. x: [T, own rows, W, C] → [T, above + below, W, C]
    public struct Halo: Collective {
        public static let name = "halo"
        public var x: Tensor
        public var shares: Shares
        /// How far the window reaches.
        public var above, below: Int
        public var member: Int

        public var members: Int { shares.ranges.count }
        /// Rows that a device is given.
        public func rows(of device: Int) -> (above: Int, below: Int) {
            let own = shares[device]
            return (min(above, own.lowerBound), min(below, shares.total - own.upperBound))
        }
        /// A neighbour has as many rows as the window reaches, so that no second one is asked.
        public var fits: Bool {
            x.shape.rank == 4 && x.scales == nil && x.shape[1] == shares[member].count
                && above >= 0 && below >= 0 && shares.smallest >= max(above, below, 1)
        }
        public var results: [ResultType] {
            let (above, below) = rows(of: member)
            let s = x.shape
            return [ResultType([s[0], above + below, s[2], s[3]], x.dtype)]
        }
        public func transfer(from giver: Int, to taker: Int) -> Transfer? {
            guard abs(giver - taker) == 1 else { return nil }
            let line = x.shape[2] * x.shape[3] * x.dtype.byteCount
            let (above, below) = rows(of: taker)
            let given = shares[giver].count
            /// Lines, and where they begin in the giver's rows and in the result.
            let (count, from, to) =
                giver < taker ? (above, given - above, 0) : (below, 0, above)
            guard count > 0 else { return nil }
            return Transfer(
                rows: x.shape[0], width: count * line,
                source: .init(offset: from * line, pitch: given * line),
                target: .init(offset: to * line, pitch: (above + below) * line))
        }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
        }
        public var operation: Operation { .halo(self) }
    }

    /// Frames between the rows of their neighbours. x: [T, H, W, C] → [T, above + H + below, W, C]
    public struct JoinRows: OperationFacts {
        public static let name = "joinRows"
        public var x: Tensor
        public var margin: Margin

        public var fits: Bool { margin.fits(x) }
        public var results: [ResultType] { [ResultType(margin.joined(x.shape), x.dtype)] }
        public mutating func visit(_ tensor: (inout Tensor, Role) -> Void) {
            tensor(&x, .activation)
            margin.visit(tensor)
        }
        public var operation: Operation { .joinRows(self) }

        /// What the result is made of.
        public var parts: [(tensor: Tensor, transfer: Transfer)] { margin.parts(around: x) }
    }

    /// The operation as a collective; nil for those that a device carries out by itself.
    public var collective: (any Collective)? {
        switch self {
        case .exchange(let o): o
        case .gather(let o): o
        case .halo(let o): o
        default: nil
        }
    }
}

extension Backend {
    /// Own rows of all heads → all rows of own heads. x: [own rows, heads, headDim] → [rows, own heads, headDim]
    public func exchangeToHeads(_ x: Tensor, rows: Int) -> Tensor {
        exchange(x, .toHeads, rows: rows, heads: x.shape[1], headDim: x.shape.columns)
    }

    /// All rows of own heads → own rows of all heads. x: [rows, own heads, headDim] or its int8 codes
    /// [rows, own heads * headDim] → [own rows, heads, headDim], or codes
    public func exchangeToRows(_ x: Tensor, heads: Int, headDim: Int) -> Tensor {
        exchange(x, .toRows, rows: x.shape[0], heads: heads, headDim: headDim)
    }

    private func exchange(
        _ x: Tensor, _ direction: Operation.Exchange.Direction, rows: Int, heads: Int, headDim: Int
    ) -> Tensor {
        if membership.isAlone { return x }
        return result(
            of: Operation.Exchange(
                x: x, direction: direction, rows: membership.sequence(rows),
                heads: membership.heads(heads), headDim: headDim, member: membership.index))
    }

    /// All shares of an axis. x: [..., own, ...] → [..., all, ...]
    public func gather(_ x: Tensor, _ shares: Shares, axis: Int = 0) -> Tensor {
        if membership.isAlone { return x }
        return result(
            of: Operation.Gather(x: x, axis: axis, shares: shares, member: membership.index))
    }

    /// The rows of the neighbours that a window reaches into. x: [T, own rows, W, C]
    public func halo(_ x: Tensor, _ shares: Shares, above: Int, below: Int) -> Margin {
        if membership.isAlone || above + below == 0 { return .none }
        let operation = Operation.Halo(
            x: x, shares: shares, above: above, below: below, member: membership.index)
        let rows = operation.rows(of: membership.index)
        return Margin(result(of: operation), above: rows.above, below: rows.below)
    }

    /// x between the rows of its neighbours. x: [T, H, W, C]
    public func joinRows(_ x: Tensor, _ margin: Margin) -> HaloedFrames {
        margin.isEmpty
            ? HaloedFrames(x)
            : HaloedFrames(
                result(of: Operation.JoinRows(x: x, margin: margin)), above: margin.above,
                below: margin.below)
    }
}

/// Rows of other devices above and below a device's own rows of the picture.
public struct Margin {
    /// [T, above + below, W, C]; nil where there are none.
    public var rows: Tensor?
    public let above, below: Int

    public static var none: Margin { Margin() }
    private init() { (rows, above, below) = (nil, 0, 0) }

    public init(_ rows: Tensor, above: Int, below: Int) {
        (self.rows, self.above, self.below) = (above + below == 0 ? nil : rows, above, below)
    }

    public var isEmpty: Bool { rows == nil }

    func fits(_ x: Tensor) -> Bool {
        guard let rows else { return above == 0 && below == 0 }
        let s = x.shape
        return s.rank == 4 && rows.shape == [s[0], above + below, s[2], s[3]]
            && rows.dtype == x.dtype
    }

    func joined(_ x: Shape) -> Shape {
        isEmpty ? x : [x[0], above + x[1] + below, x[2], x[3]]
    }

    mutating func visit(_ tensor: (inout Tensor, Operation.Role) -> Void) {
        Tensors.visit(&rows, .activation, tensor)
    }

    /// Where the rows of x and those around it are in the joined frames, x's first. x: [T, H, W, C]
    public func parts(around x: Tensor) -> [(tensor: Tensor, transfer: Transfer)] {
        let (height, line) = (x.shape[1], x.shape[2] * x.shape[3] * x.dtype.byteCount)
        func part(_ tensor: Tensor, _ count: Int, from: Int, to: Int) -> (Tensor, Transfer)? {
            count == 0
                ? nil
                : (
                    tensor,
                    Transfer(
                        rows: x.shape[0], width: count * line,
                        source: .init(offset: from * line, pitch: tensor.shape[1] * line),
                        target: .init(offset: to * line, pitch: (above + height + below) * line))
                )
        }
        return [
            part(x, height, from: 0, to: above),
            rows.flatMap { part($0, above, from: 0, to: 0) },
            rows.flatMap { part($0, below, from: above, to: above + height) },
        ].compactMap(\.self)
    }
}

/// Frames with rows of other devices above and below a device's own.
public struct HaloedFrames {
    /// [T, above + own rows + below, W, C]
    public let frames: Tensor
    public let above, below: Int

    public init(_ frames: Tensor, above: Int = 0, below: Int = 0) {
        (self.frames, self.above, self.below) = (frames, above, below)
    }
}
