/// PyTorch checkpoints: zip archives and the older streams, read by the closed pickle interpreter.

import Ground
import SystemPackage
import Tensors

/// https://github.com/pytorch/pytorch/blob/v2.5.0/torch/serialization.py (`_load`)
func readTorchArchive(_ file: MappedFile) throws(CheckpointError) -> Contents {
    let archive = try TorchArchive(file)
    return try TorchTensors(archive.machine, file)
        .contents(archive.value, .torchArchive, storage: archive.storage)
}

/// What torch.save wrote: an archive with one pickle and the bytes of storages.
struct TorchArchive {
    let machine: PickleMachine
    let value: PickleValue
    private let archive: ZipArchive
    private let root: String

    /// - Parameter part: the archive's part of the file; nil: all of it.
    init(_ file: MappedFile, _ part: Range<Int>? = nil) throws(CheckpointError) {
        archive = try ZipArchive(file, part)
        let pickles = archive.members.keys.filter { $0 == "data.pkl" || $0.hasSuffix("/data.pkl") }
        guard let name = pickles.min(by: { $0.utf8.count < $1.utf8.count }) else {
            throw file.fail("the zip archive holds no data.pkl: not a PyTorch file")
        }
        root = String(name.dropLast("data.pkl".count))
        if let order = archive.members[root + "byteorder"] {
            let text = String(decoding: file.bytes[order.range], as: UTF8.self)
            guard text == "little" else {
                throw file.fail(
                    "it was written on a machine with the byte order '\(text.prefix(16))'")
            }
        }
        let program = archive.members[name]!
        guard archive.isIntact(program) else {
            throw file.fail(
                "data.pkl does not have the checksum that it should: the file is damaged")
        }
        // The machine gets only the pickle's bytes, as its ranges are 32-bit.
        var machine = PickleMachine(
            file, UnsafeRawBufferPointer(rebasing: file.bytes[program.range]))
        value = try machine.run()
        self.machine = machine
    }

    /// The bytes of a storage.
    func storage(_ key: String) throws(CheckpointError) -> TorchTensors.Storage {
        guard let member = archive.members[root + "data/" + key] else {
            throw archive.file.fail("the storage '\(key.prefix(64))' is missing")
        }
        return TorchTensors.Storage(range: member.range, crc: member.crc)
    }
}

/// https://github.com/pytorch/pytorch/blob/v2.5.0/torch/serialization.py (`_legacy_load`)
func readTorchLegacy(_ file: MappedFile) throws(CheckpointError) -> Contents {
    // The pickles are at the start; no file has more than 1 GiB of them.
    let head = UnsafeRawBufferPointer(rebasing: file.bytes.prefix(1 << 30))
    var machine = PickleMachine(file, head)
    let foreign = file.fail("a bare pickle, not a PyTorch checkpoint")
    guard case .bigInt(let magic) = try machine.run(),
        machine.raw(magic).elementsEqual([
            0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19,
        ])
    else { throw foreign }
    guard case .int(1001) = try machine.run(), case .dict(let system) = try machine.run() else {
        throw foreign
    }
    for (key, value) in machine.dictionaries[Int(system)]
    where machine.text(key) == "little_endian" {
        guard case .bool(true) = value else {
            throw file.fail("it was written on a big-endian machine")
        }
    }
    let value = try machine.run()
    guard case .list(let keys) = try machine.run() else { throw foreign }

    // Each storage: the number of its elements, then the elements.
    var sizes: [String: Int] = [:]
    for storage in machine.storages {
        guard let key = machine.text(.text(storage.key)) else { throw foreign }
        if sizes[key] == nil {
            sizes[key] =
                storage.dtype?.byteCount ?? storage.foreign.flatMap { PickleGlobal.foreign[$0] }
                ?? 1
        }
    }
    var reader = ByteReader(file.bytes, at: machine.reader.position)
    var ranges: [String: Range<Int>] = [:]
    for item in machine.sequences[Int(keys)] {
        guard let key = machine.text(item), let size = sizes[key],
            let count = reader.count(UInt64.self)
        else { throw file.fail("the list of storages is damaged or cut short") }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: size)
        guard !overflow, let range = reader.take(bytes) else {
            throw file.fail("the storage '\(key.prefix(64))' is cut short")
        }
        ranges[key] = range
    }
    return try TorchTensors(machine, file).contents(value, .torchLegacy) {
        key throws(CheckpointError) in
        guard let range = ranges[key] else {
            throw file.fail("the storage '\(key.prefix(64))' is missing")
        }
        return TorchTensors.Storage(range: range, crc: nil)
    }
}

/// Finds the tensors in an unpickled value and their bytes in the file.
struct TorchTensors {
    /// The bytes of a storage in the file, and their checksum if the file has one.
    struct Storage {
        let range: Range<Int>
        let crc: UInt32?
    }

    /// Keys under which training programs keep averages of the weights, the best first; `wrappers`
    /// adds those of the weights themselves.
    private static let averages = [
        "generator_ema", "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema",
        "net_ema",
    ]
    private static let wrappers =
        averages + [
            "state_dict", "model_state_dict", "model", "module", "model_state", "net", "generator",
            "weights", "params",
        ]
    static let maximumDepth = 8

    private let machine: PickleMachine
    private let file: MappedFile

    init(_ machine: PickleMachine, _ file: MappedFile) {
        self.machine = machine
        self.file = file
    }

    func contents(
        _ value: PickleValue, _ format: CheckpointFormat,
        storage: (String) throws(CheckpointError) -> Storage
    ) throws(CheckpointError) -> Contents {
        guard case .dict(let root) = value else {
            throw file.fail("it holds something other than a dictionary of tensors")
        }
        var seen: Set<Int32> = []
        var average: String?
        guard let found = stateDictionary(root, depth: 0, seen: &seen, average: &average) else {
            throw file.fail("it holds no named tensors")
        }
        // A repeated key replaces the value and keeps its place, as in Python.
        var places: [String: Int] = [:]
        var contents = Contents(format: format)
        var total = 0
        for (name, index) in try entries(found) {
            let pickled = machine.tensors[Int(index)]
            guard pickled.dtype != nil else {
                contents.foreign.append((name, pickled.type))
                continue
            }
            let tensor = try place(name, pickled, storage)
            total += tensor.byteCount
            // Many views that repeat elements could make a small file take much memory.
            guard total <= 64 * file.bytes.count + (64 << 20) else {
                throw file.fail(
                    "its tensors together would take more than 64 times the file's size")
            }
            if let place = places[name] {
                contents.tensors[place] = tensor
            } else {
                places[name] = contents.tensors.count
                contents.tensors.append(tensor)
            }
        }
        if let average {
            contents.notes.append(
                "\(file.path.string): the average of the weights is used ('\(average)')")
        }
        return contents
    }

    /// Finds the dictionary that holds tensors: this one, or the first of those inside it, known names
    /// first. `seen` are the dictionaries searched so far, as shared ones need only one search.
    private func stateDictionary(
        _ index: Int32, depth: Int, seen: inout Set<Int32>, average: inout String?
    ) -> Int32? {
        guard depth < Self.maximumDepth, seen.insert(index).inserted else { return nil }
        let entries = machine.dictionaries[Int(index)]
        for case (_, .tensor) in entries { return index }
        var inner: [(rank: Int, index: Int32)] = []
        for case (let key, .dict(let child)) in entries {
            let rank = machine.text(key).flatMap { Self.wrappers.firstIndex(of: $0) }
            inner.append((rank ?? Self.wrappers.count, child))
        }
        inner.sort { $0.rank < $1.rank }
        // An average covers all weights; a small table under such a name is something else.
        let most = inner.map { machine.dictionaries[Int($0.index)].count }.max() ?? 0
        for child in inner {
            let isAverage = child.rank < Self.averages.count
            if isAverage, 2 * machine.dictionaries[Int(child.index)].count < most { continue }
            if let found = stateDictionary(
                child.index, depth: depth + 1, seen: &seen, average: &average)
            {
                if isAverage { average = Self.averages[child.rank] }
                return found
            }
        }
        return nil
    }

    /// The tensors of a dictionary and of those inside it, whose names are joined by "/".
    private func entries(_ index: Int32) throws(CheckpointError) -> [(String, Int32)] {
        var found: [(String, Int32)] = []
        var seen: Set<Int32> = []
        func visit(_ index: Int32, _ path: String, depth: Int) throws(CheckpointError) {
            guard depth < Self.maximumDepth, seen.insert(index).inserted else { return }
            for (key, value) in machine.dictionaries[Int(index)] {
                switch (value, machine.text(key)) {
                case (.tensor(let tensor), let name?):
                    guard path.utf8.count + name.utf8.count <= TensorFile.longestName else {
                        throw file.fail("a tensor with a name of more than 1024 bytes")
                    }
                    found.append((path + name, tensor))
                case (.tensor, nil):
                    throw file.fail("a tensor without a name of up to 1024 bytes")
                case (.dict(let child), let name?):
                    try visit(child, path + name + "/", depth: depth + 1)
                default: break
                }
            }
        }
        try visit(index, "", depth: 0)
        return found
    }

    /// Checks a tensor and finds its bytes.
    /// - Parameter tensor: must have a supported type.
    func place(
        _ name: String, _ tensor: PickledTensor,
        _ storage: (String) throws(CheckpointError) -> Storage
    ) throws(CheckpointError) -> StoredTensor {
        func fail(_ reason: String) -> CheckpointError {
            file.fail("tensor '\(name)' \(reason)")
        }
        let pickled = machine.storages[Int(tensor.storage)]
        guard let dtype = tensor.dtype, let key = machine.text(.text(pickled.key)) else {
            throw fail("has a storage without a name of up to 1024 bytes")
        }
        let stored = try storage(key)
        let bytes = stored.range
        let size = dtype.byteCount
        let unit = pickled.dtype?.byteCount ?? 1
        let (claimed, overflow) = pickled.count.multipliedReportingOverflow(by: unit)
        guard !overflow, claimed <= bytes.count else {
            throw fail("has a storage of \(bytes.count) bytes, fewer than it needs")
        }
        guard tensor.shape.count <= Shape.maximumRank else {
            throw fail("has \(tensor.shape.count) axes; \(Shape.maximumRank) is the limit")
        }
        guard let needed = byteCount(tensor.shape, dtype),
            tensor.strides.allSatisfy({ $0 >= 0 }), tensor.offset >= 0
        else { throw fail("has the impossible shape \(tensor.shape)") }
        // A view that repeats elements could ask for any amount of memory.
        guard needed <= file.bytes.count + (1 << 24) else {
            throw fail("would take \(needed) bytes, more than the file")
        }
        guard let last = lastElement(tensor), needed == 0 || last < bytes.count / size else {
            throw fail("of shape \(tensor.shape) lies outside its storage")
        }
        let isContiguous = zip(tensor.strides, Self.contiguousStrides(tensor.shape)).enumerated()
            .allSatisfy { axis, pair in tensor.shape[axis] <= 1 || pair.0 == pair.1 }
        let offset = needed == 0 ? bytes.lowerBound : bytes.lowerBound + tensor.offset * size
        var result = StoredTensor(
            name: name, dtype: dtype, shape: tensor.shape,
            source: isContiguous || needed == 0
                ? .contiguous(file, offset: offset)
                : .strided(file, offset: offset, strides: tensor.strides))
        if let crc = stored.crc {
            result.checksums = [StoredTensor.Checksum(file: file, range: bytes, crc: crc)]
        }
        return result
    }

    /// The index in the storage of a view's last element; nil if it overflows.
    private func lastElement(_ tensor: PickledTensor) -> Int? {
        var last = tensor.offset
        for (extent, stride) in zip(tensor.shape, tensor.strides) where extent > 1 {
            let (reach, overflow) = (extent - 1).multipliedReportingOverflow(by: stride)
            let (sum, overflowed) = last.addingReportingOverflow(reach)
            guard !overflow, !overflowed else { return nil }
            last = sum
        }
        return last
    }

    private static func contiguousStrides(_ shape: [Int]) -> [Int] {
        var strides = [Int](repeating: 1, count: shape.count)
        for axis in stride(from: shape.count - 2, through: 0, by: -1) {
            strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
        }
        return strides
    }
}
