/// Where a run's samples come from, and in which order.

import Glibc
import Ground
public import Tensors

/// Numbered samples.
public protocol SampleSource: AnyObject {
    var count: Int { get }
    func sample(_ index: Int) throws -> Sample
}

/// One sample over and over.
public final class RepeatedSample: SampleSource {
    private let one: Sample
    public let count: Int
    public init(_ one: Sample, count: Int) { (self.one, self.count) = (one, count) }
    public func sample(_ index: Int) -> Sample { one }
}

/// Samples of tar shards, cut to some latent frames.
public final class ShardSamples: SampleSource {
    private let shards: TarShards
    private let frames: Int?
    private let textLength: Int?
    private let negative: Text?
    /// What is done to every sample, once for each as long as there is room for the results.
    public var prepare: ((Sample) throws -> Sample)?
    private var prepared: [Int: Sample] = [:]
    private var preparedBytes = 0
    private static let most = 2 << 30

    /// - Parameters:
    ///   - frames: latent frames that are kept of each sample; nil: all.
    ///   - textLength: rows of a text as the model reads it, to which texts are padded; nil: as stored.
    ///   - negative: the negative prompt of all samples.
    public init(
        _ shards: TarShards, frames: Int? = nil, textLength: Int? = nil, negative: Text? = nil
    ) {
        self.shards = shards
        self.frames = frames
        self.textLength = textLength
        self.negative = negative
    }

    public var count: Int { shards.samples.count }

    public func sample(_ index: Int) throws -> Sample {
        if let known = prepared[index] { return known }
        let stored = try stored(index)
        guard let prepare else { return stored }
        let sample = try prepare(stored)
        let bytes =
            8 * sample.latents.values.count + (sample.conditioning?.byteCount ?? 0)
            + sample.text.rows.byteCount
        if preparedBytes + bytes <= Self.most {
            preparedBytes += bytes
            prepared[index] = sample
        }
        return sample
    }

    /// The prompt that a sample was made for.
    public func prompt(_ index: Int) throws -> String { try shards.read(index).prompt }

    private func stored(_ index: Int) throws -> Sample {
        let found = try shards.read(index)
        var latents = LatentValues(found.latents)
        if let frames {
            let key = shards.samples[index].key.printable
            guard latents.shape[1] >= frames else {
                throw DataError(
                    "the sample '\(key)' has \(latents.shape[1]) latent frames, expected at least "
                        + "\(frames)")
            }
            latents = latents.prefix(frames: frames)
        }
        var text = Text(found.text)
        if let textLength {
            do { text = try text.padded(to: textLength) } catch {
                throw DataError("the sample '\(shards.samples[index].key.printable)': \(error)")
            }
        }
        return Sample(latents: latents, text: text, negative: negative)
    }
}

/// Which sample comes when: every epoch in another order, which the seed alone decides; the last partial batch is
/// left out, as the original does.
public struct SampleOrder: Sendable {
    public let count, batch: Int
    public let seed: UInt64

    public init(count: Int, batch: Int, seed: UInt64) {
        self.count = count
        self.batch = batch
        self.seed = seed
    }

    /// The samples of the n-th batch of a run.
    public func batch(_ number: Int) -> [Int] {
        let perEpoch = count / batch
        let (epoch, place) = (number / perEpoch, number % perEpoch)
        var order = Array(0..<count)
        var random = SplitMix64(seed: seed, then: [UInt64(epoch)])
        order.shuffle(using: &random)
        return Array(order[place * batch..<(place + 1) * batch])
    }
}

/// Random numbers that the seed and the iteration decide: a run that goes on draws what it would have drawn.
public final class SeededDraws: RandomSource {
    private var random: SplitMix64
    private var spare: Double?

    public init(seed: UInt64, iteration: Int, part: Int = 0) {
        random = SplitMix64(seed: seed, then: [UInt64(iteration), UInt64(part)])
    }

    /// In (0, 1).
    private func open() -> Double { (Double(random.next() >> 12) + 0.5) * 0x1p-52 }

    /// Box and Muller's way: two at a time.
    private func normal() -> Double {
        if let spare {
            self.spare = nil
            return spare
        }
        let radius = (-2 * log(open())).squareRoot()
        let angle = 2 * Double.pi * open()
        spare = radius * sin(angle)
        return radius * cos(angle)
    }

    public func normals(_ count: Int) -> [Float] { (0..<count).map { _ in Float(normal()) } }
    public func uniforms(_ count: Int) -> [Float] {
        (0..<count).map { _ in Float(random.next() >> 40) * 0x1p-24 }
    }
    public func noise(_ count: Int, _ shape: Shape) -> [LatentValues] {
        (0..<count).map { _ in
            LatentValues(
                shape: shape, values: (0..<shape.count).map { _ in Double(Float(normal())) })
        }
    }
}

/// Random numbers for the samples of an iteration. Each sample has its own, which its number among all samples of the
/// iteration decides: they do not depend on how passes and processes share the samples out.
final class SampleDraws: RandomSource {
    private let streams: (Int) -> SeededDraws
    private var made: [SeededDraws] = []

    /// - Parameter first: the number of the first sample.
    init(seed: UInt64, iteration: Int, first: Int) {
        streams = { SeededDraws(seed: seed, iteration: iteration, part: first + $0) }
    }

    private func draw<Value>(_ count: Int, _ one: (SeededDraws) -> Value) -> [Value] {
        while made.count < count { made.append(streams(made.count)) }
        return made.prefix(count).map(one)
    }

    func normals(_ count: Int) -> [Float] { draw(count) { $0.normals(1)[0] } }
    func uniforms(_ count: Int) -> [Float] { draw(count) { $0.uniforms(1)[0] } }
    func noise(_ count: Int, _ shape: Shape) -> [LatentValues] {
        let draws = draw(count) { $0 }
        return eachSample(count) { draws[$0].noise(1, shape)[0] }
    }
}
