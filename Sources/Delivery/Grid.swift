/// Joins several videos into one that shows them side by side, in rows and columns.

import Ground
import Media
import Runs
import SystemPackage

/// Keeps the frames of all samples but the last in a nameless file, which vanishes with this object, and joins each frame
/// of the last sample with theirs.
final class Grid {
    private let samples, columns, rows: Int
    /// Of one video.
    private let width, height, frames: Int
    private let format: PixelFormat
    private let frameBytes: Int
    private let file: ScratchFile
    /// How many frames of the current sample were taken.
    private var taken = 0
    private var sample = 0

    init(_ outputs: Outputs, _ format: PixelFormat) throws(OutputError) {
        samples = outputs.samples
        (columns, rows) = outputs.grid
        (width, height, frames) = (outputs.width, outputs.height, outputs.frames)
        self.format = format
        frameBytes = format.frameBytes(width: width, height: height)
        do throws(FileError) { file = try ScratchFile() } catch {
            throw OutputError(keeping: error)
        }
    }

    /// Width and height of the grid.
    var size: (Int, Int) { (width * columns, height * rows) }

    /// - Returns: frames of the grid for a chunk of the last sample; nil for earlier samples.
    func take(_ chunk: FrameChunk) throws(OutputError) -> [UInt8]? {
        if chunk.sample != sample { (sample, taken) = (chunk.sample, 0) }
        defer { taken += chunk.count }
        guard chunk.sample == samples - 1 else {
            do throws(FileError) { try file.append(chunk.bytes) } catch {
                throw OutputError(keeping: error)
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

    /// Puts pictures side by side, row after row; unused places are black.
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

    /// Reads a frame of an earlier sample; the samples are stored one after the other.
    private func read(_ sample: Int, _ frame: Int) throws(OutputError) -> [UInt8] {
        do throws(FileError) {
            return try file.read(
                from: (sample * frames + frame) * frameBytes, count: frameBytes)
        } catch { throw OutputError(keeping: error) }
    }
}

extension OutputError {
    fileprivate init(keeping error: FileError) {
        self = .temporary(folder: error.path.string, reason: error.reason)
    }
}
