/// Checkpoints derived from others: the tools describe their result, and the writer or a model asks
/// for its tensors.

private import Dispatch
import Ground
public import Tensors

/// A checkpoint whose tensors are computed on demand, each time anew.
public final class DerivedCheckpoint: Checkpoint {
    struct Entry {
        let info: TensorInfo
        let make: () throws(CheckpointError) -> Tensor
        let forget: () -> Void
    }

    public let path: String
    public let metadata: [String: String]
    public let names: [String]
    public let foreignTypes: [String: String]
    private let entries: [String: Entry]

    /// - Parameter foreignTypes: those of the base, by the names that the tensors would have here.
    /// - Throws: `.incompatible` if two entries have the same name.
    init(
        path: String, metadata: [String: String] = [:], foreignTypes: [String: String] = [:],
        _ list: [Entry]
    ) throws(CheckpointError) {
        self.path = path
        self.metadata = metadata
        self.foreignTypes = foreignTypes
        names = list.map(\.info.name)
        var entries: [String: Entry] = [:]
        for entry in list {
            guard entries.updateValue(entry, forKey: entry.info.name) == nil else {
                throw .incompatible(
                    path: path, reason: "two tensors would be called '\(entry.info.name)'")
            }
        }
        self.entries = entries
    }

    public func info(_ name: String) -> TensorInfo? { entries[name]?.info }
    public func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        try entries[name]?.make()
    }
    public func forget(_ name: String) { entries[name]?.forget() }
}

extension DerivedCheckpoint.Entry {
    /// A tensor of another checkpoint, optionally with another name, shape or type.
    /// - Parameter isFinite: whether infinities and NaNs in it are an error.
    static func from(
        _ base: any Checkpoint, _ info: TensorInfo, as name: String? = nil, shape: [Int]? = nil,
        dtype: DType? = nil, isFinite: Bool = false
    ) -> Self {
        let target = TensorInfo(
            name: name ?? info.name, shape: shape ?? info.shape, dtype: dtype ?? info.dtype)
        return Self(info: target) { () throws(CheckpointError) in
            let tensor = try base.require(info.name).reshaped(Shape(target.shape))
            if isFinite { try requireFinite(tensor, info.name, in: base) }
            let result = tensor.converted(to: target.dtype)
            guard target.dtype == info.dtype || !tensor.hasNumbers(lostIn: result) else {
                throw .incompatible(
                    path: base.path,
                    reason: "'\(info.name)' holds numbers that are too large for \(target.dtype)")
            }
            return result
        } forget: {
            base.forget(info.name)
        }
    }

    func renamed(_ name: String) -> Self {
        Self(
            info: TensorInfo(name: name, shape: info.shape, dtype: info.dtype), make: make,
            forget: forget)
    }

    static func zeros(_ name: String, _ shape: [Int], _ dtype: DType) -> Self {
        Self(info: TensorInfo(name: name, shape: shape, dtype: dtype)) {
            () throws(CheckpointError) in
            Tensor.zeros(Shape(shape), dtype)
        } forget: {
        }
    }
}

extension Tensor {
    /// Whether an element is finite here and is not in `other`, which is this tensor in another type.
    fileprivate func hasNumbers(lostIn other: Tensor) -> Bool {
        if other.allFinite { return false }
        return zip(pieces, other.pieces).contains { x, y in
            zip(x.doubles(), y.doubles()).contains { $0.isFinite && !$1.isFinite }
        }
    }
}

extension Checkpoint {
    /// The tensor, which must exist; its checksum is verified.
    func require(_ name: String) throws(CheckpointError) -> Tensor {
        try verify(name)
        guard let tensor = try tensor(name) else { throw .missing(name, in: path, nearest: []) }
        return tensor
    }

    /// Shapes and types of all tensors in file order.
    var infos: [TensorInfo] { names.compactMap { info($0) } }
}

/// Computes a tensor in f32, piece by piece on several threads, so that little more memory than its
/// own is needed.
/// - Parameters:
///   - unit: pieces begin and end at multiples of this many elements, such as a row.
///   - piece: computes a range of the elements.
func computed(
    _ shape: Shape, _ dtype: DType, unit: Int = 1, _ piece: @escaping (Range<Int>) -> [Float]
) -> Tensor {
    let out = Tensor.host(shape, dtype)
    let (count, length) = (shape.count, max((1 << 18) / max(unit, 1), 1) * max(unit, 1))
    nonisolated(unsafe) let (target, piece) = (out.hostAddress, piece)
    DispatchQueue.concurrentPerform(iterations: ceilDivide(count, length)) { index in
        let range = index * length..<min((index + 1) * length, count)
        let values = Tensor(piece(range), [range.count]).converted(to: dtype)
        (target + range.lowerBound * dtype.byteCount).copyMemory(
            from: values.hostAddress, byteCount: values.byteCount)
    }
    return out
}
