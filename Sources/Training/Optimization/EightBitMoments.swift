/// Moments of AdamW in 8 bits between the steps: a code for each number and a scale for each block, after 8-bit Optimizers
/// via Block-wise Quantization (arXiv 2110.02861).

import Ground
import Tensors

/// Numbers of which each has one byte.
///
/// A number is its block's scale times an entry of a table whose entries are close to each other near zero: seven powers
/// of ten, each with twice as many entries as the one before it. The scale is the block's largest number, with its sign, so
/// what was unpacked is packed to the same codes.
struct PackedNumbers: Sendable {
    static let block = 256
    let shape: Shape
    let isSigned: Bool
    let codes: [UInt8]
    let scales: [Float]

    /// 256 entries from -1 or 0 to 1, in order.
    static func table(isSigned: Bool) -> [Float] {
        var entries: [Double] = [0, 1]
        var power = 1e-6
        for exponent in 0..<7 {
            let count = 1 << (isSigned ? exponent : exponent + 1)
            for index in 0..<count {
                // The middle of each part of 0.1...1.
                let entry = power * (0.1 + 0.9 * (Double(index) + 0.5) / Double(count))
                entries.append(entry)
                if isSigned { entries.append(-entry) }
            }
            power *= 10
        }
        return entries.sorted().map { Float($0) }
    }

    private static let signed = table(isSigned: true)
    private static let unsigned = table(isSigned: false)

    /// x: f32 on the host
    init(_ x: Tensor, isSigned: Bool) {
        shape = x.shape
        self.isSigned = isSigned
        let table = isSigned ? Self.signed : Self.unsigned
        let middles = zip(table, table.dropFirst()).map { ($0 + $1) / 2 }
        var codes = [UInt8](repeating: 0, count: x.shape.count)
        var scales: [Float] = []
        x.withElements(Float.self) { x in
            for start in stride(from: 0, to: x.count, by: Self.block) {
                let range = start..<min(start + Self.block, x.count)
                var scale: Float = 0
                for index in range where abs(x[index]) > abs(scale) { scale = x[index] }
                scales.append(scale)
                for index in range {
                    let share = scale == 0 ? 0 : x[index] / scale
                    // The first entry whose upper middle is not below the number.
                    var (low, high) = (0, middles.count)
                    while low < high {
                        let middle = (low + high) / 2
                        if middles[middle] < share { low = middle + 1 } else { high = middle }
                    }
                    // A square that became zero would be divided by: the smallest entry instead.
                    if !isSigned, low == 0, share > 0 { low = 1 }
                    codes[index] = UInt8(low)
                }
            }
        }
        self.codes = codes
        self.scales = scales
    }

    /// f32 on the host
    var unpacked: Tensor {
        let table = isSigned ? Self.signed : Self.unsigned
        let result = Tensor.host(shape, .f32)
        result.withMutable(Float.self) { out in
            for index in out.indices {
                out[index] = scales[index / Self.block] * table[Int(codes[index])]
            }
        }
        return result
    }
}

/// What an optimiser keeps between its steps: it gets f32 moments before a step, and they are packed after it.
///
/// Codes lie in the host's memory, two bytes a parameter; a device has f32 moments during the step only.
final class EightBitMoments {
    private enum Kept {
        case packed(PackedNumbers)
        /// Of a plan, which has no numbers.
        case outline(Shape)
    }
    private var means: [String: Kept] = [:]
    private var squares: [String: Kept] = [:]
    private let device: any Backend

    init(on device: any Backend) { self.device = device }

    private func packed(_ x: Tensor, isSigned: Bool) -> Kept {
        device is NullBackend
            ? .outline(x.shape) : .packed(PackedNumbers(device.read(x), isSigned: isSigned))
    }

    private func placed(_ kept: Kept) -> Tensor {
        switch kept {
        case .packed(let numbers): device.place(numbers.unpacked, as: .f32)
        case .outline(let shape): device.place(.zeros(shape, .f32), as: .f32)
        }
    }

    /// Takes the optimiser's moments.
    func pack(_ optimizer: Adam) {
        means = optimizer.means.mapValues { packed($0, isSigned: true) }
        squares = optimizer.squares.mapValues { packed($0, isSigned: false) }
        optimizer.restore(means: [:], squares: [:], steps: optimizer.steps)
    }

    /// Gives them back.
    func unpack(_ optimizer: Adam) {
        optimizer.restore(
            means: means.mapValues(placed), squares: squares.mapValues(placed),
            steps: optimizer.steps)
    }
}
