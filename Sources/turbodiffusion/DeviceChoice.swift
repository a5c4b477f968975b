/// `--device` and `--devices`: the names of devices as options.

public import ArgumentParser
public import Devices
import Tensors

extension DeviceChoice: ExpressibleByArgument {
    public static var allValueStrings: [String] { names }
}

extension DeviceGroup: ExpressibleByArgument {}

/// Where to compute: one device or a group.
struct Machines {
    var device: DeviceChoice
    var group: DeviceGroup?

    /// - Throws: where both are said.
    init(_ device: DeviceChoice, _ group: DeviceGroup?) throws {
        if group != nil, device != .automatic {
            throw UserError(
                "request.conflict", "--devices and --device: give one, both say where to compute")
        }
        (self.device, self.group) = (device, group)
    }

    /// What opens each device, on its own thread.
    /// - Parameter note: told from any thread.
    func openers(
        _ options: DeviceOptions, note: @escaping @Sendable (DeviceNote) -> Void
    ) throws -> [@Sendable () throws -> any Backend] {
        if let group { return try group.openers(options, note: note) }
        let device = device
        return [{ try device.open(options, note: note) }]
    }
}
