/// Measuring iterations of training.

import CPU
import Catalog
import Families
import Runs
import Tensors
import Testing
import Training

@testable import Benchmarks

@Suite struct TrainingBenchTests {
    private func bench(_ settings: TrainingSettings, _ linears: LinearChoice = .stored) throws
        -> TrainingBench
    {
        let model = BenchModel(random: try #require(Catalog.published.entry(named: "nano")))
        let request = Request(
            prompt: "bench", width: 64, height: 48, frames: 5, seed: 5,
            arithmetic: Arithmetic(linears: linears))
        return try TrainingBench(
            model, request, settings, on: CPUBackend(), tokens: 9, repeats: 2)
    }

    private let ceilings = Ceilings(
        copy: 1e9, arithmetic: [.f32: 1e12, .bf16: 1e12, .int8: 1e12], method: "")

    @Test("an iteration is measured, and its timed operations are those of the plan")
    func tuning() throws {
        var settings = TrainingSettings(.sla)
        settings.batch = 2
        let bench = try bench(settings)
        var stages: [StageFigures] = []
        var operations: [TimedOperation] = []
        try bench.measure(against: ceilings) { event in
            switch event {
            case .stage(let figures): stages.append(figures)
            case .operations(let found, _): operations += found
            }
        }
        let figures = try #require(stages.first)
        #expect(stages.count == 1 && figures.name == "sla, the student's iteration")
        #expect(figures.cold != nil && figures.warm.count == 2)
        #expect(figures.cost?.flops == bench.plan.flops)
        #expect(figures.plannedBytes == bench.plan.memory && figures.peakBytes > 0)
        #expect(operations.contains { $0.key.operation == "sparseAttentionGradient" })
        #expect(operations.reduce(0) { $0 + $1.cost.flops } == bench.plan.flops)
    }

    @Test("of rCM the student's and the critic's iterations are measured")
    func distillation() throws {
        var stages: [StageFigures] = []
        try bench(TrainingSettings(.rcm)).measure(against: nil) { event in
            if case .stage(let figures) = event { stages.append(figures) }
        }
        #expect(
            Set(stages.map(\.name)) == [
                "rcm, the student's iteration", "rcm, the critic's iteration",
            ])
        #expect(stages.allSatisfy { $0.warm.count == 2 && $0.cost == nil })
    }

    @Test("a LoRA's base can be int8")
    func adapters() throws {
        var settings = TrainingSettings(.lora)
        settings.topK = 0.2
        var names: Set<String> = []
        try bench(settings, .int8).measure(against: ceilings) { event in
            if case .operations(let found, _) = event {
                names.formUnion(found.filter { $0.key.arithmetic == .int8 }.map(\.key.operation))
            }
        }
        #expect(names.contains("linear"))
    }
}
