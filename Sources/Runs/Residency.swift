/// What may stay on a device between runs.

public import Families

/// Which models fit beside each other while a run is carried out, as its plan tells.
public struct Residency: Sendable, Hashable {
    /// Bytes of device memory that may be taken in all.
    public let limit: Int
    /// The most that the run takes, with those of its models that stay after their use.
    public let peakBytes: Int
    /// The run's models that stay for the next one.
    public let kept: Set<ModelPart>
    public let weightBytes: [ModelPart: Int]
    /// Bytes of grouped weights that stay on the device while the others visit it; nil: all stay.
    public let residentWeights: Int?

    /// Text encoder, then picture encoder, then transformer leave where not all can stay: in this order they are wanted
    /// again least soon, as texts and pictures are kept when they are encoded.
    init(_ plan: Plan, within limit: Int) {
        func peak(_ kept: Set<ModelPart>) -> Int {
            plan.stages.map { stage in
                let others = plan.stages.filter { $0.part != stage.part && kept.contains($0.part) }
                return others.reduce(stage.weightBytes + stage.activationBytes) {
                    $0 + $1.weightBytes
                }
            }.max() ?? 0
        }
        let parts = plan.stages.map(\.part)
        let transformers = parts.filter(\.isTransformer)
        var kept = Set(parts)
        if plan.residentWeights != nil || !plan.keepsBothExperts { kept.subtract(transformers) }
        for leaving in [[.textEncoder], [.imageEncoder], transformers] where peak(kept) > limit {
            kept.subtract(leaving)
        }
        self.limit = limit
        self.kept = kept
        peakBytes = max(peak(kept), min(plan.peakBytes, limit))
        weightBytes = Dictionary(
            plan.stages.map { ($0.part, $0.weightBytes) }, uniquingKeysWith: +)
        residentWeights = plan.residentWeights
    }
}
