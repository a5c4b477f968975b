/// Writing what torch.load reads: an uncompressed zip archive with a pickle of protocol 2.
///
/// https://github.com/pytorch/pytorch/blob/v2.5.0/caffe2/serialize/inline_container.cc

import Ground
public import Tensors

/// Where an archive goes: a file, or memory.
protocol ArchiveSink: AnyObject {
    /// Bytes written so far.
    var position: Int { get }
    func write(_ bytes: UnsafeRawBufferPointer) throws(FileError)
    func write(_ bytes: [UInt8]) throws(FileError)
    /// Replaces bytes that were written.
    func patch(_ bytes: [UInt8], at offset: Int) throws(FileError)
}

extension PendingFile: ArchiveSink {}

/// An archive in memory.
private final class ByteSink: ArchiveSink {
    private(set) var bytes: [UInt8] = []
    var position: Int { bytes.count }
    func write(_ more: UnsafeRawBufferPointer) { bytes += more }
    func write(_ more: [UInt8]) { bytes += more }
    func patch(_ some: [UInt8], at offset: Int) {
        bytes.replaceSubrange(offset..<offset + some.count, with: some)
    }
}

/// What torch.save writes of one tensor by itself. x: on the host
public func torchArchive(of x: Tensor) -> [UInt8] {
    let sink = ByteSink()
    var archive = TorchArchiveWriter(sink)
    do {
        try archive.begin(
            only: TensorInfo(name: "", shape: x.shape.dimensions, dtype: x.dtype))
        try x.withBytes { bytes throws(FileError) in try archive.add(bytes) }
        try archive.end()
    } catch { programmingError("torchArchive: memory cannot fail: \(error)") }
    return sink.bytes
}

/// Writes members one after the other; each checksum is put into the member's header afterwards.
struct TorchArchiveWriter {
    private struct Member {
        var name: String
        var offset, size: Int
        var crc: UInt32
    }

    /// PyTorch maps files with this alignment.
    private static let alignment = 64
    private static let root = "archive/"
    private let file: any ArchiveSink
    private var members: [Member] = []
    private var storages = 0

    init(_ file: any ArchiveSink) { self.file = file }

    /// Writes everything before the storages, which must then be added in the order of `tensors`.
    mutating func begin(_ tensors: [TensorInfo]) throws(FileError) {
        try begin(pickle: Pickler.stateDictionary(tensors))
    }

    /// The same for one tensor by itself.
    mutating func begin(only tensor: TensorInfo) throws(FileError) {
        try begin(pickle: Pickler.tensor(tensor))
    }

    private mutating func begin(pickle: [UInt8]) throws(FileError) {
        try member("data.pkl", pickle)
        try member(".format_version", Array("1".utf8))
        try member(".storage_alignment", Array("\(Self.alignment)".utf8))
        try member("byteorder", Array("little".utf8))
    }

    /// Writes the elements of the next tensor.
    mutating func add(_ bytes: UnsafeRawBufferPointer) throws(FileError) {
        try member("data/\(storages)", bytes)
        storages += 1
    }

    mutating func end() throws(FileError) {
        try member("version", Array("3\n".utf8))
        try writeDirectory()
    }

    private mutating func member(_ name: String, _ bytes: [UInt8]) throws(FileError) {
        var archive = self
        try bytes.withUnsafeBufferPointer { bytes throws(FileError) in
            try archive.member(name, UnsafeRawBufferPointer(bytes))
        }
        self = archive
    }

    private mutating func member(
        _ name: String, _ bytes: UnsafeRawBufferPointer
    ) throws(FileError) {
        let name = Self.root + name
        let offset = file.position
        let isLarge = bytes.count >= 0xFFFF_FFFF
        var header = littleEndian(UInt32(0x0403_4B50))
        header += littleEndian(UInt16(isLarge ? 45 : 20))
        header += littleEndian(UInt16(0x0800))  // names are UTF-8
        // stored, midnight, 1 January 1980: the earliest date
        header += [0, 0, 0, 0] + littleEndian(UInt16(0x0021))
        let crcOffset = offset + header.count
        header += littleEndian(UInt32(0))
        let size = isLarge ? UInt32.max : UInt32(bytes.count)
        header += littleEndian(size) + littleEndian(size)
        header += littleEndian(UInt16(name.utf8.count))
        var extra: [UInt8] = []
        if isLarge {
            extra += littleEndian(UInt16(1)) + littleEndian(UInt16(16))
            extra += littleEndian(UInt64(bytes.count)) + littleEndian(UInt64(bytes.count))
        }
        // A field "FB" of zeros pads the header, as PyTorch does.
        let start = offset + header.count + 2 + name.utf8.count + extra.count + 4
        let padding = (Self.alignment - start % Self.alignment) % Self.alignment
        extra += Array("FB".utf8) + littleEndian(UInt16(padding))
        extra += [UInt8](repeating: 0, count: padding)
        header += littleEndian(UInt16(extra.count))
        try file.write(header + Array(name.utf8) + extra)

        var crc = CRC32()
        var position = 0
        while position < bytes.count {
            let piece = UnsafeRawBufferPointer(
                rebasing: bytes[position..<min(position + 1 << 20, bytes.count)])
            crc.update(piece)
            try file.write(piece)
            position += piece.count
        }
        try file.patch(littleEndian(crc.value), at: crcOffset)
        members.append(
            Member(name: name, offset: offset, size: bytes.count, crc: crc.value))
    }

    private func writeDirectory() throws(FileError) {
        let start = file.position
        for member in members {
            var wide: [UInt8] = []
            func narrow(_ value: Int) -> [UInt8] {
                guard value >= 0xFFFF_FFFF else { return littleEndian(UInt32(value)) }
                wide += littleEndian(UInt64(value))
                return littleEndian(UInt32.max)
            }
            let sizes = narrow(member.size) + narrow(member.size)
            let offset = narrow(member.offset)
            let extra =
                wide.isEmpty
                ? [] : littleEndian(UInt16(1)) + littleEndian(UInt16(wide.count)) + wide
            var entry = littleEndian(UInt32(0x0201_4B50))
            entry += littleEndian(UInt16(45)) + littleEndian(UInt16(wide.isEmpty ? 20 : 45))
            entry += littleEndian(UInt16(0x0800)) + [0, 0, 0, 0] + littleEndian(UInt16(0x0021))
            entry += littleEndian(member.crc) + sizes
            entry += littleEndian(UInt16(member.name.utf8.count))
            entry += littleEndian(UInt16(extra.count))
            // no comment, first disk, no attributes
            entry += [UInt8](repeating: 0, count: 10) + offset
            try file.write(entry + Array(member.name.utf8) + extra)
        }
        let size = file.position - start
        let isLarge = members.count >= 0xFFFF || size >= 0xFFFF_FFFF || start >= 0xFFFF_FFFF
        if isLarge {
            let record = file.position
            var end = littleEndian(UInt32(0x0606_4B50)) + littleEndian(UInt64(44))
            end += littleEndian(UInt16(45)) + littleEndian(UInt16(45))
            end += [UInt8](repeating: 0, count: 8)
            end += littleEndian(UInt64(members.count)) + littleEndian(UInt64(members.count))
            end += littleEndian(UInt64(size)) + littleEndian(UInt64(start))
            end += littleEndian(UInt32(0x0706_4B50)) + [0, 0, 0, 0]
            end += littleEndian(UInt64(record)) + littleEndian(UInt32(1))
            try file.write(end)
        }
        let count = littleEndian(UInt16(min(members.count, 0xFFFF)))
        var end = littleEndian(UInt32(0x0605_4B50)) + [0, 0, 0, 0] + count + count
        end += littleEndian(UInt32(min(size, 0xFFFF_FFFF)))
        end += littleEndian(UInt32(min(start, 0xFFFF_FFFF))) + [0, 0]
        try file.write(end)
    }
}

/// Writes pickles of protocol 2 with the operations that torch.load(weights_only=True) knows.
private struct Pickler {
    private var bytes: [UInt8] = [0x80, 2]

    /// OrderedDict of tensors, tensor i in storage "i".
    static func stateDictionary(_ tensors: [TensorInfo]) -> [UInt8] {
        var pickler = Pickler()
        pickler.global("collections", "OrderedDict")
        pickler.bytes += Array(")R".utf8)
        // SETITEMS takes all values above the mark; pieces keep the reader's stack small.
        for start in stride(from: 0, to: tensors.count, by: 1000) {
            pickler.bytes.append(UInt8(ascii: "("))
            for index in start..<min(start + 1000, tensors.count) {
                pickler.text(tensors[index].name)
                pickler.tensor(tensors[index], storage: index)
            }
            pickler.bytes.append(UInt8(ascii: "u"))
        }
        pickler.bytes.append(UInt8(ascii: "."))
        return pickler.bytes
    }

    /// One tensor, in storage "0".
    static func tensor(_ info: TensorInfo) -> [UInt8] {
        var pickler = Pickler()
        pickler.tensor(info, storage: 0)
        pickler.bytes.append(UInt8(ascii: "."))
        return pickler.bytes
    }

    /// _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())
    private mutating func tensor(_ info: TensorInfo, storage index: Int) {
        // Types newer than typed storages are stored as bytes, with the type beside them.
        let late = info.dtype.lateTorchName
        global("torch._utils", late == nil ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3")
        bytes += Array("((".utf8)
        text("storage")
        if late == nil {
            global("torch", info.dtype.torchStorageName)
        } else {
            global("torch.storage", "UntypedStorage")
        }
        text(String(index))
        text("cpu")
        integer(late == nil ? info.shape.reduce(1, *) : info.byteCount)
        bytes += Array("tQ".utf8)
        integer(0)
        var strides = info.shape
        var stride = 1
        for axis in strides.indices.reversed() {
            strides[axis] = stride
            stride *= max(info.shape[axis], 1)
        }
        for tuple in [info.shape, strides] {
            bytes.append(UInt8(ascii: "("))
            for value in tuple { integer(value) }
            bytes.append(UInt8(ascii: "t"))
        }
        bytes.append(0x89)
        global("collections", "OrderedDict")
        bytes += Array(")R".utf8)
        if let late { global("torch", late) }
        bytes += Array("tR".utf8)
    }

    private mutating func global(_ module: String, _ name: String) {
        bytes += Array("c\(module)\n\(name)\n".utf8)
    }

    private mutating func text(_ text: String) {
        bytes.append(UInt8(ascii: "X"))
        bytes += littleEndian(UInt32(text.utf8.count)) + Array(text.utf8)
    }

    private mutating func integer(_ value: Int) {
        if value <= 0xFF {
            bytes += [UInt8(ascii: "K"), UInt8(value)]
        } else if value <= Int(Int32.max) {
            bytes += [UInt8(ascii: "J")] + littleEndian(Int32(value))
        } else {
            bytes += [0x8A, 8] + littleEndian(value)
        }
    }
}

extension DType {
    /// The typed storage of PyTorch.
    fileprivate var torchStorageName: String {
        switch self {
        case .f64: "DoubleStorage"
        case .f32: "FloatStorage"
        case .f16: "HalfStorage"
        case .bf16: "BFloat16Storage"
        case .i64: "LongStorage"
        case .i32: "IntStorage"
        case .i16: "ShortStorage"
        case .i8: "CharStorage"
        case .u8, .f8e4m3, .f8e5m2: "ByteStorage"
        case .bool: "BoolStorage"
        }
    }

    /// The dtype's name, if it has no typed storage.
    fileprivate var lateTorchName: String? {
        switch self {
        case .f8e4m3: "float8_e4m3fn"
        case .f8e5m2: "float8_e5m2"
        default: nil
        }
    }
}
