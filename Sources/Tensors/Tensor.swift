/// Tensors: a shape, an element type and a place in some storage. Always contiguous, row-major.

import Glibc
public import Ground
import Synchronization

/// Bytes on some device, freed when the last tensor that looks at them goes.
///
/// Backends subclass it. Memory that the host can read has a `hostPointer`.
open class Storage {
    public let byteCount: Int
    /// No other storage of this process has or had it.
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

    /// First byte in host memory, or nil where the host cannot read it.
    open var hostPointer: UnsafeMutableRawPointer? { nil }
}

/// Bytes in host memory: allocated here (aligned to 64 bytes), or borrowed from an owner such as a mapped file.
public final class HostStorage: Storage {
    private let base: UnsafeMutableRawPointer
    private let owner: AnyObject?

    /// Uninitialised memory.
    public override init(byteCount: Int) {
        base = hostBlock(byteCount: byteCount)
        owner = nil
        super.init(byteCount: byteCount)
    }

    /// Memory that lives as long as `owner`. Borrowed bytes of a mapped file must only be read.
    public init(borrowing bytes: UnsafeRawBufferPointer, owner: AnyObject) {
        base = UnsafeMutableRawPointer(
            mutating: bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 64)!)
        self.owner = owner
        super.init(byteCount: bytes.count)
    }

    public override var hostPointer: UnsafeMutableRawPointer? { base }

    /// Whether the bytes are somebody else's, such as a mapped file's.
    public var isBorrowed: Bool { owner != nil }

    deinit { if owner == nil { free(base) } }
}

/// A contiguous row-major array. Copying the value shares the storage; operations never write to their inputs.
public struct Tensor {
    public let shape: Shape
    public let dtype: DType
    public let storage: Storage
    public let byteOffset: Int
    /// The scales that belong to 8-bit activations, as the backend that quantised them lays them out
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

    public var byteCount: Int { shape.count * dtype.byteCount }

    /// How 8-bit activations are written; plain for all else.
    public var format: ActivationFormat {
        switch dtype {
        case .i8: .int8Blocks
        case .f8e4m3: .fp8Rows
        default: .plain
        }
    }

    /// Which value this is. Every result of an operation has memory of its own, views share it and differ in place or
    /// shape, and no identity comes back when memory is used again: whoever records operations finds by it where a
    /// value comes from.
    public struct Identity: Sendable, Hashable {
        public let storage: UInt64
        public let byteOffset: Int
        public let shape: Shape
    }

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
    /// This weight in another layout: made at its first use and kept as long as the weight's bytes, which are never
    /// written to.
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

    /// Base address of the elements. Fails where the storage is not in host memory.
    public var hostAddress: UnsafeMutableRawPointer {
        guard let base = storage.hostPointer else {
            programmingError("hostAddress: \(shape) \(dtype) is not in host memory")
        }
        return base + byteOffset
    }

    public var isOnHost: Bool { storage.hostPointer != nil }

    /// Whether the elements lie in a mapped file: to keep the tensor takes no memory.
    public var isMapped: Bool { (storage as? HostStorage)?.isBorrowed ?? false }

    /// The elements as host memory of type `T`, whose size must be the element's.
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

    /// The elements of a tensor that its caller has just made, for filling it.
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

    /// The elements of a host tensor as a new host tensor of another floating-point dtype
    /// (nearest, ties to even). Returns itself where nothing changes.
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
