/// The files of a run: one video, or one for each sample and a grid of them all.

import Glibc
import Media
import Pipelines

/// Takes chunks of frames, sample after sample, and leaves finished files or none.
final class VideoOutput {
    private(set) var paths: [String]
    private let gridPath: String
    private let samples: Int
    private let framesPerSecond: Int
    private let crf: Int?
    private let metadata: String
    private var writers: [Int: VideoWriter] = [:]
    private var grid: VideoWriter?
    private var earlier: RawFrames?
    private var framesOfLast = 0

    init(
        path: String, samples: Int, framesPerSecond: Int, crf: Int?, metadata: String
    ) throws {
        gridPath = path
        self.samples = samples
        self.framesPerSecond = framesPerSecond
        self.crf = crf
        self.metadata = metadata
        paths = samples == 1 ? [path] : (0..<samples).map { Self.numbered(path, $0) } + [path]
        if samples > 1 { earlier = try RawFrames() }
    }

    /// "a/b.mp4", 2 → "a/b_2.mp4"; "frames/%04d.png" → "frames/s2_%04d.png"
    private static func numbered(_ path: String, _ sample: Int) -> String {
        if path.contains("%"), let slash = path.lastIndex(of: "/") {
            return path[...slash] + "s\(sample)_" + path[path.index(after: slash)...]
        }
        guard let dot = path.lastIndex(of: ".") else { return "\(path)_\(sample)" }
        return path[..<dot] + "_\(sample)" + path[dot...]
    }

    private func open(_ path: String, _ width: Int, _ height: Int, _ format: PixelFormat) throws
        -> VideoWriter
    {
        var options = VideoWriter.Options(path: path, width: width, height: height)
        options.pixelFormat = format
        options.framesPerSecond = Double(framesPerSecond)
        options.crf = crf
        options.metadata = metadata
        let writer = try VideoWriter(options)
        Interruption.opened(writer)
        return writer
    }

    func append(_ chunk: FrameChunk) async throws {
        if writers[chunk.sample] == nil {
            writers[chunk.sample] = try open(
                paths[chunk.sample], chunk.width, chunk.height, chunk.format)
        }
        try await writers[chunk.sample]!.append(chunk.bytes)
        guard samples > 1 else { return }
        if chunk.sample < samples - 1 {
            try earlier?.append(chunk.bytes, to: chunk.sample)
        } else {
            try await appendToGrid(chunk)
        }
    }

    /// A frame of all samples, as near to a square of them as whole rows allow.
    private func appendToGrid(_ chunk: FrameChunk) async throws {
        var columns = 1
        while columns * columns < samples { columns += 1 }
        let rows = (samples + columns - 1) / columns
        if grid == nil {
            grid = try open(
                gridPath, chunk.width * columns, chunk.height * rows, chunk.format)
        }
        let frameBytes = chunk.bytes.count / chunk.count
        for frame in 0..<chunk.count {
            var pictures: [ArraySlice<UInt8>] = try (0..<samples - 1).map { sample in
                try earlier!.read(
                    sample, from: (framesOfLast + frame) * frameBytes, count: frameBytes)[...]
            }
            pictures.append(chunk.bytes[frame * frameBytes..<(frame + 1) * frameBytes])
            var image: [UInt8] = []
            image.reserveCapacity(rows * columns * frameBytes)
            var start = 0
            for plane in chunk.format.planes(width: chunk.width, height: chunk.height) {
                for row in 0..<rows * plane.rows {
                    let line = start + row % plane.rows * plane.rowBytes
                    for sample in row / plane.rows * columns..<(row / plane.rows + 1) * columns {
                        if sample < samples {
                            image += pictures[sample].dropFirst(line).prefix(plane.rowBytes)
                        } else {
                            image += repeatElement(plane.black, count: plane.rowBytes)
                        }
                    }
                }
                start += plane.rows * plane.rowBytes
            }
            try await grid!.append(image)
        }
        framesOfLast += chunk.count
    }

    func finish() async throws {
        for writer in writers.sorted(by: { $0.key < $1.key }).map(\.value)
            + [grid].compactMap({ $0 })
        {
            try await writer.finish()
            Interruption.closed(writer)
        }
    }

    func cancel() async {
        for writer in Array(writers.values) + [grid].compactMap({ $0 }) {
            await writer.cancel()
            Interruption.closed(writer)
        }
    }
}

/// Frames of earlier samples, in files without a name that vanish with the process.
private final class RawFrames {
    private var files: [Int: UnsafeMutablePointer<FILE>] = [:]

    init() throws {}

    deinit { for file in files.values { fclose(file) } }

    func append(_ bytes: [UInt8], to sample: Int) throws {
        if files[sample] == nil { files[sample] = tmpfile() }
        guard let file = files[sample],
            bytes.withUnsafeBytes({ fwrite($0.baseAddress, 1, $0.count, file) }) == bytes.count
        else { throw RequestError("no space for the frames of \(sample + 1) samples in /tmp") }
    }

    func read(_ sample: Int, from offset: Int, count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        guard let file = files[sample], fseek(file, offset, SEEK_SET) == 0,
            bytes.withUnsafeMutableBytes({ fread($0.baseAddress, 1, count, file) }) == count
        else { throw RequestError("the frames of sample \(sample) cannot be read back from /tmp") }
        return bytes
    }
}
