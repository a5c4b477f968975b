// Gets compiled kernels from a pack, from the user's cache, or from the compiler.

internal import Dispatch
internal import Glibc
public import Ground
internal import Synchronization
internal import SystemPackage

/// Finds or compiles machine code. May be used from any thread.
public final class KernelSource: Sendable {
    /// Where compiled kernels are kept, if anywhere.
    public let cache: KernelCache?
    private let pack: KernelPack?
    private let libraries: String?
    private let compiler = Mutex<Result<Compiler, CUDAUnavailable>?>(nil)

    /// - Parameters:
    ///   - pack: path of a file made by `turbodiffusion kernels build`; nil for `kernels.pack` beside the binary or
    ///   installed with it, if any.
    ///   - cache: where compiled kernels are kept; nil for nowhere.
    ///   - libraries: folders to search first for NVRTC, separated by colons.
    /// - Throws: ``KernelError/unreadablePack(path:reason:)``, also for a pack that other users can change.
    public init(
        pack: String? = nil, cache: KernelCache? = .user, libraries: String? = nil
    ) throws(KernelError) {
        self.cache = cache
        self.libraries = libraries
        if let path = pack ?? Self.packBesideBinary() {
            if let place = FilePath(path).changeableByOthers {
                throw .unreadablePack(
                    path: path,
                    reason: "other users can change \(place): remove their write permission"
                )
            }
            self.pack = try KernelPack(contentsOf: path)
        } else {
            self.pack = nil
        }
    }

    private static func packBesideBinary() -> String? {
        let folders = [FilePath("/proc/self/exe").followingLinks.folder, Installation.data]
        return folders.compactMap { $0?.appending("kernels.pack").string }
            .first { access($0, R_OK) == 0 }
    }

    // MARK: The compiler

    /// NVRTC, which is opened when it is first needed.
    /// - Parameter newest: the newest major version of CUDA whose code the driver can run.
    private func openedCompiler(newest: Int?) throws(KernelError) -> Compiler {
        let result = compiler.withLock { slot in
            if let slot { return slot }
            let made = Result { () throws(CUDAUnavailable) in
                try Compiler(libraries: libraries, newest: newest)
            }
            slot = made
            return made
        }
        switch result {
        case .success(let compiler): return compiler
        case .failure(let reason): throw .unavailable(reason)
        }
    }

    /// Version and path of the compiler: "NVRTC 13.0 (/usr/…/libnvrtc.so.13)".
    public func describedCompiler(newest: Int? = nil) throws(KernelError) -> String {
        try openedCompiler(newest: newest).described
    }

    // MARK: Units

    /// The machine code of `unit`: from the pack, or else from the cache, or else compiled and cached. NVRTC is opened
    /// only if something has to be compiled, because opening it takes longer than everything else.
    /// - Parameter renews: whether to compile again if the cached code was made by another version of NVRTC.
    func unit(
        _ unit: KernelUnit, for architecture: Architecture, newest: Int? = nil, renews: Bool = false
    ) throws(KernelError) -> CompiledUnit {
        let key = key(of: unit, for: architecture)
        if !renews {
            if let pack, let key = packKey(of: unit, for: architecture),
                let found = try pack.load(key), runs(found, newest)
            {
                return found
            }
            if let found = cache?.load(key), runs(found, newest) { return found }
        }
        let compiler = try openedCompiler(newest: newest)
        if renews, let found = cache?.load(key), found.compiler == compiler.version { return found }
        let compiled = try compiler.compile(unit, for: architecture)
        cache?.store(compiled, as: key)
        return compiled
    }

    /// Whether a driver for CUDA `newest` can run this code.
    private func runs(_ unit: CompiledUnit, _ newest: Int?) -> Bool {
        unit.compiler.major <= newest ?? .max
    }

    /// The pack's key of code that runs on the architecture: code for the architecture itself, or else for an earlier
    /// one of the same major version, which also runs unless it is architecture-specific.
    private func packKey(of unit: KernelUnit, for architecture: Architecture) -> String? {
        guard let pack else { return nil }
        let oldest = architecture.major >= 9 ? architecture.minor : 0
        for minor in stride(from: architecture.minor, through: oldest, by: -1) {
            let candidate = Architecture(major: architecture.major, minor: minor)
            guard unit.family.includes(candidate) else { continue }
            let key = key(of: unit, for: candidate)
            if pack.contains(key) { return key }
        }
        return nil
    }

    private struct Variant: Hashable {
        let unit: ObjectIdentifier
        let architecture: Architecture
    }
    private let keys = Mutex<[Variant: String]>([:])

    func key(of unit: KernelUnit, for architecture: Architecture) -> String {
        let variant = Variant(unit: ObjectIdentifier(unit), architecture: architecture)
        if let key = keys.withLock({ $0[variant] }) { return key }
        let key = KernelText.key(of: unit, for: architecture)
        keys.withLock { $0[variant] = key }
        return key
    }

    /// How many of an architecture's units are in the pack and in the cache, and which are missing.
    public struct Readiness: Sendable {
        public var packed = 0
        public var cached = 0
        /// The units that have to be compiled.
        public var missing: [KernelUnit] = []
        public var total: Int { packed + cached + missing.count }
    }

    /// Looks only at names; compiles and loads nothing.
    public func readiness(for architecture: Architecture) -> Readiness {
        var counts = Readiness()
        for unit in KernelCatalog.units where unit.family.includes(architecture) {
            if packKey(of: unit, for: architecture) != nil {
                counts.packed += 1
            } else if cache?.contains(key(of: unit, for: architecture)) == true {
                counts.cached += 1
            } else {
                counts.missing.append(unit)
            }
        }
        return counts
    }

    // MARK: All units at once

    /// One compiled unit of a ``build(_:for:newest:renews:progress:)``.
    public struct Built: Sendable {
        public let file: String
        public let architecture: Architecture
        public let seconds: Double
        /// One line for each kernel that keeps more than a few values in local memory, which costs speed.
        public let spills: [String]
        public let kernelCount: Int
        let key: String
        let unit: CompiledUnit
    }

    /// Finds or compiles, on all cores, every unit that runs on the architectures.
    /// - Parameters:
    ///   - renews: whether to compile again what was compiled by another version of NVRTC than the installed one.
    ///   - progress: is called from any thread as units become ready.
    /// - Throws: the first failure in the order of the units.
    public func build(
        _ units: [KernelUnit] = KernelCatalog.units, for architectures: [Architecture],
        newest: Int? = nil, renews: Bool = false, progress: @Sendable (Built) -> Void = { _ in }
    ) throws(KernelError) -> [Built] {
        let jobs = architectures.flatMap { architecture in
            units.filter { $0.family.includes(architecture) }.map { ($0, architecture) }
        }
        let results = Mutex<[Result<Built, KernelError>?]>(Array(repeating: nil, count: jobs.count))
        DispatchQueue.concurrentPerform(iterations: jobs.count) { index in
            let (unit, architecture) = jobs[index]
            let started = ContinuousClock.now
            let result = Result { () throws(KernelError) -> Built in
                let compiled = try self.unit(
                    unit, for: architecture, newest: newest, renews: renews)
                return Built(
                    file: unit.file, architecture: architecture,
                    seconds: (ContinuousClock.now - started) / .seconds(1),
                    spills: compiled.spilling.map {
                        "\($0.name): \($0.registers) registers, \($0.localBytes) bytes of local "
                            + "memory, \($0.spillBytes) bytes of spills"
                    },
                    kernelCount: compiled.kernels.count,
                    key: self.key(of: unit, for: architecture), unit: compiled)
            }
            if case .success(let built) = result { progress(built) }
            results.withLock { $0[index] = result }
        }
        var built: [Built] = []
        for result in results.withLock({ $0 }) {
            if let result { built.append(try result.get()) }
        }
        return built
    }

    /// Writes the result of ``build(_:for:newest:renews:progress:)`` as a pack. An existing file is replaced.
    public static func write(_ built: [Built], to path: String) throws(FileError) {
        try PendingFile.write(
            KernelPack.serialized(built.map { ($0.key, $0.unit) }), to: FilePath(path),
            overwrite: true)
    }
}
