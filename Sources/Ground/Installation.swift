/// Where this program is installed, and what was installed with it.

import Glibc
public import SystemPackage

public enum Installation {
    /// This program's file, links followed.
    public static var program: FilePath? {
        var target = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        guard readlink("/proc/self/exe", &target, target.count - 1) > 0 else { return nil }
        return FilePath(platformString: target)
    }

    /// The folder that holds `bin` with this program and `share` with its data: `/usr/local`, `~/.local`, a Python environment;
    /// nil where the program is in no `bin`.
    public static var prefix: FilePath? {
        guard let folder = program?.removingLastComponent(), folder.lastComponent == "bin" else {
            return nil
        }
        return folder.removingLastComponent()
    }

    /// Data that was installed with the program.
    public static var data: FilePath? { prefix?.appending("share/turbodiffusion") }

    /// Where Python packages are that were installed with the program, whether its environment is active or not.
    public static var packages: [FilePath] { prefix.map(packages(under:)) ?? [] }

    /// The folders of Python packages of an environment, and the folder itself, which is that of `pip install --target`.
    static func packages(under prefix: FilePath) -> [FilePath] {
        let library = prefix.appending("lib")
        let pythons = ((try? library.fileNames()) ?? []).filter { $0.hasPrefix("python3") }.sorted()
        return pythons.flatMap { python in
            ["site-packages", "dist-packages"].map { library.appending(python).appending($0) }
        }.filter(\.isFolder) + [prefix]
    }
}
