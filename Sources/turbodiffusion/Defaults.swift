/// What the configuration says of options that were not given.

import ArgumentParser
import Catalog
import Devices

enum Defaults {
    /// - Throws: `ValidationError` with the place of a value that is none.
    static func memoryLimit() throws -> ByteCount? {
        guard let value = Settings.current[.memoryLimit] else { return nil }
        do { return try ByteCount(value.text) } catch {
            throw ValidationError("\(value.source): \(error)")
        }
    }

    /// Throws where the device is none, with the place of the value.
    static func checkDevice() throws(UsageError) {
        guard let value = Settings.current[.device], DeviceChoice(argument: value.text) == nil
        else { return }
        throw UsageError(
            description:
                "\(value.source): '\(value.text)' is no device: expected \(DeviceChoice.names.joined(separator: ", "))"
        )
    }
}

extension DeviceChoice {
    /// What `--device` is where it is not given: the configuration's, or automatic.
    static var usual: DeviceChoice {
        Settings.current[.device].flatMap { DeviceChoice(argument: $0.text) } ?? .automatic
    }
}
