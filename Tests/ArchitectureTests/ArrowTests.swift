// The rooms of ARCHITECTURE.md and the only imports allowed between them.

import FoundationEssentials
import Testing

private let root = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

/// Room → the rooms it may import.
private let arrows: [String: Set<String>] = [
    "Tensors": [],
    "CPU": ["Tensors", "CDrivers"],
    "CUDA": ["Tensors", "CDrivers", "CUDASources"],
    "Checkpoints": ["Tensors"],
    "Tokenizers": [],
    "Models": ["Tensors", "Checkpoints"],
    "Diffusion": ["Tensors"],
    "Media": [],
    "Pipelines": ["Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media"],
    "Verification": [
        "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media", "Pipelines",
    ],
    "Quality": [
        "Tensors", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media", "Pipelines",
    ],
    "turbodiffusion": [
        "Tensors", "CPU", "CUDA", "Checkpoints", "Tokenizers", "Models", "Diffusion", "Media",
        "Pipelines", "Verification", "Quality",
    ],
    "CDrivers": [],
    "CUDASources": [],
]

private struct SourceFile {
    let room: String
    let path: String
    let text: String
    var lines: [Substring] { text.split(separator: "\n", omittingEmptySubsequences: false) }
    var isSwift: Bool { path.hasSuffix(".swift") }
}

private func sources(below folder: String = "") -> [SourceFile] {
    let manager = FileManager.default
    let names = (try? manager.contentsOfDirectory(atPath: "\(root)/Sources/\(folder)")) ?? []
    return names.sorted().flatMap { name -> [SourceFile] in
        let path = folder.isEmpty ? name : "\(folder)/\(name)"
        if [".swift", ".c", ".h", ".cu", ".cuh"].contains(where: name.hasSuffix),
            let data = manager.contents(atPath: "\(root)/Sources/\(path)")
        {
            return [
                SourceFile(
                    room: String(path.prefix { $0 != "/" }), path: path,
                    text: String(decoding: data, as: UTF8.self))
            ]
        }
        return name.contains(".") ? [] : sources(below: path)
    }
}

/// The module of an import line, with or without attributes and access levels.
private func importedModule(_ line: Substring) -> String? {
    let words = line.split(separator: " ")
    guard let index = words.firstIndex(of: "import"), index + 1 < words.count,
        words[..<index].allSatisfy({
            $0.hasPrefix("@") || $0.hasSuffix(")")
                || ["public", "internal", "private", "package", "fileprivate"].contains($0)
        })
    else { return nil }
    return words[index + 1].split(separator: ".").first.map(String.init)
}

@Suite("Architecture")
struct ArrowTests {
    @Test("rooms import only what the arrows allow")
    func arrowsHold() throws {
        let files = sources()
        #expect(files.count > 50)
        for file in files {
            let allowed = try #require(arrows[file.room], "\(file.room) is no room")
            for line in file.lines {
                guard let module = importedModule(line), arrows[module] != nil else { continue }
                #expect(
                    allowed.contains(module) || module == file.room,
                    "Sources/\(file.path) imports \(module)")
            }
        }
    }

    @Test("no file imports Foundation, which weighs more than the program")
    func noFoundation() {
        for file in sources() where file.isSwift {
            #expect(
                !file.lines.contains { importedModule($0) == "Foundation" },
                "Sources/\(file.path)")
        }
    }

    @Test("files stay under 600 lines and begin by saying what they are")
    func files() {
        for file in sources() {
            #expect(file.lines.count <= 600, "Sources/\(file.path): \(file.lines.count) lines")
            #expect(
                file.text.hasPrefix("//") || file.text.hasPrefix("/*"),
                "Sources/\(file.path): the first line is no comment")
        }
    }

    @Test("import lines are recognised")
    func importLines() {
        #expect(importedModule("import Tensors") == "Tensors")
        #expect(importedModule("public import Tensors") == "Tensors")
        #expect(importedModule("@_spi(_Unicode) import Swift") == "Swift")
        #expect(importedModule("    // we import Tensors") == nil)
    }
}
