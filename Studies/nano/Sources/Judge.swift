/// Classifies videos while others are being made.

import CPU
import Checkpoints
import Media
import Quality

/// Classifies one video at a time on one core.
actor Judge {
    private let classifier: AttributeClassifier

    /// - Parameter path: the classifier's weights.
    init(path: String) throws {
        classifier = try AttributeClassifier(
            try openCheckpoint(path), on: CPUBackend(threads: 1))
    }

    func check(frames: Int, width: Int, height: Int) throws {
        try classifier.check(frames: frames, width: width, height: height)
    }

    /// Compares a video with its caption, and with the reference's video.
    func judge(
        _ video: Video, of caption: (index: Int, value: Caption), seconds: Double,
        against reference: Video?, keeps: Bool
    ) -> Judged {
        Judged(
            caption: caption.index, seconds: seconds,
            isRight: classifier.agreement(of: video, with: caption.value),
            distance: reference.map { FrameDistance.between($0, video) },
            video: keeps ? video : nil)
    }
}

/// One video's result.
struct Judged: Sendable {
    let caption: Int
    let seconds: Double
    /// For each attribute, whether the video shows what the caption asked for.
    let isRight: [Bool]
    let distance: FrameDistance.OfVideos?
    let video: Video?
}
