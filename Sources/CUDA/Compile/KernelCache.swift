// Compiled kernels on disk: the user's cache, with one file per unit, and packs, with many units in one file.

internal import Glibc
internal import Ground
internal import SystemPackage

/// A folder of compiled units. The name of a file is the hash of everything that determines its content except the
/// compiler, whose version is in the file; so an entry is never wrong, at most unused. Files are written under another
/// name and then renamed, so several processes may write at once. A damaged file is ignored and written again.
public struct KernelCache: Hashable, Sendable {
    public let folder: String

    public init(folder: String) { self.folder = folder }

    /// `$XDG_CACHE_HOME/turbodiffusion/kernels`, or the same under `~/.cache`; nil if there is no home folder, or if
    /// other users can change its content.
    public static var user: KernelCache? { user(environment) }

    static func user(_ environment: (String) -> String?) -> KernelCache? {
        userCache("kernels", environment).map { KernelCache(folder: $0) }
    }

    func path(of key: String) -> String { "\(folder)/\(key).kernels" }

    func load(_ key: String) -> CompiledUnit? {
        guard let file = try? MappedFile(FilePath(path(of: key))) else { return nil }
        return CompiledUnit(serialized: file.bytes)
    }

    func contains(_ key: String) -> Bool { access(path(of: key), R_OK) == 0 }

    /// Stores a unit; does nothing if the folder cannot be written.
    func store(_ unit: CompiledUnit, as key: String) {
        try? FilePath(folder).makeFolders(mode: 0o700)
        try? PendingFile.write(
            unit.serialized(), to: FilePath(path(of: key)), overwrite: true, durable: false)
    }

    /// The number of entries, and their bytes together.
    public var contents: (count: Int, byteCount: Int) {
        let folder = FilePath(folder)
        let names = (try? folder.fileNames()) ?? []
        let sizes = names.filter { $0.hasSuffix(".kernels") }
            .map { folder.appending($0).fileSize ?? 0 }
        return (sizes.count, sizes.reduce(0, +))
    }
}

/// Units compiled in advance for some architectures, in a file that is distributed with the binary.
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

    /// nil if the pack has no such unit.
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

    /// The byte range of every unit, by key; nil if the file is damaged.
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
