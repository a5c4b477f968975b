// An address in device memory.

/// An address with a type of its own, so that it cannot be confused with an integer argument.
public struct DevicePointer: Hashable, Sendable, BitwiseCopyable {
    public let address: UInt64

    public init(address: UInt64) { self.address = address }

    public static let null = DevicePointer(address: 0)

    /// The address `byteCount` bytes later.
    public static func + (pointer: DevicePointer, byteCount: Int) -> DevicePointer {
        DevicePointer(address: pointer.address + UInt64(byteCount))
    }
}
