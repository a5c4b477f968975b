/// What an opened device has and can do.

import CUDA
import Ground
public import Tensors

/// More device memory is needed than other programs have left. Bytes.
public struct MemoryShortage: Error, Sendable, Hashable, CustomStringConvertible {
    public var needed, free, total: Int

    public init(needed: Int, free: Int, total: Int) {
        self.needed = needed
        self.free = free
        self.total = total
    }

    public var description: String {
        "\(describe(bytes: needed)) of device memory are needed, only \(describe(bytes: free)) of "
            + "\(describe(bytes: total)) are free: other programs hold "
            + "\(describe(bytes: total - free)) (nvidia-smi lists them)"
    }
}

extension Backend {
    /// Refuses what needs more device memory than there is left, before anything is loaded. The CPU's memory is the
    /// system's, which lends more than it has: nothing is refused there.
    /// - Parameter needed: bytes.
    public func checkFreeMemory(_ needed: Int) throws(MemoryShortage) {
        guard let gpu = self as? CUDABackend else { return }
        let free = gpu.context.device.freeMemory
        if needed > free {
            throw MemoryShortage(
                needed: needed, free: free, total: gpu.context.properties.totalMemory)
        }
    }

    /// The card whose 8-bit attention the original would use on this device. A CPU imitates a Hopper card.
    public var sageArchitecture: SageArchitecture {
        [SageArchitecture.sm90, .sm89Accumulate16].first { supports(.sage($0)) } ?? .sm80
    }
}

/// Memory that runs may take.
public struct DeviceMemoryFacts: Sendable, Hashable {
    /// Bytes that are free now, less what drivers and the system want for themselves.
    public let usable: Int
    public let isGPU: Bool

    public init(usable: Int, isGPU: Bool) {
        self.usable = usable
        self.isGPU = isGPU
    }
}

extension Backend {
    /// What models and activations may take on this device: of a GPU nearly all that other programs have left, of a
    /// CPU's memory four fifths of what can be had without swapping.
    public var usableMemory: DeviceMemoryFacts {
        guard let gpu = self as? CUDABackend else {
            let available = availableMemory() ?? Int.max
            return DeviceMemoryFacts(usable: available / 5 * 4, isGPU: false)
        }
        let free = gpu.context.device.freeMemory
        return DeviceMemoryFacts(usable: free - free / 32 - (256 << 20), isGPU: true)
    }
}

/// Whether an error is the device's own, after which nothing more can be asked of it.
public func isDeviceFailure(_ error: any Error) -> Bool { error is CUDAError }
