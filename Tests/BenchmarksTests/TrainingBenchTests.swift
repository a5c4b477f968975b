/// Measuring iterations of training.

import CPU
import Catalog
import Families
import Runs
import Tensors
import Testing
import Training

@testable import Benchmarks

/// A device without kernels for gradients.
private final class Untrained: ForwardingBackend {
    override var supportsTraining: Bool { false }
}

@Suite struct TrainingBenchTests {
    private func bench(
        _ settings: TrainingSettings, _ linears: LinearChoice = .stored, of model: String = "nano",
        on device: any Backend = CPUBackend(), change: (inout Request) -> Void = { _ in }
    ) throws -> TrainingBench {
        let model = BenchModel(random: try #require(Catalog.published.entry(named: model)))
        var request = Request(
            prompt: "bench", width: 64, height: 48, frames: 5, seed: 5,
            arithmetic: Arithmetic(linears: linears))
        change(&request)
        return try TrainingBench(model, request, settings, on: device, tokens: 9, repeats: 2)
    }

    @Test("what cannot be measured as it is asked for is refused by name")
    func refusals() throws {
        let settings = TrainingSettings(.sla)
        let changes: [(RequestError.Field, (inout Request) -> Void)] = [
            (.frames, { $0.frames = -100 }), (.frames, { $0.frames = -5 }),
            (.frames, { $0.frames = 6 }), (.width, { $0.width = 100 }),
            (.topK, { $0.arithmetic.topK = .nan }),
        ]
        for (field, change) in changes {
            #expect {
                try bench(settings, change: change)
            } throws: {
                if case .unusable(field, _, _, _)? = $0 as? RequestError { true } else { false }
            }
        }
        for change: (inout TrainingSettings) -> Void in [
            { $0.topK = .nan }, { $0.batch = 1 << 20 + 1 },
        ] {
            var wrong = settings
            change(&wrong)
            let fault = try #require(wrong.fault)
            #expect(throws: BenchError.settings(fault)) { try bench(wrong) }
        }
        #expect(throws: BenchError.takesPicture(model: "Wan2.2-A14B", recipe: "sla")) {
            try bench(settings, of: "Wan2.2-A14B")
        }
        #expect(throws: BenchError.gradients(device: CPUBackend().name)) {
            try bench(settings, on: Untrained(CPUBackend()))
        }
    }

    @Test("records of training have no sampling steps")
    func records() {
        func steps(_ training: TrainingSettings?) -> Int? {
            BenchTable.Settings(
                program: "", Machine(CPUBackend()), "nano",
                Request(prompt: "bench", width: 64, height: 48, frames: 5), openingSeconds: 0,
                training: training
            ).steps
        }
        #expect(steps(nil) != nil && steps(TrainingSettings(.sla)) == nil)
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

    @Test("what was measured is in the range that is told before")
    func estimates() throws {
        let card = try #require(Card.named("NVIDIA H200"))
        // SLA tuning of 1.3B, adapters of 14B by flow matching and beside a teacher, nano's SLA tuning and rCM.
        for (teraflops, seconds) in [
            (784.8, 1.97), (2902, 7.5), (4567, 10.1), (2.88, 0.083), (11.1, 0.16),
        ] {
            let range = Estimate.training(flops: Int(teraflops * 1e12), on: card)
            #expect(range.contains(seconds), "\(teraflops): \(range)")
            #expect(range.upperBound < 0.2 + 2 * range.lowerBound)
        }
        let other = Estimate.training(flops: 1 << 50, on: try #require(Card.named("4090")))
        #expect(other.lowerBound > 10 && other.upperBound > 4 * other.lowerBound)
    }
}
