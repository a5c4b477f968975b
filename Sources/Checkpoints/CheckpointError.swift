/// Why a checkpoint was refused.

import Ground
import SystemPackage

/// A reason that names the file; `description` is the line that a user reads.
public enum CheckpointError: Error, Sendable, Equatable {
    /// The file cannot be opened or mapped.
    case unreadable(path: String, reason: String)
    /// A folder with several checkpoints, of which one must be named.
    case several(folder: String, names: [String])
    /// The bytes are not a checkpoint that this program accepts: damaged, hostile or of another
    /// kind.
    case malformed(path: String, reason: String)
    /// A tensor that the model needs is missing.
    case missing(_ name: String, in: String, nearest: [String])
    /// A tensor does not have the shape that the model needs.
    case shape(_ name: String, in: String, expected: [Int], found: [Int])
    /// A tensor does not have the element type that the model needs.
    case dtype(_ name: String, in: String, expected: String, found: String)
    /// The result cannot be written.
    case unwritable(path: String, reason: String)
    /// A checkpoint does not fit its use, or another checkpoint that it is used with.
    case incompatible(path: String, reason: String)
    /// The checkpoint holds another model than expected; `differences` are the first ones.
    case wrongModel(path: String, expected: String, found: String, differences: [String])
}

extension CheckpointError: CustomStringConvertible {
    /// Names in it come from a file, so control characters are made visible.
    public var description: String { line.printable }

    private var line: String {
        switch self {
        case .unreadable(let path, let reason): cannotRead(path, reason)
        case .several(let folder, let names):
            cannotRead(
                folder,
                "the folder holds several checkpoints; name one of them: "
                    + names.prefix(4).joined(separator: ", "))
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
    /// The file, or the folder of files, that it is about.
    public var path: String {
        switch self {
        case .unreadable(let path, _), .malformed(let path, _), .missing(_, let path, _),
            .shape(_, let path, _, _), .dtype(_, let path, _, _), .unwritable(let path, _),
            .incompatible(let path, _), .wrongModel(let path, _, _, _), .several(let path, _):
            path
        }
    }

    /// The error for a file that cannot be read.
    static func unreadable(_ error: FileError) -> CheckpointError {
        .unreadable(path: error.path.string, reason: error.reason)
    }

    /// The error for a file that cannot be written.
    static func unwritable(_ error: FileError) -> CheckpointError {
        let hint = if case .exists = error { "; --force replaces it" } else { "" }
        return .unwritable(path: error.path.string, reason: error.reason + hint)
    }
}

/// Maps a checkpoint's file.
/// - Throws: `.unreadable`, or `.malformed` if it is empty.
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
