/// `--device` and `--devices`: the names of devices as options.

public import ArgumentParser
public import Devices

extension DeviceChoice: ExpressibleByArgument {
    public static var allValueStrings: [String] { names }
}

extension DeviceGroup: ExpressibleByArgument {}

extension Machines {
    static let exclusion = ValidationError(
        "--device and --devices exclude each other: both tell where to compute")

    /// - Throws: where both are given.
    static func check(_ device: DeviceChoice, _ group: DeviceGroup?) throws {
        if group != nil, device != .usual { throw exclusion }
    }
}

extension DeviceChoice {
    /// A device by its name; `1` is `cuda:1`.
    init?(numberOrName text: String) {
        self.init(argument: Int(text).map { "cuda:\($0)" } ?? text)
    }
}
