// NVRTC, which compiles CUDA C++ to machine code on machines with or without a GPU.

internal import CDrivers

/// Why a kernel is not available.
public enum KernelError: Error, Hashable, Sendable, CustomStringConvertible {
    case unavailable(CUDAUnavailable)
    case unknownFile(String)
    /// `compiler` is NVRTC's version and path, `log` its messages.
    case compilation(file: String, architecture: Architecture, compiler: String, log: String)
    case unreadablePack(path: String, reason: String)

    public var description: String {
        switch self {
        case .unavailable(let reason): "kernels cannot be compiled: \(reason)"
        case .unknownFile(let file): "no kernel source is named \(file)"
        case .compilation(let file, let architecture, let compiler, let log):
            """
            \(file) does not compile for \(architecture) with \(compiler). Another version may work \
            (pip install nvidia-cuda-nvrtc, --cuda-libraries FOLDER); please report these messages of \
            the compiler:
            \(log)
            """
        case .unreadablePack(let path, let reason):
            "\(path) is not a pack of kernels (\(reason)); make one with 'turbodiffusion kernels "
                + "build'"
        }
    }
}

/// The library libnvrtc. Its functions may be called from several threads at once.
final class Compiler: Sendable {
    private let nvrtc: nvrtc
    let version: CompilerVersion
    let path: String

    /// - Parameter newest: the newest major version of CUDA whose code the driver can run; nil for any.
    init(libraries: String? = nil, newest: Int? = nil) throws(CUDAUnavailable) {
        let names = [13, 12].filter { $0 <= newest ?? .max }.map { "libnvrtc.so.\($0)" }
        let library = try SharedLibrary.open(names, in: libraryFolders(libraries))
        let table = UnsafeMutablePointer<nvrtc>.allocate(capacity: 1)
        defer { table.deallocate() }
        if let symbol = nvrtc_load(library.handle, table) {
            throw .missingSymbol(symbol: String(cString: symbol), library: library.path)
        }
        nvrtc = table.pointee
        path = library.path
        var major: Int32 = 0
        var minor: Int32 = 0
        _ = nvrtc.nvrtcVersion(&major, &minor)
        version = CompilerVersion(major: Int(major), minor: Int(minor))
    }

    /// "NVRTC 13.0 (/usr/…/libnvrtc.so.13)"
    var described: String { "NVRTC \(version) (\(path))" }

    static func options(for unit: KernelUnit, _ architecture: Architecture) -> [String] {
        ["--gpu-architecture=\(architecture)", "-std=c++20", "-default-device"]
            + ["--ptxas-options=-v"] + unit.definitions.map { "-D\($0)" }
    }

    func compile(
        _ unit: KernelUnit, for architecture: Architecture
    ) throws(KernelError) -> CompiledUnit {
        guard let source = KernelText[unit.file] else { throw .unknownFile(unit.file) }
        func failure(_ result: nvrtcResult, _ log: String = "") -> KernelError {
            let reason = String(cString: nvrtc.nvrtcGetErrorString(result))
            return .compilation(
                file: unit.file, architecture: architecture, compiler: described,
                log: log.isEmpty ? reason : log)
        }
        let includes = KernelText.includes(of: unit.file)
        var program: nvrtcProgram?
        var result = withCStrings(includes.map { KernelText[$0] ?? "#error no such file\n" }) {
            headers in
            withCStrings(includes) { names in
                nvrtc.nvrtcCreateProgram(
                    &program, source, unit.file, Int32(includes.count), headers, names)
            }
        }
        guard result == 0, let handle = program else { throw failure(result) }
        defer { _ = nvrtc.nvrtcDestroyProgram(&program) }
        for name in unit.kernels {
            result = nvrtc.nvrtcAddNameExpression(handle, name)
            guard result == 0 else { throw failure(result) }
        }
        let options = Self.options(for: unit, architecture)
        result = withCStrings(options) {
            nvrtc.nvrtcCompileProgram(handle, Int32(options.count), $0)
        }
        let log = log(of: handle)
        guard result == 0 else { throw failure(result, log) }

        var kernels: [CompiledUnit.Kernel] = []
        let usage = ResourceUsage.parse(log)
        for name in unit.kernels {
            var lowered: UnsafePointer<CChar>?
            result = nvrtc.nvrtcGetLoweredName(handle, name, &lowered)
            guard result == 0, let lowered else { throw failure(result, "no kernel \(name)") }
            var kernel = CompiledUnit.Kernel(name: name, lowered: String(cString: lowered))
            if let used = usage[kernel.lowered] {
                kernel.registers = used.registers
                kernel.localBytes = used.stack
                kernel.spillBytes = used.spills
                kernel.sharedBytes = used.shared
            }
            kernels.append(kernel)
        }
        var byteCount = 0
        _ = nvrtc.nvrtcGetCUBINSize(handle, &byteCount)
        let cubin = [UInt8](unsafeUninitializedCapacity: byteCount) { bytes, count in
            bytes.withMemoryRebound(to: CChar.self) {
                result = nvrtc.nvrtcGetCUBIN(handle, $0.baseAddress!)
            }
            count = byteCount
        }
        guard result == 0, byteCount > 0 else { throw failure(result) }
        return CompiledUnit(kernels: kernels, cubin: cubin, compiler: version)
    }

    private func log(of program: nvrtcProgram) -> String {
        var size = 0
        guard nvrtc.nvrtcGetProgramLogSize(program, &size) == 0, size > 1 else { return "" }
        var text = [CChar](repeating: 0, count: size)
        _ = nvrtc.nvrtcGetProgramLog(program, &text)
        return String(decoding: text.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
}

/// What `ptxas -v` says about one kernel.
struct ResourceUsage: Hashable {
    var registers = 0
    var stack = 0
    var spills = 0
    var shared = 0

    /// Reads the compiler's log. The keys are mangled names. The lines are:
    ///
    ///     ptxas info    : Compiling entry function '_Z4gelu' for 'sm_90a'
    ///     ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    ///     ptxas info    : Used 28 registers, used 1 barriers, 1024 bytes smem
    static func parse(_ log: String) -> [String: ResourceUsage] {
        var usage: [String: ResourceUsage] = [:]
        var name: String?
        for line in log.split(separator: "\n") {
            if line.contains("Compiling entry function") {
                let parts = line.split(separator: "'")
                name = parts.count > 1 ? String(parts[1]) : nil
            }
            guard let name else { continue }
            let words = line.split { $0 == " " || $0 == "," }
            func number(before phrase: String) -> Int {
                let wanted = phrase.split(separator: " ")
                for i in words.indices.dropLast(wanted.count)
                where words[(i + 1)...].starts(with: wanted) {
                    if let value = Int(words[i]) { return value }
                }
                return 0
            }
            if line.contains("bytes stack frame") {
                usage[name, default: .init()].stack = number(before: "bytes stack frame")
                usage[name]?.spills =
                    number(before: "bytes spill stores") + number(before: "bytes spill loads")
            }
            if line.contains("Used "), line.contains(" registers") {
                usage[name, default: .init()].registers = number(before: "registers")
                usage[name]?.shared = number(before: "bytes smem")
            }
        }
        return usage
    }
}

/// Calls `body` with the strings as C strings, which are valid only during the call.
private func withCStrings<R>(
    _ strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>) -> R
) -> R {
    var bytes: [CChar] = []
    let offsets = strings.map { string in
        defer { bytes += string.utf8CString }
        return bytes.count
    }
    return bytes.withUnsafeBufferPointer { bytes in
        let pointers: [UnsafePointer<CChar>?] = offsets.map { bytes.baseAddress! + $0 } + [nil]
        return pointers.withUnsafeBufferPointer { body($0.baseAddress!) }
    }
}
