// Small files of every format, written by the tests themselves.

import Ground
import Tensors

func bytes<T: FixedWidthInteger>(of value: T) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

/// A safetensors file of these tensors, with types and shapes as text.
func safetensorsFile(
    _ tensors: [(name: String, type: String, shape: [Int], bytes: [UInt8])],
    metadata: String? = nil
) -> [UInt8] {
    var fields = metadata.map { ["\"__metadata__\":\($0)"] } ?? []
    var data: [UInt8] = []
    for tensor in tensors {
        fields.append(
            "\"\(tensor.name)\":{\"dtype\":\"\(tensor.type)\",\"shape\":\(tensor.shape),"
                + "\"data_offsets\":[\(data.count),\(data.count + tensor.bytes.count)]}")
        data += tensor.bytes
    }
    let header = Array("{\(fields.joined(separator: ","))}".utf8)
    return bytes(of: UInt64(header.count)) + header + data
}

/// One f32 of each name.
func safetensorsFile(_ names: [String], value: Float = 0) -> [UInt8] {
    safetensorsFile(
        names.map { ($0, "F32", [1], bytes(of: value.bitPattern)) })
}

// MARK: - GGUF

/// A GGUF file. values: key, type, bytes; shapes: outermost first
func ggufFile(
    _ tensors: [(name: String, type: UInt32, shape: [Int], bytes: [UInt8])],
    values: [(key: String, type: UInt32, bytes: [UInt8])] = []
) -> [UInt8] {
    func text(_ text: String) -> [UInt8] { bytes(of: UInt64(text.utf8.count)) + Array(text.utf8) }
    var file = Array("GGUF".utf8) + bytes(of: UInt32(3))
    file += bytes(of: UInt64(tensors.count)) + bytes(of: UInt64(values.count))
    for value in values { file += text(value.key) + bytes(of: value.type) + value.bytes }
    var data: [UInt8] = []
    for tensor in tensors {
        data += [UInt8](repeating: 0, count: (32 - data.count % 32) % 32)
        file += text(tensor.name) + bytes(of: UInt32(tensor.shape.count))
        for extent in tensor.shape.reversed() { file += bytes(of: UInt64(extent)) }
        file += bytes(of: tensor.type) + bytes(of: UInt64(data.count))
        data += tensor.bytes
    }
    file += [UInt8](repeating: 0, count: (32 - file.count % 32) % 32)
    return file + data
}

// MARK: - Zip and pickle

/// A zip archive of stored members.
func zipArchive(_ members: [(name: String, bytes: [UInt8])]) -> [UInt8] {
    var file: [UInt8] = []
    var directory: [UInt8] = []
    for (name, content) in members {
        let crc = content.withUnsafeBytes { CRC32.checksum($0) }
        let fields =
            bytes(of: UInt16(20)) + bytes(of: UInt16(0)) + bytes(of: UInt16(0))
            + bytes(of: UInt32(0)) + bytes(of: crc) + bytes(of: UInt32(content.count))
            + bytes(of: UInt32(content.count)) + bytes(of: UInt16(name.utf8.count))
            + bytes(of: UInt16(0))
        directory +=
            bytes(of: UInt32(0x0201_4B50)) + bytes(of: UInt16(20)) + fields
            + [UInt8](repeating: 0, count: 10) + bytes(of: UInt32(file.count)) + Array(name.utf8)
        file += bytes(of: UInt32(0x0403_4B50)) + fields + Array(name.utf8) + content
    }
    let start = file.count
    file += directory
    file += bytes(of: UInt32(0x0605_4B50)) + bytes(of: UInt32(0))
    file += bytes(of: UInt16(members.count)) + bytes(of: UInt16(members.count))
    return file + bytes(of: UInt32(directory.count)) + bytes(of: UInt32(start)) + [0, 0]
}

/// Values of a pickle of protocol 2.
indirect enum Pickled {
    case int(Int)
    case text(String)
    case none
    case list([Pickled])
    case tuple([Pickled])
    case dict([(Pickled, Pickled)])
    case global(String, String)
    case call(Pickled, [Pickled])
    /// An object of a class with a state.
    case object(String, String, Pickled)
    case persistent(Pickled)

    /// The whole pickle.
    var pickle: [UInt8] { [0x80, 2] + code + Array(".".utf8) }

    var code: [UInt8] {
        func mark(_ values: [Pickled], _ end: String) -> [UInt8] {
            Array("(".utf8) + values.flatMap(\.code) + Array(end.utf8)
        }
        switch self {
        case .int(let value): return [0x8A, 8] + bytes(of: value)
        case .text(let text):
            return Array("X".utf8) + bytes(of: UInt32(text.utf8.count)) + Array(text.utf8)
        case .none: return Array("N".utf8)
        case .list(let values): return mark(values, "l")
        case .tuple(let values): return mark(values, "t")
        case .dict(let pairs): return mark(pairs.flatMap { [$0.0, $0.1] }, "d")
        case .global(let module, let name): return Array("c\(module)\n\(name)\n".utf8)
        case .call(let function, let arguments):
            return function.code + Pickled.tuple(arguments).code + Array("R".utf8)
        case .object(let module, let name, let state):
            return Pickled.global(module, name).code + [0x29, 0x81] + state.code + Array("b".utf8)
        case .persistent(let id): return id.code + Array("Q".utf8)
        }
    }

    static func size(_ extents: [Int]) -> Pickled {
        .call(.global("torch", "Size"), [.tuple(extents.map { .int($0) })])
    }

    /// A contiguous tensor in a storage.
    static func tensor(
        _ shape: [Int], storage: String, type: String = "FloatStorage"
    ) -> Pickled {
        var strides = shape
        var stride = 1
        for axis in strides.indices.reversed() {
            strides[axis] = stride
            stride *= shape[axis]
        }
        return .call(
            .global("torch._utils", "_rebuild_tensor_v2"),
            [
                .persistent(
                    .tuple([
                        .text("storage"), .global("torch", type), .text(storage), .text("cpu"),
                        .int(stride),
                    ])), .int(0), .tuple(shape.map { .int($0) }), .tuple(strides.map { .int($0) }),
                .int(0), .none,
            ])
    }
}

/// What torch.save writes.
func torchFile(_ value: Pickled, storages: [(key: String, bytes: [UInt8])]) -> [UInt8] {
    zipArchive(
        [("archive/data.pkl", value.pickle)] + storages.map { ("archive/data/\($0.key)", $0.bytes) }
    )
}

func floatBytes(_ values: [Float]) -> [UInt8] { values.flatMap { bytes(of: $0.bitPattern) } }

// MARK: - torch.distributed.checkpoint

/// `.metadata` and the files of a distributed checkpoint. pieces: start, extents, elements, in which file
func distributedFiles(
    _ tensors: [(
        name: String, shape: [Int], pieces: [(start: [Int], shape: [Int], [Float], file: String)]
    )]
) -> (metadata: [UInt8], files: [String: [UInt8]]) {
    let module = "torch.distributed.checkpoint.metadata"
    var files: [String: [UInt8]] = [:]
    var entries: [(Pickled, Pickled)] = []
    var places: [(Pickled, Pickled)] = []
    for tensor in tensors {
        let chunks = tensor.pieces.map { piece -> Pickled in
            .object(
                module, "ChunkStorageMetadata",
                .dict([
                    (.text("offsets"), .size(piece.start)), (.text("sizes"), .size(piece.shape)),
                ]))
        }
        entries.append(
            (
                .text(tensor.name),
                .object(
                    module, "TensorStorageMetadata",
                    .dict([
                        (
                            .text("properties"),
                            .object(
                                module, "TensorProperties",
                                .tuple([
                                    .global("torch", "float32"),
                                    .call(
                                        .global("torch.serialization", "_get_layout"),
                                        [.text("torch.strided")]), .none,
                                    .call(.global(module, "_MEM_FORMAT_ENCODING"), [.int(0)]),
                                    .none,
                                ]))
                        ), (.text("size"), .size(tensor.shape)), (.text("chunks"), .list(chunks)),
                    ]))
            ))
        for piece in tensor.pieces {
            let archive = torchFile(
                .tensor(piece.shape, storage: "0"), storages: [("0", floatBytes(piece.2))])
            let offset = files[piece.file]?.count ?? 0
            files[piece.file, default: []] += archive
            places.append(
                (
                    .object(
                        module, "MetadataIndex",
                        .dict([
                            (.text("fqn"), .text(tensor.name)),
                            (.text("offset"), .size(piece.start)),
                            (.text("index"), .int(0)),
                        ])),
                    .object(
                        "torch.distributed.checkpoint.filesystem", "_StorageInfo",
                        .dict([
                            (.text("relative_path"), .text(piece.file)),
                            (.text("offset"), .int(offset)), (.text("length"), .int(archive.count)),
                        ]))
                ))
        }
    }
    entries.append((.text("step"), .object(module, "BytesStorageMetadata", .dict([]))))
    let metadata = Pickled.object(
        module, "Metadata",
        .dict([
            (.text("state_dict_metadata"), .dict(entries)), (.text("planner_data"), .none),
            (.text("storage_data"), .dict(places)),
        ]))
    return (metadata.pickle, files)
}
