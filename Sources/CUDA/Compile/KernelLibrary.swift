// The kernels of one device. A unit is loaded when its first kernel is needed.

internal import Ground

/// Loaded modules and their functions. Must stay on its device's thread.
public final class KernelLibrary {
    private let device: Device
    private let source: KernelSource
    private var units: [ObjectIdentifier: LoadedUnit] = [:]

    /// A loaded unit. The driver copies a kernel's code to the device when the kernel is first looked up.
    private final class LoadedUnit {
        let module: Module
        let lowered: [String: String]
        var functions: [String: Function] = [:]

        init(_ module: Module, lowered: [String: String]) {
            self.module = module
            self.lowered = lowered
        }
    }

    init(_ device: Device, _ source: KernelSource) {
        self.device = device
        self.source = source
    }

    /// Compiles, on all cores, the units that are neither in the pack nor in the cache, so that the first launches of a
    /// run only have to load them.
    public func prepare(progress: @Sendable (KernelSource.Built) -> Void = { _ in })
        throws(KernelError)
    {
        let architecture = device.properties.architecture
        let missing = source.readiness(for: architecture).missing
        guard !missing.isEmpty else { return }
        _ = try source.build(missing, for: [architecture], newest: newest, progress: progress)
    }

    /// The newest major version of CUDA whose code the driver can run.
    private var newest: Int { device.driver.version / 1000 }

    /// The kernel called `name` in `unit`. If there is none, reports a failure to the device and returns nil.
    func function(_ name: String, of unit: KernelUnit) -> Function? {
        let id = ObjectIdentifier(unit)
        if let function = units[id]?.functions[name] { return function }
        do throws(CUDAError) {
            if units[id] == nil { units[id] = try load(unit) }
            guard let loaded = units[id] else { return nil }
            guard let lowered = loaded.lowered[name] else {
                throw failure(unit, "it has no kernel \(name)")
            }
            let function = try loaded.module.function(lowered, name: name)
            loaded.functions[name] = function
            return function
        } catch {
            device.fail(error)
            return nil
        }
    }

    private var tuned: Tuning.Subject {
        Tuning.Subject(
            card: "\(device.properties.name) \(device.properties.multiprocessors)",
            driver: device.properties.driver,
            kernels: source.key(of: Linear.tunedUnit, for: device.properties.architecture))
    }

    /// What was measured of this card with these kernels.
    var storedTuning: Tuning { source.cache?.tuning(of: tuned) ?? Tuning() }

    /// Keeps measurements for the next processes.
    /// - Returns: whether there is a folder to keep them in.
    func store(_ tuning: Tuning) throws(FileError) -> Bool {
        try source.cache?.store(tuning, of: tuned) != nil
    }

    /// - Returns: whether there was something to forget.
    func forgetTuning() -> Bool { source.cache?.forgetTuning(of: tuned) ?? false }

    /// The number of the device's kernels, and those that have not been used yet, each as "file kernel".
    public var usage: (count: Int, unused: [String]) {
        let units = KernelCatalog.units.filter {
            $0.family.includes(device.properties.architecture)
        }
        let unused = units.flatMap { unit in
            let used = self.units[ObjectIdentifier(unit)]?.functions ?? [:]
            return unit.kernels.filter { used[$0] == nil }.map { "\(unit.file) \($0)" }
        }
        return (units.reduce(0) { $0 + $1.kernels.count }, unused)
    }

    /// Loads every unit of the device, to measure how long that takes.
    func loadAll() throws(CUDAError) {
        for unit in KernelCatalog.units
        where unit.family.includes(device.properties.architecture) {
            units[ObjectIdentifier(unit)] = try load(unit)
        }
    }

    private func load(_ unit: KernelUnit) throws(CUDAError) -> LoadedUnit {
        let architecture = device.properties.architecture
        guard unit.family.includes(architecture) else {
            throw failure(unit, "written for \(unit.family), not for \(architecture)")
        }
        let compiled: CompiledUnit
        do {
            compiled = try source.unit(unit, for: architecture, newest: newest)
        } catch {
            throw failure(unit, "\(error)")
        }
        return LoadedUnit(
            try Module(device, cubin: compiled.cubin, name: unit.file),
            lowered: Dictionary(
                uniqueKeysWithValues: compiled.kernels.map { ($0.name, $0.lowered) }))
    }

    private func failure(_ unit: KernelUnit, _ text: String) -> CUDAError {
        CUDAError(
            code: 209, name: "CUDA_ERROR_NO_BINARY_FOR_GPU", text: text,
            call: "kernels of \(unit.file)")
    }
}
