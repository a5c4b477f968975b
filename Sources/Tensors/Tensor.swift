/// Tensors: a shape, an element type and a place in a storage. Always contiguous and row-major.

import Glibc
public import Ground
import Synchronization

/// Bytes on some device, freed with the last tensor that uses them.
///
/// Backends subclass it. It has a `hostPointer` if the host can read the memory.
open class Storage {
    public let byteCount: Int
    /// Unique in this process, and never used again.
    public let serial: UInt64
    /// See `Tensor.kept`.
    fileprivate var copies: [CopyKey: AnyObject] = [:]
    fileprivate struct CopyKey: Hashable {
        let offset: Int
        let shape: Shape
        let layout: String
    }

    private static let made = Atomic<UInt64>(0)

    public init(byteCount: Int) {
        self.byteCount = byteCount
        serial = Self.made.add(1, ordering: .relaxed).newValue
    }

    /// Address of the first byte, or nil if the host cannot read the memory.
    open var hostPointer: UnsafeMutableRawPointer? { nil }
}

/// Bytes in host memory: allocated (aligned to 64 bytes), or borrowed from an owner such as a mapped file.
public final class HostStorage: Storage {
    private let base: UnsafeMutableRawPointer
    private let owner: AnyObject?

    /// Allocates uninitialised memory.
    public override init(byteCount: Int) {
        base = hostBlock(byteCount: byteCount)
        owner = nil
        super.init(byteCount: byteCount)
    }

    /// Uses memory of `owner`, which is kept alive. Borrowed bytes of a mapped file must only be read.
    public init(borrowing bytes: UnsafeRawBufferPointer, owner: AnyObject) {
        base = UnsafeMutableRawPointer(
            mutating: bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 64)!)
        self.owner = owner
        super.init(byteCount: bytes.count)
    }

    public override var hostPointer: UnsafeMutableRawPointer? { base }

    /// Whether the bytes belong to another owner, such as a mapped file.
    public var isBorrowed: Bool { owner != nil }

    deinit { if owner == nil { free(base) } }
}

/// A contiguous row-major array. Copies of the value share its storage; operations never write to their inputs.
public struct Tensor {
    public let shape: Shape
    public let dtype: DType
    public let storage: Storage
    public let byteOffset: Int
    /// The scales of 8-bit activations, in the layout of the backend that quantised them
    /// (`int8Blocks`: f32 [ceil(rows/128), ceil(columns/128)]).
    public let scales: Storage?

    public init(
        _ shape: Shape, _ dtype: DType, storage: Storage, byteOffset: Int = 0,
        scales: Storage? = nil
    ) {
        ensure(
            byteOffset >= 0 && byteOffset + shape.count * dtype.byteCount <= storage.byteCount,
            "Tensor: \(shape) \(dtype) at byte \(byteOffset) exceeds \(storage.byteCount) bytes")
        self.shape = shape
        self.dtype = dtype
        self.storage = storage
        self.byteOffset = byteOffset
        self.scales = scales
    }

    /// Bytes of the elements, without scales.
    public var byteCount: Int { shape.count * dtype.byteCount }

    /// The format of 8-bit activations; plain for everything else.
    public var format: LinearFormat {
        switch dtype {
        case .i8: .int8Blocks
        case .f8e4m3: .fp8Rows
        default: .plain
        }
    }

    /// Identifies a value, so that a backend that records operations can tell where a value comes from. Every result of
    /// an operation has its own storage; views share one and differ in offset or shape. No identity occurs twice, even
    /// when memory is used again.
    public struct Identity: Sendable, Hashable {
        public let storage: UInt64
        public let byteOffset: Int
        public let shape: Shape
    }

    /// Equal for copies of this value only.
    public var identity: Identity {
        Identity(storage: storage.serial, byteOffset: byteOffset, shape: shape)
    }

    /// The same elements under another shape of equal count.
    public func reshaped(_ shape: Shape) -> Tensor {
        ensure(
            shape.count == self.shape.count, "reshaped: \(self.shape) cannot become \(shape)")
        return Tensor(shape, dtype, storage: storage, byteOffset: byteOffset, scales: scales)
    }

    /// Entries `range` of the outermost axis, sharing the storage.
    /// x: [n, ...] → [range.count, ...]
    public func slice(_ range: Range<Int>) -> Tensor {
        ensure(
            shape.rank > 0 && range.lowerBound >= 0 && range.upperBound <= shape[0],
            "slice: \(range) of \(shape)")
        ensure(scales == nil, "slice: quantised activations cannot be sliced")
        let inner = shape.tail
        return Tensor(
            shape.replacingFirst(range.count), dtype, storage: storage,
            byteOffset: byteOffset + range.lowerBound * inner.count * dtype.byteCount)
    }

    /// Entry `index` of the outermost axis. x: [n, ...] → [...]
    public subscript(index: Int) -> Tensor {
        let entry = slice(index..<index + 1)
        return entry.reshaped(shape.tail)
    }
}

extension Tensor {
    /// This weight in another layout: made at first use, and kept as long as the storage of the weight, whose bytes
    /// never change.
    public func kept<Copy: AnyObject>(as layout: String, _ make: () -> Copy) -> Copy {
        let key = Storage.CopyKey(offset: byteOffset, shape: shape, layout: layout)
        if let copy = storage.copies[key] as? Copy { return copy }
        let copy = make()
        storage.copies[key] = copy
        return copy
    }
}

extension Tensor: CustomStringConvertible {
    public var description: String { "\(shape) \(dtype)" }
}

// MARK: - Host access

extension Tensor {
    /// A new uninitialised tensor in host memory.
    public static func host(_ shape: Shape, _ dtype: DType) -> Tensor {
        Tensor(shape, dtype, storage: HostStorage(byteCount: shape.count * dtype.byteCount))
    }

    /// A new f32 host tensor holding `values` in row-major order.
    public init(_ values: [Float], _ shape: Shape) {
        self = .host(shape, .f32)
        ensure(values.count == shape.count, "Tensor: \(values.count) values for \(shape)")
        withMutable(Float.self) { _ = $0.update(fromContentsOf: values) }
    }

    /// A new i32 host tensor holding `values` in row-major order.
    public init(_ values: [Int32], _ shape: Shape) {
        self = .host(shape, .i32)
        ensure(values.count == shape.count, "Tensor: \(values.count) values for \(shape)")
        withMutable(Int32.self) { _ = $0.update(fromContentsOf: values) }
    }

    /// Address of the first element. Stops the program if the storage is not in host memory.
    public var hostAddress: UnsafeMutableRawPointer {
        guard let base = storage.hostPointer else {
            programmingError("hostAddress: \(shape) \(dtype) is not in host memory")
        }
        return base + byteOffset
    }

    /// Whether the host can read the elements.
    public var isOnHost: Bool { storage.hostPointer != nil }

    /// Whether the elements lie in a mapped file, so that keeping the tensor takes no memory.
    public var isMapped: Bool { (storage as? HostStorage)?.isBorrowed ?? false }

    /// Calls `body` with the elements in host memory as values of `T`, which must have the size of an element.
    /// The pointer must not leave `body`.
    @inlinable
    public func withElements<T: BitwiseCopyable, R>(
        _ type: T.Type, _ body: (UnsafeBufferPointer<T>) throws -> R
    ) rethrows -> R {
        ensure(
            MemoryLayout<T>.stride == dtype.byteCount, "withElements: \(T.self) for \(dtype)")
        let start = UnsafeRawPointer(hostAddress).assumingMemoryBound(to: T.self)
        defer { withExtendedLifetime(storage) {} }
        return try body(UnsafeBufferPointer(start: start, count: shape.count))
    }

    /// Calls `body` with the elements for writing. Only for a tensor that the caller has just made.
    @inlinable
    public func withMutable<T: BitwiseCopyable, R>(
        _ type: T.Type, _ body: (UnsafeMutableBufferPointer<T>) throws -> R
    ) rethrows -> R {
        ensure(
            MemoryLayout<T>.stride == dtype.byteCount, "withMutable: \(T.self) for \(dtype)")
        let start = hostAddress.assumingMemoryBound(to: T.self)
        defer { withExtendedLifetime(storage) {} }
        return try body(UnsafeMutableBufferPointer(start: start, count: shape.count))
    }

    /// All elements of a host tensor as `Float`, in row-major order; any dtype.
    public func floats() -> [Float] {
        [Float](unsafeUninitializedCapacity: shape.count) { out, count in
            convert(to: out.baseAddress!)
            count = shape.count
        }
    }

    /// A host tensor converted to another floating-point dtype (nearest, ties to even). Returns itself if the dtype is
    /// the same.
    public func converted(to target: DType) -> Tensor {
        if target == dtype { return self }
        let out = Tensor.host(shape, target)
        switch target {
        case .f32: convert(to: out.hostAddress.assumingMemoryBound(to: Float.self))
        case .bf16:
            let values = floats()
            out.withMutable(BFloat16.self) { o in
                for i in values.indices { o[i] = BFloat16(values[i]) }
            }
        case .f16:
            let values = floats()
            out.withMutable(Float16.self) { o in
                for i in values.indices { o[i] = Float16(values[i]) }
            }
        case .f64:
            let values = floats()
            out.withMutable(Double.self) { o in
                for i in values.indices { o[i] = Double(values[i]) }
            }
        case .f8e4m3:
            let values = floats()
            out.withMutable(UInt8.self) { o in
                for i in values.indices { o[i] = Float8E4M3.encode(values[i]) }
            }
        default:
            programmingError("converted: no conversion from \(dtype) to \(target)")
        }
        return out
    }

    private func convert(to out: UnsafeMutablePointer<Float>) {
        func each<T: BitwiseCopyable>(_ type: T.Type, _ transform: (T) -> Float) {
            withElements(T.self) { x in for i in x.indices { out[i] = transform(x[i]) } }
        }
        switch dtype {
        case .f32: withElements(Float.self) { out.update(from: $0.baseAddress!, count: $0.count) }
        case .f64: each(Double.self) { Float($0) }
        case .f16: each(Float16.self) { Float($0) }
        case .bf16: each(BFloat16.self) { $0.float }
        case .f8e4m3: each(UInt8.self) { Float8E4M3.decode($0) }
        case .f8e5m2: each(UInt8.self) { Float8E5M2.decode($0) }
        case .i64: each(Int64.self) { Float($0) }
        case .i32: each(Int32.self) { Float($0) }
        case .i16: each(Int16.self) { Float($0) }
        case .i8: each(Int8.self) { Float($0) }
        case .u8, .bool: each(UInt8.self) { Float($0) }
        }
    }
}
