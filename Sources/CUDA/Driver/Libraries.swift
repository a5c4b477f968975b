// Finds and opens NVIDIA's shared libraries at run time.

internal import CDrivers
internal import Glibc
internal import Ground
internal import SystemPackage

/// An open shared library. It is never closed, because its functions are kept.
struct SharedLibrary {
    let handle: UnsafeMutableRawPointer
    /// The name or path by which it was opened.
    let path: String

    /// Opens the first of `names` (newest first) that is found: in the folders named by the user, then where the loader
    /// looks, then in those well-known folders that no other user can change.
    static func open(
        _ names: [String], in named: [String], wellKnown: [String] = wellKnownFolders()
    ) throws(CUDAUnavailable) -> SharedLibrary {
        var reason = "no such file"
        for name in names {
            for path in named.map({ "\($0)/\(name)" }) + [name] + wellKnown.map({ "\($0)/\(name)" })
            {
                // Without this check, the loader's message about a later folder would replace a more useful one.
                if path != name && access(path, R_OK) != 0 { continue }
                let isNamed = named.contains { path == "\($0)/\(name)" }
                if path != name, !isNamed, let place = FilePath(path).changeableByOthers {
                    reason = "\(path) is not used: other users can change \(place)"
                    continue
                }
                preloadBuiltins(beside: path)
                if let handle = dlopen(path, RTLD_NOW | RTLD_LOCAL) {
                    return SharedLibrary(handle: handle, path: path)
                }
                if path != name { reason = String(cString: dlerror()) }
            }
        }
        throw .missingLibrary(
            name: names.joined(separator: " or "),
            searched: named + ["the loader's path"] + wellKnown, reason: reason)
    }

    /// NVRTC opens `libnvrtc-builtins.so.X.Y` by its bare name. Outside of the loader's path this works only if that
    /// library is already open.
    private static func preloadBuiltins(beside path: String) {
        guard path.contains("/libnvrtc") else { return }
        for file in glob(FilePath(path).folder.appending("libnvrtc-builtins.so.*").string) {
            _ = dlopen(file, RTLD_NOW | RTLD_GLOBAL)
        }
    }

    /// The folders in which distributions, NVIDIA's installers and Python environments put the libraries.
    static func wellKnownFolders() -> [String] {
        // The program's own environment, active ones, and those on PATH, of the user, of the system, or in /opt.
        var prefixes = ["VIRTUAL_ENV", "CONDA_PREFIX"].compactMap(environment)
        prefixes += (environment("PATH") ?? "").split(separator: ":")
            .filter { $0.hasSuffix("/bin") }.map { String($0.dropLast(4)) }
        prefixes += environment("HOME").map { ["\($0)/.local"] } ?? []
        prefixes += ["/usr/local", "/usr", "/opt/*", "/opt/*/.venv"]
        // Relative paths would depend on the working directory.
        let pythons =
            Installation.packages.map(\.string)
            + prefixes.filter { $0.hasPrefix("/") }.map { "\($0)/lib/python3*/*-packages" }
        var patterns = ["/usr/local/cuda/lib64", "/usr/local/cuda-1[23]*/lib64"]
        for python in pythons {
            for part in ["cu13", "cuda_nvrtc", "nccl"] {
                patterns.append("\(python)/nvidia/\(part)/lib")
            }
        }
        patterns += [
            "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib",
            "/usr/local/nvidia/lib64",
        ]
        var seen: Set<String> = []
        return patterns.flatMap(glob).filter { seen.insert($0).inserted }
    }
}

/// The folders of `--cuda-libraries`, or else of TURBODIFFUSION_CUDA_LIBRARIES, both separated by colons.
func libraryFolders(_ option: String?) -> [String] {
    let list = option ?? environment("TURBODIFFUSION_CUDA_LIBRARIES") ?? ""
    return list.split(separator: ":").map(String.init)
}

/// The existing paths that match a shell pattern.
private func glob(_ pattern: String) -> [String] {
    var found = glob_t()
    defer { globfree(&found) }
    guard Glibc.glob(pattern, 0, nil, &found) == 0 else { return [] }
    return (0..<Int(found.gl_pathc)).compactMap { found.gl_pathv[$0].map { String(cString: $0) } }
}
