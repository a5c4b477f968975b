/// An opened checkpoint of any format: the tensors' names and where their bytes are in mapped files.

import Ground
import Synchronization
import SystemPackage
import Tensors

/// Tensors by name; their elements are read from the mapping on demand.
final class TensorFile: Checkpoint, Sendable {
    let path: String
    let format: CheckpointFormat?
    let metadata: [String: String]
    let names: [String]
    let notes: [String]
    let foreignTypes: [String: String]
    private let tensors: [String: StoredTensor]
    private struct Place: Hashable {
        let file: String
        let start: Int
    }
    /// The places whose checksums have been verified.
    private let intact = Mutex<Set<Place>>([])

    /// No model has longer names, and a long name shared by many tensors would take memory for each.
    static let longestName = 1024

    /// - Parameter asStored: names keep what training programs put before them, and averages stand beside weights.
    init(_ path: String, _ contents: Contents, asStored: Bool = false) throws(CheckpointError) {
        func fail(_ reason: String) -> CheckpointError { .malformed(path: path, reason: reason) }
        self.path = path
        format = contents.format
        metadata = contents.metadata
        var notes = contents.notes
        let stored = contents.tensors.map {
            (tensor: $0, unwrapped: UnwrappedName($0.name, asStored: asStored))
        }
        let averages = Set(stored.lazy.filter { $0.unwrapped.average != nil }.map(\.unwrapped.name))
        let plain = Set(stored.lazy.filter { $0.unwrapped.average == nil }.map(\.unwrapped.name))
        // Of weights and their average, the average is what is published and run. A few averages
        // without the weights they belong to are left as they are.
        let hasAverage =
            !averages.isEmpty
            && (averages.count >= plain.count || !averages.isDisjoint(with: plain))
        let full = Set(contents.tensors.lazy.map(\.name))
        var byName: [String: StoredTensor] = [:]
        var names: [String] = []
        byName.reserveCapacity(stored.count)
        names.reserveCapacity(stored.count)
        var dropped = 0
        for (tensor, unwrapped) in stored {
            let isAverage = unwrapped.average != nil
            if hasAverage, !isAverage, averages.contains(unwrapped.name) {
                dropped += 1
                continue
            }
            // A name keeps its wrappers if another tensor already has the short one.
            let isTaken =
                unwrapped.name != tensor.name && !isAverage && full.contains(unwrapped.name)
            let name = isTaken || isAverage && !hasAverage ? tensor.name : unwrapped.name
            if let other = byName.updateValue(tensor, forKey: name) {
                throw fail("'\(other.name)' and '\(tensor.name)' would both be called '\(name)'")
            }
            names.append(name)
        }
        if hasAverage, let average = stored.lazy.compactMap(\.unwrapped.average).first {
            notes.append(
                dropped > 0
                    ? "\(path): the average of the weights is used (\(average)); the \(dropped) "
                        + "tensors that it is an average of are left out"
                    : "\(path): it holds an average of the weights (\(average))")
        }
        var foreign: [String: String] = [:]
        for (name, type) in contents.foreign { foreign[UnwrappedName(name).name] = type }
        if let first = contents.foreign.first {
            let rest = contents.foreign.count > 1 ? " and \(contents.foreign.count - 1) more" : ""
            notes.append(
                "\(path): '\(first.name)' has the element type \(first.type), which is not supported\(rest)"
            )
        }
        self.names = names
        self.notes = notes
        foreignTypes = foreign
        tensors = byName
    }

    func info(_ name: String) -> TensorInfo? {
        tensors[name].map { TensorInfo(name: name, shape: $0.shape, dtype: $0.dtype) }
    }

    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        guard let stored = tensors[name] else { return nil }
        // Checking a few bytes costs nothing; callers that read a whole file call `verify`.
        if stored.checksums.reduce(0, { $0 + $1.range.count }) <= 1 << 20 { try verify(name) }
        return stored.tensor()
    }

    func verify(_ name: String) throws(CheckpointError) {
        for checksum in tensors[name]?.checksums ?? [] {
            let place = Place(file: checksum.file.path.string, start: checksum.range.lowerBound)
            if intact.withLock({ $0.contains(place) }) { continue }
            let bytes = UnsafeRawBufferPointer(rebasing: checksum.file.bytes[checksum.range])
            guard CRC32.checksum(bytes) == checksum.crc else {
                throw .malformed(
                    path: place.file,
                    reason:
                        "the bytes of '\(name)' do not have the checksum that they should: the file "
                        + "is damaged")
            }
            intact.withLock { _ = $0.insert(place) }
        }
    }

    func forget(_ name: String) { tensors[name]?.forget() }
}
