/// Running causal layers on a video chunk by chunk.

import Tensors

/// A layer from frames to frames that may remember some of them for the next chunk.
protocol CausalLayer {
    /// x: [T, H, W, C] → [T', H', W', C']
    func callAsFunction(_ x: Tensor, _ history: FeatureHistory, on device: any Backend) -> Tensor
}

/// The frames that the layers of one stage remember from chunk to chunk.
final class FeatureHistory {
    /// One entry for each layer that remembers frames; nil before its first chunk.
    private var entries: [Tensor?]
    private let device: any Backend
    private(set) var isFirstChunk = true
    /// Whether the last chunk has left all entries unchanged, bit for bit. Known only if `process` was called with
    /// `comparing`.
    private(set) var isSteady = false
    private var comparing = false

    init(entries: Int, on device: any Backend) {
        self.entries = Array(repeating: nil, count: entries)
        self.device = device
    }

    /// What the layer with this slot remembers. [n, H, W, C]
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
        return device.equalBits(entry, recent)
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
    private var stages: [Running]
    /// How many times each stage has been computed.
    var runsComputed: [Int] { stages.map(\.runs) }

    init(_ stages: [Stage], on device: any Backend) {
        self.device = device
        self.stages = stages.map {
            Running(stage: $0, history: FeatureHistory(entries: $0.slots, on: device))
        }
    }

    /// Processes the next chunk. x: [T, H, W, C]; `isRepeated`: whether it equals the last chunk, bit for bit
    func callAsFunction(_ x: consuming Tensor, isRepeated: Bool = false) -> Tensor {
        var isRepeated = isRepeated
        for index in stages.indices {
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
