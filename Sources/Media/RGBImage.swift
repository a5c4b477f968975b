// RGBImage: one picture in memory, and the resizing that the image-to-video model was trained with.

import Ground

/// A picture of 8-bit RGB.
public struct RGBImage: Sendable, Equatable {
    public let width: Int
    public let height: Int
    /// pixels: [height, width, 3]
    public var pixels: [UInt8]

    public init(width: Int, height: Int, pixels: [UInt8]) {
        ensure(
            width > 0 && height > 0 && pixels.count == width * height * 3,
            "RGBImage: \(width)x\(height) needs \(width * height * 3) bytes, found \(pixels.count)")
        self.width = width
        self.height = height
        self.pixels = pixels
    }

    /// A picture of one colour.
    public init(width: Int, height: Int, red: UInt8, green: UInt8, blue: UInt8) {
        ensure(width > 0 && height > 0, "RGBImage: \(width)x\(height) has no pixels")
        self.width = width
        self.height = height
        pixels = [UInt8](unsafeUninitializedCapacity: width * height * 3) { buffer, count in
            count = width * height * 3
            for i in stride(from: 0, to: count, by: 3) {
                buffer[i] = red
                buffer[i + 1] = green
                buffer[i + 2] = blue
            }
        }
    }
}

// MARK: - Resize

/// Scales a picture without keeping its aspect: bilinear with antialiasing, on 8-bit values.
///
/// When reducing, the triangle filter is widened by the factor; weights are 16-bit fixed point; rows
/// first, then columns, rounded to 8 bits in between. This is `torchvision.transforms.v2.Resize`
/// with `antialias=True` on a uint8 tensor (and Pillow's bilinear), to the bit where PyTorch takes
/// its fixed-point path, otherwise within 1.
public func resize(_ image: RGBImage, width: Int, height: Int) -> RGBImage {
    ensure(width > 0 && height > 0, "resize: \(width)x\(height) has no pixels")
    var pixels = image.pixels
    if width != image.width {
        pixels = resizeRows(
            pixels, rows: image.height, TriangleFilter(from: image.width, to: width))
    }
    if height != image.height {
        pixels = resizeColumns(
            pixels, rowBytes: width * 3, TriangleFilter(from: image.height, to: height))
    }
    return RGBImage(width: width, height: height, pixels: pixels)
}

/// For each output position, the first input position and its fixed-point weights.
private struct TriangleFilter {
    let inputs: Int
    let outputs: Int
    /// first: [outputs]
    private(set) var first: [Int] = []
    /// counts: [outputs], at most `taps`
    private(set) var counts: [Int] = []
    /// weights: [outputs, taps]
    private(set) var weights: [Int32] = []
    let taps: Int
    /// A weight of 1 is `1 << precision`: as many bits as the largest weight leaves in an Int16.
    let precision: Int32

    init(from inputs: Int, to outputs: Int) {
        self.inputs = inputs
        self.outputs = outputs
        let scale = Double(inputs) / Double(outputs)
        let support = max(scale, 1)
        taps = Int(support.rounded(.up)) * 2 + 1
        var exact = [Double](repeating: 0, count: outputs * taps)
        for i in 0..<outputs {
            let center = scale * (Double(i) + 0.5)
            let start = max(Int(center - support + 0.5), 0)
            let count = min(min(Int(center + support + 0.5), inputs) - start, taps)
            var sum = 0.0
            for j in 0..<count {
                let distance = (Double(j + start) - center + 0.5) / support
                let weight = max(0, 1 - abs(distance))
                exact[i * taps + j] = weight
                sum += weight
            }
            for j in 0..<count { exact[i * taps + j] /= sum }
            first.append(start)
            counts.append(count)
        }
        let largest = exact.max() ?? 1
        var bits: Int32 = 0
        while bits < 22 && Int(0.5 + largest * Double(1 << (bits + 1))) < 1 << 15 { bits += 1 }
        precision = bits
        weights = exact.map { Int32(0.5 + $0 * Double(1 << bits)) }
    }
}

private func resizeRows(_ pixels: [UInt8], rows: Int, _ filter: TriangleFilter) -> [UInt8] {
    let count = rows * filter.outputs * 3
    let half = Int32(1) << (filter.precision - 1)
    return [UInt8](unsafeUninitializedCapacity: count) { out, used in
        pixels.withUnsafeBufferPointer { pixels in
            filter.weights.withUnsafeBufferPointer { weights in
                for x in 0..<filter.outputs {
                    let start = filter.first[x] * 3
                    let taps = filter.counts[x]
                    for y in 0..<rows {
                        var r = half
                        var g = half
                        var b = half
                        var p = y * filter.inputs * 3 + start
                        for j in 0..<taps {
                            let w = weights[x * filter.taps + j]
                            r &+= w &* Int32(pixels[p])
                            g &+= w &* Int32(pixels[p + 1])
                            b &+= w &* Int32(pixels[p + 2])
                            p += 3
                        }
                        let o = (y * filter.outputs + x) * 3
                        out[o] = UInt8(clamping: r >> filter.precision)
                        out[o + 1] = UInt8(clamping: g >> filter.precision)
                        out[o + 2] = UInt8(clamping: b >> filter.precision)
                    }
                }
            }
        }
        used = count
    }
}

private func resizeColumns(_ pixels: [UInt8], rowBytes: Int, _ filter: TriangleFilter) -> [UInt8] {
    let count = filter.outputs * rowBytes
    let half = Int32(1) << (filter.precision - 1)
    var sums = [Int32](repeating: 0, count: rowBytes)
    return [UInt8](unsafeUninitializedCapacity: count) { out, used in
        pixels.withUnsafeBufferPointer { pixels in
            sums.withUnsafeMutableBufferPointer { sums in
                for y in 0..<filter.outputs {
                    sums.update(repeating: half)
                    for j in 0..<filter.counts[y] {
                        let w = filter.weights[y * filter.taps + j]
                        let row = (filter.first[y] + j) * rowBytes
                        for i in 0..<rowBytes { sums[i] &+= w &* Int32(pixels[row + i]) }
                    }
                    for i in 0..<rowBytes {
                        out[y * rowBytes + i] = UInt8(clamping: sums[i] >> filter.precision)
                    }
                }
            }
        }
        used = count
    }
}
