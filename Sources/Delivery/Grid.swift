/// Several videos as one: frame by frame beside and below each other.

import Glibc
import Media
import Runs
import SystemPackage

/// Keeps the frames of all samples but the last in a file without a name, which vanishes with this object, and puts each
/// frame of the last one together with theirs.
final class Grid {
    private let samples, columns, rows: Int
    /// Of one video.
    private let width, height, frames: Int
    private let format: PixelFormat
    private let frameBytes: Int
    private let folder: String
    private let descriptor: CInt
    /// Frames of the current sample that were taken.
    private var taken = 0
    private var sample = 0

    init(_ outputs: Outputs, _ format: PixelFormat) throws(OutputError) {
        samples = outputs.samples
        (columns, rows) = outputs.grid
        (width, height, frames) = (outputs.width, outputs.height, outputs.frames)
        self.format = format
        frameBytes = format.frameBytes(width: width, height: height)
        folder = Outputs.temporaryFolder
        var name = Array(FilePath(folder).appending("turbodiffusion.XXXXXX").string.utf8CString)
        descriptor = mkstemp(&name)
        guard descriptor >= 0 else {
            throw .temporary(folder: folder, reason: "\(Errno(rawValue: errno))")
        }
        unlink(name)
        _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    }

    deinit { close(descriptor) }

    /// Width and height of the grid.
    var size: (Int, Int) { (width * columns, height * rows) }

    /// - Returns: frames of the grid, for a chunk of the last sample.
    func take(_ chunk: FrameChunk) throws(OutputError) -> [UInt8]? {
        if chunk.sample != sample { (sample, taken) = (chunk.sample, 0) }
        defer { taken += chunk.count }
        guard chunk.sample == samples - 1 else {
            try move(chunk.bytes.count) { done in
                chunk.bytes.withUnsafeBytes {
                    pwrite(
                        descriptor, $0.baseAddress! + done, $0.count - done,
                        offset(sample, taken) + done)
                }
            }
            return nil
        }
        var images: [UInt8] = []
        images.reserveCapacity(chunk.count * columns * rows * frameBytes)
        for frame in 0..<chunk.count {
            var pictures: [[UInt8]] = []
            for sample in 0..<samples - 1 {
                pictures.append(try read(sample, taken + frame))
            }
            pictures.append(Array(chunk.bytes[frame * frameBytes..<(frame + 1) * frameBytes]))
            images += Self.joined(
                pictures, columns: columns, rows: rows, width: width, height: height, format)
        }
        return images
    }

    /// Pictures side by side, row after row; places that are left are black.
    static func joined(
        _ pictures: [[UInt8]], columns: Int, rows: Int, width: Int, height: Int,
        _ format: PixelFormat
    ) -> [UInt8] {
        var image: [UInt8] = []
        image.reserveCapacity(
            columns * rows * format.frameBytes(width: width, height: height))
        var start = 0
        for plane in format.planes(width: width, height: height) {
            for row in 0..<rows * plane.rows {
                let line = start + row % plane.rows * plane.rowBytes
                for place in row / plane.rows * columns..<(row / plane.rows + 1) * columns {
                    if place < pictures.count {
                        image += pictures[place][line..<line + plane.rowBytes]
                    } else {
                        image += repeatElement(plane.black, count: plane.rowBytes)
                    }
                }
            }
            start += plane.rows * plane.rowBytes
        }
        return image
    }

    // MARK: The file

    private func offset(_ sample: Int, _ frame: Int) -> Int {
        (sample * frames + frame) * frameBytes
    }

    private func read(_ sample: Int, _ frame: Int) throws(OutputError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: frameBytes)
        try move(frameBytes) { done in
            bytes.withUnsafeMutableBytes {
                pread(
                    descriptor, $0.baseAddress! + done, $0.count - done,
                    offset(sample, frame) + done)
            }
        }
        return bytes
    }

    /// Calls `some`, which moves bytes and tells how many, until all are moved.
    private func move(_ count: Int, _ some: (Int) -> Int) throws(OutputError) {
        var done = 0
        while done < count {
            let moved = some(done)
            if moved < 0, errno == EINTR { continue }
            guard moved > 0 else {
                throw .temporary(
                    folder: folder, reason: "\(moved < 0 ? Errno(rawValue: errno) : .ioError)")
            }
            done += moved
        }
    }
}
