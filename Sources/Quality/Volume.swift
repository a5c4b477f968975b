/// The layers of the attribute classifier, in f32 on one core: small enough that every core classifies a video of its own.

import Checkpoints
import Ground
import Tensors

/// Extents along time, height and width.
struct Extent: Sendable, Hashable {
    var t, h, w: Int
    init(_ t: Int, _ h: Int, _ w: Int) { (self.t, self.h, self.w) = (t, h, w) }
    var count: Int { t * h * w }
}

/// Channels of a video. values: [t, h, w, channels]
struct Volume: Sendable {
    let size: Extent
    let channels: Int
    var values: [Float]

    /// [channels, t, h, w], flattened: the order of PyTorch's.
    var channelsFirst: [Float] {
        (0..<channels).flatMap { channel in
            stride(from: channel, to: values.count, by: channels).map { values[$0] }
        }
    }
}

private typealias Lanes = SIMD8<Float>

/// A convolution over time, height and width, with zeros outside.
struct VolumeConvolution: Sendable {
    let inputs, outputs: Int
    let kernel, stride, padding: Extent
    private let bias: [Float]
    /// Outputs in groups of 16, the last one filled up with zeros.
    /// [groups, kernel.t, kernel.h, kernel.w, inputs, 16]
    private let panels: [Float]
    private static let group = 16

    /// weights: holds `weight` [outputs, inputs, kernel...] and `bias` [outputs]
    init(
        _ weights: Weights, from inputs: Int, kernel: Extent, stride: Extent, padding: Extent
    ) throws(CheckpointError) {
        let outputs = weights.shape("weight")?.first ?? 0
        let stored = try weights.host(
            "weight", [outputs, inputs, kernel.t, kernel.h, kernel.w]
        ).floats()
        bias = try weights.host("bias", [outputs]).floats()
        self.inputs = inputs
        self.outputs = outputs
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        let depth = kernel.count * inputs
        let groups = (outputs + Self.group - 1) / Self.group
        var panels = [Float](repeating: 0, count: groups * depth * Self.group)
        for output in 0..<outputs {
            let panel = output / Self.group * depth * Self.group + output % Self.group
            for input in 0..<inputs {
                for tap in 0..<kernel.count {
                    panels[panel + (tap * inputs + input) * Self.group] =
                        stored[(output * inputs + input) * kernel.count + tap]
                }
            }
        }
        self.panels = panels
    }

    func size(of input: Extent) -> Extent {
        func steps(_ size: Int, _ padding: Int, _ kernel: Int, _ stride: Int) -> Int {
            (size + 2 * padding - kernel) / stride + 1
        }
        return Extent(
            steps(input.t, padding.t, kernel.t, stride.t),
            steps(input.h, padding.h, kernel.h, stride.h),
            steps(input.w, padding.w, kernel.w, stride.w))
    }

    func callAsFunction(_ x: Volume) -> Volume {
        ensure(
            x.channels == inputs, "VolumeConvolution: \(x.channels) channels for \(inputs)")
        let size = size(of: x.size)
        let input = padded(x)
        var result = [Float](repeating: 0, count: size.count * outputs)
        // Of one run: the inputs of all taps along the width lie side by side.
        let run = kernel.w * inputs
        let row = input.size.w * inputs
        let starts = (0..<kernel.t).flatMap { t in
            (0..<kernel.h).map { h in (t * input.size.h + h) * row }
        }
        let panel = kernel.count * inputs * Self.group
        let step = stride.w * inputs
        let tile = 4
        input.values.withUnsafeBufferPointer { input in
            panels.withUnsafeBufferPointer { panels in
                starts.withUnsafeBufferPointer { starts in
                    result.withUnsafeMutableBufferPointer { result in
                        for group in 0..<panels.count / panel {
                            let weights = panels.baseAddress! + group * panel
                            let first = group * Self.group
                            let kept = min(Self.group, outputs - first)
                            for line in 0..<size.t * size.h {
                                let (t, h) = (line / size.h, line % size.h)
                                let corner =
                                    (t * stride.t * self.paddedHeight(x) + h * stride.h) * row
                                var w = 0
                                while w < size.w {
                                    let count = min(tile, size.w - w)
                                    let sums = Self.sums(
                                        input.baseAddress! + corner + w * step,
                                        step: step, last: count - 1, starts, run: run, weights)
                                    let target =
                                        result.baseAddress! + (line * size.w + w) * outputs
                                        + first
                                    for pixel in 0..<count {
                                        for output in 0..<kept {
                                            target[pixel * outputs + output] =
                                                sums[pixel, output] + bias[first + output]
                                        }
                                    }
                                    w += tile
                                }
                            }
                        }
                    }
                }
            }
        }
        return Volume(size: size, channels: outputs, values: result)
    }

    /// Sixteen outputs of four neighbouring pixels.
    private struct Sums {
        var rows: (Lanes, Lanes, Lanes, Lanes, Lanes, Lanes, Lanes, Lanes)
        subscript(pixel: Int, output: Int) -> Float {
            let (low, high) =
                switch pixel {
                case 0: (rows.0, rows.1)
                case 1: (rows.2, rows.3)
                case 2: (rows.4, rows.5)
                default: (rows.6, rows.7)
                }
            return output < 8 ? low[output] : high[output - 8]
        }
    }

    /// - Parameters:
    ///   - x: the first pixel's first input; the next pixels' are `step` further each, up to the one numbered `last`.
    ///   - starts: of every run of inputs that belong together, seen from a pixel's first.
    @inline(__always)
    private static func sums(
        _ x: UnsafePointer<Float>, step: Int, last: Int, _ starts: UnsafeBufferPointer<Int>,
        run: Int, _ weights: UnsafePointer<Float>
    ) -> Sums {
        var (a0, a1, b0, b1) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
        var (c0, c1, d0, d1) = (Lanes.zero, Lanes.zero, Lanes.zero, Lanes.zero)
        var panel = UnsafeRawPointer(weights)
        for start in starts {
            // Pixels that are not wanted repeat the last one.
            let a = x + start
            let b = a + min(1, last) * step
            let c = a + min(2, last) * step
            let d = a + min(3, last) * step
            for k in 0..<run {
                let low = panel.loadUnaligned(as: Lanes.self)
                let high = (panel + 32).loadUnaligned(as: Lanes.self)
                panel += 64
                let (p, q) = (Lanes(repeating: a[k]), Lanes(repeating: b[k]))
                let (r, s) = (Lanes(repeating: c[k]), Lanes(repeating: d[k]))
                a0.addProduct(p, low)
                a1.addProduct(p, high)
                b0.addProduct(q, low)
                b1.addProduct(q, high)
                c0.addProduct(r, low)
                c1.addProduct(r, high)
                d0.addProduct(s, low)
                d1.addProduct(s, high)
            }
        }
        return Sums(rows: (a0, a1, b0, b1, c0, c1, d0, d1))
    }

    private func paddedHeight(_ x: Volume) -> Int { x.size.h + 2 * padding.h }

    private func padded(_ x: Volume) -> Volume {
        let size = Extent(
            x.size.t + 2 * padding.t, x.size.h + 2 * padding.h, x.size.w + 2 * padding.w)
        var values = [Float](repeating: 0, count: size.count * inputs)
        let row = x.size.w * inputs
        values.withUnsafeMutableBufferPointer { values in
            x.values.withUnsafeBufferPointer { source in
                for t in 0..<x.size.t {
                    for h in 0..<x.size.h {
                        let line = (t + padding.t) * size.h + h + padding.h
                        (values.baseAddress! + (line * size.w + padding.w) * inputs).update(
                            from: source.baseAddress! + (t * x.size.h + h) * row, count: row)
                    }
                }
            }
        }
        return Volume(size: size, channels: inputs, values: values)
    }
}

extension Lanes {
    @inline(__always)
    fileprivate mutating func addProduct(_ a: Self, _ b: Self) { self = addingProduct(a, b) }
}

/// Normalises each group of channels over the whole video, scales and shifts each channel, and cuts off below zero
/// (group norm, arXiv 1803.08494, and ReLU).
struct VolumeGroupNorm: Sendable {
    static let groups = 8
    private static let epsilon = 1e-5
    private let weight, bias: [Float]

    /// weights: holds `weight` and `bias`, [channels]
    init(_ weights: Weights, channels: Int) throws(CheckpointError) {
        weight = try weights.host("weight", [channels]).floats()
        bias = try weights.host("bias", [channels]).floats()
    }

    func callAsFunction(_ x: inout Volume) {
        let channels = x.channels
        let positions = x.size.count
        var sums = [Double](repeating: 0, count: channels)
        var squares = sums
        x.values.withUnsafeBufferPointer { values in
            for position in 0..<positions {
                let row = values.baseAddress! + position * channels
                for channel in 0..<channels {
                    let value = Double(row[channel])
                    sums[channel] += value
                    squares[channel] += value * value
                }
            }
        }
        let width = channels / Self.groups
        let count = Double(width * positions)
        var (scale, shift) = (weight, bias)
        for group in 0..<Self.groups {
            let members = group * width..<(group + 1) * width
            let mean = sums[members].reduce(0, +) / count
            let variance = squares[members].reduce(0, +) / count - mean * mean
            let factor = 1 / (variance + Self.epsilon).squareRoot()
            for channel in members {
                scale[channel] = weight[channel] * Float(factor)
                shift[channel] = bias[channel] - Float(mean * factor) * weight[channel]
            }
        }
        x.values.withUnsafeMutableBufferPointer { values in
            for position in 0..<positions {
                let row = values.baseAddress! + position * channels
                for channel in 0..<channels {
                    row[channel] = max(0, row[channel] * scale[channel] + shift[channel])
                }
            }
        }
    }
}

/// y = x W^T + b
struct VectorLinear: Sendable {
    /// [outputs, inputs], [outputs]
    private let weight, bias: [Float]
    let inputs: Int

    init(_ weights: Weights, from inputs: Int, to outputs: Int) throws(CheckpointError) {
        weight = try weights.host("weight", [outputs, inputs]).floats()
        bias = try weights.host("bias", [outputs]).floats()
        self.inputs = inputs
    }

    func callAsFunction(_ x: [Float]) -> [Float] {
        ensure(x.count == inputs, "VectorLinear: \(x.count) numbers for \(inputs)")
        return bias.indices.map { output in
            var sum = Lanes.zero
            var tail = bias[output]
            weight.withUnsafeBufferPointer { weight in
                x.withUnsafeBufferPointer { x in
                    let row = UnsafeRawPointer(weight.baseAddress! + output * inputs)
                    let column = UnsafeRawPointer(x.baseAddress!)
                    let whole = inputs / 8 * 8
                    for index in Swift.stride(from: 0, to: whole, by: 8) {
                        sum.addProduct(
                            (row + 4 * index).loadUnaligned(as: Lanes.self),
                            (column + 4 * index).loadUnaligned(as: Lanes.self))
                    }
                    for index in whole..<inputs {
                        tail += weight[output * inputs + index] * x[index]
                    }
                }
            }
            return sum.sum() + tail
        }
    }
}
