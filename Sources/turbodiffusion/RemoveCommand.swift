/// `turbodiffusion remove`: the downloads of a model.

import ArgumentParser
import Catalog
import Downloads
import Glibc
import Ground
import SystemPackage
import Terminal

struct RemoveCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove",
        abstract: "Remove a model that 'get' has downloaded or made.",
        discussion: """
            Only files that this program has fetched or made, and that are still as it left them, are removed. \
            What another model needs stays.

            Example:
              turbodiffusion remove Wan2.1-14B
            """)

    @Argument(
        help: "A name that 'turbodiffusion models' lists.",
        completion: .list(Catalog.published.names))
    var name: String

    @Flag(help: "Do not ask.")
    var yes = false

    @Flag(help: "Print nothing but errors.")
    var quiet = false

    func run() async throws {
        let files = try ModelFiles()
        let entry = try files.entry(name)
        let (own, made) = (ours(entry, files), files.made(entry))
        let bytes =
            own.reduce(0) {
                $0 + (files.folder.origin(of: $1)?.size ?? 0) + (files.folder.partial($1) ?? 0)
            } + made.reduce(0) { $0 + ($1.fileSize ?? 0) }
        guard !own.isEmpty || !made.isEmpty else {
            throw UserError(
                "model.catalog",
                "nothing of \(entry.name) can be removed: what is here was not downloaded by 'turbodiffusion get', "
                    + "has changed since, or is needed by another model")
        }
        if !yes {
            guard isatty(STDIN_FILENO) == 1, isatty(STDERR_FILENO) == 1 else {
                throw UserError(
                    "usage",
                    "\(own.count + made.count) files, \(describe(bytes: bytes)), would be removed: --yes says so"
                )
            }
            for file in own { Output.note(files.folder.path(of: file).string.printable) }
            for file in made { Output.note(file.string.printable) }
            Output.note("Remove \(describe(bytes: bytes))? Type yes:")
            guard readLine() == "yes" else { throw UserError("cancelled", "nothing was removed") }
        }
        var freed = 0
        for path in made {
            let size = path.fileSize ?? 0
            guard unlink(path.string) == 0 else {
                throw UserError("output", "\(path): cannot be removed")
            }
            rmdir(path.folder.string)
            freed += size
        }
        do {
            for file in own { freed += try files.folder.remove(file) ?? 0 }
        } catch { throw UserError("download.\(error.kind.rawValue)", "\(error)") }
        if !quiet { Output.note("\(entry.name): \(describe(bytes: freed)) removed") }
    }

    /// The downloads of a model that no other model, which is here too, needs.
    private func ours(_ entry: Catalog.Entry, _ files: ModelFiles) -> [HubFile] {
        var needed: Set<HubFile> = []
        for other in files.catalog.entries + files.catalog.recipes where other.name != entry.name {
            let isMade = !files.made(other).isEmpty
            // A model is here if its own transformer is; what is shared says nothing.
            let transformers = other.recipe == nil ? transformers(other) : []
            let isHere = transformers.flatMap(files.kept).contains { files.folder.has($0) }
            guard isMade || isHere else { continue }
            // A model that has been made does not need its parts any more.
            let parts = isMade ? Set(other.recipe?.parts ?? []) : []
            for source in files.sources(other) where !parts.contains(source) {
                needed.formUnion(files.kept(source))
            }
        }
        var list: [HubFile] = []
        for source in files.sources(entry) {
            // What an index names goes before the index.
            for file in files.kept(source).reversed()
            where !needed.contains(file) && !list.contains(file)
                && (files.folder.origin(of: file) != nil || files.folder.partial(file) != nil)
            { list.append(file) }
        }
        return list
    }

    private func transformers(_ entry: Catalog.Entry) -> [Published] {
        if case .repository(let configuration) = entry.files { return [configuration] }
        return [ModelFile.transformer, .lowNoiseTransformer].flatMap { file in
            [entry.sources[file], entry.plainSources[file]].compactMap { source in
                if case .hub(let published)? = source { published } else { nil }
            }
        }
    }
}
