/// `turbodiffusion get`: a model by its name, from where it is published.

import ArgumentParser
import Catalog
import Checkpoints
import Downloads
import Families
import Glibc
import Ground
import Synchronization
import SystemPackage
import Terminal

struct GetCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "get",
        abstract: "Download a model by its name, or make it by a recipe.",
        discussion: """
            What is on this machine already is used and not downloaded: earlier downloads, Hugging Face's cache, \
            ComfyUI's models, the original's checkpoints. An interrupted download goes on where it was. \
            HF_ENDPOINT names a mirror, HF_TOKEN says who asks, HTTPS_PROXY leads through a proxy.

            Examples:
              turbodiffusion get Wan2.1-1.3B
              turbodiffusion get --recipe TurboWan2.2-T2V-A14B
            """)

    @Argument(
        help: "A name that 'turbodiffusion models' lists.",
        completion: .list(Catalog.published.names))
    var name: String

    @Flag(help: "Make the model by its recipe: download its parts, add, quantise. Untested.")
    var recipe = false

    @Flag(help: "Without quantisation, where both are published.")
    var plain = false

    @Option(help: "Connections for one file, 1 to 32 (default 4).")
    var connections: Int?

    @Option(help: "Seconds without a byte after which a request is tried again.")
    var stallSeconds = 20

    @Option(help: "Failures in a row after which it is given up.")
    var tries = 8

    @Flag(help: "Print events as JSON, one object a line.")
    var json = false

    @Flag(help: "Print nothing but errors.")
    var quiet = false

    func validate() throws {
        if let connections, !(1...32).contains(connections) {
            throw ValidationError("--connections must be 1 to 32, not \(connections)")
        }
        if !(1...3600).contains(stallSeconds) {
            throw ValidationError("--stall-seconds must be 1 to 3600, not \(stallSeconds)")
        }
        if !(1...1000).contains(tries) {
            throw ValidationError("--tries must be 1 to 1000, not \(tries)")
        }
    }

    func run() async throws {
        do { try get() } catch {
            let error =
                (error as? DownloadError).map {
                    UserError("download.\($0.kind.rawValue)", $0.description)
                } ?? UserError(error, takesPicture: false)
            if json { Output.jsonFailure(code: error.code, error.description) }
            throw error
        }
    }

    private func get() throws {
        let files = try ModelFiles()
        let entry = try files.entry(name)
        if case .folder = entry.files {
            guard files.missing(entry) == [] else {
                throw UserError(
                    "model.catalog",
                    "\(entry.name) comes with the program, and is not published: put its folder into Models/"
                )
            }
            return tell("\(entry.name) comes with the program")
        }
        guard recipe == (entry.recipe != nil) else {
            throw UserError(
                "model.catalog",
                recipe
                    ? "\(entry.name) is published, not made: 'turbodiffusion get \(entry.name)'"
                    : "\(entry.name) is not published, it is made: 'turbodiffusion get --recipe \(entry.name)'"
            )
        }
        try checkOthers(entry, files)
        let stop = Stop()
        Interruption.takeOver { stop.now() }
        var options = DownloadOptions()
        options.connections =
            connections ?? Settings.current[.connections].flatMap { Int($0.text) } ?? 4
        (options.stallSeconds, options.tries) = (stallSeconds, tries)
        let shopping = Shopping(
            files: files, hub: try ModelFiles.hub(), options: options, stop: stop, json: json,
            quiet: quiet)
        try shopping.fetch(entry, plain: plain)
        if let made = entry.recipe {
            // Nothing of a sum is worth keeping.
            stop.endsAtOnce()
            try RecipeMaking(files: files, quiet: quiet || json).make(entry, made)
        }
        let command = entry.family.conditioning == .firstFrame ? "i2v" : "t2v"
        tell("\(entry.name) is here; turbodiffusion \(command) \"…\" --model \(entry.name)")
        if let recipe = entry.recipe {
            tell(
                "note: \(entry.name) is untested: nobody has published its videos. It is \(recipe.note)"
            )
        }
    }

    /// Refuses files of the original's and of ComfyUI's folders that cannot be read, such as ones that another program has
    /// fetched by half: they would be used in place of what is published.
    private func checkOthers(_ entry: Catalog.Entry, _ files: ModelFiles) throws {
        let library = files.catalog.library
        let folders = [library.checkpoints, library.comfyUI].compactMap { $0 }
        guard let paths = files.paths(entry) else { return }
        for file in ModelFile.allCases where file != .tokenizer {
            guard let path = paths[file], FilePath(path).exists,
                folders.contains(where: { path.hasPrefix($0 + "/") })
            else { continue }
            do { _ = try openCheckpoint(path) } catch {
                throw UserError(
                    "checkpoint",
                    "\(error); it would be used in place of the published file: move it away, then call the command again"
                )
            }
        }
    }

    private func tell(_ text: String) {
        if !quiet, !json { Output.note(text) }
    }
}

/// Whether the user has asked to stop.
final class Stop: Sendable {
    private let flag = Atomic(false)
    private let atOnce = Atomic(false)
    var isAsked: Bool { flag.load(ordering: .relaxed) }

    func now() {
        flag.store(true, ordering: .relaxed)
        guard atOnce.load(ordering: .relaxed) else { return }
        TemporaryPath.removeAll()
        _exit(128 + SIGINT)
    }

    /// From now on the process ends where it is asked to stop, and now if it has been.
    func endsAtOnce() {
        atOnce.store(true, ordering: .relaxed)
        if isAsked { now() }
    }
}

/// The files that are fetched for a model.
struct Shopping {
    let files: ModelFiles
    let hub: Hub
    let options: DownloadOptions
    let stop: Stop
    let json: Bool
    let quiet: Bool

    private struct Event: Encodable {
        var event: String
        var model: String
        var file: String?
        var path: String?
        var files: Int?
        var bytes: Int?
        var size: Int?
        var received: Int?
        var resumed: Int?
        var retries: Int?
        var sha256: String?
    }

    /// Fetches what is nowhere on this machine.
    func fetch(_ entry: Catalog.Entry, plain: Bool) throws {
        let list = try list(entry, plain: plain)
        guard !list.isEmpty else { return }
        let stop = stop
        var sizes: [HubFile: Int] = [:]
        var needed = 0
        for file in list where sizes[file] == nil {
            let size = try hub.identify(file, options, isStopped: { stop.isAsked }).size
            sizes[file] = size
            needed += max(0, size - (files.folder.partial(file) ?? 0))
        }
        let total = sizes.values.reduce(0, +)
        var place = files.folder.path
        while !place.exists, place.folder != place { place = place.folder }
        if let free = place.freeBytes, needed > free {
            throw UserError(
                "download.disk",
                "\(entry.name) needs \(describe(bytes: needed)) in \(files.folder.path.string.printable), "
                    + "\(describe(bytes: free)) are free: make room, or name another folder with TURBODIFFUSION_MODELS"
            )
        }
        tell(
            "\(entry.name): \(list.count) files, \(describe(bytes: total)), into \(files.folder.path)"
        )
        show(Event(event: "download.started", model: entry.name, files: list.count, bytes: total))
        var done = 0
        for (index, file) in list.enumerated() {
            let line = MovingLine(isShown: quiet || json ? false : nil)
            defer { line.end() }
            let rate = Rate()
            let report = try files.folder.fetch(
                file, from: hub, options,
                note: { if !quiet, !json { line.note("note: \($0)") } },
                progress: { progress in
                    let rate = rate.seen(progress.received)
                    if json, rate.isDue {
                        show(
                            Event(
                                event: "download.progress", model: entry.name,
                                file: "\(file)", bytes: progress.bytes, size: progress.size,
                                received: progress.received))
                    }
                    line.show { columns in
                        let left = rate.bytesPerSecond.map {
                            Double(total - done - progress.bytes) / max($0, 1)
                        }
                        let speed =
                            rate.bytesPerSecond.map { " \(describe(bytes: Int($0)))/s" } ?? ""
                        return progressBar(
                            "\(progress.isChecking ? "checking " : "")\(file.name) (\(index + 1) of \(list.count))\(speed)",
                            Double(done + progress.bytes) / Double(max(total, 1)),
                            secondsLeft: left, columns: columns)
                    }
                }, isStopped: { stop.isAsked })
            done += report.size
            show(
                Event(
                    event: "download.file", model: entry.name, file: "\(file)",
                    path: files.folder.path(of: file).string, bytes: report.size,
                    received: report.received, resumed: report.resumed, retries: report.retries,
                    sha256: report.sha256))
        }
        show(Event(event: "download.finished", model: entry.name, bytes: total))
    }

    /// The files of the hub that are needed and nowhere here, in the order in which they are fetched: what names others
    /// comes after them, so that it is here only when they are.
    private func list(_ entry: Catalog.Entry, plain: Bool) throws -> [HubFile] {
        var list: [HubFile] = []
        func add(_ published: Published) throws {
            let file = try HubFile(published)
            var all = [file]
            let stop = stop
            if published.isIndex || published.path == "config.json" {
                let bytes = try hub.contents(of: file, options, isStopped: { stop.isAsked })
                let names =
                    published.isIndex
                    ? Catalog.pieceNames(index: bytes) : Catalog.fileNames(configuration: bytes)
                guard let names, !names.isEmpty else {
                    throw UserError(
                        "download.server",
                        "\(file) names no files: expected "
                            + (published.isIndex ? "an index of pieces" : "a model's config.json"))
                }
                all = try names.map { name throws(DownloadError) in try file.sibling(name) } + all
            }
            for file in all where !list.contains(file) && !files.folder.has(file) {
                list.append(file)
            }
        }
        if case .repository(let configuration) = entry.files {
            if files.missing(entry) != [] { try add(configuration) }
            return list
        }
        for file in ModelFile.allCases {
            let source = (plain ? entry.plainSources[file] : nil) ?? entry.sources[file]
            guard case .hub(let published)? = source else { continue }
            let isHere =
                plain && entry.plainSources[file] != nil
                ? files.catalog.library.find(.hub(published), for: file) != nil
                : files.missing(entry)?.contains(file) == false
            if !isHere { try add(published) }
        }
        // Parts are not needed where what is made of them is here.
        let made = files.made(entry).count
        if let recipe = entry.recipe, made < recipe.sums.count {
            for part in recipe.parts
            where files.catalog.library.find(.hub(part), for: .transformer) == nil {
                try add(part)
            }
        }
        return list
    }

    private func tell(_ text: String) {
        if !quiet, !json { Output.note(text) }
    }

    private func show(_ event: Event) {
        if json { Output.json(event) }
    }
}

/// Bytes a second, of the last moments.
private final class Rate {
    private var marks: [(time: ContinuousClock.Instant, bytes: Int)] = []
    private var told = ContinuousClock.now - .seconds(1)

    /// - Returns: nil where too little has been seen; and whether a tenth of a second has passed since the last time.
    func seen(_ bytes: Int) -> (bytesPerSecond: Double?, isDue: Bool) {
        let now = ContinuousClock.now
        let isDue = now - told >= .milliseconds(100)
        if isDue {
            told = now
            marks.append((now, bytes))
            if marks.count > 50 { marks.removeFirst() }
        }
        guard let first = marks.first, now - first.time > .seconds(1) else { return (nil, isDue) }
        return (Double(bytes - first.bytes) / ((now - first.time) / .seconds(1)), isDue)
    }
}
