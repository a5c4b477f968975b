/// Why a checkpoint was refused.

import Ground
import SystemPackage

/// One reason, naming the file; `description` is the line a user reads.
public enum CheckpointError: Error, Sendable, Equatable {
    /// The file cannot be opened or mapped.
    case unreadable(path: String, reason: String)
    /// The bytes are not a checkpoint that this program accepts: damaged, hostile or of another
    /// kind.
    case malformed(path: String, reason: String)
    /// A tensor that the model needs is not there.
    case missing(_ name: String, in: String, nearest: [String])
    /// A tensor has another shape than the model needs.
    case shape(_ name: String, in: String, expected: [Int], found: [Int])
    /// A tensor has another element type than the model needs.
    case dtype(_ name: String, in: String, expected: String, found: String)
    /// The result cannot be written.
    case unwritable(path: String, reason: String)
    /// Checkpoints that were given together do not go together.
    case incompatible(path: String, reason: String)
    /// The checkpoint holds another model than asked for; the first differences.
    case wrongModel(path: String, expected: String, found: String, differences: [String])
}

extension CheckpointError: CustomStringConvertible {
    /// Names in it are those of a file: what steers a terminal is made visible.
    public var description: String { line.printable }

    private var line: String {
        switch self {
        case .unreadable(let path, let reason): cannotRead(path, reason)
        case .malformed(let path, let reason): "\(path) is not a usable checkpoint: \(reason)"
        case .missing(let name, let path, let nearest):
            "\(path) has no tensor '\(name)'"
                + (nearest.isEmpty ? "" : "; nearest: " + nearest.joined(separator: ", "))
        case .shape(let name, let path, let expected, let found):
            "\(path): tensor '\(name)' has shape \(found), expected \(expected)"
        case .dtype(let name, let path, let expected, let found):
            "\(path): tensor '\(name)' holds \(found), expected \(expected)"
        case .unwritable(let path, let reason): "cannot write \(path): \(reason)"
        case .incompatible(let path, let reason): "\(path): \(reason)"
        case .wrongModel(let path, let expected, let found, let differences):
            "\(path) holds \(found), expected \(expected): "
                + differences.joined(separator: "; ")
        }
    }
}

extension CheckpointError {
    /// A file that was to be read.
    static func unreadable(_ error: FileError) -> CheckpointError {
        .unreadable(path: error.path.string, reason: error.reason)
    }

    /// A file that was to be written.
    static func unwritable(_ error: FileError) -> CheckpointError {
        let hint = if case .exists = error { "; --force replaces it" } else { "" }
        return .unwritable(path: error.path.string, reason: error.reason + hint)
    }
}

/// Maps a checkpoint's file.
/// - Throws: `.unreadable`, and `.malformed` where it is empty.
func openFile(_ path: String) throws(CheckpointError) -> MappedFile {
    let file: MappedFile
    do { file = try MappedFile(FilePath(path)) } catch { throw .unreadable(error) }
    guard !file.bytes.isEmpty else { throw file.fail("the file is empty") }
    return file
}

extension MappedFile {
    func fail(_ reason: String) -> CheckpointError {
        .malformed(path: path.string, reason: reason)
    }
}
