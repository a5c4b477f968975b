/// Reading safetensors: https://huggingface.co/docs/safetensors#format

import Ground
import Tensors

/// The tensors and the metadata of a safetensors file.
func readSafetensors(_ file: MappedFile) throws(CheckpointError) -> Contents {
    let header = try SafetensorsHeader(file)
    return Contents(
        format: .safetensors, metadata: header.metadata,
        tensors: header.entries.compactMap { entry in
            entry.dtype.map {
                StoredTensor(
                    name: entry.name, dtype: $0, shape: entry.shape,
                    source: .contiguous(file, offset: entry.begin))
            }
        },
        foreign: header.entries.filter { $0.dtype == nil }.map { ($0.name, $0.type) })
}

/// A header: the places of the tensors in a mapped file, and the file's metadata.
struct SafetensorsHeader {
    /// The official reader's limit.
    static let maximumHeaderBytes = 100_000_000
    static let maximumTensors = 1 << 18

    /// A tensor and its bytes in the file.
    struct Entry {
        var name = ""
        var type = ""
        /// nil for an unsupported type.
        var dtype: DType?
        var shape: [Int] = []
        var begin = 0
        var end = 0
    }

    private(set) var metadata: [String: String] = [:]
    /// In the order of their bytes.
    private(set) var entries: [Entry] = []

    init(_ file: MappedFile) throws(CheckpointError) {
        var reader = ByteReader(file.bytes)
        guard let declared = reader.integer(UInt64.self) else {
            throw file.fail("shorter than a safetensors header")
        }
        guard declared <= UInt64(Self.maximumHeaderBytes) else {
            throw file.fail("the header claims \(declared) bytes; 100 MB is the limit")
        }
        guard let text = reader.take(Int(declared)) else {
            throw file.fail(
                "the header claims \(declared) bytes, the file has \(reader.remaining) more")
        }
        guard reader.slice(text).first == UInt8(ascii: "{") else {
            throw file.fail("the safetensors header does not start with '{'")
        }
        var json = JSONReader(reader.slice(text))
        do {
            try read(&json, file, dataStart: text.upperBound)
            try json.end()
        } catch {
            throw file.fail("header byte \(error.position): \(error.reason)")
        }
        try checkLayout(file, dataStart: text.upperBound)
    }

    private mutating func read(
        _ json: inout JSONReader, _ file: MappedFile, dataStart: Int
    ) throws(JSONReader.Failure) {
        var metadata: [String: String] = [:]
        var entries: [Entry] = []
        try json.object { key, json throws(JSONReader.Failure) in
            if key == "__metadata__" {
                try json.object { key, json throws(JSONReader.Failure) in
                    metadata[key] = try json.string()
                }
                return
            }
            guard entries.count < Self.maximumTensors else {
                throw JSONReader.Failure(
                    reason: "more than \(Self.maximumTensors) tensors", position: 0)
            }
            entries.append(try Self.entry(key, &json, dataStart: dataStart))
        }
        self.metadata = metadata
        self.entries = entries
    }

    private static func entry(
        _ name: String, _ json: inout JSONReader, dataStart: Int
    ) throws(JSONReader.Failure) -> Entry {
        func fail(_ reason: String) -> JSONReader.Failure {
            JSONReader.Failure(reason: "tensor '\(name)' \(reason)", position: 0)
        }
        var entry = Entry(name: name)
        var offsets: [Int] = []
        var found: Set<String> = []
        try json.object { key, json throws(JSONReader.Failure) in
            found.insert(key)
            switch key {
            case "dtype":
                entry.type = try json.string()
                entry.dtype = DType(safetensors: entry.type)
            case "shape":
                try json.array { json throws(JSONReader.Failure) in
                    guard entry.shape.count < Shape.maximumRank else {
                        throw fail("has more than \(Shape.maximumRank) axes")
                    }
                    entry.shape.append(try json.count())
                }
            case "data_offsets":
                try json.array { json throws(JSONReader.Failure) in
                    guard offsets.count < 2 else { throw fail("has more than two offsets") }
                    offsets.append(try json.count())
                }
            default: throw fail("has an unknown field '\(key)'")
            }
        }
        guard found.count == 3, offsets.count == 2 else {
            throw fail("needs dtype, shape and two data_offsets")
        }
        guard offsets[0] <= offsets[1] else { throw fail("ends before it begins") }
        if let dtype = entry.dtype {
            let bytes = byteCount(entry.shape, dtype)
            guard let bytes, bytes == offsets[1] - offsets[0] else {
                throw fail(
                    "has shape \(entry.shape) of \(dtype), but \(offsets[1] - offsets[0]) bytes in "
                        + "the file")
            }
        }
        // A bogus offset is found by `checkLayout`.
        entry.begin = dataStart.addingReportingOverflow(offsets[0]).partialValue
        entry.end = dataStart.addingReportingOverflow(offsets[1]).partialValue
        return entry
    }

    /// The format requires the bytes of all tensors to follow each other without gaps or overlaps.
    private mutating func checkLayout(
        _ file: MappedFile, dataStart: Int
    ) throws(CheckpointError) {
        entries.sort { ($0.begin, $0.end) < ($1.begin, $1.end) }
        var end = dataStart
        for entry in entries {
            guard entry.begin == end, entry.end >= end else {
                throw file.fail(
                    "tensor '\(entry.name)' begins at byte \(entry.begin), expected \(end)")
            }
            guard entry.end <= file.bytes.count else {
                throw file.fail(
                    "tensor '\(entry.name)' ends \(entry.end - file.bytes.count) bytes past the end "
                        + "of the file: the file is cut short")
            }
            end = entry.end
        }
        guard end == file.bytes.count else {
            throw file.fail("\(file.bytes.count - end) bytes after the last tensor")
        }
    }
}

extension DType {
    /// The type that safetensors calls `name`.
    init?(safetensors name: String) {
        guard let match = DType.allCases.first(where: { $0.safetensorsName == name }) else {
            return nil
        }
        self = match
    }

    var safetensorsName: String {
        switch self {
        case .f64: "F64"
        case .f32: "F32"
        case .f16: "F16"
        case .bf16: "BF16"
        case .f8e4m3: "F8_E4M3"
        case .f8e5m2: "F8_E5M2"
        case .i64: "I64"
        case .i32: "I32"
        case .i16: "I16"
        case .i8: "I8"
        case .u8: "U8"
        case .bool: "BOOL"
        }
    }
}

/// Bytes of a contiguous tensor; nil if the count overflows.
func byteCount(_ shape: [Int], _ dtype: DType) -> Int? {
    var product = dtype.byteCount
    var isEmpty = false
    for extent in shape {
        guard extent >= 0 else { return nil }
        if extent == 0 {
            isEmpty = true
            continue
        }
        let (next, overflow) = product.multipliedReportingOverflow(by: extent)
        guard !overflow else { return nil }
        product = next
    }
    return isEmpty ? 0 : product
}
