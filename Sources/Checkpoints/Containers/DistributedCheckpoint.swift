/// Reading torch.distributed.checkpoint: a folder with a pickled table of contents, and files made of
/// one small archive for each piece of a tensor.
///
/// https://github.com/pytorch/pytorch/blob/v2.5.0/torch/distributed/checkpoint/metadata.py

import Ground
import SystemPackage
import Tensors

func openDistributed(
    folder: String, asStored: Bool = false
) throws(CheckpointError) -> any Checkpoint {
    var reader = try DistributedReader(folder)
    return try TensorFile(folder, try reader.read(), asStored: asStored)
}

private struct DistributedReader {
    /// The most pieces of one tensor: more than the ranks that have trained any model.
    static let maximumPieces = 4096

    private let folder: FilePath
    private let file: MappedFile
    private let machine: PickleMachine
    private let root: PickleValue
    /// The data files and the archives in them that have been opened.
    private var files: [String: MappedFile] = [:]
    private var archives: [String: StoredTensor] = [:]

    init(_ folder: String) throws(CheckpointError) {
        self.folder = FilePath(folder)
        file = try openFile(self.folder.appending(".metadata").string)
        var machine = PickleMachine(file, file.bytes)
        root = try machine.run()
        self.machine = machine
    }

    private func fail(_ reason: String) -> CheckpointError { file.fail(reason) }

    // MARK: Records

    /// The fields of a record of the given class; nil for anything else.
    private func fields(
        _ value: PickleValue?, _ record: PickleGlobal.Record
    ) -> [String: PickleValue]? {
        guard case .object(let index) = value, machine.objects[Int(index)].record == record,
            case .dict(let state) = machine.objects[Int(index)].state
        else { return nil }
        var fields: [String: PickleValue] = [:]
        for (key, value) in machine.dictionaries[Int(state)] {
            if let name = machine.text(key) { fields[name] = value }
        }
        return fields
    }

    private func integer(_ value: PickleValue?) -> Int? {
        guard case .int(let integer) = value else { return nil }
        return integer
    }

    // MARK: Reading

    /// Where a piece of a tensor is stored.
    private struct Place {
        let path: String
        let range: Range<Int>
    }

    mutating func read() throws(CheckpointError) -> Contents {
        guard let metadata = fields(root, .metadata),
            case .dict(let tensors)? = metadata["state_dict_metadata"],
            case .dict(let storage)? = metadata["storage_data"]
        else { throw fail("not the metadata of a distributed checkpoint") }
        let places = try self.places(storage)
        var contents = Contents(format: .torchDistributed)
        var total = 0
        var names: Set<String> = []
        for (key, value) in machine.dictionaries[Int(tensors)] {
            // Anything but tensors, a step counter for example, is stored as pickled bytes.
            guard let fields = fields(value, .tensor) else { continue }
            guard let name = machine.text(key), names.insert(name).inserted else {
                throw fail("a tensor without a unique name")
            }
            let tensor = try self.tensor(name, fields, places, &contents)
            guard let tensor else { continue }
            total += tensor.byteCount
            let size = files.values.reduce(file.bytes.count) { $0 + $1.bytes.count }
            guard total <= 64 * size + (64 << 20) else {
                throw fail("its tensors together would take more than 64 times the files' size")
            }
            contents.tensors.append(tensor)
        }
        guard !contents.tensors.isEmpty || !contents.foreign.isEmpty else {
            throw fail("it names no tensors")
        }
        return contents
    }

    private func places(_ storage: Int32) throws(CheckpointError) -> [String: [[Int]: Place]] {
        var places: [String: [[Int]: Place]] = [:]
        for (key, value) in machine.dictionaries[Int(storage)] {
            guard let index = fields(key, .index), let place = fields(value, .place),
                let name = index["fqn"].flatMap({ machine.text($0) })
            else { throw fail("a place that belongs to no tensor") }
            guard let path = place["relative_path"].flatMap({ machine.text($0) }),
                let offset = integer(place["offset"]), let length = integer(place["length"]),
                offset >= 0, length >= 0, offset <= Int.max - length
            else { throw fail("'\(name)' has no place") }
            guard isNeighbour(path) else {
                throw fail("'\(path)' is not the name of a file in the same folder")
            }
            if case .sequence(let count) = transforms(place["transform_descriptors"]), count > 0 {
                throw fail("'\(name)' is packed, which is not supported")
            }
            let start = index["offset"].flatMap { machine.integers($0) } ?? []
            places[name, default: [:]][start] = Place(path: path, range: offset..<offset + length)
        }
        return places
    }

    private enum Transforms {
        case none
        case sequence(Int)
    }

    private func transforms(_ value: PickleValue?) -> Transforms {
        switch value {
        case .list(let index), .tuple(let index): .sequence(machine.sequences[Int(index)].count)
        default: .none
        }
    }

    /// nil for a tensor of an unsupported type, which is noted in `contents`.
    private mutating func tensor(
        _ name: String, _ fields: [String: PickleValue], _ places: [String: [[Int]: Place]],
        _ contents: inout Contents
    ) throws(CheckpointError) -> StoredTensor? {
        guard let shape = fields["size"].flatMap({ machine.integers($0) }),
            case .list(let list)? = fields["chunks"], shape.count <= Shape.maximumRank
        else { throw fail("'\(name)' has no shape") }
        var dtype: DType?
        var parts: [StoredTensor.Part] = []
        var checksums: [StoredTensor.Checksum] = []
        var whole: StoredTensor?
        let chunks = machine.sequences[Int(list)]
        guard (1...Self.maximumPieces).contains(chunks.count) else {
            throw fail("'\(name)' is in \(chunks.count) pieces")
        }
        for chunk in chunks {
            guard let chunk = self.fields(chunk, .chunk),
                let start = chunk["offsets"].flatMap({ machine.integers($0) }),
                let extent = chunk["sizes"].flatMap({ machine.integers($0) }),
                start.count == shape.count, extent.count == shape.count,
                shape.indices.allSatisfy({
                    start[$0] >= 0 && extent[$0] >= 0 && extent[$0] <= shape[$0]
                        && start[$0] <= shape[$0] - extent[$0]
                })
            else { throw fail("'\(name)' has a piece that lies outside it") }
            // A tensor in one piece may be stored without an offset.
            guard let place = places[name]?[start] ?? (chunks.count == 1 ? places[name]?[[]] : nil)
            else { throw fail("a piece of '\(name)' is missing") }
            let piece = try archive(place, name, &contents)
            guard let piece else { return nil }
            guard piece.shape == extent, dtype == nil || dtype == piece.dtype else {
                throw fail("a piece of '\(name)' is \(piece.shape) \(piece.dtype), not \(extent)")
            }
            dtype = piece.dtype
            if extent == shape { whole = piece }
            checksums += piece.checksums
            guard case .contiguous(let file, let offset) = piece.source else {
                throw fail("a piece of '\(name)' is a view")
            }
            parts.append(
                StoredTensor.Part(file: file, offset: offset, start: start, shape: extent))
        }
        guard let dtype, byteCount(shape, dtype) != nil else {
            throw fail("'\(name)' has the impossible shape \(shape)")
        }
        if chunks.count == 1, var whole {
            whole.name = name
            return whole
        }
        try requireTiling(name, parts, shape)
        return StoredTensor(
            name: name, dtype: dtype, shape: shape, source: .parts(parts), checksums: checksums)
    }

    /// Checks that the pieces fill the tensor, each element once.
    private func requireTiling(
        _ name: String, _ parts: [StoredTensor.Part], _ shape: [Int]
    ) throws(CheckpointError) {
        var count = 0
        let filled = parts.filter { !$0.shape.contains(0) }
        for (index, a) in filled.enumerated() {
            count += a.shape.reduce(1, *)
            for b in filled[..<index] {
                let overlaps = shape.indices.allSatisfy {
                    a.start[$0] < b.start[$0] + b.shape[$0]
                        && b.start[$0] < a.start[$0] + a.shape[$0]
                }
                if overlaps { throw fail("two pieces of '\(name)' overlap") }
            }
        }
        guard count == shape.reduce(1, *) else { throw fail("'\(name)' is incomplete") }
    }

    /// The tensor that torch.save wrote at a place; nil for an unsupported type.
    private mutating func archive(
        _ place: Place, _ name: String, _ contents: inout Contents
    ) throws(CheckpointError) -> StoredTensor? {
        let key = "\(place.path)/\(place.range)"
        if let known = archives[key] { return known }
        let data: MappedFile
        if let open = files[place.path] {
            data = open
        } else {
            data = try openFile(folder.appending(place.path).string)
            files[place.path] = data
        }
        guard place.range.upperBound <= data.bytes.count else {
            throw data.fail("'\(name)' ends past the end of the file: the file is cut short")
        }
        let archive = try TorchArchive(data, place.range)
        guard case .tensor(let index) = archive.value else {
            throw data.fail("there is no tensor at the place of '\(name)'")
        }
        let pickled = archive.machine.tensors[Int(index)]
        guard pickled.dtype != nil else {
            contents.foreign.append((name, pickled.type))
            return nil
        }
        let tensor = try TorchTensors(archive.machine, data).place(name, pickled, archive.storage)
        archives[key] = tensor
        return tensor
    }
}
