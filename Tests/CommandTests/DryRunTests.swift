/// Plans of models that are not here, and what is decided for cards that are too small.

import ArgumentParser
import Benchmarks
import Catalog
import Families
import FoundationEssentials
import Runs
import Testing

@testable import turbodiffusion

/// Published models in a folder without any of their files.
private func report(_ arguments: String...) async throws -> (report: PlanReport, notes: [String]) {
    let words = TurboDiffusion.normalized(arguments + ["--dry_run", "--device", "cpu"])
    let generation: Generation =
        arguments.first == "i2v"
        ? try ImageToVideoCommand.parse(Array(words.dropFirst())).generation
        : try TextToVideoCommand.parse(Array(words.dropFirst())).generation
    var notes: [String] = []
    let prepared = try await generation.prepare { notes.append($0) }
    let report = try generation.report(prepared, videos: 1) { notes.append($0) }
    return (report, notes)
}

@Suite struct DryRunTests {
    @Test("a published model is planned by its name alone, with all that is missing")
    func byName() async throws {
        let (report, _) = try await report(
            "t2v", "--model", "Wan2.1-14B", "--resolution", "720p", "--card", "4090", "--card",
            "rtx-3060")
        // In the order of the run.
        #expect(
            report.missing == [
                "checkpoints/models_t5_umt5-xxl-enc-bf16.pth", "checkpoints/tokenizer.json",
                "checkpoints/TurboWan2.1-T2V-14B-480P-quant.pth", "checkpoints/Wan2.1_VAE.pth",
            ])
        // As planned from files of the real shapes on an H200: 17.95 GiB.
        #expect(abs(Double(report.plan.peakBytes) / 0x1p30 - 17.95) < 0.3)
        // The text encoder 11.4 GB, the int8 transformer 14.5 GB, the VAE 0.5 GB.
        #expect((25_000_000_000...28_000_000_000).contains(report.missingBytes))
        #expect(report.missingBytes == report.fileBytes)
        #expect(report.estimates.map(\.machine).dropFirst() == ["RTX 4090", "RTX 3060"])
        let (large, small) = (report.estimates[1], report.estimates[2])
        #expect(large.fit == .whole && small.fit == .fitted)
        let (fast, slow) = (try #require(large.seconds), try #require(small.seconds))
        #expect(fast.lowerBound < slow.lowerBound && fast.upperBound < slow.upperBound)
        #expect(slow.lowerBound > 10)
        let text = report.lines(limit: nil).joined(separator: "\n")
        for words in ["is not here", "to download", "estimate", "RTX 3060", "nothing was loaded"] {
            #expect(text.contains(words), "\(words)")
        }
    }

    @Test("two experts and a picture that nobody has named yet")
    func experts() async throws {
        let (report, _) = try await report("i2v", "--card", "all")
        #expect(report.model == "Wan2.2-A14B" && report.missing.count == 5)
        #expect(abs(Double(report.plan.peakBytes) / 0x1p30 - 30.09) < 0.5)
        let fits = Dictionary(uniqueKeysWithValues: report.estimates.map { ($0.machine, $0.fit) })
        #expect(
            fits["H200"] == .whole && fits["RTX 4090"] == .fitted && fits["RTX 3060"] == .fitted)
    }

    @Test("the H200's own figures lie in its range")
    func measured() async throws {
        let cases: [([String], ClosedRange<Double>)] = [
            // SPEED.md, stages: text, steps and decoding.
            (["Wan2.1-1.3B", "480p"], 1.1...1.12), (["Wan2.1-14B", "480p"], 4.5...4.51),
            (["Wan2.1-14B", "720p"], 11.6...11.62),
        ]
        for (names, seconds) in cases {
            let (report, _) = try await report(
                "t2v", "--model", names[0], "--resolution", names[1], "--card", "h200")
            let range = try #require(report.estimates[1].seconds)
            #expect(range.lowerBound < seconds.lowerBound, "\(names): \(range)")
            #expect(range.upperBound > seconds.upperBound, "\(names): \(range)")
            #expect(range.upperBound < 2.5 * range.lowerBound)
        }
    }

    @Test("a card that is too small gets a plan that fits, told in one line, or a refusal")
    func fitting() async throws {
        let (report, _) = try await report("i2v", "--model", "Wan2.2-A14B")
        var told: [String] = []
        func fitted(_ gibibytes: Int) throws -> Plan {
            told = []
            return try Generation.fitted(report.plan, free: gibibytes << 30) { told.append($0) }
        }
        #expect(try fitted(40) == report.plan && told == [])
        let turns = try fitted(24)
        #expect(!turns.keepsBothExperts && turns.residentWeights == nil)
        #expect(
            told.count == 1 && told[0].contains("24.00 GiB are free: the two experts take turns"))
        let streaming = try fitted(12)
        #expect(streaming.residentWeights != nil && streaming.peakBytes <= 12 << 30)
        #expect(told.count == 1 && told[0].contains("weights stream"))
        #expect(throws: RunError.self) { try fitted(3) }
    }

    @Test("a group without room splits weights; only what nobody can hold comes from the host")
    func splitting() async throws {
        let words = TurboDiffusion.normalized([
            "t2v", "--model", "Wan2.1-14B", "--dry_run", "--device", "cpu",
        ])
        let generation = try TextToVideoCommand.parse(Array(words.dropFirst())).generation
        let run = try await generation.prepare { _ in }.run
        let alone = try Plan(run, devices: 2)
        for devices in [2, 4] {
            let plan = try Plan(run, devices: devices, sharesWeights: true)
            let transformer = try #require(plan.stages.first { $0.part == .transformer })
            // k and v of the text: 40 blocks of two matrices, int8.
            #expect(transformer.heldBytes * devices >= 40 * 2 * 5120 * 5120)
            // All weights everywhere, as long as they fit.
            #expect(try plan.fitted(to: plan.peakBytes) == plan && plan.bytesFromHost == 0)
            func fitted(_ gibibytes: Int) throws -> Plan {
                let fitted = try plan.fitted(to: gibibytes << 30)
                #expect(fitted.peakBytes <= gibibytes << 30 && fitted.streamedBytes > 0)
                return fitted
            }
            let split = try fitted(devices == 2 ? 12 : 8)
            #expect(split.bytesFromHost == 0)
            #expect(split.streaming.hasPrefix("weights are split among the devices"))
            #expect(split.streamedBytes < transformer.groupedBytes * (devices - 1) / devices)
            let small = try fitted(devices == 2 ? 7 : 5)
            #expect(small.bytesFromHost > 0 && small.bytesFromHost < small.streamedBytes)
            #expect(small.streaming.contains("from host memory"))
        }
        let streamed = try alone.fitted(to: 12 << 30)
        #expect(streamed.bytesFromHost == streamed.streamedBytes && streamed.streamedBytes > 0)
        #expect(streamed.streaming == "weights stream from host memory")
    }

    @Test("cards by the names of people and drivers")
    func cards() {
        for name in ["4090", "rtx-4090", "RTX 4090", "NVIDIA GeForce RTX 4090"] {
            #expect(Card.named(name)?.name == "RTX 4090")
        }
        #expect(Card.named("NVIDIA H100 80GB HBM3")?.name == "H100")
        #expect(Card.named("NVIDIA A100-SXM4-80GB")?.name == "A100 80GB")
        for name in ["4070 Ti", "", "rtx", "nvidia"] { #expect(Card.named(name) == nil) }
        for card in Card.known { #expect(Card.named(card.shortName) == card) }
    }
}
