/// Sessions: what stays between requests, and what need not be done again.

import Catalog
import Devices
import Families
import FoundationEssentials
import Media
import Runs
import Sessions
import Synchronization
import Testing

private let projectFolder = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

private func nano() throws -> ModelSet {
    try Catalog.published.open(ModelChoice(projectFolder + "/Models/nano"))
}

private func tinyRequest(_ prompt: String = "a red cube spins on a green floor", seed: UInt64 = 5)
    -> Request
{
    Request(
        prompt: prompt, width: 64, height: 64, frames: 9, seed: seed,
        arithmetic: Arithmetic(attention: .sla, topK: 0.5))
}

/// A folder that goes with the test.
private final class Folder {
    let path: String
    init() throws {
        path =
            FileManager.default.temporaryDirectory.path
            + "/sessions-\(UInt64.random(in: 0...UInt64.max))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }
    func remove() { try? FileManager.default.removeItem(atPath: path) }
    var files: [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted()
    }
}

private final class Told: Sendable {
    private let list = Mutex<[SessionEvent]>([])
    func add(_ event: SessionEvent) { list.withLock { $0.append(event) } }
    var events: [SessionEvent] { list.withLock { $0 } }
    var started: [String] {
        events.compactMap {
            if case .run(.stageStarted(let stage)) = $0 { stage.title } else { nil }
        }
    }
    var fractions: [Double] {
        events.compactMap { if case .progress(let fraction) = $0 { fraction } else { nil } }
    }
    var previews: [(DenoisedStep, RGBImage)] {
        events.compactMap {
            if case .preview(let step, let image) = $0 { (step, image) } else { nil }
        }
    }
}

private func session(_ folder: Folder, change: (inout SessionOptions) -> Void = { _ in }) -> Session
{
    var options = SessionOptions()
    options.machines = Machines(device: .cpu)
    options.embeddings = EmbeddingCache(folder: folder.path + "/embeddings")
    change(&options)
    return Session(options)
}

@Suite(.serialized)
struct SessionTests {
    @Test(
        "The second request loads nothing, a known prompt is not encoded again, and the frames are the same"
    )
    func loaded() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let session = session(folder)
        let first = Told()
        let run = try await session.prepare(tinyRequest(), try nano())
        #expect(run.plan.peakBytes > 0)
        #expect(run.seconds > 0)
        let made = try await session.make(run, to: folder.path + "/a.mp4", events: first.add)
        #expect(made.files == [folder.path + "/a.mp4"])
        #expect(first.started.contains("load transformer"))
        #expect(first.started.contains("text encoder"))
        #expect(
            Set(session.residents.map(\.part)) == [.textEncoder, .transformer, .decoder])

        let second = Told()
        let again = try await session.prepare(tinyRequest(), try nano())
        _ = try await session.make(again, to: folder.path + "/b.mp4", events: second.add)
        #expect(!second.started.contains { $0.hasPrefix("load") || $0 == "text encoder" })
        let videos = try ["a", "b"].map {
            try Data(contentsOf: URL(filePath: folder.path + "/\($0).mp4"))
        }
        #expect(videos[0] == videos[1])

        // Another prompt needs the encoder, which is still there.
        let third = Told()
        let other = try await session.prepare(tinyRequest("a blue sphere"), try nano())
        _ = try await session.make(other, to: folder.path + "/c.mp4", events: third.add)
        #expect(third.started.contains("text encoder"))
        #expect(!third.started.contains { $0.hasPrefix("load") })
    }

    @Test("A group makes the same file, and one that cannot be says so when it is asked")
    func group() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        for (name, group) in [("one", nil), ("two", DeviceGroup("cpu,cpu"))] {
            let session = session(folder) {
                if let group { $0.machines = Machines(group: group) }
            }
            #expect(try await session.open().count == (group == nil ? 1 : 2))
            let run = try await session.prepare(tinyRequest(), try nano())
            #expect(run.plan.devices == (group == nil ? 1 : 2))
            _ = try await session.make(run, to: folder.path + "/\(name).mp4")
        }
        let videos = try ["one", "two"].map {
            try Data(contentsOf: URL(filePath: folder.path + "/\($0).mp4"))
        }
        #expect(videos[0] == videos[1])
        let mixed = session(folder) {
            $0.machines = Machines(group: DeviceGroup("cpu,cuda:0"))
        }
        await #expect(throws: DeviceGroupError.mixed) { try await mixed.open() }
    }

    @Test("A damaged embedding is made again")
    func damagedEmbedding() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let session = session(folder)
        let run = try await session.prepare(tinyRequest(), try nano())
        _ = try await session.make(run, to: folder.path + "/a.mp4")
        let cache = folder.path + "/embeddings"
        let name = try #require(try FileManager.default.contentsOfDirectory(atPath: cache).first)
        try Data("rubbish".utf8).write(to: URL(filePath: cache + "/" + name))
        let told = Told()
        _ = try await session.make(run, to: folder.path + "/b.mp4", events: told.add)
        #expect(told.started.contains("text encoder"))
        let videos = try ["a", "b"].map {
            try Data(contentsOf: URL(filePath: folder.path + "/\($0).mp4"))
        }
        #expect(videos[0] == videos[1])
    }

    @Test("Progress rises to 1, and each step has a preview of its own, a pixel for each latent")
    func progress() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let told = Told()
        let session = session(folder)
        let run = try await session.prepare(tinyRequest(), try nano())
        _ = try await session.make(run, to: folder.path + "/a.mp4", events: told.add)
        let fractions = told.fractions
        #expect(fractions == fractions.sorted())
        #expect(fractions.allSatisfy { (0...1).contains($0) })
        #expect(fractions.last == 1)
        let previews = told.previews
        #expect(previews.map(\.0.number) == [1, 2, 3, 4])
        #expect(previews.allSatisfy { $0.1.width == 8 && $0.1.height == 8 })
        #expect(Set(previews.map(\.1.pixels)).count == 4)
    }

    @Test("The last preview has the colours of the video")
    func previewColours() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let told = Told()
        let session = session(folder)
        var request = tinyRequest("A small red sphere bounces on a checkered floor.")
        (request.width, request.height, request.frames) = (256, 144, 9)
        let run = try await session.prepare(request, try nano())
        _ = try await session.make(run, to: folder.path + "/a.mp4", events: told.add)
        let preview = try #require(told.previews.last?.1)
        let video = try await readVideo(path: folder.path + "/a.mp4")
        // Latent frame 1 stands for frames 1 to 4.
        let frame = 3 * video.width * video.height
        let picture = resize(
            RGBImage(
                width: video.width, height: video.height,
                pixels: Array(video.pixels[2 * frame..<3 * frame])), width: 32, height: 18)
        let errors = zip(preview.pixels, picture.pixels).map { Double(Int($0) - Int($1)) }
        let error = (errors.reduce(0) { $0 + $1 * $1 } / Double(errors.count)).squareRoot()
        let mean = picture.pixels.reduce(0.0) { $0 + Double($1) } / Double(picture.pixels.count)
        let spread =
            (picture.pixels.reduce(0.0) { $0 + (Double($1) - mean) * (Double($1) - mean) }
            / Double(picture.pixels.count)).squareRoot()
        // A map that knows nothing would be wrong by the spread itself.
        #expect(error < 0.7 * spread, "\(error) of \(spread)")
    }

    @Test("A memory limit sends away what was used least recently, and frames do not depend on it")
    func memory() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let roomy = session(folder)
        let run = try await roomy.prepare(tinyRequest(), try nano())
        _ = try await roomy.make(run, to: folder.path + "/a.mp4")
        #expect(roomy.residents.count == 3)

        // Another arithmetic is another transformer: with room both stay.
        var exact = tinyRequest()
        exact.arithmetic.precision = .f32
        let other = try await roomy.prepare(exact, try nano())
        _ = try await roomy.make(other, to: folder.path + "/b.mp4")
        #expect(roomy.residents.filter { $0.part == .transformer }.count == 2)

        let tight = session(folder) {
            $0.memoryLimit = max(run.plan.peakBytes, other.plan.peakBytes) + (1 << 20)
        }
        _ = try await tight.make(
            try await tight.prepare(tinyRequest(), try nano()), to: folder.path + "/c.mp4")
        _ = try await tight.make(
            try await tight.prepare(exact, try nano()), to: folder.path + "/d.mp4")
        let left = tight.residents
        #expect(left.filter { $0.part == .transformer }.count <= 1)
        for (a, b) in [("a", "c"), ("b", "d")] {
            let videos = try [a, b].map {
                try Data(contentsOf: URL(filePath: folder.path + "/\($0).mp4"))
            }
            #expect(videos[0] == videos[1])
        }
    }

    @Test("Models leave after an idle time, and when they are told to")
    func idle() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let session = session(folder) { $0.keepLoaded = .milliseconds(50) }
        let run = try await session.prepare(tinyRequest(), try nano())
        _ = try await session.make(run, to: folder.path + "/a.mp4")
        for _ in 0..<400 where !session.residents.isEmpty {
            try await Task.sleep(for: .milliseconds(25))
        }
        #expect(session.residents.isEmpty)
        _ = try await session.make(run, to: folder.path + "/b.mp4")
        await session.unload()
        #expect(session.residents.isEmpty)
    }

    @Test("A cancelled run leaves no file, keeps the models, and the next one is as good as new")
    func cancelling() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let session = session(folder)
        var long = tinyRequest()
        long.sampling = .flow(.init(.euler, steps: 500, guidance: 1))
        let slow = try await session.prepare(long, try nano())
        let quick = try await session.prepare(tinyRequest(), try nano())
        let told = Told()
        let (first, second) = (folder.path + "/a.mp4", folder.path + "/w.mp4")
        let task = Task {
            try await session.make(slow, to: first) { event in
                told.add(event)
                if case .run(.stageStarted(.step(2, _, _))) = event {
                    withUnsafeCurrentTask { $0?.cancel() }
                }
            }
        }
        // One that waits may be cancelled before its turn.
        let waiting = Task { try await session.make(quick, to: second) }
        waiting.cancel()
        await #expect(throws: CancellationError.self) { _ = try await waiting.value }
        while !told.started.contains("step 2/500") { try await Task.sleep(for: .milliseconds(5)) }
        task.cancel()
        await #expect(throws: CancellationError.self) { _ = try await task.value }
        #expect(folder.files == ["embeddings"])
        #expect(session.residents.contains { $0.part == .transformer })
        _ = try await session.make(quick, to: folder.path + "/b.mp4")
        #expect(folder.files == ["b.mp4", "embeddings"])
    }

    @Test("What is wrong is found before anything is loaded")
    func refusals() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        let session = session(folder)
        var request = tinyRequest()
        request.width = 100
        await #expect(throws: RequestError.self) {
            _ = try await session.prepare(request, try nano())
        }
        request = tinyRequest()
        request.loras = [RequestedLoRA(folder.path + "/none.safetensors")]
        await #expect(throws: SessionError.self) {
            _ = try await session.prepare(request, try nano())
        }
        #expect(session.residents.isEmpty)
    }
}

@Suite struct EmbeddingCacheTests {
    @Test("The embeddings that were used least recently go when there are too many")
    func bounded() async throws {
        let folder = try Folder()
        defer { folder.remove() }
        var size = 0
        let session = session(folder) {
            $0.embeddings = EmbeddingCache(folder: folder.path + "/embeddings", limit: 8 << 10)
        }
        for index in 0..<6 {
            let run = try await session.prepare(tinyRequest("prompt number \(index)"), try nano())
            _ = try await session.make(run, to: folder.path + "/\(index).mp4")
        }
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.path + "/embeddings")
        for name in names {
            size += try Data(contentsOf: URL(filePath: folder.path + "/embeddings/" + name)).count
        }
        #expect(names.count < 6)
        // One may be there beyond the limit: the last that was written.
        #expect(size <= 16 << 10)
    }
}
