/// `--device` and `--devices`: the names of devices as options.

public import ArgumentParser
public import Devices
import Tensors

extension DeviceChoice: ExpressibleByArgument {
    public static var allValueStrings: [String] { names }
}

extension DeviceGroup: ExpressibleByArgument {}

/// Where a run computes: on one device or on a group.
struct Machines {
    let device: DeviceChoice
    let group: DeviceGroup?

    /// - Throws: where both are given.
    static func check(_ device: DeviceChoice, _ group: DeviceGroup?) throws {
        if group != nil, device != .automatic {
            throw ValidationError(
                "--device and --devices exclude each other: both tell where to compute")
        }
    }

    var isGPU: Bool { group?.isGPU ?? device.isGPU }
    /// Bytes that other programs have left, on the device that has the least.
    var freeMemory: Int? { group == nil ? device.freeMemory : group?.freeMemory }
    var cardName: String? { group == nil ? device.cardName : group?.cardName }
    /// - Throws: where a GPU of the group is not there.
    var count: Int { get throws { try group?.count ?? 1 } }

    /// What opens each device, on its own thread.
    /// - Parameter note: is called from any thread.
    func openers(
        _ options: DeviceOptions, note: @escaping @Sendable (DeviceNote) -> Void
    ) throws -> [@Sendable () throws -> any Backend] {
        if let group { return try group.openers(options, note: note) }
        let device = device
        return [{ try device.open(options, note: note) }]
    }
}
