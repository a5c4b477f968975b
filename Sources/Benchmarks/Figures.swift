/// The figures of a measurement.

import Ground
public import Tensors

/// The stages to measure.
public enum BenchStage: String, Sendable, CaseIterable {
    case all, text, transformer, decode, encode
    /// Only loading the models to the device.
    case load
}

/// The figures of one stage.
public struct StageFigures: Sendable {
    public let name: String
    /// Seconds of the first run, and of those after it; at least one of the two is present.
    public var cold: Double?
    public var warm: [Double] = []
    /// The most device memory used during the stage, weights included.
    public var peakBytes = 0
    /// The same by the count; nil where nothing was counted.
    public var plannedBytes: Int?
    /// Arithmetic and memory traffic of one run, and its least time in seconds (`floor`); nil if operations were not
    /// measured.
    public var cost: Operation.Cost?
    public var floor: Double?
    /// Of the latents or frames that were made: equal on machines that compute the same bits.
    public var digest: String?

    /// The median of the warm runs, or the only one.
    public var seconds: Double { warm.isEmpty ? cold ?? .nan : median(warm) }
}

/// Figures, as they come.
public enum BenchEvent: Sendable {
    case stage(StageFigures)
    /// The operations of one run of a stage, the slowest first.
    case operations([TimedOperation], of: String)
}

extension StageFigures {
    /// The sum of stages: from the prompt to the frames, without loading models.
    static func sum(_ stages: [StageFigures]) -> StageFigures {
        var sum = StageFigures(name: "whole (sum)")
        sum.cold = stages.reduce(0) { $0 + ($1.cold ?? $1.seconds) }
        sum.warm = [stages.reduce(0) { $0 + $1.seconds }]
        sum.peakBytes = stages.map(\.peakBytes).max() ?? 0
        let (costs, floors) = (stages.compactMap(\.cost), stages.compactMap(\.floor))
        if costs.count == stages.count, floors.count == stages.count {
            sum.cost = costs.reduce(into: Operation.Cost()) { $0 += $1 }
            sum.floor = floors.reduce(0, +)
        }
        return sum
    }

    /// Adds the arithmetic, traffic and least time of one run's operations.
    mutating func add(_ operations: [TimedOperation], against ceilings: Ceilings) {
        cost = operations.reduce(into: Operation.Cost()) { $0 += $1.cost }
        let floors = operations.compactMap { ceilings.floor($0.cost, $0.key.arithmetic) }
        if floors.count == operations.count { floor = floors.reduce(0, +) }
    }
}
