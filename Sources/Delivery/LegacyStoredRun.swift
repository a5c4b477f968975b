/// The metadata of videos made by version 0.1.0.

import Catalog
import Families
import Models
import Runs
import Tensors

/// A flat request, and a model whose files are named by their paths.
struct LegacyStoredRun: Decodable {
    struct Request: Decodable {
        var prompt: String
        var negativePrompt: String?
        var width, height, frames, framesPerSecond: Int
        var seed: UInt64
        var samples: Int
        /// "rcm", or one of the solvers.
        var sampler: String
        var steps: Int
        var sigmaMax: Double?
        var ode: Bool
        var shift, guidance: Double
        var attention: AttentionChoice
        var topK: Double
        var referenceNorms: Bool
        var precision: Precision
        var linears: LinearChoice
        var loras: [RequestedLoRA]?
        var image: String?
        var boundary: Double
    }

    struct Models: Decodable {
        struct Defaults: Decodable {
            var width, height, frames, framesPerSecond: Int
            var sigmaMax: Double
            var attention: AttentionChoice
            var topK: Double
            var heads: Int?
            var textLength: Int
            var latentMean, latentStd: [Float]?
            var negativePrompt: String
            var roundTimesteps: Bool
        }
        var name, transformer: String
        var lowNoiseTransformer: String?
        var textEncoder, tokenizer, vae: String
        var defaults: Defaults
    }

    var program: String
    var request: Request
    var models: Models

    /// The same run in today's form.
    /// - Parameter path: the video, for messages.
    /// - Throws: ``StoredRunError`` for an unknown sampler, `CatalogError` for values that no model can have.
    func stored(path: String) throws -> StoredRun {
        StoredRun(
            program: program, request: try newRequest(path), model: models.name, files: [:],
            legacyModels: ModelSet(
                name: models.name, family: try family(path), transformer: models.transformer,
                lowNoiseTransformer: models.lowNoiseTransformer, textEncoder: models.textEncoder,
                tokenizer: models.tokenizer, vae: models.vae))
    }

    private func newRequest(_ path: String) throws(StoredRunError) -> Runs.Request {
        let sampling: Sampling
        if request.sampler == "rcm" {
            sampling = .distilled(
                .init(steps: request.steps, sigmaMax: request.sigmaMax ?? 80, ode: request.ode))
        } else if let solver = Sampling.Solver(rawValue: request.sampler) {
            sampling = .flow(
                .init(
                    solver, steps: request.steps, shift: request.shift, sigmaMax: request.sigmaMax,
                    guidance: request.guidance))
        } else {
            throw .noRequest(path: path)
        }
        return Runs.Request(
            prompt: request.prompt, negativePrompt: request.negativePrompt, image: request.image,
            width: request.width, height: request.height, frames: request.frames,
            framesPerSecond: request.framesPerSecond, seed: request.seed, samples: request.samples,
            sampling: sampling,
            arithmetic: Arithmetic(
                precision: request.precision, linears: request.linears,
                attention: request.attention, topK: request.topK,
                norms: request.referenceNorms ? .reference : .exact),
            loras: request.loras ?? [], boundary: request.boundary)
    }

    private func family(_ path: String) throws(CatalogError) -> Family {
        let defaults = models.defaults
        var family = request.image == nil ? Family.wan21 : .wan22I2V
        let (mean, std) = (
            defaults.latentMean ?? family.statistics.mean,
            defaults.latentStd ?? family.statistics.std
        )
        for (key, values) in [("latentMean", mean), ("latentStd", std)]
        where values.count != family.geometry.channels {
            throw .value(
                path: path, key: key, found: "\(values.count) numbers",
                expected: "\(family.geometry.channels)")
        }
        family.name = models.name
        family.statistics = LatentStatistics(mean: mean, std: std)
        family.textLength = defaults.textLength
        family.heads = defaults.heads
        family.roundsTimesteps = defaults.roundTimesteps
        (family.defaults.width, family.defaults.height) = (defaults.width, defaults.height)
        family.defaults.frames = defaults.frames
        family.defaults.framesPerSecond = defaults.framesPerSecond
        family.defaults.distilled.sigmaMax = defaults.sigmaMax
        (family.defaults.attention, family.defaults.topK) = (defaults.attention, defaults.topK)
        family.defaults.negativePrompt = defaults.negativePrompt
        try family.check(in: path)
        return family
    }
}
