/// What goes into a session and what comes out of it.

public import Delivery
public import Devices
public import Families
import Ground
public import Media
public import Runs

/// How a session is set up.
public struct SessionOptions: Sendable {
    public var machines = Machines()
    /// Of the CPU; nil for all.
    public var threads: Int?
    /// The most device memory to use, in bytes; nil: what is free when the device is opened.
    public var memoryLimit: Int?
    /// After this time without a request models leave the device; nil: never.
    public var keepLoaded: Duration? = .seconds(600)
    /// Where text embeddings are kept; nil: nowhere.
    public var embeddings = EmbeddingCache.user
    /// Name and version, for what videos say of their making.
    public var program = "turbodiffusion"
    /// Whether videos name files without their folders, because who gets them need not know where they lie.
    public var hidesFolders = false
    /// Told what the user should know of the device.
    public var note: @Sendable (String) -> Void = { _ in }

    public init() {}
}

/// The opened device of a session, or the first one of its group.
public struct SessionDevice: Sendable, Hashable {
    public let name: String
    /// How many devices make each video together.
    public let count: Int
    /// Bytes that models and activations may take together on each device.
    public let memoryLimit: Int
    public let isGPU: Bool
}

/// A request that can be carried out.
public struct PreparedRun: Sendable {
    public let run: Run
    public let models: ModelSet
    /// Within the session's memory.
    public let plan: Plan
    /// What it will take on loaded models, by what the device has done before, or by a guess.
    public let seconds: Double
}

/// A video that is there.
public struct FinishedRun: Sendable {
    /// Of several samples their grid is the last.
    public let files: [String]
    public let report: RunReport
    /// What the files say of their making.
    public let stored: StoredRun
}

/// What a session tells of a run.
public enum SessionEvent: Sendable {
    case run(RunEvent)
    /// How much is done of all, in 0...1. Never falls.
    case progress(Double)
    /// What the middle of the first sample looks like after a step, a pixel for each latent.
    case preview(DenoisedStep, RGBImage)
    /// A file is there, whole.
    case wrote(String)
}

/// A request that a session cannot carry out.
public enum SessionError: Error, Sendable, Hashable, CustomStringConvertible {
    case noSuchFile(path: String)

    public var description: String {
        switch self {
        case .noSuchFile(let path): "no such file: \(path.printable)"
        }
    }
}
