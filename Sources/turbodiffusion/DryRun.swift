/// `--dry_run`: what a run will take, before anything is loaded or even downloaded.

import Benchmarks
import CUDA
import Catalog
import Delivery
import Devices
import Families
import Glibc
import Ground
import Runs
import SystemPackage
import Terminal

/// A plan with what the machine has to give.
struct PlanReport: Encodable {
    let event = "plan"
    var model: String
    /// Files of the model that are not here: planned from the published sizes.
    var missing: [String]
    /// Bytes of the model's files, and of those that are missing.
    var fileBytes, missingBytes: Int
    /// Free in this folder.
    var freeDiskBytes: Int?
    /// What the process holds at most, and what the machine has free.
    var hostBytes: Int
    var freeHostBytes: Int
    var videos: Int
    var plan: Plan
    var estimates: [Estimate]
}

extension Generation {
    func printPlan() async throws {
        let tell = { (text: String) in
            if !execution.quiet { Output.note("note: \(text)") }
        }
        var videos = 1
        var one = self
        if options.content.prompts != nil || options.content.seeds != nil {
            let items = try items { 0 }
            videos = items.count
            one = generation(of: items[0])
        }
        let prepared = try await one.prepare(tell: tell)
        try await check(prepared)
        if prepared.missing.isEmpty { try prepared.run.checkVocabulary() }
        let report = try report(prepared, videos: videos, tell: tell)
        if execution.json { return Output.json(report) }
        for line in report.lines(limit: execution.memoryLimit?.bytes) { Output.line(line) }
    }

    func report(_ prepared: Prepared, videos: Int, tell: (String) -> Void) throws -> PlanReport {
        let devices = try execution.machines.count
        let whole = try Plan(
            prepared.run, devices: devices, sharesWeights: execution.machines.sharesWeights)
        let plan: Plan
        do {
            plan = try fitted(whole, tell: tell)
        } catch let shortage as HostMemoryShortage
            where !prepared.missing.isEmpty || !execution.cards.isEmpty
        {
            // Other machines are meant: what this one lacks is no reason to stop.
            tell("\(shortage)")
            plan = try execution.memoryLimit.map { try whole.fitted(to: $0.bytes) } ?? whole
        }
        let models = prepared.models
        let files = ModelSet.files(for: try prepared.run.parts)
        let planned = PlannedModel(models, needing: files, in: catalog)
        func bytes(_ file: ModelFile) -> Int {
            guard let path = models[file] else { return 0 }
            if prepared.missing.contains(file) { return planned?.byteCount(file) ?? 0 }
            return FilePath(path).fileSize ?? 0
        }
        let isOnGPU = execution.machines.isGPU
        return PlanReport(
            model: models.name, missing: prepared.missing.compactMap { models[$0] },
            fileBytes: files.reduce(0) { $0 + bytes($1) },
            missingBytes: prepared.missing.reduce(0) { $0 + bytes($1) },
            freeDiskBytes: FilePath(".").freeBytes,
            // The process itself, pinned buffers, frames on their way; a CPU's models and activations are here too.
            hostBytes: isOnGPU ? 1 << 30 : 128 << 20 + devices * plan.peakBytes,
            freeHostBytes: HostMemory.current.available, videos: videos, plan: plan,
            estimates: estimates(whole, prepared.run.request.arithmetic.linears, isOnGPU))
    }

    /// This machine, then the cards that were named; all that are known where there is none here and none was named.
    private func estimates(_ plan: Plan, _ linears: LinearChoice, _ isOnGPU: Bool) -> [Estimate] {
        var cards = execution.cards.flatMap(\.cards)
        var result: [Estimate] = []
        if isOnGPU {
            let name = execution.machines.cardName ?? ""
            if let own = Card.named(name) { cards.insert(own, at: 0) }
        } else {
            result.append(Estimate(plan, onCPUWith: execution.threads))
            // Large models are wanted on cards.
            if cards.isEmpty, execution.device != .cpu, execution.devices == nil,
                plan.peakBytes > 1 << 30
            {
                cards = Card.known
            }
        }
        for card in cards where !result.contains(where: { $0.machine == card.name }) {
            result.append(Estimate(plan, linears: linears, on: card))
        }
        return result
    }
}

extension PlanReport {
    /// For people.
    func lines(limit: Int?) -> [String] {
        var lines: [String] = []
        if !missing.isEmpty {
            lines.append(
                "\(model) is not here; planned from the sizes of the published files: \(missing.joined(separator: ", "))"
            )
        }
        var rows = [["stage", "weights", "activations", "work", "traffic"]]
        for stage in plan.stages {
            rows.append([
                stage.part.title, describe(bytes: stage.weightBytes),
                describe(bytes: stage.activationBytes),
                "\(fixed(stage.operations / 1e12, 2)) TFLOP",
                describe(bytes: Int(stage.traffic)),
            ])
        }
        lines.append(Output.table(rows))
        lines += plan.notices.map(\.message)
        let each = plan.devices > 1 ? " on each of \(plan.devices) devices" : ""
        lines.append("peak device memory: \(describe(bytes: plan.peakBytes))\(each)")
        if let resident = plan.residentWeights {
            lines.append(
                "\(plan.streaming); \(describe(bytes: resident)) of them stay on \(plan.devices > 1 ? "each" : "the") device"
            )
        }
        lines.append(
            "host memory: \(describe(bytes: hostBytes)) (\(describe(bytes: freeHostBytes)) are free), "
                + "and room to keep \(describe(bytes: fileBytes)) of files cached is faster")
        let disk = freeDiskBytes.map { ", \(describe(bytes: $0)) are free here" } ?? ""
        lines.append(
            missingBytes > 0
                ? "disk: about \(describe(bytes: missingBytes)) to download\(disk)"
                : "disk: \(describe(bytes: fileBytes)) of models\(disk)")
        if !estimates.isEmpty { lines.append(contentsOf: times) }
        lines.append("nothing was loaded")
        return lines
    }

    private var times: [String] {
        let of = videos == 1 ? "a video" : "\(videos) videos"
        var rows: [[String]] = []
        for estimate in estimates {
            let memory = describe(bytes: estimate.memoryBytes)
            let fit =
                switch estimate.fit {
                case .whole: "\(memory) of memory"
                case .fitted: "\(memory), fitted: weights or models take turns"
                case .tooSmall: "too small: at least \(memory)"
                }
            let time =
                estimate.seconds.map {
                    about(seconds: $0.lowerBound * Double(videos)...$0.upperBound * Double(videos))
                } ?? "-"
            rows.append([estimate.machine, time, fit])
        }
        return [
            "time of \(of), models loaded: an estimate, from the work above and the rates that were measured on an H200 "
                + "(SPEED.md) or are measured here on a CPU, scaled by data sheets",
            Output.table(rows),
        ]
    }
}
