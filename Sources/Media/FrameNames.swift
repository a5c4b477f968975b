// FrameNames: the numbered files of a picture sequence.

import Ground
public import SystemPackage

/// `frames/%04d.png`, or a folder (a path that ends in `/`), which means `%04d.png` in it.
public struct FrameNames: Sendable, Equatable {
    public var folder: FilePath
    private let prefix: String
    private let suffix: String
    /// Shorter numbers are padded with zeros.
    private let digits: Int

    /// Nil unless the last component has exactly one counter: `%d`, `%04d`.
    public init?(_ path: String) {
        var (folder, name) = Files.split(path)
        if name.isEmpty && !path.isEmpty { name = "%04d.png" }
        let parts = name.split(separator: "%", omittingEmptySubsequences: false)
        guard parts.count == 2 else { return nil }
        let digits = parts[1].prefix { $0.isASCII && $0.isNumber }
        let rest = parts[1].dropFirst(digits.count)
        guard digits.count <= 2, rest.first == "d" else { return nil }
        if folder.isEmpty { folder = "." }
        self.folder = FilePath(folder)
        prefix = String(parts[0])
        suffix = String(rest.dropFirst())
        self.digits = Int(digits) ?? 1
    }

    /// The path of the picture with a number.
    public func path(_ number: Int) -> FilePath {
        folder.appending(prefix + padded(number, digits) + suffix)
    }

    /// The pictures that exist already, in the order of their numbers.
    public func existing() -> [(number: Int, path: FilePath)] {
        let names = (try? folder.fileNames()) ?? []
        return names.compactMap { name in number(of: name).map { ($0, folder.appending(name)) } }
            .sorted { $0.0 < $1.0 }
    }

    private func number(of name: String) -> Int? {
        guard name.count > prefix.count + suffix.count, name.hasPrefix(prefix),
            name.hasSuffix(suffix),
            let number = Int(name.dropFirst(prefix.count).dropLast(suffix.count)), number >= 0,
            path(number).lastComponent?.string == name
        else { return nil }
        return number
    }
}
