/// How far a run is, by the work of its plan; and what a small model says of requests that it was not made for.

import Catalog
import Families
import Ground
import SystemPackage
import Testing

@testable import Runs

@Suite struct ProgressTests {
    /// The plan of four steps of nano.
    private func plan() throws -> Plan {
        var request = tinyRequest()
        request.sampling = .distilled(.init(steps: 4))
        return try Plan(Run(request, nano()))
    }

    @Test("a plan lists the stages of the run, each once, and all of its work")
    func work() async throws {
        let plan = try plan()
        let events = EventList()
        _ = try await frames(
            of: tinyRequest(), nano(), on: engine(threads: 1), events: events)
        #expect(plan.work.map(\.stage.title) == events.started)
        let sums = plan.stages.reduce(0) { $0 + $1.operations }
        #expect(abs(plan.work.reduce(0) { $0 + $1.operations } - sums) <= 1e-9 * sums)
        let steps = plan.work.filter { if case .step = $0.stage { true } else { false } }
        #expect(steps.count == 4 && steps.allSatisfy { $0.operations == steps[0].operations })
        #expect(plan.work.filter { $0.weights > 0 }.count == 3)
    }

    @Test("the share never falls and ends at one, whatever comes from the run")
    func share() throws {
        let plan = try plan()
        for rates in [Progress.Rates.cpu, .gpu] {
            var progress = Progress(plan, rates)
            #expect(progress.done == 0 && progress.secondsLeft() == nil)
            var last = 0.0
            func take(_ event: RunEvent) {
                progress.take(event)
                #expect(progress.done >= last && progress.done <= 1)
                last = progress.done
            }
            for work in plan.work {
                take(.stageStarted(work.stage))
                for fraction in [0.5, 0.2, .nan, 7] {
                    take(.stageProgress(work.stage, fraction: fraction))
                }
                take(.stageFinished(.init(stage: work.stage, seconds: 1, peakBytes: 0)))
                #expect(progress.secondsLeft() != nil)
            }
            take(.stageFinished(.init(stage: .deliver, seconds: 1, peakBytes: 0)))
            #expect(abs(last - 1) < 1e-9 && progress.secondsLeft() == 0)
        }
    }

    @Test(
        "the time left is what the first step took, times the steps that are left, and the decoder's share"
    )
    func left() throws {
        let plan = try plan()
        let rates = Progress.Rates(operations: 1e9, traffic: 1e15, weights: 1e15)
        var progress = Progress(plan, rates)
        func seconds(_ isWanted: (Stage) -> Bool) -> Double {
            plan.work.filter { isWanted($0.stage) }.reduce(0) { $0 + rates.seconds($1) }
        }
        let step = seconds { if case .step(1, _, _) = $0 { true } else { false } }
        // A machine three times as slow as was thought.
        for work in plan.work {
            progress.take(.stageStarted(work.stage))
            progress.take(
                .stageFinished(
                    .init(stage: work.stage, seconds: 3 * rates.seconds(work), peakBytes: 0)))
            if case .step(1, _, _) = work.stage { break }
        }
        let rest = 3 * (3 * step + seconds { $0 == .decode || $0 == .load(.decoder) })
        let told = try #require(progress.secondsLeft())
        #expect(abs(told - rest) < 1e-6 * rest)
        // Half of the next step took as long as three whole ones.
        let next = Stage.step(number: 2, of: 4, expert: nil)
        progress.take(.stageStarted(next))
        progress.take(.stageProgress(next, fraction: 0.5))
        let slower = try #require(progress.secondsLeft(secondsInStage: 9 * step))
        #expect(abs(slower - (rest - 3 * step + 9 * step)) < 1e-6 * rest)
    }

    @Test("models that are there already are no work")
    func warm() throws {
        let plan = try plan()
        var progress = Progress(plan, .cpu)
        progress.take(.stageStarted(.step(number: 1, of: 4, expert: nil)))
        let before = plan.work.prefix { if case .step = $0.stage { false } else { true } }
        let skipped = before.reduce(0) { $0 + Progress.Rates.cpu.seconds($1) }
        let all = plan.work.reduce(0) { $0 + Progress.Rates.cpu.seconds($1) }
        #expect(abs(progress.done - skipped / all) < 1e-9)
    }
}

@Suite struct TrainingTests {
    private func excess(_ prompt: String, _ change: (inout Request) -> Void = { _ in }) throws
        -> [String]
    {
        let models = try nano()
        var request = Request(prompt, for: models.family)
        change(&request)
        for case .untrained(_, _, let excess, let page) in try Plan(Run(request, models)).notices {
            #expect(page == "docs/nano.md")
            return excess
        }
        return []
    }

    @Test("nano is content with its own captions, in English and Chinese")
    func content() throws {
        for prompt in [
            "A big shiny violet ball gets bigger on a chessboard floor at sunset, the camera stays still.",
            "3D render of a small matte GREEN cone: it doesn’t move. The camera’s still.",
            "一个小的红色圆球在绿色地板上", "A small red sphere bounces on a checkered floor.",
        ] { #expect(try excess(prompt) == [], "\(prompt)") }
    }

    @Test("words, sizes and lengths that it has never seen are told")
    func told() throws {
        #expect(try excess("a cat and a cat") == ["the word cat"])
        #expect(
            try excess("cinematic, 8k, a dog on the moon with hat gold masterpiece") == [
                "the words cinematic, 8k, dog, moon, hat and 2 more"
            ])
        #expect(try excess("a red ball 🐱 猫") == ["the words 🐱, 猫"])
        #expect(
            try excess("a red ball") {
                ($0.width, $0.height, $0.frames) = (512, 288, 81)
            } == ["512x288", "81 frames"])
        let long = String(repeating: "a red ball ", count: 14)
        #expect(try excess(long) == ["42 words"])
    }

    @Test("what its page offers it knows")
    func page() throws {
        let text = try String(
            decoding: FilePath(projectFolder).appending("docs/nano.md").contents(),
            as: UTF8.self)
        let training = try #require(try nano().family.training)
        let prompts = text.split(separator: "\n").compactMap { line -> String? in
            guard let range = line.split(separator: ". ", maxSplits: 1).first, Int(range) != nil
            else { return nil }
            return String(line.dropFirst(range.count + 2))
        }
        #expect(prompts.count == 8)
        let cells = text.split(separator: "\n").filter { $0.hasPrefix("| ") }.dropFirst(2)
            .flatMap { $0.split(separator: "|").dropFirst() }
        #expect(cells.count >= 8)
        for words in prompts + cells.map(String.init) {
            #expect(training.unknownWords(in: words) == [], "\(words)")
        }
    }
}
