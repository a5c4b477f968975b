// The rooms of ARCHITECTURE.md and the only imports allowed between them.

import FoundationEssentials
import Testing

private let root = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

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

private func text(_ path: String) throws -> String {
    let data = try #require(FileManager.default.contents(atPath: "\(root)/\(path)"))
    return String(decoding: data, as: UTF8.self)
}

/// Room → the rooms it may import: the table of ARCHITECTURE.md.
private func arrows() throws -> [String: Set<String>] {
    var arrows: [String: Set<String>] = [:]
    for line in try text("ARCHITECTURE.md").split(separator: "\n") {
        let cells = line.split(separator: "|").map { $0.trimmed }
        guard cells.count == 3, cells[0].hasPrefix("`"), cells[0].hasSuffix("`") else { continue }
        let room = String(cells[0].dropFirst().dropLast())
        switch cells[1] {
        case "–": arrows[room] = []
        case "everything": arrows[room] = Set(arrows.keys)
        default: arrows[room] = Set(cells[1].split(separator: ",").map { String($0.trimmed) })
        }
    }
    return arrows
}

/// What Package.swift declares of its targets.
private func targets() throws -> [String: (dependencies: Set<String>, products: Set<String>)] {
    let manifest = try text("Package.swift")
    let list = try #require(manifest.firstRange(of: "targets: [\n"))
    // Products of other packages have names of their own there: `let system = Target.Dependency.product(…)`.
    let shared = manifest.matches(of: /let (\w+) = Target\.Dependency\.product\(name: "(\w+)"/).map
    {
        (String($0.1), String($0.2))
    }
    var targets: [String: (dependencies: Set<String>, products: Set<String>)] = [:]
    for declaration in manifest[list.upperBound...].split(separator: "arget(") {
        guard let name = declaration.firstMatch(of: /name: "(\w+)"/)?.1 else { continue }
        let dependencies = declaration.firstMatch(of: /dependencies: \[([^\]]*)\]/)?.1 ?? ""
        var products: Set<String> = []
        for (variable, product) in shared where dependencies.contains(variable) {
            products.insert(product)
        }
        targets[String(name)] = (
            Set(dependencies.matches(of: /"(\w+)"/).map { String($0.1) }), products
        )
    }
    return targets
}

extension StringProtocol {
    fileprivate var trimmed: SubSequence {
        let isSpace = { (character: Character) in character == " " || character == "\n" }
        let start = firstIndex { !isSpace($0) } ?? endIndex
        let end = lastIndex { !isSpace($0) }.map { index(after: $0) } ?? start
        return self[start..<end]
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
        let (arrows, files, targets) = (try arrows(), sources(), try targets())
        #expect(arrows.count > 10 && files.count > 50)
        let products = targets.values.reduce(into: Set<String>()) { $0.formUnion($1.products) }
        #expect(products.isSuperset(of: ["ArgumentParser", "SystemPackage"]))
        for file in files {
            let allowed = try #require(arrows[file.room], "\(file.room) is no room")
            let declared = try #require(targets[file.room], "\(file.room) is no target")
            for line in file.lines {
                guard let module = importedModule(line), module != file.room else { continue }
                if arrows[module] != nil {
                    #expect(allowed.contains(module), "Sources/\(file.path) imports \(module)")
                } else if products.contains(module) {
                    #expect(
                        declared.products.contains(module),
                        "Sources/\(file.path) imports \(module), which its target lacks")
                }
            }
        }
    }

    @Test("Package.swift declares the arrows of ARCHITECTURE.md")
    func manifest() throws {
        let (arrows, targets) = (try arrows(), try targets())
        for (room, allowed) in arrows {
            let target = try #require(targets[room], "\(room) is no target")
            if room == "turbodiffusion" {
                #expect(target.dependencies.isSubset(of: allowed))
            } else {
                #expect(target.dependencies == allowed, "\(room)")
            }
        }
        for (name, target) in targets where arrows[name] == nil {
            #expect(name.hasSuffix("Tests"), "\(name) is not in the table of ARCHITECTURE.md")
            for room in target.dependencies { #expect(arrows[room] != nil, "\(name): \(room)") }
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
