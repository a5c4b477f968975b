/// What a training step takes and what it gives.

public import Tensors

/// One sample of a batch.
public struct Sample {
    /// Clean latents, [C, T, H, W]
    public var latents: LatentValues
    public var text: Text
    /// The negative prompt, for the teacher's guidance.
    public var negative: Text?
    /// What a net is given beside the latents, such as mask and picture of image to video: f32 [C', T, H, W] on the host
    public var conditioning: Tensor?

    public init(
        latents: LatentValues, text: Text, negative: Text? = nil, conditioning: Tensor? = nil
    ) {
        self.latents = latents
        self.text = text
        self.negative = negative
        self.conditioning = conditioning
    }
}

/// Losses and gradients of one closure.
public final class StepResult {
    /// Of each sample.
    public internal(set) var losses: [Double] = []
    /// By the trained net's parameters, f32 on the device.
    public private(set) var gradients: [String: Tensor] = [:]
    /// Whether a sample's numbers were not finite, its own or what a net made of them: the whole step is lost.
    public internal(set) var isSpoiled = false
    private let device: any Backend

    public init(on device: any Backend) { self.device = device }

    func add(_ more: [String: Tensor]) {
        for (name, gradient) in more.sorted(by: { $0.key < $1.key }) {
            gradients[name] = gradients[name].map { device.add($0, gradient) } ?? gradient
        }
    }

    /// Adds another closure's gradients, or another micro-batch's.
    public func add(_ other: StepResult) {
        losses += other.losses
        isSpoiled = isSpoiled || other.isSpoiled
        add(other.gradients)
    }
}

/// Is told what a step computes on the way: names as in the training contract.
public typealias StepObserver = (_ name: String, _ values: [Double]) -> Void
