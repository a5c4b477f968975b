/// The queue: on the disk, and in order.

import FoundationEssentials
import Jobs
import Runs
import Testing

private func order(_ prompt: String = "a") -> Job.Order {
    Job.Order(model: "nano", request: Request(prompt: prompt, width: 64, height: 64, frames: 9))
}

private final class Folder {
    let path: String
    init() throws {
        path =
            FileManager.default.temporaryDirectory.path
            + "/jobs-\(UInt64.random(in: 0...UInt64.max))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    func remove() { try? FileManager.default.removeItem(atPath: path) }
    func store() throws -> JobStore { try JobStore(path: path + "/jobs.sqlite") }
}

@Suite struct JobStoreTests {
    @Test("A job goes its way, and every state of it is there for the next process")
    func states() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        let job = try #require(
            try store.add(Job(order: order("red 'quotes' \u{0} 球"), created: 10, cost: 2), limit: 5)
        )
        #expect(job.number == 1)
        #expect(job.status == .queued)
        let begun = try #require(try store.begin(job.id, at: 11))
        #expect(begun.status == .inProgress && begun.started == 11 && begun.attempts == 1)
        // Nobody takes it twice.
        #expect(try store.begin(job.id, at: 12) == nil)
        let report = RunReport(device: "CPU", stages: [], totalSeconds: 1.5, hostPeakBytes: 7)
        let done = try #require(
            try store.complete(job.id, at: 13, expires: 99, report: report, fileBytes: 1234))
        #expect(done.status == .completed && done.report == report && done.fileBytes == 1234)
        // What is over stays as it is.
        #expect(try store.cancel(job.id, at: 14, expires: 99) == nil)
        #expect(try store.fail(job.id, at: 14, expires: 99, .init(code: "x", message: "y")) == nil)
        #expect(try store.complete(job.id, at: 14, expires: 99, report: nil, fileBytes: 1) == nil)
        #expect(try folder.store().job(job.id) == done)
        #expect(try store.remove(job.id))
        #expect(try !store.remove(job.id))
        #expect(try store.job(job.id) == nil)
    }

    @Test(
        "An interrupted job waits again at its old place, with its attempt counted; one that was put back is not"
    )
    func requeueing() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        let jobs = try (0..<3).map {
            try #require(try store.add(Job(order: order(), created: Double($0), cost: 1), limit: 5))
        }
        _ = try store.begin(jobs[0].id, at: 5)
        #expect(try store.requeue(interrupted: jobs[0].id)?.attempts == 1)
        _ = try store.begin(jobs[0].id, at: 5)
        #expect(try store.requeue(jobs[0].id)?.attempts == 1)
        #expect(try store.jobs([.queued]).map(\.id) == jobs.map(\.id))
    }

    @Test("A full queue takes no more until one leaves")
    func limit() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        let first = try #require(try store.add(Job(order: order(), created: 1, cost: 1), limit: 2))
        #expect(try store.add(Job(order: order(), created: 1, cost: 1), limit: 2) != nil)
        #expect(try store.add(Job(order: order(), created: 1, cost: 1), limit: 2) == nil)
        _ = try store.begin(first.id, at: 2)
        #expect(try store.add(Job(order: order(), created: 1, cost: 1), limit: 2) != nil)
    }

    @Test("The same key answers with the same job, and never two")
    func idempotency() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        #expect(try store.known(key: "k", hash: "h") == nil)
        let job = try #require(
            try store.add(Job(order: order(), created: 1, cost: 1), limit: 9, key: ("k", "h")))
        #expect(try store.known(key: "k", hash: "h") == .same(job))
        #expect(try store.known(key: "k", hash: "other") == .other)
        #expect(throws: DatabaseError.self) {
            _ = try store.add(Job(order: order(), created: 1, cost: 1), limit: 9, key: ("k", "h"))
        }
        #expect(try store.jobs([.queued]).count == 1)
    }

    @Test("Pages in both directions hold every job once")
    func pages() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        let ids = try (0..<7).map {
            try #require(try store.add(Job(order: order(), created: Double($0), cost: 1), limit: 9))
                .id
        }
        for newestFirst in [false, true] {
            var (found, after): ([String], String?) = ([], nil)
            while true {
                let page = try #require(
                    try store.list(after: after, limit: 3, newestFirst: newestFirst))
                found += page.jobs.map(\.id)
                after = page.jobs.last?.id
                #expect(page.hasMore == (found.count < 7))
                if !page.hasMore { break }
            }
            #expect(found == (newestFirst ? ids.reversed() : ids))
        }
        #expect(try store.list(after: "video_none", limit: 3, newestFirst: true) == nil)
    }

    @Test("Videos go when their time has come, and the oldest beyond the disk's limit")
    func expiry() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        var ids: [String] = []
        for index in 0..<4 {
            let job = try #require(
                try store.add(Job(order: order(), created: 1, cost: 1), limit: 9))
            _ = try store.begin(job.id, at: 1)
            _ = try store.complete(
                job.id, at: 2, expires: index == 1 ? 50 : 1000, report: nil, fileBytes: 100)
            ids.append(job.id)
        }
        #expect(try store.expired(at: 10, keeping: 1000).isEmpty)
        #expect(try store.expired(at: 50, keeping: 1000).map(\.id) == [ids[1]])
        #expect(try store.expired(at: 50, keeping: 250).map(\.id) == [ids[1], ids[0]])
        #expect(try store.counts().fileBytes == 400)
    }

    @Test("Only ids that the service has drawn have their form")
    func ids() {
        #expect(Job.isID(Job.newID()))
        #expect(Job.newID() != Job.newID())
        for text in [
            "", "video_", "../../etc/passwd", "video_" + String(repeating: "g", count: 32),
            "video_" + String(repeating: "a", count: 31),
            "video_/" + String(repeating: "a", count: 31),
        ] {
            #expect(!Job.isID(text))
        }
    }
}

@Suite struct FairOrderTests {
    private func job(_ number: Int, created: Double, cost: Double, in store: JobStore) throws -> Job
    {
        try #require(
            try store.add(Job(order: order("\(number)"), created: created, cost: cost), limit: 99))
    }

    @Test("Equal jobs go in the order in which they came, whatever was learned between them")
    func equal() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        var fair = FairOrder(secondsPerCost: 3)
        var ids: [String] = []
        for index in 0..<20 {
            // A clock that is set back changes nothing.
            let job = try job(index, created: 100 - Double(index), cost: 1, in: store)
            ids.append(job.id)
            fair.add(job)
            fair.learn(seconds: Double(20 - index), cost: 1)
        }
        #expect(fair.countAhead(of: ids[7], at: 200) == 7)
        var found: [String] = []
        while let next = fair.next(at: 200) { found.append(next) }
        #expect(found == ids)
    }

    @Test(
        "A short job overtakes a long one, and the long one's turn comes though short ones keep coming"
    )
    func shortAndLong() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        var fair = FairOrder(secondsPerCost: 1)
        let long = try job(0, created: 0, cost: 100, in: store)
        let short = try job(1, created: 1, cost: 1, in: store)
        fair.add(long)
        fair.add(short)
        #expect(fair.next(at: 3) == short.id)
        var time = 4.0
        var number = 2
        while fair.contains(long.id) {
            fair.add(try job(number, created: time - 1, cost: 1, in: store))
            _ = fair.next(at: time)
            time += 1
            number += 1
            try #require(time < 200)
        }
        #expect(time > 50)
    }

    @Test("What leaves is gone")
    func leaving() throws {
        let folder = try Folder()
        defer { folder.remove() }
        let store = try folder.store()
        var fair = FairOrder(secondsPerCost: 1)
        let jobs = try (0..<3).map { try job($0, created: 0, cost: 2, in: store) }
        for job in jobs { fair.add(job) }
        fair.add(jobs[0])
        #expect(fair.count == 3)
        #expect(fair.seconds == 6)
        fair.remove(jobs[1].id)
        #expect(fair.countAhead(of: jobs[1].id, at: 1) == nil)
        #expect(
            [fair.next(at: 1), fair.next(at: 1), fair.next(at: 1)] == [jobs[0].id, jobs[2].id, nil])
    }
}
