/// Running causal layers on a video chunk by chunk.

import Ground
import Tensors

/// A layer from frames to frames that may remember some of them for the next chunk.
protocol CausalLayer {
    /// x: [T, H, W, C] → [T', H', W', C']
    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor
}

/// How the rows of pictures are shared out to a group of devices. Every layer's pictures have a multiple of the latents'
/// rows; so has each device's share of them.
struct PictureRows {
    /// Rows of the latents; nil where every device has the whole picture.
    let latents: Shares?
    private let index: Int

    /// The least pixels of a share of the latents: products of up to 16 rows may have kernels of their own, whose sums
    /// have another order.
    static let leastPixels = 17

    /// height, width: of the latents
    init(height: Int, width: Int, on device: any Backend) {
        let (index, count) = (device.membership.index, device.membership.count)
        let shares = Shares(
            of: height, unit: max(1, ceilDivide(Self.leastPixels, max(1, width))), among: count)
        latents = count == 1 || shares.smallest == 0 ? nil : shares
        self.index = index
    }

    /// The shares of the rows of pictures of which x has this device's. x: [T, own rows, W, C]
    func shares(of x: Tensor) -> Shares? {
        latents.map { $0.scaled(by: x.shape[1] / $0[index].count) }
    }

    /// This device's rows of whole pictures. x: [T, H, W, C] → [T, own rows, W, C]
    func own(of x: Tensor, on device: any Backend) -> Tensor {
        guard let latents else { return x }
        let own = latents.scaled(by: x.shape[1] / latents.total)[index]
        let parts = (0..<x.shape[0]).map { device.slice(device.entry(x, $0), own) }
        let joined = parts.count == 1 ? parts[0] : device.concatenate(parts)
        return device.reshape(joined, [x.shape[0], own.count, x.shape[2], x.shape[3]])
    }

    /// Whole pictures on every device. x: [T, own rows, W, C] → [T, H, W, C]
    func whole(_ x: Tensor, on device: any Backend) -> Tensor {
        guard let shares = shares(of: x) else { return x }
        return device.gather(x, shares, axis: 1)
    }

    /// The rows of other devices that a window reaches into. x: [T, own rows, W, C]
    func margin(of x: Tensor, above: Int, below: Int, on device: any Backend) -> Margin {
        guard let shares = shares(of: x) else { return .none }
        return device.halo(x, shares, above: above, below: below)
    }

    /// x with these rows. x: [T, own rows, W, C]
    func haloed(_ x: Tensor, above: Int, below: Int, on device: any Backend) -> HaloedFrames {
        device.joinRows(x, margin(of: x, above: above, below: below, on: device))
    }
}

/// The frames that the layers of one stage remember from chunk to chunk.
final class FeatureHistory {
    let rows: PictureRows
    /// One entry for each layer that remembers frames; nil before its first chunk.
    private var entries: [Tensor?]
    private let device: any Backend
    private(set) var isFirstChunk = true
    /// Whether the last chunk has left all entries unchanged, bit for bit. Known only if `process` was called with
    /// `comparing`.
    private(set) var isSteady = false
    private var comparing = false

    init(entries: Int, _ rows: PictureRows, on device: any Backend) {
        self.rows = rows
        self.entries = Array(repeating: nil, count: entries)
        self.device = device
    }

    /// What the layer that owns `slot` remembers, with the rows around it that it reads. [n, H, W, C]
    subscript(slot: Int) -> Tensor? { entries[slot] }

    /// Remembers the last `count` frames of the remembered ones followed by x. x: [T, H, W, C]
    func remember(_ x: Tensor, last count: Int, in slot: Int) {
        let frames = x.shape[0]
        var recent = device.slice(x, max(0, frames - count)..<frames)
        if frames < count, let earlier = entries[slot] {
            let kept = min(count - frames, earlier.shape[0])
            recent = device.concatenate([
                device.slice(earlier, earlier.shape[0] - kept..<earlier.shape[0]), x,
            ])
        } else if frames > count {
            // A copy, because the slice would keep the whole chunk in memory.
            recent = device.concatenate([recent])
        }
        if comparing && isSteady { isSteady = isUnchanged(recent, in: slot) }
        entries[slot] = recent
    }

    /// Runs a stage on one chunk. With `comparing`, finds out whether the entries stay the same.
    func process(_ x: Tensor, _ stage: Stage, comparing: Bool) -> Tensor {
        self.comparing = comparing
        isSteady = comparing
        defer { isFirstChunk = false }
        let (frames, piece) = (x.shape[0], stage.framesAtOnce)
        if frames <= piece { return run(stage.layers, x) }
        return device.concatenate(
            stride(from: 0, to: frames, by: piece).map {
                run(stage.layers, device.slice(x, $0..<min($0 + piece, frames)))
            })
    }

    private func run(_ layers: [any CausalLayer], _ x: Tensor) -> Tensor {
        var x = x
        for layer in layers { x = layer(x, self, on: device) }
        return x
    }

    private func isUnchanged(_ recent: Tensor, in slot: Int) -> Bool {
        guard let entry = entries[slot], entry.shape == recent.shape else { return false }
        // Devices that see different rows must come to one decision.
        return device.membership.agree(device.equalBits(entry, recent))
    }
}

/// Consecutive layers.
struct Stage {
    let layers: [any CausalLayer]
    /// How many of them remember frames.
    let slots: Int
    /// Longer chunks are divided into pieces of this many frames. A convolution remembers two frames, so with two each
    /// piece is itself what is remembered: nothing is copied, and a chunk of four frames takes half the memory.
    var framesAtOnce = 2
}

/// Assigns slots in a stage's history to its layers.
struct Slots {
    private(set) var count = 0
    mutating func next() -> Int {
        defer { count += 1 }
        return count
    }
}

/// One video that passes through stages.
///
/// If a chunk equals the one before bit for bit, and has left the history of a stage unchanged, then the stage is in
/// the state that it started from, and the same chunk must give the same result again. It is then not computed.
final class CausalStream {
    private struct Running {
        let stage: Stage
        let history: FeatureHistory
        /// The result for the last chunk, kept as long as it may repeat.
        var last: Tensor?
        var runs = 0
    }
    let device: any Backend
    let rows: PictureRows
    private var stages: [Running]
    /// How many times each stage has been computed.
    var runsComputed: [Int] { stages.map(\.runs) }

    init(_ stages: [Stage], _ rows: PictureRows, on device: any Backend) {
        self.device = device
        self.rows = rows
        self.stages = stages.map {
            Running(stage: $0, history: FeatureHistory(entries: $0.slots, rows, on: device))
        }
    }

    /// The next chunk. x: [T, own rows, W, C]; `isRepeated`: it equals the chunk before, bit for bit.
    func callAsFunction(_ x: consuming Tensor, isRepeated: Bool = false) -> Tensor {
        run(stages.indices, x, isRepeated: isRepeated)
    }

    /// A chunk through the first stage alone.
    func begin(_ x: consuming Tensor) -> Tensor { run(0..<1, x) }

    /// What ``begin(_:)`` has made of a chunk, or a part of it, through the other stages.
    func finish(_ x: consuming Tensor) -> Tensor { run(1..<stages.count, x) }

    private func run(
        _ part: Range<Int>, _ x: consuming Tensor, isRepeated: Bool = false
    ) -> Tensor {
        var isRepeated = isRepeated
        for index in part {
            let history = stages[index].history
            if isRepeated, history.isSteady, let last = stages[index].last {
                x = last
                continue
            }
            stages[index].last = nil
            stages[index].runs += 1
            x = history.process(x, stages[index].stage, comparing: isRepeated)
            if isRepeated { stages[index].last = x }
            isRepeated = false
        }
        return x
    }
}
