/// Everything that decides a training run but its files.

import Ground

/// A run's settings; stored in its folder, and read from a file of the user's.
public struct TrainingSettings: Sendable, Hashable, Codable {
    public enum Recipe: String, Sendable, Hashable, Codable, CaseIterable {
        /// A sparse-linear student imitates its dense teacher; all weights.
        case sla
        /// Distillation to few steps; all weights.
        case rcm
        /// Adapters, by flow matching or by imitating a teacher.
        case lora
    }

    /// Transformers of a model that has one for much and one for little noise.
    public enum Expert: String, Sendable, Hashable, Codable, CaseIterable { case high, low }

    public var recipe: Recipe
    public var iterations: Int
    /// Samples of one pass, and passes whose gradients add up before a step.
    public var batch = 1
    public var accumulation = 1
    /// Processes that share out the tokens of each sample.
    public var sequenceParallel = 1
    public var seed: UInt64 = 0
    /// Latent frames of a sample; nil: all.
    public var frames: Int?
    /// bf16: parameters and activations in bf16, masters and moments in f32.
    public var isHalf = true
    public var recomputation = Recomputation.block
    public var shard = Sharding.none
    public var optimizer: Adam.Settings
    /// Moments in 8 bits between the steps.
    public var hasEightBitMoments = false
    /// Of rCM's critic.
    public var criticOptimizer: Adam.Settings
    /// Steps of the ramp of the learning rate.
    public var warmup = 100
    /// The largest norm of the gradients; nil: any.
    public var largestNorm: Double?
    public var averageRate = 0.1
    /// White-box tuning and flow matching.
    public var times = TimeDistribution.logNormal(mean: 1.5, deviation: 1.6)
    public var lossScale = 1.0
    public var rcm = RCM.Settings()
    /// Share and blocks of sparse attention.
    public var topK: Double?
    public var queryBlock = 64
    public var keyBlock = 64
    public var rank = 16
    /// alpha / rank is the adapters' factor; nil: the rank.
    public var alpha: Double?
    public var targets = LowRankAdapters.standardTargets
    /// Whether the layers of the adapters' base are quantised to int8.
    public var hasInt8Base = false
    /// Whether latents are decoded and encoded before they are used, as the original does.
    public var hasRoundTrip = false
    /// How the keys of the adapters' files are written.
    public var layout = LowRankAdapters.Layout.comfyui
    /// The expert that gets the adapters, of a model that has two; nil: its only transformer.
    public var expert: Expert?
    /// The share of noise below which the expert for low noise takes over; nil: the family's.
    public var boundary: Double?
    /// As the original: checkpoints hold what nets see instead of masters, gradients that are not finite become zeros,
    /// nothing is clipped, and rCM's gradients are means over processes.
    public var asReference = false
    /// Iterations between checkpoints, and how many of them stay.
    public var saveEvery = 500
    public var kept = 2

    /// The published configurations, by recipe.
    public init(_ recipe: Recipe) {
        self.recipe = recipe
        iterations = 100_000
        switch recipe {
        case .sla:
            optimizer = Adam.Settings(learningRate: 1e-5)
            batch = 4
            topK = 0.1
        case .rcm:
            optimizer = Adam.Settings(learningRate: 2e-6, beta1: 0)
            rcm.tangentWarmup = 1000
        case .lora:
            optimizer = Adam.Settings(learningRate: 1e-4)
            iterations = 2000
        }
        criticOptimizer = Adam.Settings(learningRate: 4e-7, beta1: 0)
    }

    /// Published configurations by name; those of the original's experiments belong to one recipe.
    public enum Preset: String, Sendable, Hashable, Codable, CaseIterable {
        case small = "1.3b"
        case large = "14b"
        case smallSLA = "wan2pt1_1pt3B_res480p_t2v_SLA"
        case largeSLA = "wan2pt1_14B_res480p_t2v_SLA"
        case smallRCM = "wan2pt1_1pt3B_res480p_t2v_rCM"
        case largeRCM = "wan2pt1_14B_res480p_t2v_rCM"

        /// nil: any.
        public var recipe: Recipe? {
            switch self {
            case .small, .large: nil
            case .smallSLA, .largeSLA: .sla
            case .smallRCM, .largeRCM: .rcm
            }
        }

        /// Latent frames of the experiment's samples.
        var frames: Int? {
            switch self {
            case .small, .large: nil
            case .smallSLA, .largeSLA, .largeRCM: 21
            case .smallRCM: 20
            }
        }
        var isLarge: Bool { self == .large || self == .largeSLA || self == .largeRCM }
    }

    /// Takes a published configuration.
    public mutating func use(_ preset: Preset) {
        self = TrainingSettings(recipe)
        frames = preset.frames
        if preset.isLarge { useLargePreset() }
    }

    /// For counting and measuring: of rCM the student's whole iteration and the critic's are among the first four then,
    /// with one simulated step.
    public mutating func shortenCycle() {
        rcm.tangentWarmup = 0
        rcm.studentEvery = min(rcm.studentEvery, 2)
        rcm.simulationSteps = 1
    }

    /// The published 14B configurations where they differ.
    private mutating func useLargePreset() {
        switch recipe {
        case .sla: (batch, accumulation, saveEvery) = (1, 32, 250)
        case .rcm:
            optimizer.learningRate = 1e-6
            criticOptimizer.learningRate = 1e-7
            rcm.consistencyTimes = .logNormal(mean: 1.5, deviation: 1.6)
            rcm.tangentWarmup = 0
            rcm.studentEvery = 10
            saveEvery = 250
        case .lora: break
        }
    }

    /// The shares of noise that the trained expert sees.
    var noise: ClosedRange<Double>? {
        switch expert {
        case nil: nil
        case .high: (boundary ?? 0.875)...1
        case .low: 0...(boundary ?? 0.875)
        }
    }

    /// What is wrong with these settings, in words that begin with the name of one; nil where nothing is.
    public var fault: String? {
        if iterations < 1 { return wrong("iterations", iterations, "1 or more") }
        for (name, count) in [("batch", batch), ("accumulation", accumulation)]
        where !(1...1 << 20).contains(count) { return wrong(name, count, "1 to \(1 << 20)") }
        if !(1...ProcessPlace.most).contains(sequenceParallel) {
            return wrong("sequenceParallel", sequenceParallel, "1 to \(ProcessPlace.most)")
        }
        if saveEvery < 1 { return wrong("saveEvery", saveEvery, "1 or more") }
        if kept < 1 { return wrong("kept", kept, "1 or more") }
        if warmup < 0 { return wrong("warmup", warmup, "0 or more") }
        if let frames, frames < 1 { return wrong("frames", frames, "1 or more") }
        for (name, o) in [("optimizer", optimizer), ("criticOptimizer", criticOptimizer)] {
            for (part, value) in [("learningRate", o.learningRate), ("decay", o.decay)]
            where !(0...most).contains(value) {
                return wrong("\(name).\(part)", value, "0 to \(most)")
            }
            for (part, value) in [("beta1", o.beta1), ("beta2", o.beta2)]
            where !(0..<1).contains(Float(value)) {
                return wrong("\(name).\(part)", value, "from 0 to below 1")
            }
            guard (1e-37...most).contains(o.epsilon) else {
                return wrong("\(name).epsilon", o.epsilon, "1e-37 to \(most)")
            }
        }
        if let largestNorm, !(largestNorm > 0 && largestNorm <= most) {
            return wrong("largestNorm", largestNorm, "above 0, at most \(most)")
        }
        if asReference, largestNorm != nil {
            return "largestNorm is set, but the original (asReference) clips nothing"
        }
        if expert != nil, recipe != .lora {
            return "expert is set, but only adapters (lora) are trained for one expert"
        }
        if let boundary, !(boundary > 0 && boundary < 1) {
            return wrong("boundary", boundary, "above 0 and below 1")
        }
        guard (0.001..<0.28).contains(averageRate) else {
            return wrong("averageRate", averageRate, "from 0.001 to below 0.28")
        }
        for (name, scale) in [
            ("lossScale", lossScale), ("rcm.lossScale", rcm.lossScale),
            ("rcm.distributionLossScale", rcm.distributionLossScale),
        ] where !(0...most).contains(scale) { return wrong(name, scale, "0 to \(most)") }
        for (name, distribution) in [
            ("times", times), ("rcm.consistencyTimes", rcm.consistencyTimes),
            ("rcm.distributionTimes", rcm.distributionTimes),
        ] where !distribution.isPossible {
            return
                "\(name) has a mean beyond -100...100, a deviation beyond 0...100 or a shift beyond "
                + "0...1000000"
        }
        if let topK, !(topK > 0 && topK <= 1) { return wrong("topK", topK, "above 0, at most 1") }
        for (name, block) in [("queryBlock", queryBlock), ("keyBlock", keyBlock)]
        where !(1...1024).contains(block) { return wrong(name, block, "1 to 1024") }
        if !(1...4096).contains(rank) { return wrong("rank", rank, "1 to 4096") }
        if targets.isEmpty { return "targets is empty, expected ends of layers' names" }
        if let alpha, !(alpha > 0 && alpha <= most) {
            return wrong("alpha", alpha, "above 0, at most \(most)")
        }
        return recipe == .rcm ? rcmFault : nil
    }

    private var rcmFault: String? {
        if rcm.lossScale == 0, rcm.distributionLossScale == 0 {
            return wrong("rcm.lossScale", 0, "above 0, as rcm.distributionLossScale is 0")
        }
        guard (0...most).contains(rcm.guidance) else {
            return wrong("rcm.guidance", rcm.guidance, "0 to \(most)")
        }
        if rcm.tangentWarmup < 0 {
            return wrong("rcm.tangentWarmup", rcm.tangentWarmup, "0 or more")
        }
        if rcm.studentEvery < 1 { return wrong("rcm.studentEvery", rcm.studentEvery, "1 or more") }
        // Each is a pass through a net.
        for (name, count) in [
            ("simulationSteps", rcm.simulationSteps), ("discreteSkip", rcm.discreteSkip),
            ("discreteSteps", rcm.discreteSteps),
        ] where !(1...1 << 20).contains(count) {
            return wrong("rcm.\(name)", count, "1 to \(1 << 20)")
        }
        if rcm.discreteSteps <= rcm.discreteSkip {
            return wrong(
                "rcm.discreteSteps", rcm.discreteSteps,
                "more than rcm.discreteSkip, which is \(rcm.discreteSkip)")
        }
        guard (0...1e6).contains(rcm.discreteShift) else {
            return wrong("rcm.discreteShift", rcm.discreteShift, "0 to 1000000")
        }
        guard rcm.difference > 0, rcm.difference < 1 else {
            return wrong("rcm.difference", rcm.difference, "above 0 and below 1")
        }
        guard let fixed = rcm.fixedAngles else { return nil }
        if fixed.count < rcm.simulationSteps - 1 {
            return "rcm.fixedAngles has \(fixed.count) angles, expected \(rcm.simulationSteps - 1)"
        }
        if let angle = fixed.first(where: { !(0...1.571).contains($0) }) {
            return wrong("rcm.fixedAngles", angle, "angles from 0 to 1.571 (half of pi)")
        }
        return nil
    }
}

/// What f32 can hold: optimisers and nets compute in it.
private let most = 1e38

private func wrong(_ name: String, _ found: some CustomStringConvertible, _ expected: String)
    -> String
{
    "\(name) is \(found), expected \(expected)"
}
