/// What the processes of a run share of one net: gradients are summed, and each process keeps the masters, moments and
/// averages of some parameters, moves those and gives them to the others.

import Checkpoints
import Ground
import Tensors

/// What the processes of a run share out.
public enum Sharding: String, Sendable, Hashable, Codable, CaseIterable {
    /// Masters, moments and averages, as ZeRO-1 does.
    case none
    /// Weights of all nets and gradients, too, as FSDP and ZeRO-3 do.
    case full
}

/// Who keeps which parameters of a net.
final class Sharing {
    let group: ProcessGroup
    private let parameters: Parameters
    private let owners: [String: Int]
    private let device: any Backend
    /// Whether what nets see is split, too: gradients come as sums of own parameters then.
    private let isSharded: Bool
    /// Those that had a gradient last, in the parameters' order.
    private var moved: [String] = []

    init(
        _ parameters: Parameters, _ group: ProcessGroup, on device: any Backend, isSharded: Bool
    ) {
        self.group = group
        self.parameters = parameters
        self.device = device
        self.isSharded = isSharded
        owners = Self.owners(of: parameters, count: group.place.count)
    }

    /// - Parameter missing: tensors beside the checkpoint's own.
    static func owners(
        of checkpoint: any Checkpoint, missing: [(name: String, shape: Shape)] = [], count: Int
    ) -> [String: Int] {
        let absent = missing.filter { checkpoint.info($0.name) == nil }
        return owners(
            checkpoint.names.map { ($0, checkpoint.info($0)!.shape.reduce(1, *)) }
                + absent.map { ($0.name, $0.shape.count) }, count: count)
    }

    /// The largest tensors first, each to whoever has least so far: the same in all processes.
    static func owners(_ sizes: [(name: String, count: Int)], count: Int) -> [String: Int] {
        var owners: [String: Int] = [:]
        var loads = [Int](repeating: 0, count: count)
        for (name, size) in sizes.sorted(by: { ($1.count, $0.name) < ($0.count, $1.name) }) {
            let least = loads.indices.min { (loads[$0], $0) < (loads[$1], $1) }!
            owners[name] = least
            loads[least] += size
        }
        return owners
    }

    func isOwn(_ name: String) -> Bool { owners[name] == group.place.rank }

    /// Whether this process has what nets see of a parameter.
    func isSeen(_ name: String) -> Bool { !isSharded || isOwn(name) }

    /// The parameters of the list, as the group takes them. A tensor of another process only tells its shape and type.
    private func owned(_ names: [String], _ dtype: DType, _ values: (String) -> Tensor?)
        -> [ProcessGroup.Owned]
    {
        names.map { name in
            ProcessGroup.Owned(
                name: name,
                tensor: values(name) ?? .outline(Shape(parameters.info(name)!.shape), dtype),
                owner: owners[name]!)
        }
    }

    /// Sums gradients over all processes. A parameter has one where any process has one.
    /// - Returns: those of own parameters, f32.
    func sum(_ gradients: [String: Tensor]) throws -> [String: Tensor] {
        if isSharded { return gradients }
        let flags = try group.sum(parameters.names.map { gradients[$0] == nil ? 0 : 1 })
        moved = zip(parameters.names, flags).compactMap { $1 > 0 ? $0 : nil }
        return try group.sums(
            owned(moved, .f32) {
                gradients[$0]
                    ?? device.place(.zeros(Shape(parameters.info($0)!.shape), .f32), as: .f32)
            }, on: device)
    }

    /// Gives all processes what nets see of the parameters that had a gradient last.
    func spread() throws {
        if isSharded { return parameters.othersMoved() }
        let found = try group.spread(
            owned(moved, parameters.dtype) { parameters.tensor($0) }, on: device)
        for (name, tensor) in found { parameters.see(name, tensor) }
    }

    /// What belongs to parameters, such as their moments, of all owners: at the first process, on the host; what no
    /// owner has is left out. values: f32, those of own parameters
    func collected(_ values: [String: Tensor]) throws -> [String: Tensor] {
        let flags = try group.sum(
            parameters.names.map { isOwn($0) && values[$0] != nil ? 1 : 0 })
        let names = zip(parameters.names, flags).compactMap { $1 > 0 ? $0 : nil }
        return try group.collected(owned(names, .f32) { values[$0] }, on: device)
    }
}
