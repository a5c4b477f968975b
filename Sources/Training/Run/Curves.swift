/// Curves of a run: CSV for tables, events for TensorBoard.

import Glibc
public import Ground
import SystemPackage

/// Appends to `loss.csv` and to one file of events.
public final class Curves {
    private let csv: FilePath
    private let validations: FilePath
    private let events: FilePath
    /// Columns of `validation.csv`, the same in each run; what is not known stays empty.
    private static let figures = ["psnr", "score", "teacher_score"]
    private static let validationHeader =
        "iteration," + figures.joined(separator: ",") + "\n"
    private static let header = "iteration,net,loss,gradient_norm,learning_rate,seconds,skipped\n"

    /// - Parameter done: iterations whose lines stay; later ones were lost with the process that made them.
    public init(in folder: RunFolder, done: Int) throws(FileError) {
        csv = folder.path.appending("loss.csv")
        let now = time(nil)
        events = folder.path.appending("events.out.tfevents.\(now).turbodiffusion")
        validations = folder.path.appending("validation.csv")
        try Self.cut(csv, Self.header, done)
        if validations.exists { try Self.cut(validations, Self.validationHeader, done) }
        try append(Self.record(Self.event(time: Double(now), step: nil, version: true)), to: events)
    }

    /// Leaves the lines of iterations that are done.
    private static func cut(_ path: FilePath, _ header: String, _ done: Int) throws(FileError) {
        var kept = header
        if path.exists {
            let text = String(decoding: try path.contents(limit: 1 << 30), as: UTF8.self)
            for line in text.split(separator: "\n").dropFirst() {
                guard let number = Int(line.prefix { $0 != "," }), number <= done else { continue }
                // Older files have fewer columns.
                let lacking = header.count { $0 == "," } - line.count { $0 == "," }
                kept += line + String(repeating: ",", count: max(0, lacking)) + "\n"
            }
        }
        try PendingFile.write(Array(kept.utf8), to: path, overwrite: true)
    }

    public func add(_ report: IterationReport, seconds: Double) throws(FileError) {
        let line =
            [
                "\(report.iteration)", report.net, numeral(report.loss), numeral(report.norm),
                numeral(report.learningRate), fixed(seconds, 3), csvField(report.skipped ?? ""),
            ].joined(separator: ",") + "\n"
        try append(Array(line.utf8), to: csv)
        let now = Double(time(nil))
        let scalars = [
            ("loss/\(report.net)", report.loss), ("gradient_norm/\(report.net)", report.norm),
            ("learning_rate/\(report.net)", report.learningRate), ("seconds", seconds),
        ]
        var bytes: [UInt8] = []
        for (tag, value) in scalars {
            bytes += Self.record(
                Self.event(time: now, step: report.iteration, scalar: (tag, Float(value))))
        }
        try append(bytes, to: events)
    }

    /// A validation's figures (psnr, score, teacher_score): a line of `validation.csv`, and events.
    public func add(_ figures: [(name: String, value: Double?)], iteration: Int) throws(FileError) {
        if !validations.exists { try append(Array(Self.validationHeader.utf8), to: validations) }
        let values = Self.figures.map { name in
            figures.first { $0.name == name }?.value.map { numeral($0) } ?? ""
        }
        try append(
            Array(("\(iteration)," + values.joined(separator: ",") + "\n").utf8), to: validations)
        let now = Double(time(nil))
        var bytes: [UInt8] = []
        for (name, value) in figures {
            guard let value else { continue }
            bytes += Self.record(
                Self.event(time: now, step: iteration, scalar: ("validation/\(name)", Float(value)))
            )
        }
        try append(bytes, to: events)
    }

    /// Draws the losses so far: `loss.svg`.
    public func draw() throws(FileError) {
        let text = String(decoding: try csv.contents(limit: 1 << 30), as: UTF8.self)
        guard let picture = LossPicture(csv: text).svg else { return }
        try PendingFile.write(
            Array(picture.utf8), to: csv.folder.appending("loss.svg"), overwrite: true,
            durable: false)
    }

    private func append(_ bytes: [UInt8], to path: FilePath) throws(FileError) {
        let descriptor = open(path.string, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw .last(path) }
        defer { close(descriptor) }
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                throw .last(path)
            }
            rest = rest.dropFirst(count)
        }
    }

    // MARK: TensorBoard (tensorflow/core/util/event.proto, TFRecord framing)

    private static func variable(_ value: UInt64) -> [UInt8] {
        var (value, bytes): (UInt64, [UInt8]) = (value, [])
        repeat {
            let low = UInt8(value & 0x7F)
            value >>= 7
            bytes.append(value == 0 ? low : low | 0x80)
        } while value != 0
        return bytes
    }

    private static func field(_ number: UInt64, _ bytes: [UInt8]) -> [UInt8] {
        variable(number << 3 | 2) + variable(UInt64(bytes.count)) + bytes
    }

    /// An `Event`: wall_time = 1 (double), step = 2, file_version = 3, summary = 5.
    static func event(
        time: Double, step: Int?, version: Bool = false, scalar: (tag: String, value: Float)? = nil
    ) -> [UInt8] {
        var bytes = [UInt8](arrayLiteral: 1 << 3 | 1) + littleEndian(time.bitPattern)
        if let step { bytes += variable(2 << 3) + variable(UInt64(step)) }
        if version { bytes += field(3, Array("brain.Event:2".utf8)) }
        if let scalar {
            // Summary.value = 1: tag = 1, simple_value = 2 (float)
            let value =
                field(1, Array(scalar.tag.utf8)) + [2 << 3 | 5]
                + littleEndian(scalar.value.bitPattern)
            bytes += field(5, field(1, value))
        }
        return bytes
    }

    /// length, its checksum, the bytes, theirs.
    static func record(_ bytes: [UInt8]) -> [UInt8] {
        let length = littleEndian(UInt64(bytes.count))
        return length + littleEndian(masked(length)) + bytes + littleEndian(masked(bytes))
    }

    private static func masked(_ bytes: [UInt8]) -> UInt32 {
        let crc = castagnoli(bytes)
        return (crc >> 15 | crc << 17) &+ 0xA282_EAD8
    }

    /// CRC-32C.
    static func castagnoli(_ bytes: [UInt8]) -> UInt32 {
        var crc: UInt32 = 0xFFFF_FFFF
        for byte in bytes {
            crc ^= UInt32(byte)
            for _ in 0..<8 { crc = crc >> 1 ^ (crc & 1 == 1 ? 0x82F6_3B78 : 0) }
        }
        return ~crc
    }
}
