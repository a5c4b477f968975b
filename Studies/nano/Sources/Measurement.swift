/// Measures configurations one after another: the device makes videos while the processor's cores judge earlier ones.

import Families
import Glibc
import Ground
import Media
import Quality
import Runs
import Synchronization

/// The progress of a measurement.
enum StudyEvent: Sendable {
    /// The device was opened; it does not support the arithmetic of these configurations.
    case opened(device: String, unsupported: [Configuration])
    /// How many videos of a configuration have been made; there will be one for each caption.
    case progress(Configuration, made: Int)
    case measured(Row)
}

/// Makes videos of the first captions with several configurations and judges them.
struct Measurement: Sendable {
    var models: StudyModels
    private let judges: [Judge]
    var captions: [Caption]
    /// How many videos are made side by side on one device. A small model leaves most of a GPU idle.
    var lanes: Int
    /// Whether videos are compared with those of the reference, which then have to be made too.
    var comparesFrames: Bool
    /// Opens the device; called once in each lane, on its own thread.
    var open: @Sendable () throws -> OpenedDevice

    /// How many videos are made alone, to measure the time; the first one warms up.
    private static let timed = 4

    /// - Parameter classifier: the file with its weights.
    init(
        models: StudyModels, classifier: String, captions: [Caption], lanes: Int,
        comparesFrames: Bool = true, open: @escaping @Sendable () throws -> OpenedDevice
    ) throws {
        let cores = sysconf(Int32(_SC_NPROCESSORS_ONLN))
        judges = try (0..<max(1, cores)).map { _ in try Judge(path: classifier) }
        self.models = models
        self.captions = captions
        self.lanes = max(1, lanes)
        self.comparesFrames = comparesFrames
        self.open = open
    }

    /// The videos of the references that are still needed, by caption.
    private typealias References = [Configuration: [Video]]

    /// Measures those of `configurations` for which `table` has no row. A reference whose videos are needed is made
    /// again even if the table has its row.
    /// - Parameter finished: called with each row when it is complete.
    func run(
        _ configurations: [Configuration], besides table: Table,
        events: @escaping @Sendable (StudyEvent) -> Void,
        finished: (Row) throws -> Void
    ) async throws {
        var missing = configurations.filter { table[$0] == nil }
        guard !missing.isEmpty else { return }
        let defaults = models.student.family.defaults
        try await judges[0].check(
            frames: defaults.frames, width: defaults.width, height: defaults.height)
        let alone = min(Self.timed, captions.count)
        let makers = (0..<lanes).map { lane in
            let others = Array(stride(from: alone + lane, to: captions.count, by: lanes))
            return Lane(
                share: others,
                maker: VideoMaker(models, captions: captions.map(\.prompt), open: open))
        }
        // One after another: the first may have to compile kernels, which the others then find in the cache.
        let device = try await makers[0].maker.start(missing)
        for lane in makers.dropFirst() { _ = try await lane.maker.start(missing) }
        let supported = Set(device.supported)
        events(
            .opened(device: device.name, unsupported: missing.filter { !supported.contains($0) }))
        missing = missing.filter(supported.contains)

        var references: References = [:]
        for (index, configuration) in missing.enumerated() {
            if comparesFrames, references[configuration.reference] == nil,
                !configuration.isReference
            {
                let reference = configuration.reference
                let result = try await measure(reference, makers, against: nil, events)
                references[reference] = result.videos
            }
            let known = references[configuration.reference]
            let result = try await measure(configuration, makers, against: known, events)
            let row = result.row(configuration, device: device.name)
            try finished(row)
            events(.measured(row))
            if comparesFrames, configuration.isReference {
                references[configuration] = result.videos
            }
            // 33 frames of 256x144 for 200 captions are 730 MB.
            let wanted = Set(missing[(index + 1)...].filter { !$0.isReference }.map(\.reference))
            references = references.filter { wanted.contains($0.key) }
        }
    }

    private struct Lane {
        let share: [Int]
        let maker: VideoMaker
    }

    /// Measures one configuration for all captions.
    private func measure(
        _ configuration: Configuration, _ lanes: [Lane], against references: [Video]?,
        _ events: @escaping @Sendable (StudyEvent) -> Void
    ) async throws -> Measured {
        let alone = Array(0..<min(Self.timed, captions.count))
        let timed = try await judge(alone, of: configuration, by: lanes[0].maker, references) {
            events(.progress(configuration, made: $0))
        }
        let counter = Counter(from: alone.count)
        let judged = try await withThrowingTaskGroup(of: [Judged].self) { group in
            for lane in lanes {
                group.addTask {
                    try await judge(lane.share, of: configuration, by: lane.maker, references) {
                        _ in
                        events(.progress(configuration, made: counter.next()))
                    }
                }
            }
            return try await group.reduce(into: timed) { $0 += $1 }
        }
        return Measured(judged.sorted { $0.caption < $1.caption }, timed: alone.count)
    }

    /// Makes videos one after another; each is judged while the next ones are made.
    private func judge(
        _ share: [Int], of configuration: Configuration, by maker: VideoMaker,
        _ references: [Video]?, made: @Sendable (Int) -> Void
    ) async throws -> [Judged] {
        // Frames waiting to be judged take memory, so a maker that is far ahead waits.
        let most = 4
        return try await withThrowingTaskGroup(of: Judged.self) { group in
            var results: [Judged] = []
            for (index, caption) in share.enumerated() {
                if index - results.count >= most, let next = try await group.next() {
                    results.append(next)
                }
                let (video, seconds) = try await maker.make(caption, configuration)
                made(index + 1)
                group.addTask {
                    await judges[caption % judges.count].judge(
                        video, of: (caption, captions[caption]), seconds: seconds,
                        against: references?[caption],
                        keeps: comparesFrames && configuration.isReference)
                }
            }
            return try await group.reduce(into: results) { $0.append($1) }
        }
    }
}

/// All results of a configuration, by caption.
private struct Measured: Sendable {
    let judged: [Judged]
    let timed: Int
    var videos: [Video] { judged.compactMap(\.video) }

    init(_ judged: [Judged], timed: Int) {
        self.judged = judged
        self.timed = timed
    }

    func row(_ configuration: Configuration, device: String) -> Row {
        let count = Double(judged.count)
        let accuracy = Attribute.allCases.indices.map { attribute in
            100 * Double(judged.count { $0.isRight[attribute] }) / count
        }
        let distances = judged.compactMap(\.distance)
        let error = distances.reduce(0) { $0 + $1.meanSquaredError } / Double(distances.count)
        return Row(
            configuration, captions: judged.count, accuracy: accuracy,
            scoreError: standardError(
                judged.map { score in
                    100 * Double(score.isRight.count { $0 }) / Double(score.isRight.count)
                }),
            psnr: distances.isEmpty ? nil : FrameDistance.psnr(error),
            similarity: distances.isEmpty
                ? nil : distances.reduce(0) { $0 + $1.similarity } / Double(distances.count),
            seconds: median(judged.prefix(timed).dropFirst(timed > 1 ? 1 : 0).map(\.seconds)),
            device: device, right: judged.map { score in score.isRight.count { $0 } })
    }
}

/// The standard error of the mean of independent values.
func standardError(_ values: [Double]) -> Double {
    guard values.count > 1 else { return 0 }
    let count = Double(values.count)
    let mean = values.reduce(0, +) / count
    let squares = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
    return (squares / (count - 1) / count).squareRoot()
}

/// Counts from several tasks.
private final class Counter: Sendable {
    private let count: Atomic<Int>
    init(from start: Int) { count = Atomic(start) }
    func next() -> Int { count.add(1, ordering: .relaxed).newValue }
}
