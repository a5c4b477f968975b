/// Names of files, and what is refused before a run begins.

import Families
import FoundationEssentials
import Glibc
import Media
import Runs
import Testing

@testable import Delivery

@Suite struct OutputNameTests {
    @Test(
        "samples are numbered before the extension, whatever the folders are called",
        arguments: [
            ("v.mp4", "v_2.mp4"), ("res.v2/v.mp4", "res.v2/v_2.mp4"), ("./v.webm", "./v_2.webm"),
            ("frames/%04d.png", "frames/s2_%04d.png"), ("%d.png", "s2_%d.png"),
            ("out/", "out/s2_%04d.png"), ("res.v2/", "res.v2/s2_%04d.png"),
            ("a.b.gif", "a.b_2.gif"),
        ])
    func samples(path: String, name: String) {
        #expect(Outputs.name(path, ofSample: 2) == name)
    }

    @Test("one file, or one for each sample and a grid")
    func files() throws {
        let folder = try Folder()
        func files(_ samples: Int) throws -> [String] {
            try Outputs(
                of: Run(tinyRequest(samples: samples), nano()), path: folder / "v.mp4"
            ).files
        }
        #expect(try files(1) == [folder / "v.mp4"])
        #expect(try files(2) == [folder / "v_0.mp4", folder / "v_1.mp4", folder / "v.mp4"])
    }

    @Test("existing files are refused or replaced, or new ones are numbered")
    func existing() throws {
        let folder = try Folder()
        let one = try Run(tinyRequest(), nano())
        let two = try Run(tinyRequest(samples: 2), nano())
        folder.write("v.mp4")
        #expect(throws: OutputError.exists(path: folder / "v.mp4")) {
            try Outputs(of: one, path: folder / "v.mp4")
        }
        #expect(throws: OutputError.exists(path: folder / "v.mp4")) {
            try Outputs(of: two, path: folder / "v.mp4")
        }
        let replaced = try Outputs(of: one, path: folder / "v.mp4", existing: .replace)
        #expect(replaced.files == [folder / "v.mp4"])
        let second = try Outputs(of: one, path: folder / "v.mp4", existing: .number)
        #expect(second.files == [folder / "v-2.mp4"])
        folder.write("v-2_1.mp4")
        let third = try Outputs(of: two, path: folder / "v.mp4", existing: .number)
        #expect(third.path == folder / "v-3.mp4")
    }

    @Test("one picture of a sequence is enough to refuse it")
    func sequences() throws {
        let folder = try Folder()
        let run = try Run(tinyRequest(), nano())
        folder.write("readme.png")
        folder.write("s1_0001.png")
        _ = try Outputs(of: run, path: folder / "%04d.png")
        folder.write("0007.png")
        #expect(throws: OutputError.exists(path: folder / "%04d.png")) {
            try Outputs(of: run, path: folder / "%04d.png")
        }
        #expect(throws: OutputError.exists(path: folder.path + "/")) {
            try Outputs(of: run, path: folder.path + "/")
        }
    }
}

@Suite struct OutputCheckTests {
    private func check(
        _ folder: Folder, _ name: String, _ request: Request = tinyRequest(), crf: Int? = nil,
        metadata: String = "{}", save: RunOptions.Files = .init()
    ) async throws {
        try await Outputs(of: Run(request, nano()), path: folder / name, crf: crf)
            .check(metadata: metadata, save: save)
        #expect(folder.files.isEmpty, "a check leaves nothing behind")
    }

    @Test("names that no file can have, the names of samples and latents among them")
    func names() async throws {
        let folder = try Folder()
        let long = String(repeating: "x", count: 250)
        try await check(folder, "\(long).gif")
        for (name, samples) in [("\(long)xx.gif", 1), ("\(long).gif", 2), ("\(long)%04d.png", 1)] {
            await #expect(throws: MediaError.self, "\(name)") {
                try await check(folder, name, tinyRequest(samples: samples))
            }
        }
        await #expect(throws: MediaError.self) {
            try await check(
                folder, "v.gif", save: .init(latents: folder / "\(long).safetensors"))
        }
    }

    @Test("two results in one file, by whatever names")
    func twice() async throws {
        let folder = try Folder()
        symlink("v.safetensors", folder / "w.safetensors")
        let outputs = try Outputs(of: Run(tinyRequest(), nano()), path: folder / "v.gif")
        for text in ["v.safetensors", "w.safetensors", "./v.safetensors"] {
            await #expect(throws: OutputError.twice(path: folder / "v.safetensors")) {
                try await outputs.check(
                    metadata: "{}",
                    save: .init(text: folder / text, latents: folder / "v.safetensors"))
            }
        }
    }

    @Test("what a format cannot hold")
    func limits() async throws {
        let folder = try Folder()
        try await check(folder, "v.mp4", crf: 51)
        try await check(folder, "v.gif", crf: 99)
        try await check(folder, "v.png", tinyRequest(frames: 1))
        try await check(folder, "new/")
        var fast = tinyRequest()
        fast.framesPerSecond = 60
        var wide = tinyRequest(samples: 64)
        (wide.width, wide.height) = (2048, 2048)
        let refused: [(String, Request, Int?, String)] = [
            ("v.mp4", tinyRequest(), 52, "{}"), ("v.webm", tinyRequest(), 64, "{}"),
            ("v.png", tinyRequest(), nil, "{}"), ("v.gif", fast, nil, "{}"),
            ("v.webp", wide, nil, "{}"),
            ("v.mp4", tinyRequest(), nil, String(repeating: "x", count: 100_000)),
        ]
        for (name, request, crf, metadata) in refused {
            let error = await #expect(throws: OutputError.self) {
                try await check(folder, name, request, crf: crf, metadata: metadata)
            }
            guard case .limit? = error else {
                Issue.record("\(name): \(String(describing: error))")
                continue
            }
        }
    }

    @Test("folders that are missing, and names that are folders")
    func folders() async throws {
        let folder = try Folder()
        await #expect(throws: MediaError.noSuchFolder(path: folder / "no")) {
            try await check(folder, "no/v.mp4")
        }
        await #expect(throws: MediaError.noSuchFolder(path: folder / "no")) {
            try await check(folder, "v.mp4", save: .init(latents: folder / "no/l.safetensors"))
        }
        await #expect(throws: MediaError.self) { try await check(folder, "v.xyz") }
        try folder.make("v_1.mp4")
        await #expect(
            throws: MediaError.unwritable(path: folder / "v_1.mp4", reason: "it is a folder")
        ) {
            try await check(folder, "v.mp4", tinyRequest(samples: 2))
        }
        await #expect(throws: MediaError.self) {
            try await Outputs(
                of: Run(tinyRequest(samples: 2), nano()), path: folder / "v.mp4",
                existing: .replace
            ).check(metadata: "{}")
        }
    }

    @Test("saved results: a wrong ending, an existing file, one name twice")
    func saved() async throws {
        let folder = try Folder()
        try await check(folder, "v.mp4", save: .init(text: folder / "t.safetensors"))
        await #expect(throws: OutputError.suffix(path: folder / "t.pth", expected: ".safetensors"))
        {
            try await check(folder, "v.mp4", save: .init(text: folder / "t.pth"))
        }
        await #expect(throws: OutputError.twice(path: folder / "l.safetensors")) {
            try await check(
                folder, "v.mp4",
                save: .init(text: folder / "l.safetensors", latents: folder / "l.safetensors"))
        }
        folder.write("l.safetensors")
        await #expect(throws: OutputError.exists(path: folder / "l.safetensors")) {
            try await check(folder, "v.mp4", save: .init(latents: folder / "l.safetensors"))
        }
    }
}
