// One GPU: its properties, its primary context, and the first failure on it.

internal import CDrivers
internal import Synchronization

/// The properties of a device; sizes are in bytes.
public struct DeviceProperties: Hashable, Sendable {
    public let name: String
    public let multiprocessors: Int
    public let architecture: Architecture
    public let totalMemory: Int
    public let l2Cache: Int
    /// The most shared memory that one block can use (static and dynamic together).
    public let sharedMemoryPerBlock: Int
    public let sharedMemoryPerMultiprocessor: Int
    /// In kHz; 0 if the driver does not tell.
    public let clockRate: Int
    /// The driver's version: "580.95.05 (CUDA 13.0)".
    public let driver: String
}

extension Driver {
    /// What GPU `ordinal` is, without opening it. The ordinal is below `deviceCount`.
    public func properties(of ordinal: Int) -> DeviceProperties {
        var device: CUdevice = 0
        _ = functions.cuDeviceGet(&device, Int32(ordinal))
        return Device.properties(of: device, self)
    }

    /// Whether GPU `from` can read and write the memory of GPU `to`.
    public func canAccess(from: Int, to: Int) -> Bool {
        var (one, other, can): (CUdevice, CUdevice, Int32) = (0, 0, 0)
        return functions.cuDeviceGet(&one, Int32(from)) == 0
            && functions.cuDeviceGet(&other, Int32(to)) == 0
            && functions.cuDeviceCanAccessPeer(&can, one, other) == 0 && can != 0
    }

    /// As `nvidia-smi -L` prints it: "GPU-5a1b2c3d-…". nil where the driver does not tell.
    public func uuid(of ordinal: Int) -> String? {
        var (device, uuid): (CUdevice, CUuuid) = (0, CUuuid())
        guard functions.cuDeviceGet(&device, Int32(ordinal)) == 0,
            functions.cuDeviceGetUuid(&uuid, device) == 0
        else { return nil }
        let bytes = withUnsafeBytes(of: &uuid) { Array($0) }
        let digits = Array("0123456789abcdef")
        var text = "GPU"
        for (index, byte) in bytes.enumerated() {
            if [0, 4, 6, 8, 10].contains(index) { text += "-" }
            text += String([digits[Int(byte >> 4)], digits[Int(byte & 15)]])
        }
        return text
    }
}

/// A device with its primary context, current on the thread that made it.
///
/// Not `Sendable`: a device and everything made from it stay on one thread. Operations do not throw. They report a
/// failure here; later ones are then skipped, and ``Context/synchronize()`` throws the failure.
public final class Device {
    public let driver: Driver
    public let ordinal: Int
    public let properties: DeviceProperties
    let handle: CUdevice
    let context: CUcontext
    /// The first failure since the last synchronisation.
    public private(set) var failure: CUDAError?
    /// The last kernel that was launched, which is the most likely cause of an asynchronous failure.
    var lastKernel: String?

    var cuda: cuda_driver { driver.functions }

    public init(_ driver: Driver, ordinal: Int = 0) throws(CUDAUnavailable) {
        guard ordinal >= 0 && ordinal < driver.deviceCount else {
            throw .noSuchDevice(ordinal: ordinal, count: driver.deviceCount)
        }
        let cuda = driver.functions
        func check(_ result: CUresult, _ call: String) throws(CUDAUnavailable) {
            if result != 0 { throw .failed(cuda.error(result, call)) }
        }
        var device: CUdevice = 0
        try check(cuda.cuDeviceGet(&device, Int32(ordinal)), "cuDeviceGet \(ordinal)")
        properties = Self.properties(of: device, driver)
        guard properties.architecture >= Architecture(major: 8, minor: 0) else {
            throw .deviceTooOld(
                name: properties.name, capability: properties.architecture.capability,
                needed: "8.0 (Ampere)")
        }
        var context: CUcontext?
        try check(cuda.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain")
        try check(cuda.cuCtxSetCurrent(context!), "cuCtxSetCurrent")
        self.driver = driver
        self.ordinal = ordinal
        self.handle = device
        self.context = context!
    }

    deinit { _ = cuda.cuDevicePrimaryCtxRelease(handle) }

    /// Keeps the primary context until the process ends, so that a device that is looked at first and opened later is
    /// opened once: making a context takes 0.1 s, and ending one as long.
    public func staysOpen() {
        let isNew = Self.kept.withLock { $0.insert(ordinal).inserted }
        var context: CUcontext?
        if isNew { _ = cuda.cuDevicePrimaryCtxRetain(&context, handle) }
    }
    private static let kept = Mutex<Set<Int>>([])

    /// Bytes of device memory that no process uses, as the driver reports them.
    public var freeMemory: Int {
        var free = 0
        var total = 0
        check(cuda.cuMemGetInfo(&free, &total), "cuMemGetInfo")
        return free
    }

    /// Those of some GPUs that can read and write this one's memory.
    func peers(of others: [Int]) -> [CUdevice] {
        others.filter { driver.canAccess(from: $0, to: ordinal) }.compactMap { other in
            var peer: CUdevice = 0
            return cuda.cuDeviceGet(&peer, Int32(other)) == 0 ? peer : nil
        }
    }

    /// Records a failed `result`, unless a failure is already recorded.
    /// - Returns: whether `result` is a success.
    @discardableResult
    func check(_ result: CUresult, _ call: @autoclosure () -> String) -> Bool {
        if result == 0 { return true }
        fail(cuda.error(result, call()))
        return false
    }

    /// Records a failure of an operation, unless a failure is already recorded.
    public func fail(_ error: CUDAError) {
        if failure == nil { failure = error }
    }

    /// Returns the recorded failure and forgets it. After a fatal failure of the driver (an illegal address, for
    /// example) every later call fails again.
    func takeFailure() -> CUDAError? {
        defer { failure = nil }
        return failure
    }

    static func properties(of device: CUdevice, _ driver: Driver) -> DeviceProperties {
        let cuda = driver.functions
        func attribute(_ which: Int) -> Int {
            var value: Int32 = 0
            _ = cuda.cuDeviceGetAttribute(&value, Int32(which), device)
            return Int(value)
        }
        var name = [CChar](repeating: 0, count: 256)
        _ = cuda.cuDeviceGetName(&name, Int32(name.count), device)
        var total = 0
        _ = cuda.cuDeviceTotalMem(&total, device)
        return DeviceProperties(
            name: String(decoding: name.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            architecture: Architecture(
                major: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                minor: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)),
            totalMemory: total,
            l2Cache: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE),
            sharedMemoryPerBlock: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            sharedMemoryPerMultiprocessor: attribute(
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
            clockRate: attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            driver: driver.described)
    }
}
