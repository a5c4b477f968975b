// Compiled kernels on disk: the user's cache, one file a unit, and packs, many units in one file.

internal import Glibc
internal import Ground
internal import SystemPackage

/// A folder of compiled units, named by the hash of everything that decides their content but the
/// compiler, whose version they tell: an entry is never wrong, only unused. Writers race safely: a file
/// appears whole, by renaming. A damaged file counts as none and is written anew.
public struct KernelCache: Hashable, Sendable {
    public let folder: String

    public init(folder: String) { self.folder = folder }

    /// `$XDG_CACHE_HOME/turbodiffusion/kernels`, or under `~/.cache`; nil where there is no home, and where others can
    /// change what is in it.
    public static var user: KernelCache? { user(environment) }

    static func user(_ environment: (String) -> String?) -> KernelCache? {
        // By the XDG base directory specification a path that is not absolute counts as none.
        func absolute(_ name: String) -> String? {
            environment(name).flatMap { $0.hasPrefix("/") ? $0 : nil }
        }
        guard let base = absolute("XDG_CACHE_HOME") ?? absolute("HOME").map({ "\($0)/.cache" })
        else { return nil }
        let cache = KernelCache(folder: "\(base)/turbodiffusion/kernels")
        return FilePath(cache.folder).changeableByOthers == nil ? cache : nil
    }

    func path(of key: String) -> String { "\(folder)/\(key).kernels" }

    func load(_ key: String) -> CompiledUnit? {
        guard let file = try? MappedFile(FilePath(path(of: key))) else { return nil }
        return CompiledUnit(serialized: file.bytes)
    }

    func contains(_ key: String) -> Bool { access(path(of: key), R_OK) == 0 }

    /// Keeps `unit`; does nothing where the folder cannot be written.
    func store(_ unit: CompiledUnit, as key: String) {
        try? FilePath(folder).makeFolders(mode: 0o700)
        try? PendingFile.write(
            unit.serialized(), to: FilePath(path(of: key)), overwrite: true, durable: false)
    }

    /// Entries and their bytes.
    public var contents: (count: Int, byteCount: Int) {
        let folder = FilePath(folder)
        let names = (try? folder.fileNames()) ?? []
        let sizes = names.filter { $0.hasSuffix(".kernels") }
            .map { folder.appending($0).fileSize ?? 0 }
        return (sizes.count, sizes.reduce(0, +))
    }
}

/// Units compiled beforehand for some architectures: a file that travels with the binary.
public struct KernelPack: Sendable {
    private static let magic = "turbodiffusion kernel pack 1\n"
    let path: String
    private let file: MappedFile
    private let entries: [String: Range<Int>]

    func contains(_ key: String) -> Bool { entries[key] != nil }

    init(contentsOf path: String) throws(KernelError) {
        let file: MappedFile
        do { file = try MappedFile(FilePath(path)) } catch {
            throw .unreadablePack(path: path, reason: error.reason)
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
