/// Carrying out what t2v and i2v have prepared: one run, or one after the other on one engine.

import Delivery
import Devices
import Families
import Ground
import Runs
import Synchronization
import Tensors
import Terminal

extension Generation {
    /// Makes all runs with the models that the first of them brings to the device. They differ in prompt and seed alone, so
    /// that one plan is true of all.
    /// - Parameter opening: nil where the device is not being opened yet.
    func make(
        _ all: [Prepared], _ printer: ProgressPrinter, on opening: OpeningEngine?
    ) async throws {
        guard let first = all.first else { return }
        let devices = try execution.machines.count
        let wanted = try Plan(
            first.run, devices: devices, sharesWeights: execution.machines.sharesWeights)
        printer.mark("plan")
        let isOnGPU = execution.machines.isGPU
        let plan = try fitted(wanted, tell: printer.note)
        if isOnGPU { printer.mark("driver and context") }
        let keepsText = all.count > 1 && hasRoom(forTextBeside: plan, isOnGPU)
        let opening = try opening ?? OpeningEngine(execution, tell: printer.showOpening)
        let engine = opening.engine
        opening.setPlan(plan)
        for (index, prepared) in all.enumerated() {
            guard let stored = prepared.stored else { continue }
            var run = plan.applied(to: prepared.run)
            run.options.keepsTextEncoder = keepsText
            printer.showStart(
                stored, prepared.outputs.files, plan, isOnGPU: isOnGPU, index: index,
                of: all.count)
            let files = Mutex<[String]>([])
            let report = try await engine.deliver(
                run, to: prepared.outputs, stored: stored,
                watch: WriterWatch(written: { path in
                    files.withLock { $0.append(path) }
                    if !prepared.outputs.isStream { Interruption.noteFinished(path) }
                }),
                events: printer.show)
            printer.showEnd(report, files: files.withLock { $0 }, stored: stored)
        }
    }

    // MARK: Memory

    /// The plan within what was said, or within what a GPU has free; on a CPU refused or noted where memory lacks.
    func fitted(_ plan: Plan, tell: (String) -> Void) throws -> Plan {
        var plan = plan
        if let limit = execution.memoryLimit?.bytes {
            plan = try plan.fitted(to: limit)
        } else if execution.machines.isGPU, let (device, free) = execution.machines.leastFree {
            do {
                plan = try Self.fitted(plan, free: free, tell: tell)
            } catch {
                guard case .memory(let needed, _) = error else { throw error }
                throw UserError(
                    "device.memory",
                    "at least \(describe(bytes: needed + Self.reserve)) of device memory are needed, \(device == .automatic ? "the GPU" : "\(device)") has "
                        + "\(describe(bytes: free)) free: nvidia-smi lists the programs that hold the rest"
                )
            }
        }
        if !execution.machines.isGPU {
            let devices = try execution.machines.count
            let computed = plan.stages.map(\.activationBytes).max() ?? 0
            let note = try HostMemory.current.check(
                computed: devices * computed, whole: devices * plan.peakBytes)
            if let note { tell(note) }
        }
        return plan
    }

    /// Bytes of device memory for kernels, streams and what the driver keeps for them.
    private static let reserve = 512 << 20

    /// - Parameter free: bytes of device memory before the device is opened.
    static func fitted(_ plan: Plan, free: Int, tell: (String) -> Void) throws(RunError) -> Plan {
        let usable = max(0, free - reserve)
        guard plan.peakBytes > usable else { return plan }
        let fitted = try plan.fitted(to: usable)
        let how =
            fitted.residentWeights != nil
            ? fitted.streaming
            : !fitted.keepsBothExperts && plan.keepsBothExperts
                ? "the two experts take turns" : "the transformer leaves before decoding"
        tell(
            "the run would take \(describe(bytes: plan.peakBytes)) of device memory, \(describe(bytes: free)) "
                + "are free: \(how)")
        return fitted
    }

    /// Whether the text encoder can stay for the next prompt.
    private func hasRoom(forTextBeside plan: Plan, _ isOnGPU: Bool) -> Bool {
        // A CPU's weights are mapped from their file.
        guard isOnGPU else { return true }
        guard plan.residentWeights == nil,
            let room = execution.memoryLimit?.bytes ?? execution.machines.freeMemory
        else { return false }
        let text = plan.stages.first { $0.part == .textEncoder }?.weightBytes ?? 0
        return plan.peakBytes + text + (1 << 30) <= room
    }

    // MARK: Prompts and seeds

    /// What `--prompts` and `--seeds` ask for.
    func items(draw: () -> UInt64) throws -> [BatchItem] {
        let content = options.content
        for (option, isSaid) in [
            ("--latents", options.stages.latents != nil),
            ("--text_embedding", options.stages.textEmbedding != nil),
            ("--cached_embedding", options.stages.cachedEmbedding != nil),
            ("--save_text_embedding", options.stages.saveTextEmbedding != nil),
            ("--save_conditioning", options.stages.saveConditioning != nil),
            ("--save_latents", options.stages.saveLatents != nil),
        ] where isSaid {
            throw UserError(
                "request.conflict", "\(option) is of one video: it does not go with \(several)")
        }
        if content.seeds != nil, content.seed != nil {
            throw UserError("request.conflict", "--seed and --seeds exclude each other")
        }
        var prompts: [String?] = [try options.prompt]
        if let path = content.prompts {
            guard prompts == [nil] else {
                throw UserError(
                    "request.conflict", "a prompt and --prompts exclude each other")
            }
            prompts = try Batch.prompts(from: path)
        }
        let seeds: [Seed?] = content.seeds.map { $0.seeds.map(Seed.number) } ?? [content.seed]
        return try Batch.items(
            prompts, seeds.map { $0 ?? (content.from == nil ? .number(0) : nil) },
            pattern: options.output.savePath ?? Batch.defaultPath, draw: draw)
    }

    private var several: String { options.content.prompts == nil ? "--seeds" : "--prompts" }

    /// The same with one item's prompt and seed.
    func generation(of item: BatchItem) -> Generation {
        var one = self
        one.item = item
        if let prompt = item.prompt {
            one.options.content.prompt = prompt
            one.options.content.promptArgument = nil
        }
        one.options.content.seed = item.seed ?? one.options.content.seed
        return one
    }

    /// Makes a video of every prompt with every seed. Those that are there already are left as they are.
    func makeAll(_ printer: ProgressPrinter, on opening: OpeningEngine?) async throws {
        let items = try items { UInt64.random(in: 0...UInt64(UInt32.max)) }
        var all: [Prepared] = []
        var skipped: [String] = []
        for item in items {
            do {
                all.append(try await generation(of: item).prepare(tell: printer.note))
            } catch OutputError.exists(let path) {
                skipped.append(path)
            }
        }
        if !skipped.isEmpty {
            printer.note(
                "\(skipped.count) of \(items.count) exist already and are skipped, \(skipped[0]) first; "
                    + "--force makes them again")
        }
        // All are written by one encoder into one kind of name: the longest description is the one that may not fit.
        let longest = all.max {
            ($0.stored?.json.utf8.count ?? 0) < ($1.stored?.json.utf8.count ?? 0)
        }
        printer.mark("request and files")
        if let longest { try await check(longest) }
        printer.mark("trial of the output")
        try await make(all, printer, on: opening)
        if all.isEmpty { printer.tellNotes() }
        printer.showJob(made: all.count, skipped: skipped)
    }
}

extension Plan {
    /// Where the weights come from that do not stay, in words.
    var streaming: String {
        if streamedBytes == 0 || bytesFromHost == streamedBytes {
            return "weights stream from host memory"
        }
        let others = describe(bytes: streamedBytes - bytesFromHost)
        return bytesFromHost == 0
            ? "weights are split among the devices: for each step \(others) come from the others"
            : "weights stream: for each step \(others) from the other devices, \(describe(bytes: bytesFromHost)) from host memory"
    }
}
