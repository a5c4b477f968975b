/// Makes the transformers of a recipe from its parts.

import Catalog
import Checkpoints
import Downloads
import Ground
import SystemPackage
import Tensors
import Terminal

struct RecipeMaking {
    let files: ModelFiles
    let quiet: Bool

    /// base + Σ weight · (to − from), quantised, for every transformer that is not here.
    func make(_ entry: Catalog.Entry, _ recipe: Recipe) throws {
        for file in ModelFile.allCases {
            guard let sum = recipe.sums[file], case .made(let path)? = entry.sources[file] else {
                continue
            }
            let place = files.folder.path.appending(path)
            if place.exists { continue }
            do { try place.folder.makeFolders() } catch { throw UserError("output", "\(error)") }
            var result = try open(sum.base)
            for difference in sum.differences {
                result = try merged(
                    base: result, target: try open(difference.to),
                    diffBase: try open(difference.from), weight: difference.weight
                ).checkpoint
            }
            let quantised = try quantized(result, to: .int8Blocks)
            let progress = FileProgress("\(entry.name): \(file.title)", quiet: quiet)
            defer { progress.end() }
            try writeCheckpoint(
                quantised.checkpoint, to: place.string, overwrite: false,
                progress: progress.show)
        }
    }

    /// A part with Wan's own names, wherever it is.
    private func open(_ part: Published) throws -> any Checkpoint {
        guard let path = files.catalog.library.find(.hub(part), for: .transformer) else {
            throw UserError(
                "download.missing", "\(part) is not here any more: call the command again")
        }
        return try inOriginalNames(try openCheckpoint(path))
    }
}
