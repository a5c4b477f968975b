/// Free memory and arithmetic of an open device.

import CUDA
import Dispatch
import Ground
public import Tensors

/// More device memory is needed than is free. All values are in bytes.
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

extension DeviceChoice {
    /// The GPU that will be opened; nil where there is none that can be used. What is asked of it is asked on one thread.
    private func lookAtGPU<Value>(_ body: (Device) -> Value) -> Value? {
        let ordinal =
            switch self {
            case .cpu: Int?.none
            case .automatic: 0
            case .cuda(let ordinal): ordinal
            }
        guard let ordinal, let driver = try? Driver(),
            let device = try? Device(driver, ordinal: ordinal)
        else { return nil }
        device.staysOpen()
        return body(device)
    }

    /// Begins to open the GPU on another thread, if there is one that can be used: driver and context take 0.3 s, in
    /// which files can be looked at. Opening it after that waits for the rest. A device that cannot be opened is told of
    /// when that is tried again.
    public func openAhead() {
        guard self != .cpu else { return }
        DispatchQueue.global().async { _ = lookAtGPU { _ in } }
    }

    /// Bytes of device memory that other programs have left, before the device is opened.
    public var freeMemory: Int? { lookAtGPU(\.freeMemory) }

    /// As the driver calls the card: "NVIDIA GeForce RTX 4090".
    public var cardName: String? { lookAtGPU(\.properties.name) }
}

extension Backend {
    /// Throws if `needed` is more than the free device memory, so that this is known before anything is loaded. Never
    /// throws on the CPU, because the system can provide more memory than is free.
    /// - Parameter needed: bytes.
    public func checkFreeMemory(_ needed: Int) throws(MemoryShortage) {
        guard let gpu = self as? CUDABackend else { return }
        let free = gpu.context.device.freeMemory
        if needed > free {
            throw MemoryShortage(
                needed: needed, free: free, total: gpu.context.properties.totalMemory)
        }
    }

    /// The kind of card whose 8-bit attention the original would use on this device. A CPU imitates a Hopper card.
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
            return DeviceMemoryFacts(
                usable: HostMemory.current.available / 5 * 4, isGPU: false)
        }
        let free = gpu.context.device.freeMemory
        return DeviceMemoryFacts(usable: free - free / 32 - (256 << 20), isGPU: true)
    }
}

/// Whether an error is the device's own, after which nothing more can be asked of it.
public func isDeviceFailure(_ error: any Error) -> Bool { error is CUDAError }
