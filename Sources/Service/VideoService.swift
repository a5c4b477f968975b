/// The service without HTTP: jobs that come, run and go.

import Catalog
import Checkpoints
import Families
import FoundationEssentials
import Glibc
import Ground
import Jobs
import Media
import Runs
import Sessions
import Synchronization
import SystemPackage

/// Seconds since 1970.
func now() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

/// A run on its way.
struct RunningJob: Sendable {
    /// Why it ends before its video is there.
    enum Ending: Sendable { case client, drain, timeout }

    var job: Job
    var task: Task<Void, Never>?
    var ending: Ending?
    var fraction = 0.0
    var stage: Stage?
    var began = ContinuousClock.now
    var lastTold: ContinuousClock.Instant?
}

/// Accepts requests, keeps them in order, runs them on its devices, and tells who listens.
final class VideoService: Sendable {
    let options: ServiceOptions
    let store: JobStore
    let folders: Folders
    let served: Served
    let hub = EventHub()
    let metrics = Metrics()
    let sessions: [Session]
    let started = now()

    struct State {
        var order: FairOrder
        var running: [String: RunningJob] = [:]
        /// PNGs of the last steps, of the videos that were made last.
        var previews: [(id: String, png: [UInt8])] = []
        var isReady = false
        var isStopping = false
        /// Workers that wait for a job.
        var idle: [CheckedContinuation<Void, Never>] = []
    }
    let state: Mutex<State>

    /// Opens folder and queue. Nothing is loaded, and no device opened.
    init(_ options: ServiceOptions) throws {
        self.options = options
        folders = Folders(root: options.output)
        _ = try folders.open()
        store = try JobStore(path: folders.database)
        served = Served(models: options.models, loraFolder: options.loras)
        sessions = options.machines.map { machines in
            var session = options.session
            session.machines = machines
            session.hidesFolders = true
            return Session(session)
        }
        state = Mutex(State(order: FairOrder(secondsPerCost: 1e12 / Progress.Rates.cpu.operations)))
        try recover()
    }

    // MARK: Coming

    /// Puts a request into the queue.
    /// - Parameters:
    ///   - key: of the client, under which it may send the same again.
    ///   - base: the job whose request is changed.
    func create(_ body: Body, key: String? = nil, base: Job? = nil) async throws -> Job {
        try checkOpen()
        let idempotency = try key.map { key in
            guard (1...255).contains(key.utf8.count) else {
                throw APIError.value("Idempotency-Key", key, expected: "1 to 255 characters")
            }
            return (key: key, hash: body.fingerprint(remixing: base?.id))
        }
        if let idempotency, let known = try known(idempotency) { return known }
        let draft = try Draft(body)
        let id = Job.newID()
        let input = folders.input(id)
        do {
            let hasPicture = try await keepPicture(draft, base, at: input)
            let (order, prepared) = try await prepare(
                draft, base, picture: hasPicture ? input : nil)
            let job = Job(
                id: id, order: order, created: now(),
                cost: prepared.plan.stages.reduce(0) { $0 + $1.operations } / 1e12,
                remixOf: base?.id)
            guard let accepted = try store.add(job, limit: options.queueLimit, key: idempotency)
            else {
                throw APIError.queueFull(limit: options.queueLimit, retryAfter: retryAfter)
            }
            enqueue(accepted)
            return accepted
        } catch {
            unlink(input)
            // Two requests with one key at once: the other one was first.
            if error is DatabaseError, let idempotency, let known = try known(idempotency) {
                return known
            }
            throw error
        }
    }

    private func known(_ idempotency: (key: String, hash: String)) throws -> Job? {
        switch try store.known(key: idempotency.key, hash: idempotency.hash) {
        case nil: return nil
        case .same(let job)?: return job
        case .other?:
            throw APIError.conflict(
                "idempotency_conflict", "this Idempotency-Key came with another request before")
        }
    }

    /// What a request would take.
    func plan(_ body: Body) async throws -> JSON {
        let draft = try Draft(body)
        // A picture's content does not matter here.
        let (_, prepared) = try await prepare(
            draft, nil, picture: draft.picture == nil ? nil : "/dev/null")
        let queue = state.withLock { state in
            state.order.seconds
                + state.running.values.reduce(0) {
                    $0 + $1.job.cost * state.order.secondsPerCost * (1 - $1.fraction)
                }
        }
        return [
            "object": "plan", "seconds": .number(prepared.seconds),
            "queue_seconds": .number(queue / Double(sessions.count)),
            "peak_memory_bytes": .number(prepared.plan.peakBytes),
            "streams_weights": .bool(prepared.plan.residentWeights != nil),
            "notices": .array(
                prepared.plan.notices.map { .string(APIError.hidingFolders($0.message)) }),
        ]
    }

    /// The request of a draft, checked as far as can be without loading anything.
    private func prepare(_ draft: Draft, _ base: Job?, picture: String?) async throws -> (
        Job.Order, PreparedRun
    ) {
        let model = try served.model(
            draft.model ?? base?.order.model, takesPicture: picture != nil)
        var request = try draft.request(for: model.models.family, base: base?.order.request) {
            UInt64.random(in: 0...UInt64(UInt32.max))
        }
        if request.frames > options.frameLimit {
            throw APIError.value(
                "num_frames", "\(request.frames)", expected: "at most \(options.frameLimit) here")
        }
        if request.width > 0, request.height > 0,
            request.width.multipliedReportingOverflow(by: request.height).overflow
                || request.width * request.height > options.pixelLimit
        {
            throw APIError.value(
                "size", "\(request.width)x\(request.height)",
                expected: "at most \(options.pixelLimit) pixels here")
        }
        request.image = nil
        let order = Job.Order(
            model: model.name, request: request, crf: draft.crf ?? base?.order.crf,
            hasPicture: picture != nil, user: draft.user)
        do {
            return (
                order, try await prepared(order, model.models, picture: picture, on: sessions[0])
            )
        } catch let error as CheckpointError
            where request.loras.contains(where: { served.loras[$0.path] == error.path })
        {
            // The client has chosen it: it is for another model, or damaged.
            throw APIError.invalid("conflict", APIError.hidingFolders("\(error)"), param: "lora")
        }
    }

    /// A run of an order on a device, with the files that names stand for.
    func prepared(_ order: Job.Order, _ models: ModelSet, picture: String?, on session: Session)
        async throws -> PreparedRun
    {
        var request = order.request
        request.image = picture
        for index in request.loras.indices {
            request.loras[index].path = try served.path(ofLoRA: request.loras[index].path)
        }
        return try await session.prepare(request, models)
    }

    /// Writes the picture of a request to its file, which no other has.
    private func keepPicture(_ draft: Draft, _ base: Job?, at path: String) async throws -> Bool {
        if let picture = draft.picture {
            try PendingFile.write(picture, to: FilePath(path), overwrite: true)
            // Damaged ones are refused here and not when their turn comes.
            _ = try await readImage(path: path)
            return true
        }
        guard let base, base.order.hasPicture else { return false }
        if link(folders.input(base.id), path) == 0 { return true }
        throw APIError.notFound(
            "video_not_found", "the picture of '\(base.id)' is gone; send it again",
            param: "input_reference")
    }

    private func checkOpen() throws(APIError) {
        let (isReady, isStopping) = state.withLock { ($0.isReady, $0.isStopping) }
        if isStopping { throw .stopping }
        if !isReady { throw .starting }
    }

    /// When a full queue is worth another try.
    private var retryAfter: Int {
        let seconds = state.withLock { $0.order.seconds / Double(max($0.order.count, 1)) }
        return min(max(Int((seconds / Double(sessions.count)).rounded(.up)), 1), 600)
    }

    func enqueue(_ job: Job) {
        let worker = state.withLock { state in
            state.order.add(job)
            return state.idle.popLast()
        }
        worker?.resume()
        tell("video", job)
        tellQueue()
    }

    // MARK: Going

    /// Ends a job that waits or runs.
    func cancel(_ id: String) throws -> Job {
        guard let job = try store.job(id) else { throw APIError.noVideo(id) }
        guard
            let cancelled = try store.cancel(id, at: now(), expires: now() + options.expireSeconds)
        else {
            throw APIError.conflict(
                "already_over", "'\(id)' is \(job.status.rawValue) already")
        }
        end(id, .client)
        finish("cancelled", cancelled)
        return cancelled
    }

    /// Removes a job and its files, whatever it is doing.
    func delete(_ id: String) throws {
        guard try store.remove(id) else { throw APIError.noVideo(id) }
        end(id, .client)
        folders.remove(id)
        hub.tell("deleted", of: id, isLast: true) { ["id": .string(id)] }
        tellQueue()
    }

    /// Takes a job out of the queue, or stops its run.
    func end(_ id: String, _ ending: RunningJob.Ending) {
        let task = state.withLock { state in
            state.order.remove(id)
            if let running = state.running[id], running.ending == nil {
                state.running[id]?.ending = ending
            }
            return state.running[id]?.task
        }
        task?.cancel()
    }

    // MARK: Telling

    func tell(_ name: String, _ job: Job, isLast: Bool = false) {
        hub.tell(name, of: job.id, isLast: isLast) { json(job) }
    }

    func tellQueue() { hub.tell("queue", of: nil) { queueState } }

    var queueState: JSON {
        state.withLock {
            ["queued": .number($0.order.count), "running": .number($0.running.count)]
        }
    }

    /// A job is over.
    func finish(_ name: String, _ job: Job) {
        metrics.countVideo(name)
        tell(name, job, isLast: true)
        tellQueue()
    }
}

extension Body {
    /// Equal for equal requests.
    func fingerprint(remixing id: String?) -> String {
        var hash = SHA256()
        hash.update(framed: id ?? "")
        for (name, value) in fields.sorted(by: { $0.key < $1.key }) {
            hash.update(framed: name)
            switch value {
            case .json(let json): hash.update(framed: json.text)
            case .file(let bytes): bytes.withUnsafeBytes { hash.update($0) }
            }
        }
        return hash.finish()
    }
}
