/// Where the service keeps its files.

import Glibc
import Ground
import Jobs
import Media
import SystemPackage

/// The folder of a service. Every name in it is made of a job's id, which the service has drawn itself.
struct Folders: Sendable {
    let root: String

    var database: String { root + "/jobs.sqlite" }
    private var lock: String { root + "/lock" }
    private static let names = ["videos", "inputs", "pictures"]

    func video(_ id: String) -> String { "\(root)/videos/\(id).mp4" }
    /// The picture that a video begins with, as it was sent.
    func input(_ id: String) -> String { "\(root)/inputs/\(id)" }
    func picture(_ id: String, _ name: String) -> String { "\(root)/pictures/\(id).\(name).webp" }

    /// Makes the folder. It belongs to one process at a time.
    /// - Returns: a descriptor that holds it until the process ends.
    func open() throws -> Int32 {
        do {
            for name in Self.names {
                try FilePath("\(root)/\(name)").makeFolders()
            }
        } catch { throw ServiceError("\(error)") }
        let descriptor = Glibc.open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw ServiceError("\(lock): \(String(cString: strerror(errno)))")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            throw ServiceError("\(root) is in use by another process: choose another --output")
        }
        return descriptor
    }

    /// Removes all files of a job.
    func remove(_ id: String) {
        unlink(video(id))
        unlink(input(id))
        for name in VideoPicture.allCases { unlink(picture(id, name.rawValue)) }
    }

    /// Removes what belongs to no job.
    /// - Parameter isKnown: whether there is such a job.
    func sweep(_ isKnown: (String) -> Bool) {
        for name in Self.names {
            let folder = FilePath("\(root)/\(name)")
            for file in (try? folder.fileNames()) ?? [] {
                let id = String(file.prefix { $0 != "." })
                if Job.isID(id), !isKnown(id) { unlink(folder.appending(file).string) }
            }
        }
    }

    var freeBytes: Int? { FilePath(root).freeBytes }
}

/// A picture that is made of a finished video.
enum VideoPicture: String, Sendable, CaseIterable {
    case thumbnail, spritesheet

    /// Columns, which are rows too.
    private var side: Int { self == .thumbnail ? 1 : 4 }
    private static let tileWidth = 320

    /// Makes the picture: the first frame, or frames from all over the video.
    func write(of video: String, frames: Int, to path: String) async throws {
        let reader = try await FrameReader(path: video)
        let wanted = side * side
        let scale = min(1, Double(Self.tileWidth) / Double(reader.width))
        let width = max(2, Int(Double(reader.width) * scale) / 2 * 2)
        let height = max(2, Int(Double(reader.height) * scale) / 2 * 2)
        let (columns, bytesPerRow) = (side, 3 * width)
        var sheet = [UInt8](repeating: 0, count: wanted * height * bytesPerRow)
        var index = 0
        var tile = 0
        while tile < wanted, let frame = try await reader.next() {
            // The frame may stand for several tiles of a short video.
            while tile < wanted, index == tile * max(frames, 1) / wanted {
                let image = resize(
                    RGBImage(width: reader.width, height: reader.height, pixels: frame),
                    width: width, height: height)
                let (row, column) = (tile / columns, tile % columns)
                for y in 0..<height {
                    let target = ((row * height + y) * columns + column) * bytesPerRow
                    sheet.replaceSubrange(
                        target..<target + bytesPerRow,
                        with: image.pixels[y * bytesPerRow..<(y + 1) * bytesPerRow])
                }
                tile += 1
            }
            index += 1
        }
        let writer = try VideoWriter(
            VideoWriter.Options(
                path: path, replaces: true, width: width * columns, height: height * columns,
                framesPerSecond: 1))
        try await writer.append(sheet)
        _ = try await writer.finish()
    }
}
