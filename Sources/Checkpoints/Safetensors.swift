/// Reading safetensors: https://huggingface.co/docs/safetensors#format

import Ground
import Tensors

/// A header: the tensors' places in a mapped file, and the file's free text.
struct SafetensorsHeader {
    /// The official reader's limit.
    static let maximumHeaderBytes = 100_000_000
    static let maximumTensors = 1 << 18

    var metadata: [String: String] = [:]
    /// In the order of their bytes.
    var tensors: [StoredTensor] = []

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
        var tensors: [StoredTensor] = []
        try json.object { key, json throws(JSONReader.Failure) in
            if key == "__metadata__" {
                try json.object { key, json throws(JSONReader.Failure) in
                    metadata[key] = try json.string()
                }
                return
            }
            let entry = try Self.entry(key, &json)
            guard tensors.count < Self.maximumTensors else {
                throw JSONReader.Failure(
                    reason: "more than \(Self.maximumTensors) tensors", position: 0)
            }
            tensors.append(
                StoredTensor(
                    name: key, dtype: entry.dtype, shape: entry.shape, strides: nil, file: file,
                    // A bogus offset is found by `checkLayout`.
                    offset: dataStart.addingReportingOverflow(entry.begin).partialValue,
                    byteCount: entry.end - entry.begin))
        }
        self.metadata = metadata
        self.tensors = tensors
    }

    private struct Entry {
        var dtype = DType.f32
        var shape: [Int] = []
        var begin = 0
        var end = 0
    }

    private static func entry(
        _ name: String, _ json: inout JSONReader
    ) throws(JSONReader.Failure) -> Entry {
        func fail(_ reason: String) -> JSONReader.Failure {
            JSONReader.Failure(reason: "tensor '\(name)' \(reason)", position: 0)
        }
        var entry = Entry()
        var offsets: [Int] = []
        var found: Set<String> = []
        try json.object { key, json throws(JSONReader.Failure) in
            found.insert(key)
            switch key {
            case "dtype":
                let name = try json.string()
                guard let dtype = DType(safetensors: name) else {
                    throw fail("has the element type '\(name)', which this program does not read")
                }
                entry.dtype = dtype
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
        guard let bytes = byteCount(entry.shape, entry.dtype), bytes == offsets[1] - offsets[0]
        else {
            throw fail(
                "has shape \(entry.shape) of \(entry.dtype), but "
                    + "\(offsets[1] - offsets[0]) bytes in the file")
        }
        entry.begin = offsets[0]
        entry.end = offsets[1]
        return entry
    }

    /// The format wants the bytes of all tensors to follow each other without gap or overlap.
    private mutating func checkLayout(
        _ file: MappedFile, dataStart: Int
    ) throws(CheckpointError) {
        tensors.sort { ($0.offset, $0.byteCount) < ($1.offset, $1.byteCount) }
        var end = dataStart
        for tensor in tensors {
            guard tensor.offset == end else {
                throw file.fail(
                    "tensor '\(tensor.name)' begins at byte \(tensor.offset), expected \(end)")
            }
            guard tensor.byteCount <= file.bytes.count - end else {
                throw file.fail(
                    "tensor '\(tensor.name)' ends \(tensor.byteCount - (file.bytes.count - end)) "
                        + "bytes past the end of the file: the file is cut short")
            }
            end += tensor.byteCount
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

/// Bytes of a contiguous tensor; nil where the count overflows.
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
