// Compiled kernels on disk: the user's cache, one file a unit, and packs, many units in one file.

internal import Glibc

/// A folder of compiled units, named by the hash of everything that decides their content but the
/// compiler, whose version they tell: an entry is never wrong, only unused. Writers race safely: a file
/// appears whole, by renaming. A damaged file counts as none and is written anew.
public struct KernelCache: Hashable, Sendable {
    public let folder: String

    public init(folder: String) { self.folder = folder }

    /// `$XDG_CACHE_HOME/turbodiffusion/kernels`, or under `~/.cache`; nil where there is no home.
    public static var user: KernelCache? {
        let base = environment("XDG_CACHE_HOME") ?? environment("HOME").map { "\($0)/.cache" }
        return base.map { KernelCache(folder: "\($0)/turbodiffusion/kernels") }
    }

    func path(of key: String) -> String { "\(folder)/\(key).kernels" }

    func load(_ key: String) -> CompiledUnit? {
        MappedBytes(path: path(of: key)).flatMap { CompiledUnit(serialized: $0.bytes) }
    }

    func contains(_ key: String) -> Bool { access(path(of: key), R_OK) == 0 }

    /// Keeps `unit`; does nothing where the folder cannot be written.
    func store(_ unit: CompiledUnit, as key: String) {
        makeFolders(folder)
        _ = writeFile(unit.serialized(), to: path(of: key))
    }

    /// Entries and their bytes.
    public var contents: (count: Int, byteCount: Int) {
        let sizes = fileNames(in: folder).filter { $0.hasSuffix(".kernels") }.map { name in
            var status = stat()
            return stat("\(folder)/\(name)", &status) == 0 ? Int(status.st_size) : 0
        }
        return (sizes.count, sizes.reduce(0, +))
    }
}

/// Units compiled beforehand for some architectures: a file that travels with the binary.
public struct KernelPack: Sendable {
    private static let magic = "turbodiffusion kernel pack 1\n"
    let path: String
    private let file: MappedBytes
    private let entries: [String: Range<Int>]

    func contains(_ key: String) -> Bool { entries[key] != nil }

    init(contentsOf path: String) throws(KernelError) {
        guard let file = MappedBytes(path: path) else {
            throw .unreadablePack(path: path, reason: String(cString: strerror(errno)))
        }
        guard let entries = Self.parse(file.bytes) else {
            throw .unreadablePack(path: path, reason: "damaged or of another version")
        }
        self.path = path
        self.file = file
        self.entries = entries
    }

    /// nil where the pack has no such unit.
    func load(_ key: String) throws(KernelError) -> CompiledUnit? {
        guard let range = entries[key] else { return nil }
        let bytes = UnsafeRawBufferPointer(rebasing: file.bytes[range])
        guard let unit = CompiledUnit(serialized: bytes) else {
            throw .unreadablePack(path: path, reason: "damaged")
        }
        return unit
    }

    static func serialized(_ units: [(key: String, unit: CompiledUnit)]) -> [UInt8] {
        var bytes = Array(magic.utf8)
        for (key, unit) in units.sorted(by: { $0.key < $1.key }) {
            let body = unit.serialized()
            bytes += Array("\(key) \(body.count)\n".utf8)
            bytes += body
        }
        return bytes
    }

    /// Where the units lie.
    static func parse(_ bytes: UnsafeRawBufferPointer) -> [String: Range<Int>]? {
        guard bytes.starts(with: magic.utf8) else { return nil }
        var entries: [String: Range<Int>] = [:]
        var position = magic.utf8.count
        while position < bytes.count {
            guard let end = bytes[position...].firstIndex(of: UInt8(ascii: "\n")) else {
                return nil
            }
            let words = String(decoding: bytes[position..<end], as: UTF8.self).split(separator: " ")
            guard words.count == 2, let size = Int(words[1]), size >= 0,
                size <= bytes.count - end - 1
            else { return nil }
            entries[String(words[0])] = end + 1..<end + 1 + size
            position = end + 1 + size
        }
        return entries
    }
}

// MARK: - Files

/// A file's bytes, mapped: what is not looked at is not read.
final class MappedBytes: @unchecked Sendable {
    let bytes: UnsafeRawBufferPointer

    /// nil, and `errno`, where it cannot be read.
    init?(path: String) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { return nil }
        guard status.st_size > 0 else {
            bytes = UnsafeRawBufferPointer(start: nil, count: 0)
            return
        }
        let count = Int(status.st_size)
        guard let base = mmap(nil, count, PROT_READ, MAP_PRIVATE, descriptor, 0),
            base != MAP_FAILED
        else { return nil }
        bytes = UnsafeRawBufferPointer(start: base, count: count)
    }

    deinit {
        if let base = bytes.baseAddress {
            munmap(UnsafeMutableRawPointer(mutating: base), bytes.count)
        }
    }
}

/// Writes a whole file under a temporary name and renames it. Whether that worked.
func writeFile(_ bytes: [UInt8], to path: String) -> Bool {
    let temporary = "\(path).\(getpid()).\(UInt32.random(in: 0 ... .max))"
    guard let file = fopen(temporary, "wb") else { return false }
    let whole = fwrite(bytes, 1, bytes.count, file) == bytes.count
    if fclose(file) == 0, whole, rename(temporary, path) == 0 { return true }
    unlink(temporary)
    return false
}

private func makeFolders(_ path: String) {
    var prefix = path.hasPrefix("/") ? "" : "."
    for part in path.split(separator: "/") {
        prefix += "/\(part)"
        mkdir(prefix, 0o755)
    }
}

private func fileNames(in folder: String) -> [String] {
    guard let directory = opendir(folder) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        names.append(
            withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            })
    }
    return names
}
