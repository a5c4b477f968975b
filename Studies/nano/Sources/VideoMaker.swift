/// An engine for making many videos: models and noise are kept between them.

import Families
import Media
import Runs
import Synchronization
import Tensors

/// The models that the study compares.
struct StudyModels: Sendable {
    /// The student, with the text encoder, tokenizer and autoencoder that both models share.
    var student: ModelSet
    /// The undistilled transformer.
    var teacher: String
    /// The distilled transformer that comes with the program.
    var shipped: String

    func set(_ configuration: Configuration) -> ModelSet {
        var set = student
        if configuration.linears == .shipped { set.transformer = shipped }
        if configuration.model == .teacher { set.transformer = teacher }
        return set
    }
}

/// Makes videos on a device of its own. Captions keep their noise: caption i starts from stream i in every configuration,
/// so that videos of a caption differ only by the configuration.
actor VideoMaker {
    /// Which arithmetic the device supports, of what not every device does.
    private final class Abilities: Sendable {
        let found = Mutex((fp8: false, sage: false))
    }

    private let models: StudyModels
    private let captions: [String]
    private let engine: Engine
    private let abilities: Abilities
    /// For each caption, one draw of noise for every step that the student may take.
    private var noises: [Int: [[Float]]] = [:]

    init(
        _ models: StudyModels, captions: [String],
        open: @escaping @Sendable () throws -> OpenedDevice
    ) {
        let abilities = Abilities()
        self.models = models
        self.captions = captions
        self.abilities = abilities
        engine = Engine {
            let device = try open()
            abilities.found.withLock {
                $0.fp8 = device.backend.supports(.fp8Rows)
                $0.sage = device.backend.supports(.sage(device.sageArchitecture))
            }
            return device
        }
    }

    /// Opens the device.
    /// - Returns: its name, and the configurations whose arithmetic it supports.
    func start(_ configurations: [Configuration]) async throws -> (
        name: String, supported: [Configuration]
    ) {
        let name = try await engine.openDevice()
        let (fp8, sage) = abilities.found.withLock { $0 }
        return (
            name,
            configurations.filter {
                ($0.linears != .fp8 || fp8) && ($0.attention != .sagesla || sage)
            }
        )
    }

    /// Makes the video of a caption.
    /// - Returns: the video, and the time from noise to frames in host memory, without loading models and encoding the
    ///   caption.
    func make(_ caption: Int, _ configuration: Configuration) async throws -> (
        video: Video, seconds: Double
    ) {
        try Task.checkCancellation()
        let set = models.set(configuration)
        var options = RunOptions()
        options.keepsTextEncoder = true
        var run = try Run(
            configuration.request(captions[caption], for: set.family), set, options)
        run.noise = .given(noise(caption, for: run))
        var pixels: [UInt8] = []
        let report = try await engine.finish(run) { pixels += $0.bytes }
        let seconds = report.stages.reduce(0) { $0 + ($1.stage.isPerVideo ? $1.seconds : 0) }
        return (Video(width: run.video.w, height: run.video.h, pixels: pixels), seconds)
    }

    private func noise(_ caption: Int, for run: Run) -> [[Float]] {
        if let known = noises[caption] { return known }
        var stream = NoiseStream(seed: UInt32(caption))
        let count = run.family.geometry.channels * run.latents.count
        let drawn = (0..<Configuration.mostSteps).map { _ in stream.normal(count) }
        noises[caption] = drawn
        return drawn
    }
}

extension Stage {
    /// Whether the stage is needed for every video, even when models are loaded and captions encoded.
    fileprivate var isPerVideo: Bool {
        switch self {
        case .projectText, .step, .decode: true
        case .load, .encodeText, .encodeImage, .deliver: false
        }
    }
}
