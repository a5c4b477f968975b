/// All jobs, in a database that survives the process.

import FoundationEssentials
import Ground
public import Runs
import Synchronization

/// What a client has sent before under the same key.
public enum Idempotency: Sendable, Hashable {
    /// The same request: its job.
    case same(Job)
    /// Another request.
    case other
}

/// Jobs on the disk. Every change is there when its function returns; a process that is killed leaves each job as it was
/// before or after a change. For any thread.
public final class JobStore: Sendable {
    private let database: Mutex<Database>

    private static let columns = """
        id, number, status, created, started, completed, expires, cost, attempts, error_code, \
        error_message, job_order, report, file_bytes, remix_of
        """

    /// - Throws: ``DatabaseError``.
    public init(path: String) throws {
        let database = try Database(path)
        try database.transaction {
            try database.run(
                """
                CREATE TABLE IF NOT EXISTS jobs (
                    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL,
                    created REAL NOT NULL, started REAL, completed REAL, expires REAL, cost REAL NOT NULL,
                    attempts INTEGER NOT NULL DEFAULT 0, error_code TEXT, error_message TEXT,
                    job_order TEXT NOT NULL, report TEXT, file_bytes INTEGER, remix_of TEXT,
                    idempotency_key TEXT UNIQUE, request_hash TEXT)
                """)
            try database.run("CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number)")
        }
        self.database = Mutex(database)
    }

    // MARK: Coming

    /// Accepts a job.
    /// - Parameters:
    ///   - limit: how many jobs may wait.
    ///   - key: of the client, with a hash of its request; see ``known(key:hash:)``.
    /// - Returns: the job with its number; nil where the queue is full.
    public func add(_ job: Job, limit: Int, key: (key: String, hash: String)? = nil) throws -> Job?
    {
        let order = try Self.json(job.order)
        return try database.withLock { database in
            try database.transaction {
                var waiting = 0
                try database.run("SELECT count(*) FROM jobs WHERE status = 'queued'") {
                    waiting = $0.integer(0) ?? 0
                }
                guard waiting < limit else { return nil }
                try database.run(
                    """
                    INSERT INTO jobs (id, status, created, cost, job_order, remix_of, idempotency_key, request_hash)
                    VALUES (?, 'queued', ?, ?, ?, ?, ?, ?)
                    """,
                    [
                        .text(job.id), .real(job.created), .real(job.cost), .text(order),
                        SQLValue(job.remixOf), SQLValue(key?.key), SQLValue(key?.hash),
                    ])
                return try Self.job(job.id, in: database)
            }
        }
    }

    /// What was accepted under a client's key.
    public func known(key: String, hash: String) throws -> Idempotency? {
        try database.withLock { database in
            var found: (id: String, hash: String)?
            try database.run(
                "SELECT id, request_hash FROM jobs WHERE idempotency_key = ?", [.text(key)]
            ) { found = ($0.text(0) ?? "", $0.text(1) ?? "") }
            guard let found else { return nil }
            guard found.hash == hash, let job = try Self.job(found.id, in: database) else {
                return .other
            }
            return .same(job)
        }
    }

    // MARK: Going on

    /// Takes a job out of the queue.
    /// - Returns: the job; nil where it does not wait any more.
    public func begin(_ id: String, at time: Double) throws -> Job? {
        try change(
            id, "status = 'in_progress', started = ?, attempts = attempts + 1",
            [.real(time)], where: "status = 'queued'")
    }

    /// A job that runs has its video.
    public func complete(
        _ id: String, at time: Double, expires: Double, report: RunReport?, fileBytes: Int
    ) throws -> Job? {
        try change(
            id, "status = 'completed', completed = ?, expires = ?, report = ?, file_bytes = ?",
            [
                .real(time), .real(expires), SQLValue(try report.map(Self.json)),
                .integer(fileBytes),
            ], where: "status = 'in_progress'")
    }

    public func fail(_ id: String, at time: Double, expires: Double, _ failure: Job.Failure) throws
        -> Job?
    {
        try change(
            id, "status = 'failed', completed = ?, expires = ?, error_code = ?, error_message = ?",
            [.real(time), .real(expires), .text(failure.code), .text(failure.message)],
            where: "status IN ('in_progress', 'queued')")
    }

    /// - Returns: the job; nil where it is over already.
    public func cancel(_ id: String, at time: Double, expires: Double) throws -> Job? {
        try change(
            id, "status = 'cancelled', completed = ?, expires = ?", [.real(time), .real(expires)],
            where: "status IN ('in_progress', 'queued')")
    }

    /// Puts a job that runs back into the queue, at its old place, as if it had not been begun.
    public func requeue(_ id: String) throws -> Job? {
        try change(
            id, "status = 'queued', started = NULL, attempts = attempts - 1", [],
            where: "status = 'in_progress'")
    }

    /// Puts back what was running when the process died.
    public func requeue(interrupted id: String) throws -> Job? {
        try change(id, "status = 'queued', started = NULL", [], where: "status = 'in_progress'")
    }

    /// - Returns: whether there was such a job.
    public func remove(_ id: String) throws -> Bool {
        try database.withLock { database in
            try database.run("DELETE FROM jobs WHERE id = ?", [.text(id)])
            return database.changes > 0
        }
    }

    private func change(_ id: String, _ set: String, _ values: [SQLValue], where condition: String)
        throws -> Job?
    {
        try database.withLock { database in
            try database.transaction {
                try database.run(
                    "UPDATE jobs SET \(set) WHERE id = ? AND \(condition)", values + [.text(id)])
                return database.changes > 0 ? try Self.job(id, in: database) : nil
            }
        }
    }

    // MARK: Looking

    public func job(_ id: String) throws -> Job? {
        try database.withLock { try Self.job(id, in: $0) }
    }

    /// Jobs of some states, those that were accepted first at the front.
    public func jobs(_ statuses: [Job.Status]) throws -> [Job] {
        try list(
            after: nil, limit: Int(Int32.max), newestFirst: false, statuses: statuses)?.jobs ?? []
    }

    /// A page of all jobs.
    /// - Parameter after: the job before the first one; nil for the begin.
    /// - Returns: nil where there is no job `after`.
    public func list(
        after: String?, limit: Int, newestFirst: Bool, statuses: [Job.Status] = Job.Status.allCases
    ) throws -> (jobs: [Job], hasMore: Bool)? {
        try database.withLock { database in
            var start = newestFirst ? Int.max : 0
            if let after {
                guard let job = try Self.job(after, in: database) else { return nil }
                start = job.number
            }
            let places = statuses.map { _ in "?" }.joined(separator: ", ")
            let (sign, order) = newestFirst ? ("<", "DESC") : (">", "ASC")
            var jobs: [Job] = []
            try database.run(
                """
                SELECT \(Self.columns) FROM jobs WHERE number \(sign) ? AND status IN (\(places))
                ORDER BY number \(order) LIMIT ?
                """,
                [.integer(start)] + statuses.map { .text($0.rawValue) } + [.integer(limit + 1)]
            ) { if let job = Self.job($0) { jobs.append(job) } }
            return (Array(jobs.prefix(limit)), jobs.count > limit)
        }
    }

    /// Jobs that are over and whose time has come, or, of those with a video, the oldest beyond `bytes` in all.
    public func expired(at time: Double, keeping bytes: Int) throws -> [Job] {
        try database.withLock { database in
            var jobs: [Job] = []
            try database.run(
                "SELECT \(Self.columns) FROM jobs WHERE expires <= ? ORDER BY number", [.real(time)]
            ) { if let job = Self.job($0) { jobs.append(job) } }
            var total = 0
            let gone = Set(jobs.map(\.id))
            try database.run(
                "SELECT \(Self.columns) FROM jobs WHERE file_bytes > 0 ORDER BY number DESC"
            ) { row in
                guard let job = Self.job(row), !gone.contains(job.id) else { return }
                total += job.fileBytes ?? 0
                if total > bytes { jobs.append(job) }
            }
            return jobs
        }
    }

    /// How many jobs there are of each state, and the bytes of their videos.
    public func counts() throws -> (byStatus: [Job.Status: Int], fileBytes: Int) {
        try database.withLock { database in
            var counts: [Job.Status: Int] = [:]
            var bytes = 0
            try database.run("SELECT status, count(*), total(file_bytes) FROM jobs GROUP BY status")
            {
                guard let status = $0.text(0).flatMap(Job.Status.init) else { return }
                counts[status] = $0.integer(1)
                bytes += Int($0.real(2) ?? 0)
            }
            return (counts, bytes)
        }
    }

    // MARK: Rows

    private static func job(_ id: String, in database: Database) throws -> Job? {
        var job: Job?
        try database.run("SELECT \(columns) FROM jobs WHERE id = ?", [.text(id)]) {
            job = Self.job($0)
        }
        return job
    }

    /// nil for a row that a later version has written.
    private static func job(_ row: Row) -> Job? {
        guard let id = row.text(0), let number = row.integer(1),
            let status = row.text(2).flatMap(Job.Status.init), let created = row.real(3),
            let order = row.text(11).flatMap({ value(Job.Order.self, $0) })
        else { return nil }
        var job = Job(
            id: id, order: order, created: created, cost: row.real(7) ?? 0, remixOf: row.text(14))
        job.number = number
        job.status = status
        (job.started, job.completed, job.expires) = (row.real(4), row.real(5), row.real(6))
        job.attempts = row.integer(8) ?? 0
        if let code = row.text(9) {
            job.failure = Job.Failure(code: code, message: row.text(10) ?? "")
        }
        job.report = row.text(12).flatMap { value(RunReport.self, $0) }
        job.fileBytes = row.integer(13)
        return job
    }

    private static func json(_ value: some Encodable) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(value), as: UTF8.self)
    }

    private static func value<Value: Decodable>(_ type: Value.Type, _ json: String) -> Value? {
        try? JSONDecoder().decode(type, from: Data(json.utf8))
    }
}
