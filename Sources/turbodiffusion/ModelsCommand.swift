/// `turbodiffusion models`: what exists, what it weighs, what runs here, what is here.

import ArgumentParser
import Catalog
import Devices
import Downloads
import Families
import Ground
import Runs
import SystemPackage
import Terminal

struct ModelsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "models",
        abstract: "List the models: size, licence, what runs here, what is on this machine.",
        discussion: """
            'get' downloads one by its name, 'remove' removes it. Models of your own are added to \
            ~/.config/turbodiffusion/config.toml: see docs/models.md.
            """)

    @Option(
        help: "For which device: auto, cpu, cuda or cuda:N.",
        completion: .list(["auto", "cpu", "cuda", "cuda:0"]))
    var device = DeviceChoice.usual

    @Flag(help: "Print JSON, one model a line.")
    var json = false

    /// One model of the list.
    private struct Row: Encodable {
        var name: String
        var takesPicture: Bool
        var isRecipe: Bool
        var licence: String?
        /// Of all files: those that are here, and what the others will be.
        var bytes: Int?
        var here: Bool
        var missing: [String]
        /// Device memory of one video with the model's defaults, after fitting; nil where it cannot be planned.
        var deviceBytes: Int?
        /// "fits", "fitted", "too small"; nil where it cannot be planned.
        var runs: String?
        var paths: [String: String]
    }

    func run() async throws {
        let files = try ModelFiles()
        let free = device.isGPU ? device.freeMemory : HostMemory.current.available
        let all = files.catalog.entries + files.catalog.recipes
        let rows = all.map { row($0, files, free) }
        if json {
            for row in rows { Output.json(row) }
            return
        }
        var table = [["model", "makes", "size", "here", "on this machine", "licence"]]
        for row in rows {
            let memory = row.deviceBytes.map { describe(bytes: $0) }
            let runs =
                switch (row.runs, memory) {
                case (let runs?, let memory?): "\(runs), \(memory)"
                default: "-"
                }
            table.append([
                row.name + (row.isRecipe ? " (recipe, untested)" : ""),
                row.takesPicture ? "picture to video" : "text to video",
                row.bytes.map { describe(bytes: $0) } ?? "?",
                row.here
                    ? "yes"
                    : row.paths.isEmpty
                        ? "no"
                        : "\(row.paths.count) of \(row.paths.count + row.missing.count) files",
                runs, row.licence ?? "?",
            ])
        }
        Output.line(Output.table(table))
        Output.line("folder: \(files.folder.path.string.printable)")
        Output.line(
            "turbodiffusion get NAME downloads one; get --recipe NAME makes one; remove NAME removes one"
        )
    }

    private func row(_ entry: Catalog.Entry, _ files: ModelFiles, _ free: Int?) -> Row {
        let paths = files.paths(entry)
        let missing = files.missing(entry)
        var row = Row(
            name: entry.name, takesPicture: entry.family.conditioning == .firstFrame,
            isRecipe: entry.recipe != nil, licence: entry.licence, here: missing == [],
            missing: (missing ?? []).map(\.rawValue), paths: [:])
        guard let paths else { return row }
        row.takesPicture = paths.family.conditioning == .firstFrame
        for file in ModelFile.allCases {
            if let path = paths[file], FilePath(path).exists { row.paths[file.rawValue] = path }
        }
        let planned = PlannedModel(paths, needing: ModelFile.allCases, in: files.catalog)
        row.bytes = bytes(entry, paths, planned, missing ?? [])
        if let plan = plan(paths, planned) {
            row.deviceBytes = plan.peakBytes
            if let free {
                let usable = device.isGPU ? max(0, free - (512 << 20)) : free
                if plan.peakBytes <= usable {
                    row.runs = "fits"
                } else if device.isGPU, let fitted = try? plan.fitted(to: usable) {
                    row.runs = "fitted"
                    row.deviceBytes = fitted.peakBytes
                } else {
                    row.runs = "too small"
                }
            }
        }
        return row
    }

    /// nil where a file that is not here is of a kind whose size is not known before the hub is asked.
    private func bytes(
        _ entry: Catalog.Entry, _ paths: ModelSet, _ planned: PlannedModel?, _ missing: [ModelFile]
    ) -> Int? {
        var sum = 0
        for file in ModelFile.allCases {
            guard let path = paths[file] else { continue }
            if !missing.contains(file) {
                sum += Self.size(FilePath(path))
                continue
            }
            if case .hub(let published)? = entry.sources[file], published.isIndex { return nil }
            guard let planned else { return nil }
            sum += planned.byteCount(file)
        }
        return sum
    }

    /// Of a file, of all files of a folder, or of the pieces that an index names.
    private static func size(_ path: FilePath) -> Int {
        if path.isFolder {
            return ((try? path.fileNames()) ?? []).reduce(0) {
                $0 + (path.appending($1).fileSize ?? 0)
            }
        }
        guard path.string.hasSuffix(".index.json"), let bytes = try? path.contents() else {
            return path.fileSize ?? 0
        }
        return (Catalog.pieceNames(index: bytes) ?? []).reduce(path.fileSize ?? 0) {
            $0 + (path.folder.appending($1).fileSize ?? 0)
        }
    }

    /// One video with the model's defaults; nil where files that are here are no such model.
    private func plan(_ models: ModelSet, _ planned: PlannedModel?) -> Plan? {
        var request = Request(".", for: models.family)
        if models.family.conditioning == .firstFrame { request.image = "a picture" }
        if planned != nil { request.arithmetic.linears = .int8 }
        let source: any ModelSource & Sendable = planned ?? models
        return (try? Run(request, source, RunOptions())).flatMap { try? Plan($0) }
    }
}
