/// PyTorch checkpoints: zip archives and the older streams, read by the closed pickle interpreter.

import Ground
import SystemPackage
import Tensors

/// https://github.com/pytorch/pytorch/blob/v2.5.0/torch/serialization.py (`_load`)
func openTorchArchive(_ file: MappedFile) throws(CheckpointError) -> any Checkpoint {
    let archive = try ZipArchive(file)
    let pickles = archive.members.keys.filter { $0 == "data.pkl" || $0.hasSuffix("/data.pkl") }
    guard let name = pickles.min(by: { $0.utf8.count < $1.utf8.count }) else {
        throw file.fail("the zip archive holds no data.pkl: not a PyTorch file")
    }
    let root = String(name.dropLast("data.pkl".count))
    if let order = archive.members[root + "byteorder"] {
        let text = String(decoding: file.bytes[order.range], as: UTF8.self)
        guard text == "little" else {
            throw file.fail("it was written on a machine with the byte order '\(text.prefix(16))'")
        }
    }
    let program = archive.members[name]!
    guard archive.isIntact(program) else {
        throw file.fail("data.pkl has another checksum than it should: the file is damaged")
    }
    // Ranges inside the machine are 32-bit, the file is not.
    var machine = PickleMachine(
        file, UnsafeRawBufferPointer(rebasing: file.bytes[program.range]))
    let value = try machine.run()
    return try TorchTensors(machine, file).checkpoint(value, .torchArchive) {
        key throws(CheckpointError) in
        guard let member = archive.members[root + "data/" + key] else {
            throw file.fail("the storage '\(key.prefix(64))' is missing")
        }
        return member.range
    }
}

/// https://github.com/pytorch/pytorch/blob/v2.5.0/torch/serialization.py (`_legacy_load`)
func openTorchLegacy(_ file: MappedFile) throws(CheckpointError) -> any Checkpoint {
    // The pickles are at the start; 1 GiB of them is more than any file has.
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

    // Each storage: its count of elements, then the elements.
    var sizes: [String: Int] = [:]
    for storage in machine.storages {
        guard let key = machine.text(.text(storage.key)) else { throw foreign }
        if sizes[key] == nil { sizes[key] = storage.dtype?.byteCount ?? 1 }
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
    return try TorchTensors(machine, file).checkpoint(value, .torchLegacy) {
        key throws(CheckpointError) in
        guard let range = ranges[key] else {
            throw file.fail("the storage '\(key.prefix(64))' is missing")
        }
        return range
    }
}

/// Finds the tensors in an unpickled value and their bytes in the file.
private struct TorchTensors {
    /// Keys under which training programs keep the model's own weights, the best first.
    static let wrappers = [
        "state_dict", "model_state_dict", "model", "module", "model_state", "net", "generator_ema",
        "generator", "ema", "weights", "params",
    ]
    static let maximumDepth = 8

    private let machine: PickleMachine
    private let file: MappedFile

    init(_ machine: PickleMachine, _ file: MappedFile) {
        self.machine = machine
        self.file = file
    }

    func checkpoint(
        _ value: PickleValue, _ format: CheckpointFormat,
        range: (String) throws(CheckpointError) -> Range<Int>
    ) throws(CheckpointError) -> any Checkpoint {
        guard case .dict(let root) = value else {
            throw file.fail("it holds something else than a dictionary of tensors")
        }
        var seen: Set<Int32> = []
        guard let found = stateDictionary(root, depth: 0, seen: &seen) else {
            throw file.fail("it holds no tensors under names")
        }
        // A key that occurs again replaces the value and keeps its place, as in Python.
        var places: [String: Int] = [:]
        var stored: [StoredTensor] = []
        for (name, index) in try entries(found) {
            let tensor = try place(name, machine.tensors[Int(index)], range)
            if let place = places[name] {
                stored[place] = tensor
            } else {
                places[name] = stored.count
                stored.append(tensor)
            }
        }
        return try TensorFile(file.path.string, format, metadata: [:], tensors: stored)
    }

    /// The dictionary that holds tensors: this one, or the first of those inside, known names
    /// first. `seen` holds the dictionaries that hold none: shared ones are searched once.
    private func stateDictionary(_ index: Int32, depth: Int, seen: inout Set<Int32>) -> Int32? {
        guard depth < Self.maximumDepth, seen.insert(index).inserted else { return nil }
        let entries = machine.dictionaries[Int(index)]
        for case (_, .tensor) in entries { return index }
        var inner: [(rank: Int, index: Int32)] = []
        for case (let key, .dict(let child)) in entries {
            let rank = machine.text(key).flatMap { Self.wrappers.firstIndex(of: $0) }
            inner.append((rank ?? Self.wrappers.count, child))
        }
        inner.sort { $0.rank < $1.rank }
        for child in inner {
            if let found = stateDictionary(child.index, depth: depth + 1, seen: &seen) {
                return found
            }
        }
        return nil
    }

    /// The tensors of a dictionary and of those inside, whose names are joined by "/".
    private func entries(_ index: Int32) throws(CheckpointError) -> [(String, Int32)] {
        var found: [(String, Int32)] = []
        var seen: Set<Int32> = []
        func visit(_ index: Int32, _ path: String, depth: Int) throws(CheckpointError) {
            guard depth < Self.maximumDepth, seen.insert(index).inserted else { return }
            for (key, value) in machine.dictionaries[Int(index)] {
                switch (value, machine.text(key)) {
                case (.tensor(let tensor), let name?): found.append((path + name, tensor))
                case (.tensor, nil): throw file.fail("a tensor under something that is no name")
                case (.dict(let child), let name?):
                    try visit(child, path + name + "/", depth: depth + 1)
                default: break
                }
            }
        }
        try visit(index, "", depth: 0)
        return found
    }

    private func place(
        _ name: String, _ tensor: PickledTensor,
        _ range: (String) throws(CheckpointError) -> Range<Int>
    ) throws(CheckpointError) -> StoredTensor {
        func fail(_ reason: String) -> CheckpointError {
            file.fail("tensor '\(name)' \(reason)")
        }
        let storage = machine.storages[Int(tensor.storage)]
        guard let key = machine.text(.text(storage.key)) else {
            throw fail("has a storage without a name")
        }
        let bytes = try range(key)
        let unit = storage.dtype?.byteCount ?? 1
        let size = tensor.dtype.byteCount
        let (claimed, overflow) = storage.count.multipliedReportingOverflow(by: unit)
        guard !overflow, claimed <= bytes.count else {
            throw fail("has a storage of \(bytes.count) bytes, fewer than it should have")
        }
        guard tensor.shape.count <= Shape.maximumRank else {
            throw fail("has \(tensor.shape.count) axes; \(Shape.maximumRank) is the limit")
        }
        guard let needed = byteCount(tensor.shape, tensor.dtype),
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
        return StoredTensor(
            name: name, dtype: tensor.dtype, shape: tensor.shape,
            strides: isContiguous || needed == 0 ? nil : tensor.strides, file: file,
            offset: needed == 0 ? bytes.lowerBound : bytes.lowerBound + tensor.offset * size,
            byteCount: needed)
    }

    /// Index in the storage of the last element of a view; nil where it overflows.
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
