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

    /// - Throws: `ValidationError` with the place of a value that is none.
    static func device() throws -> DeviceChoice? {
        guard let value = Settings.current[.device] else { return nil }
        guard let device = DeviceChoice(argument: value.text) else {
            throw ValidationError(
                "\(value.source): '\(value.text)' is no device: expected \(DeviceChoice.names.joined(separator: ", "))"
            )
        }
        return device
    }
}
