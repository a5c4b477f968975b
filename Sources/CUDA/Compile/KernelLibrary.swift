// The kernels of one device: units become modules when their first kernel is asked for.

/// Loaded modules and their functions. Stays on its device's thread.
public final class KernelLibrary {
    private let device: Device
    private let source: KernelSource
    private var units: [ObjectIdentifier: [String: Function]] = [:]

    init(_ device: Device, _ source: KernelSource) {
        self.device = device
        self.source = source
    }

    /// Compiles what is neither in the pack nor in the cache, on all cores; a run's first launches
    /// then only load.
    public func prepare(progress: @Sendable (KernelSource.Built) -> Void = { _ in })
        throws(KernelError)
    {
        let architecture = device.properties.architecture
        let newest = device.driver.version / 1000
        let missing = source.readiness(for: architecture, newest: newest).missing
        _ = try source.build(missing, for: [architecture], newest: newest, progress: progress)
    }

    /// The kernel called `name` in `unit`; nil, and a failure of the device, where it cannot be had.
    func function(_ name: String, of unit: KernelUnit) -> Function? {
        let id = ObjectIdentifier(unit)
        if units[id] == nil { units[id] = load(unit) }
        if let function = units[id]?[name] { return function }
        if device.failure == nil {
            device.fail(failure(unit, "\(unit.file) has no kernel \(name)"))
        }
        return nil
    }

    private func load(_ unit: KernelUnit) -> [String: Function] {
        let architecture = device.properties.architecture
        guard unit.family.includes(architecture) else {
            device.fail(failure(unit, "written for \(unit.family), not for \(architecture)"))
            return [:]
        }
        do {
            let compiled = try source.unit(
                unit, for: architecture, newest: device.driver.version / 1000)
            let module = try Module(device, cubin: compiled.cubin, name: unit.file)
            var functions: [String: Function] = [:]
            for kernel in compiled.kernels {
                functions[kernel.name] = try module.function(kernel.lowered, name: kernel.name)
            }
            return functions
        } catch let error as KernelError {
            device.fail(failure(unit, "\(error)"))
        } catch {
            device.fail(error as? CUDAError ?? failure(unit, "\(error)"))
        }
        return [:]
    }

    private func failure(_ unit: KernelUnit, _ text: String) -> CUDAError {
        CUDAError(
            code: 209, name: "CUDA_ERROR_NO_BINARY_FOR_GPU", text: text,
            call: "kernels of \(unit.file)")
    }
}
