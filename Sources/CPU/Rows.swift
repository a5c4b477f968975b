/// Tensors as rows of `Float`. All conversions of element types for the operations are here.

import Ground
import Tensors

/// A host tensor as a matrix whose rows are read and written as `Float`, rounded to nearest, ties to even.
struct Rows {
    let dtype: DType
    let count: Int
    let columns: Int
    private let base: UnsafeMutableRawPointer
    /// Keeps the memory alive.
    private let storage: Storage

    /// x: [..., columns]
    init(_ x: Tensor) { self.init(x, columns: x.shape.columns) }

    init(_ x: Tensor, columns: Int) {
        dtype = x.dtype
        self.columns = columns
        count = columns == 0 ? 0 : x.shape.count / columns
        base = x.hostAddress
        storage = x.storage
    }

    /// The first element of an f32 row.
    func floats(_ row: Int) -> UnsafeMutablePointer<Float> {
        ensure(dtype == .f32, "Rows: \(dtype) rows are not f32")
        return base.assumingMemoryBound(to: Float.self) + row * columns
    }

    /// Reads whole rows.
    func load(_ rows: Range<Int>, into out: UnsafeMutablePointer<Float>) {
        load(rows.lowerBound, rows.count * columns, into: out)
    }

    /// Reads n elements beginning with element `start` of a row; they may extend into the next rows.
    func load(_ row: Int, from start: Int = 0, _ n: Int, into out: UnsafeMutablePointer<Float>) {
        let offset = row * columns + start
        switch dtype {
        case .f32:
            out.update(from: base.assumingMemoryBound(to: Float.self) + offset, count: n)
        case .bf16:
            let x = base.assumingMemoryBound(to: UInt16.self) + offset
            for i in 0..<n { out[i] = Float(bitPattern: UInt32(x[i]) << 16) }
        case .f16:
            let x = base.assumingMemoryBound(to: Float16.self) + offset
            for i in 0..<n { out[i] = Float(x[i]) }
        case .i8:
            let x = base.assumingMemoryBound(to: Int8.self) + offset
            for i in 0..<n { out[i] = Float(x[i]) }
        case .f8e4m3:
            let x = base.assumingMemoryBound(to: UInt8.self) + offset
            Float8Values.e4m3.withUnsafeBufferPointer { values in
                for i in 0..<n { out[i] = values[Int(x[i])] }
            }
        case .f8e5m2:
            let x = base.assumingMemoryBound(to: UInt8.self) + offset
            for i in 0..<n { out[i] = Float8E5M2.decode(x[i]) }
        case .f64:
            let x = base.assumingMemoryBound(to: Double.self) + offset
            for i in 0..<n { out[i] = Float(x[i]) }
        default:
            programmingError("Rows: \(dtype) elements cannot be read as f32")
        }
    }

    /// Writes n elements beginning with element `start` of a row; they may extend into the next rows.
    func store(_ row: Int, from start: Int = 0, _ n: Int, _ values: UnsafePointer<Float>) {
        let offset = row * columns + start
        switch dtype {
        case .f32:
            (base.assumingMemoryBound(to: Float.self) + offset).update(from: values, count: n)
        case .bf16:
            let x = base.assumingMemoryBound(to: BFloat16.self) + offset
            for i in 0..<n { x[i] = BFloat16(values[i]) }
        case .f16:
            let x = base.assumingMemoryBound(to: Float16.self) + offset
            for i in 0..<n { x[i] = Float16(values[i]) }
        case .f8e4m3:
            Float8Values.encode(values, n, to: base.assumingMemoryBound(to: UInt8.self) + offset)
        case .f64:
            let x = base.assumingMemoryBound(to: Double.self) + offset
            for i in 0..<n { x[i] = Double(values[i]) }
        default:
            programmingError("Rows: \(dtype) elements cannot be written from f32")
        }
    }
}

/// Fast conversions between f32 and e4m3 codes.
enum Float8Values {
    static let e4m3: [Float] = (0...255).map { Float8E4M3.decode(UInt8($0)) }

    /// The same codes as `Float8E4M3.encode`, in a loop without branches.
    static func encode(
        _ x: UnsafePointer<Float>, _ n: Int, to codes: UnsafeMutablePointer<UInt8>
    ) {
        for i in 0..<n {
            let magnitude = x[i].magnitude
            let bits = magnitude.bitPattern
            let normal = ((bits &+ 0x7FFFF &+ ((bits >> 20) & 1)) >> 20) &- (120 << 3)
            // Below 2^-6 the step is always 2^-9, which is the unit in the last place of 1.5 * 2^14.
            let small = (magnitude + 24_576).bitPattern & 0xF
            let finite = magnitude < 0x1p-6 ? small : (magnitude < 448 ? normal : 0x7E)
            let signed = finite | ((x[i].bitPattern >> 24) & 0x80)
            codes[i] = UInt8(truncatingIfNeeded: magnitude == magnitude ? signed : 0x7F)
        }
    }
}

/// Rounds in place to values that `dtype` can represent; does nothing for f32.
func round(_ x: UnsafeMutablePointer<Float>, _ n: Int, to dtype: DType) {
    switch dtype {
    case .f32: break
    case .bf16: for i in 0..<n { x[i] = x[i].roundedToBFloat16 }
    case .f16: for i in 0..<n { x[i] = Float(Float16(x[i])) }
    default: programmingError("round: activations are f32, f16 or bf16, not \(dtype)")
    }
}

/// Calls `body` with uninitialised memory for `count` floats. The pointer must not leave `body`.
func scratch<R>(_ count: Int, _ body: (UnsafeMutablePointer<Float>) -> R) -> R {
    withUnsafeTemporaryAllocation(
        byteCount: max(1, count) * MemoryLayout<Float>.stride, alignment: 64
    ) { body($0.baseAddress!.assumingMemoryBound(to: Float.self)) }
}
