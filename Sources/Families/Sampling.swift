/// The choice of a sampler, which leads from noise to a sample.

public import Diffusion

/// A sampler with its settings.
public enum Sampling: Sendable, Hashable {
    /// Models distilled by rCM: one to four steps, no guidance.
    case distilled(Distilled)
    /// Undistilled flow-matching models.
    case flow(Flow)

    /// Settings of the rCM sampler.
    public struct Distilled: Sendable, Hashable, Codable {
        /// 1...4
        public var steps: Int
        /// Noise level of the first step, above 14.1.
        public var sigmaMax: Double
        /// Solves the ODE: no fresh noise between steps.
        public var ode: Bool

        public init(steps: Int = 4, sigmaMax: Double = 80, ode: Bool = false) {
            self.steps = steps
            self.sigmaMax = sigmaMax
            self.ode = ode
        }
    }

    /// How a flow-matching model's ODE is solved.
    public enum Solver: String, Sendable, Hashable, Codable, CaseIterable {
        case unipc, euler
        /// UniPC with the noise levels and whole timesteps of Wan2.1's own generate.py.
        case wanUniPC = "wan-unipc"
    }

    /// Settings of the samplers for flow-matching models.
    public struct Flow: Sendable, Hashable, Codable {
        public var solver: Solver
        public var steps: Int
        /// Shift of the schedule of noise levels; larger values spend more steps at high noise.
        public var shift: Double
        /// Noise level of the first step; nil for pure noise.
        public var sigmaMax: Double?
        /// Factor in negative + guidance * (positive - negative); 1 evaluates the prompt alone.
        public var guidance: Double

        public init(
            _ solver: Solver = .unipc, steps: Int = 50, shift: Double = 5, sigmaMax: Double? = nil,
            guidance: Double = 5
        ) {
            self.solver = solver
            self.steps = steps
            self.shift = shift
            self.sigmaMax = sigmaMax
            self.guidance = guidance
        }
    }

    public var steps: Int {
        get {
            switch self {
            case .distilled(let settings): settings.steps
            case .flow(let settings): settings.steps
            }
        }
        set {
            switch self {
            case .distilled(var settings):
                settings.steps = newValue
                self = .distilled(settings)
            case .flow(var settings):
                settings.steps = newValue
                self = .flow(settings)
            }
        }
    }

    /// Takes another sampler. One of another kind begins with the family's own settings, one of the same kind keeps these.
    /// - Parameter solver: nil for distilled models.
    public mutating func use(_ solver: Solver?, of defaults: Family.Defaults) {
        guard let solver else {
            if case .flow = self { self = .distilled(defaults.distilled) }
            return
        }
        var flow = defaults.flow
        if case .flow(let own) = self { flow = own }
        flow.solver = solver
        self = .flow(flow)
    }

    // What a model's description and a request may say. Beyond, numbers of 32 bits overflow or noise levels collapse.
    public static let sigmaMaxRange = 0.001...1e6
    public static let shiftRange = 0.001...1000.0
    public static let guidanceRange = 0.0...1000.0

    /// 1 if there is no guidance.
    public var guidance: Double {
        if case .flow(let settings) = self { settings.guidance } else { 1 }
    }
    /// Whether the model is also evaluated with the negative prompt.
    public var isGuided: Bool { guidance != 1 }

    /// Makes the sampler.
    /// - Parameter roundTimesteps: see ``RCMSampler``.
    /// - Throws: if the settings make no schedule.
    public func sampler(roundTimesteps: Bool) throws(SamplerError) -> any Sampler {
        switch self {
        case .distilled(let settings):
            return try RCMSampler(
                count: settings.steps, sigmaMax: settings.sigmaMax,
                solver: settings.ode ? .ode : .sde, roundTimesteps: roundTimesteps)
        case .flow(let settings):
            switch settings.solver {
            case .euler: return EulerSampler(try settings.schedule())
            case .unipc: return UniPCSampler(try settings.schedule())
            case .wanUniPC:
                return UniPCSampler(
                    try FlowSchedule.wan(count: settings.steps, shift: settings.shift))
            }
        }
    }
}

extension Sampling.Flow {
    fileprivate func schedule() throws(SamplerError) -> FlowSchedule {
        try FlowSchedule(count: steps, shift: shift, sigmaMax: sigmaMax)
    }
}

/// Coded as one flat object: `{"solver": "rcm", "steps": 4, "sigmaMax": 80, "ode": false}`.
extension Sampling: Codable {
    private enum Key: String, CodingKey { case solver, steps, sigmaMax, ode, shift, guidance }
    private static let distilledName = "rcm"

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        let steps = try values.decode(Int.self, forKey: .steps)
        let sigmaMax = try values.decodeIfPresent(Double.self, forKey: .sigmaMax)
        if try values.decode(String.self, forKey: .solver) == Self.distilledName {
            self = .distilled(
                Distilled(
                    steps: steps, sigmaMax: sigmaMax ?? Distilled().sigmaMax,
                    ode: try values.decodeIfPresent(Bool.self, forKey: .ode) ?? false))
        } else {
            self = .flow(
                Flow(
                    try values.decode(Solver.self, forKey: .solver), steps: steps,
                    shift: try values.decode(Double.self, forKey: .shift), sigmaMax: sigmaMax,
                    guidance: try values.decode(Double.self, forKey: .guidance)))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(steps, forKey: .steps)
        switch self {
        case .distilled(let settings):
            try values.encode(Self.distilledName, forKey: .solver)
            try values.encode(settings.sigmaMax, forKey: .sigmaMax)
            try values.encode(settings.ode, forKey: .ode)
        case .flow(let settings):
            try values.encode(settings.solver, forKey: .solver)
            try values.encode(settings.shift, forKey: .shift)
            try values.encodeIfPresent(settings.sigmaMax, forKey: .sigmaMax)
            try values.encode(settings.guidance, forKey: .guidance)
        }
    }
}
