/// One worker a device: takes the next job, carries it out, writes down how it ended.

import Delivery
import Glibc
import Ground
import Jobs
import Media
import Runs
import Sessions
import Synchronization
import SystemPackage

extension VideoService {
    /// How often a job may be running while its process dies.
    static let attemptLimit = 5

    /// Opens the devices and carries out jobs until the service stops.
    /// - Throws: where a device cannot be opened.
    func run() async throws {
        for session in sessions {
            let device = try await session.open()
            options.log("on \(device.name), up to \(describe(bytes: device.memoryLimit))")
            if device.isGPU {
                state.withLock {
                    $0.order.guess(secondsPerCost: 1e12 / Progress.Rates.gpu.operations)
                }
            }
        }
        state.withLock { $0.isReady = true }
        await withTaskGroup { group in
            for session in sessions { group.addTask { await self.work(on: session) } }
            let keeper = Task { await self.keepHouse() }
            await group.waitForAll()
            keeper.cancel()
        }
        hub.close()
    }

    /// No new jobs; workers end as the drain says.
    func stop() {
        let (workers, running) = state.withLock { state in
            state.isStopping = true
            defer { state.idle = [] }
            return (state.idle, Array(state.running.keys))
        }
        for worker in workers { worker.resume() }
        if options.drain == .requeue { for id in running { end(id, .drain) } }
    }

    // MARK: Work

    private func work(on session: Session) async {
        while let id = await nextJob() { await carryOut(id, on: session) }
    }

    private func nextJob() async -> String? {
        while true {
            let (id, isStopping) = state.withLock { state in
                (state.isStopping ? nil : state.order.next(at: now()), state.isStopping)
            }
            if let id { return id }
            if isStopping { return nil }
            await withCheckedContinuation { continuation in
                let isNeeded = state.withLock { state in
                    if !state.order.isEmpty || state.isStopping { return true }
                    state.idle.append(continuation)
                    return false
                }
                if isNeeded { continuation.resume() }
            }
        }
    }

    private func carryOut(_ id: String, on session: Session) async {
        let job: Job
        do {
            guard let begun = try store.begin(id, at: now()) else { return }
            job = begun
        } catch {
            options.log("\(id): \(error)")
            return await letWait(id)
        }
        metrics.addWaiting((job.started ?? job.created) - job.created)
        let task = Task { await self.run(job, on: session) }
        let wasEnded = state.withLock { state in
            state.running[id] = RunningJob(job: job, task: task)
            return state.isStopping && options.drain == .requeue
        }
        // Cancelled or deleted between the two lines above: the store knows.
        do {
            if try store.job(id)?.status != .inProgress { end(id, .client) }
        } catch { options.log("\(id): \(error)") }
        if wasEnded { end(id, .drain) }
        tell("video", job)
        tellQueue()
        await task.value
        state.withLock { _ = $0.running.removeValue(forKey: id) }
        tellQueue()
    }

    /// What the store could not note as begun, on a full disk for instance, takes its place in the queue again after a while.
    private func letWait(_ id: String) async {
        while !state.withLock(\.isStopping) {
            try? await Task.sleep(for: .seconds(1))
            do {
                // Deleted or cancelled meanwhile: nothing waits any more.
                guard let job = try store.job(id), job.status == .queued else { return }
                return state.withLock { $0.order.add(job) }
            } catch {
                // It is asked again: that the store fails has been told.
            }
        }
    }

    private func run(_ job: Job, on session: Session) async {
        let timeout = Task {
            try await Task.sleep(for: .seconds(options.runSeconds))
            end(job.id, .timeout)
        }
        defer { timeout.cancel() }
        let output = folders.video(job.id)
        do {
            let served = try served.model(job.order.model, takesPicture: job.order.hasPicture)
            let prepared = try await prepared(
                job.order, served.models,
                picture: job.order.hasPicture ? folders.input(job.id) : nil, on: session)
            let began = ContinuousClock.now
            let made = try await session.make(
                prepared, to: output, crf: job.order.crf, existing: .replace
            ) { event in self.note(event, job) }
            let seconds = (ContinuousClock.now - began) / .seconds(1)
            let hasLoaded = made.report.stages.contains {
                if case .load = $0.stage { true } else { false }
            }
            if !hasLoaded { state.withLock { $0.order.learn(seconds: seconds, cost: job.cost) } }
            complete(job, made.report)
        } catch {
            fail(job, error)
        }
    }

    // MARK: Endings

    private func complete(_ job: Job, _ report: RunReport?) {
        let output = folders.video(job.id)
        do {
            let size = FilePath(output).fileSize ?? 0
            guard
                let done = try store.complete(
                    job.id, at: now(), expires: now() + options.expireSeconds, report: report,
                    fileBytes: size)
            else {
                // Cancelled or deleted at the last moment.
                unlink(output)
                return
            }
            for stage in report?.stages ?? [] {
                metrics.addStage(
                    stage.stage.id.rawValue, seconds: stage.seconds, peakBytes: stage.peakBytes)
            }
            finish("completed", done)
        } catch {
            options.log("\(job.id): \(error)")
        }
    }

    private func fail(_ job: Job, _ error: any Error) {
        let ending = state.withLock { $0.running[job.id]?.ending }
        do {
            if error is CancellationError, ending == .drain {
                if let waiting = try store.requeue(job.id) { tell("video", waiting) }
                return
            }
            let failure =
                error is CancellationError && ending == .timeout
                ? Job.Failure(
                    code: "timeout",
                    message:
                        "it took longer than the \(Int(options.runSeconds)) seconds that a run may take"
                )
                : Job.Failure(error)
            // A job that was cancelled or deleted is over already.
            let failed = try store.fail(
                job.id, at: now(), expires: now() + options.expireSeconds, failure)
            if let failed {
                options.log("\(job.id): \(failure.message)")
                finish("failed", failed)
            } else {
                unlink(folders.video(job.id))
            }
        } catch {
            options.log("\(job.id): \(error)")
        }
    }

    // MARK: Events of a run

    private func note(_ event: SessionEvent, _ job: Job) {
        let id = job.id
        switch event {
        case .progress(let fraction):
            state.withLock { $0.running[id]?.fraction = fraction }
        case .preview(let step, let image):
            let png = image.png
            state.withLock { state in
                state.previews.removeAll { $0.id == id }
                state.previews = state.previews.suffix(63) + [(id, png)]
            }
            hub.tell("preview", of: id) {
                [
                    "id": .string(id), "step": .number(step.number), "of": .number(step.count),
                    "width": .number(image.width), "height": .number(image.height),
                    "image": .string("data:image/png;base64," + base64(png)),
                ]
            }
        case .run(.stageStarted(let stage)): tellProgress(job, stage, begins: true)
        case .run(.stageProgress(let stage, _)): tellProgress(job, stage, begins: false)
        case .run(.stageFinished(let report)):
            hub.tell("stage", of: id) {
                [
                    "id": .string(id), "stage": JSON(encoding: report.stage),
                    "title": .string(report.stage.title), "seconds": .number(report.seconds),
                    "peak_memory_bytes": .number(report.peakBytes),
                ]
            }
        case .run(.notice(let notice)):
            let message = APIError.hidingFolders(notice.message)
            hub.tell("notice", of: id) { ["id": .string(id), "message": .string(message)] }
        case .wrote: break
        }
    }

    /// At most ten times a second, and when a stage begins.
    private func tellProgress(_ job: Job, _ stage: Stage, begins: Bool) {
        let told = state.withLock { state -> RunningJob? in
            guard var running = state.running[job.id] else { return nil }
            defer { state.running[job.id] = running }
            running.stage = stage
            let now = ContinuousClock.now
            if !begins, let last = running.lastTold, now - last < .milliseconds(100) { return nil }
            running.lastTold = now
            return running
        }
        guard let told else { return }
        let rate = state.withLock { $0.order.secondsPerCost }
        hub.tell("progress", of: job.id) {
            [
                "id": .string(job.id), "progress": .number(Int(told.fraction * 100)),
                "fraction": .number(told.fraction), "stage": JSON(encoding: stage),
                "title": .string(stage.title),
                "estimated_seconds_left": .number(job.cost * rate * (1 - told.fraction)),
            ]
        }
    }

    // MARK: After a crash, and by the way

    /// What was running when the process died runs again, unless its video is there.
    func recover() throws {
        for job in try store.jobs([.inProgress]) {
            if FilePath(folders.video(job.id)).exists {
                complete(job, nil)
            } else if job.attempts >= Self.attemptLimit {
                let failure = Job.Failure(
                    code: "interrupted",
                    message: "the service died \(job.attempts) times while it was running")
                _ = try store.fail(
                    job.id, at: now(), expires: now() + options.expireSeconds, failure)
            } else {
                _ = try store.requeue(interrupted: job.id)
            }
        }
        let waiting = try store.jobs([.queued])
        state.withLock { state in for job in waiting { state.order.add(job) } }
        folders.sweep { (try? store.job($0)) ?? nil != nil }
    }

    /// Removes videos whose time has come, every minute.
    private func keepHouse() async {
        while !Task.isCancelled {
            do {
                let free = folders.freeBytes ?? Int.max
                let used = try store.counts().fileBytes
                // The disk keeps a gibibyte for others.
                let room = min(options.diskLimit, max(0, used + free - (1 << 30)))
                for job in try store.expired(at: now(), keeping: room) {
                    try delete(job.id)
                }
            } catch {
                options.log("\(error)")
            }
            try? await Task.sleep(for: .seconds(60))
        }
    }
}
