/// One device, or a group.

public import Tensors

/// Where a run computes: on one device or on a group.
public struct Machines: Sendable, Hashable {
    public let device: DeviceChoice
    public let group: DeviceGroup?

    /// - Parameter group: takes the place of `device`.
    public init(device: DeviceChoice = .automatic, group: DeviceGroup? = nil) {
        self.device = device
        self.group = group
    }

    public var isGPU: Bool { group?.isGPU ?? device.isGPU }
    /// The device with the least memory that other programs have left, and the bytes of it.
    public var leastFree: (device: DeviceChoice, bytes: Int)? {
        group == nil ? device.freeMemory.map { (device, $0) } : group?.leastFree
    }
    public var freeMemory: Int? { leastFree?.bytes }
    public var cardName: String? { group == nil ? device.cardName : group?.cardName }
    /// Whether its devices copy weights from each other's memory.
    public var sharesWeights: Bool { group?.sharesWeights ?? false }
    /// - Throws: where a GPU of the group is not there.
    public var count: Int { get throws { try group?.count ?? 1 } }

    /// What opens each device, on its own thread.
    /// - Parameter note: is called from any thread.
    public func openers(
        _ options: DeviceOptions, note: @escaping @Sendable (DeviceNote) -> Void
    ) throws -> [@Sendable () throws -> any Backend] {
        if let group { return try group.openers(options, note: note) }
        let device = device
        return [{ try device.open(options, note: note) }]
    }
}
