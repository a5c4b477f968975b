// An address in device memory.

/// A typed wrapper around the number, so that a launch cannot take an integer for an address.
public struct DevicePointer: Hashable, Sendable, BitwiseCopyable {
    public let address: UInt64

    public init(address: UInt64) { self.address = address }

    public static let null = DevicePointer(address: 0)

    /// `byteCount` bytes further on.
    public static func + (pointer: DevicePointer, byteCount: Int) -> DevicePointer {
        DevicePointer(address: pointer.address + UInt64(byteCount))
    }
}
