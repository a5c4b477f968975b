/// `--device`: the names of devices as an option.

public import ArgumentParser
public import Devices

extension DeviceChoice: ExpressibleByArgument {
    public static var allValueStrings: [String] { names }
}
