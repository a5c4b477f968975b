/// `--device`: the names of devices as an option.

import ArgumentParser
import Devices

extension DeviceChoice: ExpressibleByArgument {
    public static var allValueStrings: [String] { names }
}
