/// `turbodiffusion inspect` of a folder that is no checkpoint by itself: the model that its files make.

import Catalog
import Checkpoints
import Families
import Ground
import SystemPackage
import Terminal

/// A folder and what is in it.
struct FolderSummary {
    struct File {
        var name: String
        var result: Result<CheckpointSummary, CheckpointError>
    }
    let path: String
    /// What its `config.json` says; nil: there is none, or it says nothing of a model.
    let family: Family?
    let files: [File]

    /// nil where a path is no folder, is a checkpoint itself (shards, a distributed one), or holds none.
    /// - Throws: why it is no checkpoint, where its files are the pieces of one.
    init?(_ path: String) throws(CheckpointError) {
        let folder = FilePath(path)
        guard folder.isFolder, let names = try? folder.fileNames() else { return nil }
        do throws(CheckpointError) {
            _ = try openCheckpoint(path)
            return nil
        } catch {
            // Several checkpoints are shown one by one.
            if case .several = error {} else if arePieces(names) { throw error }
        }
        let endings = [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf"]
        let checkpoints = names.sorted().filter { name in
            !name.hasPrefix(".") && endings.contains { name.lowercased().hasSuffix($0) }
        }
        if checkpoints.isEmpty { return nil }
        self.path = path
        let family = try? Catalog.modelSet(folder: path).family
        self.family = family
        files = checkpoints.map { name in
            let file = folder.appending(name).string
            do throws(CheckpointError) {
                let summary = CheckpointSummary(try openCheckpoint(file), heads: family?.heads)
                return File(name: name, result: .success(summary))
            } catch {
                return File(name: name, result: .failure(error))
            }
        }
    }

    var isWhole: Bool {
        files.allSatisfy { file in
            guard case .success(let summary) = file.result else { return false }
            return summary.model == nil || summary.isComplete
        }
    }

    func show() {
        Output.line("\(path.printable): a folder of \(files.count) checkpoints")
        if let family {
            let defaults = family.defaults
            let kind =
                family.conditioning == .none ? "text to video" : "a picture and text to video"
            Output.line(
                "\(family.name.printable): \(kind), \(defaults.width)x\(defaults.height), \(defaults.frames) frames"
            )
            if let training = family.training {
                Output.line(
                    "made for  \(training.subject.printable), \(training.width)x\(training.height), "
                        + "at most \(training.frames) frames and \(training.words) words")
            }
        }
        Output.line("")
        var rows: [[String]] = []
        for file in files {
            switch file.result {
            case .failure(let error): rows.append([file.name.printable, "", "\(error)"])
            case .success(let summary):
                let state =
                    summary.model == nil
                    ? "" : summary.isComplete ? ", complete" : ", incomplete"
                rows.append([
                    file.name.printable, describe(bytes: summary.byteCount),
                    (summary.model?.title ?? "no model that is known here") + state,
                ])
            }
        }
        Output.line(Output.table(rows))
    }
}
