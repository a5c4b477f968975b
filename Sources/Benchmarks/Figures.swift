/// What measuring a model tells.

import Ground
public import Tensors

/// What is measured.
public enum BenchStage: String, Sendable, CaseIterable {
    case all, text, transformer, decode, encode
    /// Only bringing the models to the device.
    case load
}

/// What one stage took.
public struct StageFigures: Sendable {
    public let name: String
    /// Seconds of the first run, and of those after it; at least one of the two is there.
    public var cold: Double?
    public var warm: [Double] = []
    /// Most device memory during the stage, weights included.
    public var peakBytes = 0
    /// Arithmetic, traffic and least time of one run; nil where operations were not measured.
    public var cost: Operation.Cost?
    public var floor: Double?
    /// Of the latents or frames that were made: equal on machines that compute the same bits.
    public var digest: String?

    /// The median of the warm runs, or the only one.
    public var seconds: Double { warm.isEmpty ? cold ?? .nan : median(warm) }
}

/// Told as the figures come.
public enum BenchEvent: Sendable {
    case stage(StageFigures)
    /// The operations of one run of a stage, the slowest first.
    case operations([TimedOperation], of: String)
}

extension StageFigures {
    /// From the prompt to the frames, models loaded.
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

    /// Adds what the operations of one run tell.
    mutating func add(_ operations: [TimedOperation], against ceilings: Ceilings) {
        cost = operations.reduce(into: Operation.Cost()) { $0 += $1.cost }
        let floors = operations.compactMap { ceilings.floor($0.cost, $0.key.arithmetic) }
        if floors.count == operations.count { floor = floors.reduce(0, +) }
    }
}
