/// A run's folder: settings, checkpoints that are whole or not there, curves.

public import Checkpoints
import FoundationEssentials
import Glibc
import Ground
public import SystemPackage

/// What went wrong with the folder.
public struct RunFolderError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

/// `settings.json`, `checkpoints/iter_000000500.safetensors`, `loss.csv`, `events.out.tfevents.…`.
public final class RunFolder {
    public let path: FilePath
    private let kept: Int
    /// Holds the folder; -1: nothing does.
    private var lock: Int32 = -1

    /// - Parameter kept: checkpoints that stay.
    public init(_ path: String, kept: Int) throws(RunFolderError) {
        self.path = FilePath(path)
        self.kept = kept
        do { try Self.checkpoints(in: self.path).makeFolders() } catch {
            throw RunFolderError("cannot make the run's folder \(error.path): \(error.reason)")
        }
    }

    deinit { if lock >= 0 { close(lock) } }

    /// Keeps other runs out as long as this object exists: two would write the same files, and each remove the other's
    /// checkpoints. A file system that knows no locks lets both in.
    public func hold() throws(RunFolderError) {
        let descriptor = open(path.string, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw RunFolderError("cannot open the run's folder \(FileError.last(path))")
        }
        if flock(descriptor, LOCK_EX | LOCK_NB) != 0, errno == EWOULDBLOCK {
            close(descriptor)
            throw RunFolderError(
                "\(path) is in use by another run: wait for its end, or choose another --output")
        }
        lock = descriptor
    }

    // MARK: Settings

    private var settingsPath: FilePath { path.appending("settings.json") }

    /// What `settings.json` holds.
    private struct Stored: Encodable {
        var settings: TrainingSettings
        var files: TrainingFiles

        func encode(to encoder: any Encoder) throws {
            try settings.encode(to: encoder)
            try files.encode(to: encoder)
        }
    }

    public func write(
        _ settings: TrainingSettings, _ files: TrainingFiles = TrainingFiles()
    ) throws(RunFolderError) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        do {
            let stored = Stored(settings: settings, files: files)
            let bytes = Array(try encoder.encode(stored)) + [UInt8(ascii: "\n")]
            try PendingFile.write(bytes, to: settingsPath, overwrite: true)
        } catch {
            let reason = (error as? FileError)?.reason ?? "\(error)"
            throw RunFolderError("cannot write \(settingsPath): \(reason)")
        }
    }

    // MARK: Checkpoints

    private var checkpoints: FilePath { Self.checkpoints(in: path) }
    private static func checkpoints(in folder: FilePath) -> FilePath {
        folder.appending("checkpoints")
    }

    /// What an iteration's files are called, without an ending.
    public static func name(_ iteration: Int) -> String { "iter_" + padded(iteration, 9) }

    /// Whole checkpoints, the oldest first.
    public func states() -> [(iteration: Int, path: String)] { Self.states(in: path) }

    /// Whole checkpoints of a folder that may not be there, the oldest first.
    public static func states(in folder: FilePath) -> [(iteration: Int, path: String)] {
        let checkpoints = checkpoints(in: folder)
        let names = (try? checkpoints.fileNames()) ?? []
        return names.compactMap { name -> (Int, String)? in
            guard name.hasPrefix("iter_"), name.hasSuffix(".safetensors"),
                let iteration = Int(name.dropFirst(5).dropLast(12))
            else { return nil }
            return (iteration, checkpoints.appending(name).string)
        }.sorted { $0.0 < $1.0 }
    }

    /// Writes a state beside and renames it when it is whole; then the oldest ones go. Space is asked for before.
    public func save(_ state: any Checkpoint, iteration: Int) throws {
        try writeCheckpoint(
            state, to: checkpoints.appending(Self.name(iteration) + ".safetensors").string,
            overwrite: true)
        for old in states().dropLast(kept) { unlink(old.path) }
    }
}
