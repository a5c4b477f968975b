/// Distances between frames of 8-bit RGB: squared error, PSNR and structural similarity.

import Glibc
import Ground
public import Media
import Tensors

/// Measures of how much two frames, or two videos, differ.
public enum FrameDistance {
    /// Sum of (a - b)^2. a, b: bytes of equal count
    public static func squaredError(_ a: ArraySlice<UInt8>, _ b: ArraySlice<UInt8>) -> Double {
        ensure(a.count == b.count, "squaredError: \(a.count) and \(b.count) bytes")
        return a.withUnsafeBufferPointer { a in
            b.withUnsafeBufferPointer { b in
                var sum = 0
                var start = 0
                // A 32-bit sum can hold this many squares, and vectors add 32-bit numbers fastest.
                while start < a.count {
                    let end = min(start + 16384, a.count)
                    var part: Int32 = 0
                    for index in start..<end {
                        let distance = Int32(a[index]) &- Int32(b[index])
                        part &+= distance &* distance
                    }
                    sum += Int(part)
                    start = end
                }
                return Double(sum)
            }
        }
    }

    /// The peak signal-to-noise ratio in dB; nil (infinite) if there is no error.
    public static func psnr(_ meanSquaredError: Double) -> Double? {
        meanSquaredError == 0 ? nil : 10 * log10(255 * 255 / meanSquaredError)
    }

    /// Mean structural similarity (Wang et al. 2004) of the luma, with 11x11 Gaussian windows, sigma 1.5, that lie inside
    /// the frame. a, b: [height, width, 3]
    public static func similarity(
        _ a: ArraySlice<UInt8>, _ b: ArraySlice<UInt8>, width: Int, height: Int
    ) -> Double {
        let windows = Windows(width: width, height: height)
        ensure(
            a.count == 3 * width * height && b.count == a.count,
            "similarity: \(a.count) and \(b.count) bytes for \(width)x\(height)")
        return a.withUnsafeBufferPointer { a in
            b.withUnsafeBufferPointer { b in windows.similarity(a, b) }
        }
    }

    /// How much two videos of the same size differ.
    public struct OfVideos: Sendable, Equatable {
        /// Mean over all bytes.
        public var meanSquaredError: Double
        /// Mean over the frames.
        public var similarity: Double
    }

    /// Compares two videos with the same size and number of frames.
    public static func between(_ a: Video, _ b: Video) -> OfVideos {
        ensure(
            a.width == b.width && a.height == b.height && a.count == b.count,
            "between: \(a.count) frames of \(a.width)x\(a.height), "
                + "\(b.count) of \(b.width)x\(b.height)")
        let size = 3 * a.width * a.height
        let windows = Windows(width: a.width, height: a.height)
        var sum = 0.0
        for frame in 0..<a.count {
            let range = frame * size..<(frame + 1) * size
            sum += a.pixels[range].withUnsafeBufferPointer { a in
                b.pixels[range].withUnsafeBufferPointer { b in windows.similarity(a, b) }
            }
        }
        return OfVideos(
            meanSquaredError: squaredError(a.pixels[...], b.pixels[...]) / Double(a.pixels.count),
            similarity: sum / Double(a.count))
    }
}

/// The windows of structural similarity over frames of one size.
private struct Windows {
    let width, height: Int
    /// Weights along one axis: a window is the product of two such axes.
    let weights: [Double]

    private typealias Lanes = SIMD8<Double>

    init(width: Int, height: Int) {
        self.width = width
        self.height = height
        let smallest = min(width, height)
        let taps = min(11, smallest % 2 == 1 ? smallest : smallest - 1)
        let kernel = (0..<taps).map { exp(-pow(Double($0 - taps / 2), 2) / (2 * 1.5 * 1.5)) }
        let norm = kernel.reduce(0, +)
        weights = kernel.map { $0 / norm }
    }

    /// x, y: [height, width, 3]
    func similarity(_ x: UnsafeBufferPointer<UInt8>, _ y: UnsafeBufferPointer<UInt8>) -> Double {
        let size = width * height
        let (columns, rows) = (width - weights.count + 1, height - weights.count + 1)
        // Planes of x, y, x^2, y^2 and x y; one row of each, weighted vertically; the same weighted horizontally too.
        let planes = 5
        return withUnsafeTemporaryAllocation(
            of: Double.self, capacity: planes * (size + width + columns)
        ) { memory in
            let plane = memory.baseAddress!
            fill(plane, x, y)
            let line = plane + planes * size
            let means = line + planes * width
            var sum = 0.0
            for row in 0..<rows {
                for index in 0..<planes {
                    weigh(
                        plane + index * size + row * width, step: width, count: width,
                        into: line + index * width)
                    weigh(
                        line + index * width, step: 1, count: columns,
                        into: means + index * columns)
                }
                sum += similarities(means, columns)
            }
            return sum / Double(rows * columns)
        }
    }

    /// BT.601 luma of both frames, their squares and their product, one plane after the other.
    private func fill(
        _ planes: UnsafeMutablePointer<Double>, _ x: UnsafeBufferPointer<UInt8>,
        _ y: UnsafeBufferPointer<UInt8>
    ) {
        let size = width * height
        func luma(_ rgb: UnsafeBufferPointer<UInt8>, into plane: UnsafeMutablePointer<Double>) {
            for index in 0..<size {
                let red = Double(rgb[3 * index])
                let green = Double(rgb[3 * index + 1])
                let blue = Double(rgb[3 * index + 2])
                plane[index] = 0.299 * red + 0.587 * green + 0.114 * blue
            }
        }
        luma(x, into: planes)
        luma(y, into: planes + size)
        for index in 0..<size {
            let (p, q) = (planes[index], planes[size + index])
            planes[2 * size + index] = p * p
            planes[3 * size + index] = q * q
            planes[4 * size + index] = p * q
        }
    }

    /// out[i] = sum over taps of weights[tap] * source[i + tap * step]
    @inline(__always)
    private func weigh(
        _ source: UnsafePointer<Double>, step: Int, count: Int,
        into out: UnsafeMutablePointer<Double>
    ) {
        weights.withUnsafeBufferPointer { weights in
            var index = 0
            while index + 16 <= count {
                var (low, high) = (Lanes.zero, Lanes.zero)
                for tap in 0..<weights.count {
                    let start = UnsafeRawPointer(source + index + tap * step)
                    let weight = Lanes(repeating: weights[tap])
                    low.addProduct(start.loadUnaligned(as: Lanes.self), weight)
                    high.addProduct(
                        (start + MemoryLayout<Lanes>.size).loadUnaligned(as: Lanes.self), weight)
                }
                let target = UnsafeMutableRawPointer(out + index)
                target.storeBytes(of: low, as: Lanes.self)
                (target + MemoryLayout<Lanes>.size).storeBytes(of: high, as: Lanes.self)
                index += 16
            }
            while index < count {
                var sum = 0.0
                for tap in 0..<weights.count {
                    sum.addProduct(source[index + tap * step], weights[tap])
                }
                out[index] = sum
                index += 1
            }
        }
    }

    /// The sum of similarities over one row of windows. means: of x, y, x^2, y^2 and x y, `count` of each
    private func similarities(_ means: UnsafePointer<Double>, _ count: Int) -> Double {
        let c1 = 0.01 * 255 * 0.01 * 255
        let c2 = 0.03 * 255 * 0.03 * 255
        var sum = 0.0
        for index in 0..<count {
            let (x, y) = (means[index], means[count + index])
            let variances =
                means[2 * count + index] - x * x + means[3 * count + index] - y * y
            let covariance = means[4 * count + index] - x * y
            let luminance = (2 * x * y + c1) / (x * x + y * y + c1)
            sum += luminance * (2 * covariance + c2) / (variances + c2)
        }
        return sum
    }
}

extension SIMD8<Double> {
    @inline(__always)
    fileprivate mutating func addProduct(_ a: Self, _ b: Self) { self = addingProduct(a, b) }
}
