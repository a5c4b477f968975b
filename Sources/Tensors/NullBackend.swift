/// A backend that computes nothing: it checks shapes, counts work and measures memory. A run is planned by running
/// the models' own code on it.

import Ground

/// Its tensors have a size but no memory. The cost of an operation is a lower bound: every input read once, every
/// output written once.
public final class NullBackend: Backend {
    public let name = "no device"
    public let readsNumbers = false
    public let membership: Membership
    /// Work since the last `resetCounts()`, by name of operation.
    public private(set) var counts: [String: Operation.Cost] = [:]
    /// Bytes of each group of weights, in the order of loading. Groups that leave the device after use (`isVisitor`) do
    /// not count as placed bytes.
    public private(set) var groups: [(name: String, byteCount: Int, isVisitor: Bool)] = []
    private weak var lastGroup: WeightGroup?
    private let ledger: Ledger
    private let workspace: ((Operation) -> Int)?

    /// - Parameters:
    ///   - granularity: allocations are rounded up to a multiple of this many bytes.
    ///   - workspace: bytes of scratch memory that a device needs during an operation.
    ///   - membership: which device of a group is stood in for.
    public init(
        granularity: Int = 512, workspace: ((Operation) -> Int)? = nil,
        membership: Membership = .alone
    ) {
        self.membership = membership
        ledger = Ledger(granularity: granularity)
        self.workspace = workspace
    }

    // MARK: Reports

    /// All work since the last `resetCounts()`.
    public var total: Operation.Cost { counts.values.reduce(into: Operation.Cost()) { $0 += $1 } }

    /// Forgets the work counted so far.
    public func resetCounts() { counts = [:] }

    public var memory: MemoryUse {
        MemoryUse(current: ledger.placed + ledger.computed, peak: ledger.peak)
    }
    /// Bytes copied from the host: weights, tables, constants.
    public var placedBytes: Int { ledger.placed }
    /// Bytes of results of operations: now, and the most since the last `resetPeak()`, which includes scratch memory.
    public var activations: MemoryUse {
        MemoryUse(current: ledger.computed, peak: ledger.computedPeak)
    }

    public func resetPeak() { ledger.resetPeak() }
    public func synchronize() throws {}

    // MARK: Storage

    /// Counts the bytes in use, and the most in use at once.
    private final class Ledger {
        let granularity: Int
        private(set) var placed = 0
        private(set) var computed = 0
        private(set) var peak = 0
        private(set) var computedPeak = 0

        init(granularity: Int) {
            ensure(granularity > 0, "NullBackend: granularity \(granularity)")
            self.granularity = granularity
        }

        func rounded(_ byteCount: Int) -> Int {
            roundUp(byteCount, to: granularity)
        }
        func hold(_ bytes: Int, isPlaced: Bool) {
            if isPlaced { placed += bytes } else { computed += bytes }
            reach(extra: 0)
        }
        func release(_ bytes: Int, isPlaced: Bool) {
            if isPlaced { placed -= bytes } else { computed -= bytes }
        }
        /// Updates the peaks as if `extra` more bytes were in use for a moment.
        func reach(extra: Int) {
            peak = max(peak, placed + computed + extra)
            computedPeak = max(computedPeak, computed + extra)
        }
        func resetPeak() { (peak, computedPeak) = (placed + computed, computed) }
    }

    /// Storage without memory, which the ledger counts as long as it lives.
    private final class SizeOnly: Storage {
        private let ledger: Ledger
        let isPlaced: Bool
        let rounded: Int

        init(byteCount: Int, isPlaced: Bool, _ ledger: Ledger) {
            self.ledger = ledger
            self.isPlaced = isPlaced
            rounded = ledger.rounded(byteCount)
            super.init(byteCount: byteCount)
            ledger.hold(rounded, isPlaced: isPlaced)
        }

        deinit { ledger.release(rounded, isPlaced: isPlaced) }

        func isOf(_ other: Ledger) -> Bool { ledger === other }
    }

    private func storage(_ byteCount: Int, isPlaced: Bool) -> Storage {
        SizeOnly(byteCount: byteCount, isPlaced: isPlaced, ledger)
    }

    // MARK: Placing

    public func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        // What is here already stays where it is.
        if group == nil, host.dtype == dtype, (host.storage as? SizeOnly)?.isOf(ledger) ?? false {
            return host
        }
        return Tensor(
            host.shape, dtype, storage: placed(host.shape.count * dtype.byteCount, in: group))
    }

    public func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        switch weight {
        case .dense(let matrix): .dense(place(matrix, as: dtype, in: group))
        case .int8Blocks(let matrix, let scale):
            .int8Blocks(
                weight: place(matrix, as: .i8, in: group), scale: place(scale, as: .f32, in: group))
        case .fp8Rows(let matrix, let scale):
            .fp8Rows(
                weight: place(matrix, as: .f8e4m3, in: group),
                scale: place(scale, as: .f32, in: group))
        }
    }

    public func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        let (outputs, inputs) = (weight.shape[0], weight.shape[1])
        func scale(_ shape: Shape) -> Tensor {
            Tensor(shape, .f32, storage: placed(shape.count * 4, in: group))
        }
        return switch format {
        case .plain: .dense(place(weight, as: weight.dtype, in: group))
        case .int8Blocks:
            .int8Blocks(
                weight: place(weight, as: .i8, in: group),
                scale: scale([ceilDivide(outputs, 128), ceilDivide(inputs, 128)]))
        case .fp8Rows:
            .fp8Rows(weight: place(weight, as: .f8e4m3, in: group), scale: scale([outputs]))
        }
    }

    public func place(
        convolution kernel: Tensor, bias: Tensor?, as dtype: DType, in group: WeightGroup?
    ) -> ConvolutionWeight {
        let k = kernel.shape
        ensure(k.rank == 5, "place convolution: [out, in, kT, kH, kW] expected, \(k)")
        return ConvolutionWeight(
            place(kernel, as: dtype, in: group).reshaped([k[0], k[2], k[3], k[4], k[1]]),
            bias: bias.map { place($0, as: .f32, in: group) })
    }

    private func placed(_ bytes: Int, in group: WeightGroup?) -> Storage {
        guard let group else { return storage(bytes, isPlaced: true) }
        let isVisitor = group.isVisitor(byteCount: bytes)
        if lastGroup !== group { groups.append((group.name, 0, false)) }
        lastGroup = group
        groups[groups.count - 1].byteCount += ledger.rounded(bytes)
        if isVisitor { groups[groups.count - 1].isVisitor = true }
        return isVisitor ? Storage(byteCount: bytes) : storage(bytes, isPlaced: true)
    }

    /// Zeros.
    public func read(_ x: Tensor) -> Tensor { .zeros(x.shape, x.dtype) }

    /// Zeros that are made when somebody waits for them.
    private final class Zeros: HostCopy {
        private let shape: Shape
        private let dtype: DType

        init(like x: Tensor) {
            (shape, dtype) = (x.shape, x.dtype)
            super.init()
        }
        override func wait() -> Tensor { .zeros(shape, dtype) }
    }

    public func beginRead(_ x: Tensor) -> HostCopy { Zeros(like: x) }

    /// False: the values are unknown.
    public func equalBits(_ a: Tensor, _ b: Tensor) -> Bool { false }

    // MARK: Operations

    public func run(_ operation: Operation) -> [Tensor] {
        if case .view(let view) = operation { return [view.result] }
        let results = operation.facts.results.map { result in
            Tensor(
                result.shape, result.element,
                storage: storage(result.byteCount, isPlaced: false),
                scales: result.scaleBytes.map { storage($0, isPlaced: false) })
        }
        counts[operation.name, default: Operation.Cost()] += operation.cost
        if let workspace { ledger.reach(extra: workspace(operation)) }
        return results
    }
}
