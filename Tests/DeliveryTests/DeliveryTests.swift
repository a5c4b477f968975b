/// Frames → files: samples, the grid, and what is left when a run fails.

import CPU
import Families
import FoundationEssentials
import Media
import Runs
import Synchronization
import Testing

@testable import Delivery

@Suite struct GridTests {
    @Test("pictures row by row; unused places are black in every format")
    func joined() {
        // Three pictures of 2x1 in a grid of 2x2.
        let pictures: [[UInt8]] = [
            [1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26],
        ]
        #expect(
            Grid.joined(pictures, columns: 2, rows: 2, width: 2, height: 1, .rgb24) == [
                1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16,
                21, 22, 23, 24, 25, 26, 0, 0, 0, 0, 0, 0,
            ])
        // Of 2x2 in NV12: four of luma, two of chroma.
        let nv12: [[UInt8]] = [
            [1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26],
        ]
        #expect(
            Grid.joined(nv12, columns: 2, rows: 2, width: 2, height: 2, .nv12) == [
                1, 2, 11, 12, 3, 4, 13, 14, 21, 22, 16, 16, 23, 24, 16, 16,
                5, 6, 15, 16, 25, 26, 128, 128,
            ])
    }

    @Test("columns and rows", arguments: [(2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (64, 8, 8)])
    func shape(samples: Int, columns: Int, rows: Int) throws {
        let outputs = try Outputs(
            of: Run(tinyRequest(samples: samples), nano()), path: "/nowhere/v.mp4")
        #expect(outputs.grid == (columns, rows))
    }
}

@Suite struct DeliveryTests {
    private func deliver(
        _ request: Request, to path: String, _ options: RunOptions = RunOptions(),
        watch: WriterWatch = WriterWatch()
    ) async throws -> (files: [String], report: RunReport) {
        let models = try nano()
        let run = try Run(request, models, options)
        let outputs = try Outputs(of: run, path: path)
        let stored = try StoredRun(run, of: models, program: "test 1")
        try await outputs.check(metadata: stored.json)
        let report = try await engine().deliver(run, to: outputs, stored: stored, watch: watch)
        return (outputs.files, report)
    }

    @Test("samples and their grid, in a new folder; each file says which sample it is")
    func samples() async throws {
        let folder = try Folder()
        let open = Mutex((now: 0, most: 0))
        let watch = WriterWatch { _ in
            open.withLock {
                $0.now += 1
                $0.most = max($0.most, $0.now)
            }
        } written: { _ in
            open.withLock { $0.now -= 1 }
        }
        let (files, report) = try await deliver(
            tinyRequest(samples: 4, frames: 5), to: folder / "out v.2/", watch: watch)
        #expect(files.count == 5 && folder.files.count == 1 + 5 * 5)
        #expect(report.stages.last?.stage == .deliver)
        #expect(open.withLock { $0.now } == 0)
        #expect(open.withLock { $0.most } <= 3, "encoders end when their samples are done")

        let grid = try await readVideo(path: folder / "out v.2/%04d.png")
        #expect((grid.width, grid.height, grid.count) == (64, 64, 5))
        for sample in 0..<4 {
            let video = try await readVideo(path: folder / "out v.2/s\(sample)_%04d.png")
            #expect(video.count == 5)
            let (x, y) = (sample % 2 * 32, sample / 2 * 32)
            let isEqual = (0..<5).allSatisfy { frame in
                (0..<32).allSatisfy { row in
                    let here = (frame * 32 + row) * 32 * 3
                    let there = ((frame * 64 + y + row) * 64 + x) * 3
                    return video.pixels[here..<here + 96] == grid.pixels[there..<there + 96]
                }
            }
            #expect(isEqual, "sample \(sample)")
        }
        func stored(_ name: String) async throws -> StoredRun {
            let text = try #require(try await readMetadata(path: folder / "out v.2/\(name)"))
            return try StoredRun(json: text, path: name)
        }
        #expect(try await stored("s3_0001.png").sample == 3)
        #expect(try await stored("0001.png").sample == nil)
    }

    @Test("a run from latents has as many samples and frames as they have")
    func fromLatents() async throws {
        let folder = try Folder()
        var first = RunOptions()
        first.save.latents = folder / "l.safetensors"
        _ = try await deliver(tinyRequest(samples: 2), to: folder / "a.gif", first)
        var second = RunOptions()
        second.start.latents = folder / "l.safetensors"
        // The request asks for another number of frames and of samples; what is stored is what is made.
        let found = try Run(tinyRequest(frames: 33), nano(), second).request
        #expect(found == tinyRequest(samples: 2))
        let (files, _) = try await deliver(tinyRequest(frames: 33), to: folder / "b.gif", second)
        #expect(files == [folder / "b_0.gif", folder / "b_1.gif", folder / "b.gif"])
        for name in ["", "_0", "_1"] {
            let a = try await readVideo(path: folder / "a\(name).gif")
            #expect(try await readVideo(path: folder / "b\(name).gif").pixels == a.pixels)
        }
    }

    @Test(
        "a run that ends with its latents takes no decoder and makes no video, and says what it wrote"
    )
    func onlyLatents() async throws {
        let folder = try Folder()
        var options = RunOptions()
        options.save = .init(text: folder / "t.safetensors", latents: folder / "l.safetensors")
        options.makesFrames = false
        let written = Mutex<[String]>([])
        let (files, report) = try await deliver(
            tinyRequest(samples: 2), to: "/nowhere/a.mp4", options,
            watch: WriterWatch(written: { path in written.withLock { $0.append(path) } }))
        #expect(files == [] && folder.files == ["l.safetensors", "t.safetensors"])
        #expect(written.withLock { $0 } == [folder / "t.safetensors", folder / "l.safetensors"])
        #expect(!report.stages.map(\.stage).contains(.load(.decoder)))
        // Nothing else would come of the run.
        options.save.latents = folder / "gone/l.safetensors"
        await #expect(throws: (any Error).self) {
            try await deliver(tinyRequest(), to: "/nowhere/a.mp4", options)
        }
    }

    @Test("latents whose name another run has taken get a number, unless files are replaced")
    func numberedLatents() async throws {
        let folder = try Folder()
        let taken = folder.write("l.safetensors", [7])
        var options = RunOptions()
        options.save.latents = taken
        options.makesFrames = false
        options.replacesSaved = false
        let written = Mutex<[String]>([])
        let watch = WriterWatch(written: { path in written.withLock { $0.append(path) } })
        _ = try await deliver(tinyRequest(), to: "/nowhere/a.mp4", options, watch: watch)
        #expect(written.withLock { $0 } == [folder / "l-2.safetensors"])
        #expect(FileManager.default.contents(atPath: taken) == Data([7]))
        options.replacesSaved = true
        _ = try await deliver(tinyRequest(), to: "/nowhere/a.mp4", options)
        #expect(folder.files == ["l-2.safetensors", "l.safetensors"])
        #expect(FileManager.default.contents(atPath: taken) != Data([7]))
    }

    @Test("latents that cannot be written after all do not cost the video")
    func unwrittenLatents() async throws {
        let folder = try Folder()
        var options = RunOptions()
        options.save.latents = folder / "gone/l.safetensors"
        _ = try await deliver(tinyRequest(), to: folder / "a.gif", options)
        #expect(folder.files == ["a.gif"])
    }

    @Test("a run that fails leaves no file and no folder")
    func failure() async throws {
        let folder = try Folder()
        var options = RunOptions()
        options.start.text = folder.write("broken.safetensors")
        await #expect(throws: (any Error).self) {
            try await deliver(tinyRequest(), to: folder / "out/", options)
        }
        #expect(folder.files == ["broken.safetensors"])
    }
}
