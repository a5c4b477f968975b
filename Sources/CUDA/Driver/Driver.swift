// The CUDA driver library: its functions, its version, its devices.

internal import CDrivers
internal import Glibc

/// The library libcuda.so.1, initialised.
public final class Driver: Sendable {
    let functions: cuda_driver
    /// The CUDA version that the driver supports, as major * 1000 + minor * 10: 13000 is CUDA 13.0.
    public let version: Int
    /// The driver's own version ("580.95.05"), if the kernel module tells it.
    public let release: String?
    public let deviceCount: Int

    /// Opens and initialises the driver.
    /// - Throws: ``CUDAUnavailable`` on a machine without a driver or without a device.
    public init(libraries: String? = nil) throws(CUDAUnavailable) {
        let library = try SharedLibrary.open(["libcuda.so.1"], in: libraryFolders(libraries))
        let table = UnsafeMutablePointer<cuda_driver>.allocate(capacity: 1)
        defer { table.deallocate() }
        if let symbol = cuda_driver_load(library.handle, table) {
            throw .missingSymbol(symbol: String(cString: symbol), library: library.path)
        }
        functions = table.pointee
        release = Self.kernelModuleRelease()
        let started = functions.cuInit(0)
        if started == CUresult(CUDA_ERROR_NO_DEVICE) { throw .noDevice }
        guard started == 0 else { throw .failed(functions.error(started, "cuInit")) }
        var version: Int32 = 0
        var count: Int32 = 0
        _ = functions.cuDriverGetVersion(&version)
        _ = functions.cuDeviceGetCount(&count)
        self.version = Int(version)
        deviceCount = Int(count)
        if count == 0 { throw .noDevice }
        if version < 12000 {
            throw .driverTooOld(found: described, needed: "525", purpose: "CUDA 12 or later")
        }
    }

    /// "580.95.05 (CUDA 13.0)"
    public var described: String {
        let cuda = "CUDA \(version / 1000).\(version % 1000 / 10)"
        return release.map { "\($0) (\(cuda))" } ?? cuda
    }

    private static func kernelModuleRelease() -> String? {
        guard let file = fopen("/proc/driver/nvidia/version", "r") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 512)
        guard fgets(&line, Int32(line.count), file) != nil else { return nil }
        // NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 …
        let text = String(decoding: line.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
        return text.split(separator: " ").first {
            $0.first?.isNumber == true && $0.contains(".")
        }.map(String.init)
    }
}

extension cuda_driver {
    /// A failed result as an error, with the driver's description.
    func error(_ result: CUresult, _ call: String) -> CUDAError {
        var name: UnsafePointer<CChar>?
        var text: UnsafePointer<CChar>?
        _ = cuGetErrorName(result, &name)
        _ = cuGetErrorString(result, &text)
        return CUDAError(
            code: result, name: name.map { String(cString: $0) } ?? "CUDA_ERROR",
            text: text.map { String(cString: $0) } ?? "unknown error", call: call)
    }
}
