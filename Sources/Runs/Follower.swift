/// The devices of a group that follow the first one: each carries out the same runs, on a thread of its own.

import Families
import Ground
import Synchronization
import Tensors

/// What went wrong on one device of a group.
public struct GroupError: Error, CustomStringConvertible {
    /// "device 2 of 2"
    public let device: String
    public let underlying: any Error

    public init(device: String, underlying: any Error) {
        (self.device, self.underlying) = (device, underlying)
    }

    public var description: String { "\(device): \(underlying)" }

    /// What went wrong, on whichever device of a group.
    public static func cause(of error: any Error) -> any Error {
        (error as? GroupError)?.underlying ?? error
    }
}

/// A device, its models and its part of the runs. Does what it is told in order.
final class Follower: @unchecked Sendable {
    /// Lives on the follower's thread.
    struct Resident {
        var device: OpenedDevice?
        let pool = ModelPool()
        var walks: [Int: Walk] = [:]
    }
    typealias Job = @Sendable (inout Resident) throws -> Void

    private struct Queue {
        /// nil: the end.
        var jobs: [(run: Int?, body: Job)?] = []
        var open = 0
        /// The first error of each run, and of what belongs to none, since it was last waited for.
        var failures: [Int?: any Error] = [:]
    }
    /// "device 2 of 2"
    private let name: String
    private let monitor = Monitor()
    /// Guarded by `monitor`.
    private var queue = Queue()

    init(name: String) {
        self.name = name
        // It keeps itself until it ends.
        guard let thread = HostThread({ self.work() }) else {
            fatalError("Follower: the system starts no further thread")
        }
        thread.detach()
    }

    private func enqueue(_ job: (run: Int?, body: Job)?) {
        monitor.locked {
            queue.jobs.append(job)
            queue.open += 1
            monitor.announce()
        }
    }

    /// Has something done after all that was begun before.
    func begin(for run: Int? = nil, _ job: @escaping Job) { enqueue((run, job)) }

    /// Ends the thread when all is done; what it has goes with it.
    func close() { enqueue(nil) }

    /// Waits until all that was begun is done.
    /// - Throws: the first error of `run` since the last call for it.
    func wait(for run: Int? = nil) throws {
        let failure = monitor.locked {
            monitor.wait { queue.open == 0 }
            return queue.failures.removeValue(forKey: run)
        }
        if let failure {
            throw failure is CancellationError
                ? failure : GroupError(device: name, underlying: failure)
        }
    }

    private func work() {
        var resident = Resident()
        while true {
            let job = monitor.locked {
                monitor.wait { !queue.jobs.isEmpty }
                return queue.jobs.removeFirst()
            }
            var failure: (any Error)?
            do { try job?.body(&resident) } catch { failure = error }
            if job == nil { resident = Resident() }
            monitor.locked {
                if let job, queue.failures[job.run] == nil { queue.failures[job.run] = failure }
                queue.open -= 1
                monitor.announce()
            }
            if job == nil { return }
        }
    }
}

// MARK: - Runs on all devices

extension Resident {
    private var meeting: Meeting? { device?.backend.membership.meeting }

    /// Opens the devices of a group, the first one on the calling thread.
    func open(_ group: [@Sendable () throws -> OpenedDevice]) throws -> OpenedDevice {
        if let device { return device }
        func name(_ index: Int) -> String { "device \(index + 1) of \(group.count)" }
        let opened: OpenedDevice
        do { opened = try group[0]() } catch {
            throw group.count == 1 ? error : GroupError(device: name(0), underlying: error)
        }
        // The first one has left compiled kernels for the others.
        let others = group.indices.dropFirst().map { index in
            let follower = Follower(name: name(index))
            follower.begin { $0.device = try group[index]() }
            return follower
        }
        do {
            for follower in others { try follower.wait() }
        } catch {
            others.forEach { $0.close() }
            throw error
        }
        device = opened
        followers = others
        return opened
    }

    /// Does the same with the models of every device. They stay and leave together: devices copy weights from each other's
    /// memory.
    func onEveryDevice(_ body: @escaping @Sendable (OpenedDevice?, ModelPool) -> Void) {
        body(device, pool)
        for follower in followers { follower.begin { body($0.device, $0.pool) } }
    }

    /// Begins a run on the followers, as `walks` has it on the first device, which has made room for it.
    func beginOnFollowers(_ run: Run, id: Int, _ cancellation: Cancellation) {
        let keys = pool.keys
        for follower in followers {
            follower.begin(for: id) { resident in
                guard let device = resident.device else { return }
                resident.pool.release(allBut: keys)
                if let residency = run.options.residency {
                    device.backend.limitResidentWeights(to: residency.residentWeights)
                }
                do {
                    var walk = try Walk(
                        run, resident.pool, on: device, cancellation: cancellation)
                    // The first device looks at them.
                    walk.inspectsNumbers = false
                    resident.walks[id] = walk
                } catch {
                    device.backend.membership.meeting?.breakOff()
                    throw error
                }
            }
        }
    }

    func give(_ inputs: RunInputs, to id: Int) {
        walks[id]?.inputs = inputs
        for follower in followers { follower.begin { $0.walks[id]?.inputs = inputs } }
    }

    /// Carries out one instruction of a run on every device. The followers are waited for only where the models' own
    /// code meets them, and at the end.
    func advance(_ id: Int) throws -> Yield? {
        guard let meeting else { return try walks[id]?.advance() }
        for follower in followers {
            follower.begin(for: id) { resident in
                do {
                    _ = try resident.walks[id]?.advance()
                } catch {
                    meeting.breakOff()
                    resident.walks[id]?.abandon()
                    throw error
                }
            }
        }
        let result = Result { try walks[id]?.advance() }
        if case .success(let found) = result, !meeting.isBroken {
            if walks[id]?.isDone == true {
                for follower in followers { try follower.wait(for: id) }
            }
            return found
        }
        // Nobody waits any more for whoever will not come. A follower's failure is the cause of what the first one found.
        meeting.breakOff()
        var cause: (any Error)?
        let common = Mutex(pool.keys)
        for follower in followers {
            follower.begin { resident in
                resident.walks[id]?.abandon()
                common.withLock { $0.formIntersection(resident.pool.keys) }
            }
            do { try follower.wait(for: id) } catch { cause = cause ?? error }
        }
        meeting.reset()
        // What not every device has come to load is loaded anew. Only the first one has text encoders.
        let kept = common.withLock(\.self)
            .union(pool.keys.filter { $0.part == .textEncoder })
        onEveryDevice { _, pool in pool.release(allBut: kept) }
        if let cause, !(cause is CancellationError) { throw cause }
        _ = try result.get()
        throw cause ?? CancellationError()
    }

    func abandon(_ id: Int) {
        walks[id]?.abandon()
        for follower in followers { follower.begin { $0.walks[id]?.abandon() } }
    }

    func forget(_ id: Int) {
        walks[id] = nil
        readAheads[id] = nil
        for follower in followers { follower.begin { $0.walks[id] = nil } }
    }

    /// What a run has taken so far: the first device's times, the most memory on any.
    func report(_ id: Int) -> RunReport? {
        guard let walk = walks[id] else { return nil }
        var report = walk.report
        if followers.isEmpty { return report }
        report.device += " × \(followers.count + 1)"
        let others = Mutex<[[StageReport]]>([])
        for follower in followers {
            follower.begin { resident in
                let reports = resident.walks[id]?.reports ?? []
                others.withLock { $0.append(reports) }
            }
            try? follower.wait()
        }
        for reports in others.withLock({ $0 }) {
            for other in reports {
                guard let index = report.stages.firstIndex(where: { $0.stage == other.stage })
                else { continue }
                let mine = report.stages[index]
                report.stages[index] = StageReport(
                    stage: mine.stage, seconds: mine.seconds,
                    peakBytes: max(mine.peakBytes, other.peakBytes))
            }
        }
        return report
    }
}
