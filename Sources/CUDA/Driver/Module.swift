// Loaded machine code, and the kernels in it.

internal import CDrivers

/// A loaded cubin.
final class Module {
    let device: Device
    private let handle: CUmodule

    init(_ device: Device, cubin: [UInt8], name: String) throws(CUDAError) {
        var handle: CUmodule?
        let result = cubin.withUnsafeBytes {
            device.cuda.cuModuleLoadData(&handle, $0.baseAddress!)
        }
        guard result == 0 else { throw device.cuda.error(result, "cuModuleLoadData \(name)") }
        self.device = device
        self.handle = handle!
    }

    deinit { _ = device.cuda.cuModuleUnload(handle) }

    /// The kernel with this lowered (mangled) name; `name` is for messages.
    func function(_ lowered: String, name: String) throws(CUDAError) -> Function {
        var function: CUfunction?
        let result = device.cuda.cuModuleGetFunction(&function, handle, lowered)
        guard result == 0 else { throw device.cuda.error(result, "cuModuleGetFunction \(name)") }
        return Function(module: self, handle: function!, name: name)
    }
}

/// A kernel of a loaded module.
public final class Function {
    public let name: String
    let handle: CUfunction
    private let module: Module
    /// Bytes of dynamic shared memory that it may use; by default 48 KiB together with the static memory.
    private var sharedLimit = 0

    fileprivate init(module: Module, handle: CUfunction, name: String) {
        self.module = module
        self.handle = handle
        self.name = name
    }

    /// Raises the kernel's limit of dynamic shared memory if `byteCount` exceeds it.
    func allowShared(_ byteCount: Int) {
        guard byteCount > sharedLimit else { return }
        let device = module.device
        let which = Int32(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        let fine = device.check(
            device.cuda.cuFuncSetAttribute(handle, which, Int32(byteCount)),
            "cuFuncSetAttribute \(name): \(byteCount) bytes of shared memory, the device has "
                + "\(device.properties.sharedMemoryPerBlock) a block")
        if fine { sharedLimit = byteCount }
    }
}
