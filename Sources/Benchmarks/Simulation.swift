/// How fast several devices would be together: a run's operations one after the other at the rates of a card, and what
/// devices send to each other beside them.

public import Runs
import Tensors

/// What so many devices would take for a part of a run.
public struct Simulation: Sendable, Hashable, Encodable {
    public let record = "simulation"
    /// "transformer" or "VAE decode".
    public let stage: String
    public let devices: Int
    public let seconds: Double
    /// Times as fast as one device.
    public let speedup: Double
    /// Bytes that the first device sends.
    public let sentBytes: Int
    /// In which the first device waits for bytes of others.
    public let waitingSeconds: Double

    private enum CodingKeys: String, CodingKey {
        case record, stage, devices, seconds, speedup, sentBytes, waitingSeconds
    }

    /// What devices reach of a card's rates, and what each collective costs beside its bytes: as two H100s and four H200s
    /// were measured (`Benchmarks/h100-groups.csv`, `Benchmarks/h200-groups.csv`).
    enum Reached {
        /// Of the rate of 8-bit products, with what is fused to them.
        static let int8 = 0.45
        /// Of the rate of bf16: most of it is convolutions.
        static let bf16 = 0.61
        /// Of the bandwidth, by operations that it limits.
        static let bandwidth = 0.75
        /// Seconds of one launch.
        static let launch = 2e-6
        /// Seconds from the end of what a device sends to the beginning of what reads it elsewhere, without the bytes: each
        /// other device costs a copy and two events.
        static func collective(peers: Int) -> Double { 20e-6 + 10e-6 * Double(peers) }
    }

    /// - Parameters:
    ///   - counts: numbers of devices.
    ///   - card: each of them.
    ///   - link: bytes in a second from one device to the others.
    ///   - measured: seconds of all steps on one device, where that is known; else they are reckoned.
    /// - Throws: as `Bench` does.
    public static func run(
        _ models: BenchModel, _ request: Request, counts: [Int], card: Card, link: Double,
        measured: Double? = nil
    ) throws -> [Simulation] {
        var found: [Simulation] = []
        for (name, stage) in [("transformer", BenchStage.transformer), ("VAE decode", .decode)] {
            func take(_ count: Int) throws -> Timeline {
                let timeline = Timeline(devices: count, card, link: link)
                let bench = try Bench(
                    models, request, stage, on: OpenedDevice(timeline, sageArchitecture: .sm90))
                try bench.carryOut { timeline.begin() }
                return timeline
            }
            let one = try take(1)
            // Everything but the links is as much slower or faster as one device was measured to be.
            let scale = stage == .transformer ? (measured ?? one.seconds) / one.seconds : 1
            for count in counts {
                let timeline = count == 1 ? one : try take(count)
                let seconds = (timeline.seconds - timeline.waiting) * scale + timeline.waiting
                found.append(
                    Simulation(
                        stage: name, devices: count, seconds: seconds,
                        speedup: one.seconds * scale / seconds, sentBytes: timeline.sentBytes,
                        waitingSeconds: timeline.waiting))
            }
        }
        return found
    }
}

/// The first of several devices, with two clocks: its own, and that of its link, on which bytes travel behind the
/// operations until one reads them.
private final class Timeline: ForwardingBackend {
    private let card: Card
    private let link: Double
    private let peers: Int
    private var linkClock = 0.0
    /// When the results of collectives are there, by the memory that holds them.
    private var arrivals: [UInt64: Double] = [:]
    private(set) var seconds = 0.0
    private(set) var waiting = 0.0
    private(set) var sentBytes = 0

    init(devices: Int, _ card: Card, link: Double) {
        (self.card, self.link, peers) = (card, link, devices - 1)
        super.init(NullBackend(membership: Membership(index: 0, of: devices)))
    }

    func begin() {
        (seconds, waiting, linkClock, sentBytes, arrivals) = (0, 0, 0, 0, [:])
    }

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        if operation.isView { return results }
        for tensor in operation.activations {
            guard let arrival = arrivals.removeValue(forKey: tensor.storage.serial),
                arrival > seconds
            else { continue }
            waiting += arrival - seconds
            seconds = arrival
        }
        let cost = operation.cost
        guard operation.collective != nil else {
            let rate =
                switch OperationTimer.arithmetic(of: operation) {
                case .int8, .fp8: card.int8 * Simulation.Reached.int8
                case .bf16, .f32: card.bf16 * Simulation.Reached.bf16
                }
            seconds +=
                max(
                    Double(cost.flops) / rate,
                    Double(cost.bytes) / (card.bandwidth * Simulation.Reached.bandwidth))
                + Simulation.Reached.launch
            return results
        }
        linkClock =
            max(linkClock, seconds) + Double(cost.sentBytes) / link
            + Simulation.Reached.collective(peers: peers)
        sentBytes += cost.sentBytes
        for result in results { arrivals[result.storage.serial] = linkClock }
        return results
    }
}
