/// Reading GGUF, the format of llama.cpp and ComfyUI-GGUF.
///
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

import Ground
import SystemPackage
import Tensors

/// - Parameter blocks: the type that quantised blocks are decoded to, on demand.
func readGGUF(
    _ file: MappedFile, blocksAs blocks: DType
) throws(CheckpointError) -> Contents {
    var reader = GGUFReader(file, blocks)
    return try reader.read()
}

private struct GGUFReader {
    static let maximumTensors = 1 << 18
    static let maximumDepth = 4

    private let file: MappedFile
    private let blockType: DType
    private var reader: ByteReader
    private var contents = Contents(format: .gguf)
    /// ComfyUI-GGUF folds tensors whose rows are not whole blocks, and records their original shapes.
    private var originalShapes: [String: [Int]] = [:]
    private var alignment = 32

    init(_ file: MappedFile, _ blockType: DType) {
        self.file = file
        self.blockType = blockType
        reader = ByteReader(file.bytes, at: 4)
    }

    private var cutShort: CheckpointError {
        file.fail("GGUF byte \(reader.position): the file is cut short")
    }

    private mutating func number<T: FixedWidthInteger>(
        _ type: T.Type
    ) throws(CheckpointError) -> Int {
        guard let value = reader.count(type) else { throw cutShort }
        return value
    }

    private mutating func skip(_ count: Int, of size: Int) throws(CheckpointError) {
        let (bytes, overflow) = count.multipliedReportingOverflow(by: size)
        guard !overflow, reader.take(bytes) != nil else { throw cutShort }
    }

    private mutating func text() throws(CheckpointError) -> String {
        guard let count = reader.count(UInt64.self), let range = reader.take(count) else {
            throw cutShort
        }
        return String(decoding: reader.slice(range), as: UTF8.self)
    }

    mutating func read() throws(CheckpointError) -> Contents {
        let version = try number(UInt32.self)
        guard (2...3).contains(version) else {
            throw file.fail("GGUF version \(version); 2 and 3 are supported")
        }
        let (tensors, pairs) = (try number(UInt64.self), try number(UInt64.self))
        // A pair takes at least 13 bytes and a tensor 24, which exposes false counts.
        guard tensors <= Self.maximumTensors, tensors <= reader.remaining / 24,
            pairs <= reader.remaining / 13
        else { throw file.fail("GGUF claims \(tensors) tensors and \(pairs) metadata pairs") }
        for _ in 0..<pairs { try readPair() }
        var entries: [Entry] = []
        for _ in 0..<tensors { entries.append(try readEntry()) }
        let dataStart = ceilDivide(reader.position, alignment) * alignment
        var total = 0
        var names: Set<String> = []
        for entry in entries {
            guard names.insert(entry.name).inserted else {
                throw file.fail("two tensors are called '\(entry.name)'")
            }
            guard let tensor = try place(entry, after: dataStart) else { continue }
            total += tensor.byteCount
            // Tensors that share bytes could make a small file take much memory.
            guard total <= 64 * file.bytes.count + (64 << 20) else {
                throw file.fail(
                    "its tensors together would take more than 64 times the file's size")
            }
            contents.tensors.append(tensor)
        }
        return contents
    }

    // MARK: Metadata

    private mutating func readPair() throws(CheckpointError) {
        let key = try text()
        let type = try number(UInt32.self)
        let shapePrefix = "comfy.gguf.orig_shape."
        if type == 9, key.hasPrefix(shapePrefix) {
            originalShapes[String(key.dropFirst(shapePrefix.count))] = try shape()
            return
        }
        guard let value = try value(type, depth: 0) else { return }
        contents.metadata[key] = value
        if key == "general.alignment" {
            guard let size = Int(value), (1...1 << 20).contains(size) else {
                throw file.fail("GGUF with alignment \(value)")
            }
            alignment = size
        }
    }

    /// A value as text; nil for arrays, which are skipped.
    private mutating func value(_ type: Int, depth: Int) throws(CheckpointError) -> String? {
        switch type {
        case 0: return "\(try number(UInt8.self))"
        case 1: return "\(try number(Int8.self))"
        case 2: return "\(try number(UInt16.self))"
        case 3: return "\(try number(Int16.self))"
        case 4: return "\(try number(UInt32.self))"
        case 5: return "\(try number(Int32.self))"
        case 6:
            guard let bits = reader.integer(UInt32.self) else { throw cutShort }
            return "\(Float(bitPattern: bits))"
        case 7: return try number(UInt8.self) == 0 ? "false" : "true"
        case 8: return try text()
        case 9:
            guard depth < Self.maximumDepth else {
                throw file.fail("GGUF metadata nested too deeply")
            }
            let (type, count) = (try number(UInt32.self), try number(UInt64.self))
            if let size = Self.sizes[type] {
                try skip(count, of: size)
            } else {
                guard [8, 9].contains(type), count <= reader.remaining / 8 else {
                    throw file.fail("GGUF metadata with an array of type \(type)")
                }
                for _ in 0..<count {
                    if type == 8 {
                        try skip(try number(UInt64.self), of: 1)
                    } else {
                        _ = try value(9, depth: depth + 1)
                    }
                }
            }
            return nil
        case 10, 11:
            guard let bits = reader.integer(UInt64.self) else { throw cutShort }
            return type == 10 ? "\(bits)" : "\(Int64(bitPattern: bits))"
        case 12:
            guard let bits = reader.integer(UInt64.self) else { throw cutShort }
            return "\(Double(bitPattern: bits))"
        default: throw file.fail("GGUF metadata of type \(type)")
        }
    }

    /// Bytes of the value types that have a fixed size.
    private static let sizes = [
        0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8,
    ]

    /// Reads an array of integers as a shape, outermost extent first.
    private mutating func shape() throws(CheckpointError) -> [Int] {
        let (type, count) = (try number(UInt32.self), try number(UInt64.self))
        guard count <= Shape.maximumRank, [4, 5, 10, 11].contains(type) else {
            throw file.fail("GGUF with a shape of \(count) axes")
        }
        var shape: [Int] = []
        for _ in 0..<count {
            shape.append(
                type == 4
                    ? try number(UInt32.self)
                    : type == 5 ? try number(Int32.self) : try number(Int64.self))
        }
        return shape
    }

    // MARK: Tensors

    private struct Entry {
        let name: String
        /// Outermost first.
        let shape: [Int]
        let type, offset: Int
    }

    private mutating func readEntry() throws(CheckpointError) -> Entry {
        let name = try text()
        let rank = try number(UInt32.self)
        guard rank <= Shape.maximumRank else {
            throw file.fail("tensor '\(name.prefix(64))' has \(rank) axes")
        }
        var shape: [Int] = []
        for _ in 0..<rank { shape.append(try number(UInt64.self)) }
        return Entry(
            name: name, shape: shape.reversed(), type: try number(UInt32.self),
            offset: try number(UInt64.self))
    }

    /// nil for an unsupported type, which is noted in `contents`.
    private mutating func place(
        _ entry: Entry, after dataStart: Int
    ) throws(CheckpointError) -> StoredTensor? {
        func fail(_ reason: String) -> CheckpointError {
            file.fail("tensor '\(entry.name.prefix(200))' \(reason)")
        }
        let block = GGMLBlock(rawValue: UInt32(entry.type))
        guard let dtype = block == nil ? Self.types[entry.type] : blockType else {
            contents.foreign.append(
                (entry.name, Self.foreign[entry.type] ?? "GGML type \(entry.type)"))
            return nil
        }
        guard let decoded = byteCount(entry.shape, dtype) else {
            throw fail("has the impossible shape \(entry.shape)")
        }
        let elements = decoded / dtype.byteCount
        if let block, (entry.shape.last ?? 1) % block.elements != 0 {
            throw fail("\(entry.shape) has rows that are not whole blocks of \(block.elements)")
        }
        let bytes = block?.byteCount(elements: elements) ?? decoded
        let (offset, overflow) = dataStart.addingReportingOverflow(entry.offset)
        guard !overflow, offset <= file.bytes.count, bytes <= file.bytes.count - offset else {
            throw fail("ends past the end of the file: the file is cut short")
        }
        var shape = entry.shape
        if let original = originalShapes[entry.name] {
            guard let whole = byteCount(original, dtype), whole == decoded else {
                throw fail("\(shape) is said to have been \(original)")
            }
            shape = original
        }
        return StoredTensor(
            name: entry.name, dtype: dtype, shape: shape,
            source: block.map { .blocks(file, offset: offset, $0) }
                ?? .contiguous(file, offset: offset))
    }

    private static let types: [Int: DType] = [
        0: .f32, 1: .f16, 24: .i8, 25: .i16, 26: .i32, 27: .i64, 28: .f64, 30: .bf16,
    ]

    /// Names of unsupported types.
    private static let foreign = [
        9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
        20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
        35: "TQ2_0", 39: "MXFP4",
    ]
}
