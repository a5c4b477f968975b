/// Reading and writing results of stages: text embeddings, conditioning and latents in safetensors files.

import Checkpoints
import Families
import Ground
import Models
import SystemPackage
import Tensors

enum StoredTensors {
    static let embedding = "text_embedding"
    static let negativeEmbedding = "negative_text_embedding"
    static let conditioning = "conditioning"
    static let latents = "latents"

    /// Writes named host tensors to a file.
    /// - Returns: its name, with a number if another file has taken the wanted one in the meantime.
    static func write(
        _ tensors: [(name: String, tensor: Tensor)], to path: String, replacing: Bool,
        metadata: [String: String] = [:]
    ) throws(CheckpointError) -> String {
        var (attempt, number) = (path, 2)
        while true {
            do throws(CheckpointError) {
                try writeCheckpoint(
                    TensorCollection(attempt, tensors, metadata: metadata), to: attempt,
                    format: .safetensors, overwrite: replacing)
                return attempt
            } catch {
                guard !replacing, FilePath(attempt).exists else { throw error }
                attempt = FilePath(path).numbered(number).string
                number += 1
            }
        }
    }

    /// Reads a text embedding. The file contains `text_embedding` [rows, dim], or a single tensor such as
    /// [1, rows, dim], as in the original's cache of embeddings. Rows of zeros at its end are padding.
    /// - Parameter dtype: the type that the run will compute with.
    /// - Returns: rows: [textLength, textDim], and how many are not padding; nil if the file has no negative prompt.
    static func readEmbedding(
        _ path: String, _ name: String = embedding, textLength: Int, textDim: Int, as dtype: DType
    ) throws -> (rows: Tensor, count: Int)? {
        let file = try openCheckpoint(path)
        if name == negativeEmbedding, file.info(name) == nil { return nil }
        let wanted = try place(of: name, "a text embedding", axes: 2...Shape.maximumRank, in: file)
        let stored = try numbers(wanted, in: file, as: dtype)
        // Rows of several texts are not those of one.
        guard stored.shape.columns == textDim, (1...textLength).contains(stored.shape.rows),
            stored.shape.dimensions.dropLast(2).allSatisfy({ $0 == 1 })
        else {
            throw RunError.stored(
                path: path, expected: "a text embedding of up to [\(textLength), \(textDim)]",
                found: "\(stored.shape)")
        }
        let rows = stored.shape.rows
        let values = stored.floats()
        let count = values.lastIndex { $0 != 0 }.map { $0 / textDim + 1 } ?? 0
        let padding = [Float](repeating: 0, count: (textLength - rows) * textDim)
        return (Tensor(values + padding, [textLength, textDim]), count)
    }

    /// Reads a tensor that must have `shape`; leading extents of 1 may be missing or added. → f32 `shape`
    static func read(_ name: String, _ path: String, _ shape: Shape) throws -> Tensor {
        let stored = try numbers(name, in: try openCheckpoint(path), as: .f32)
        guard stored.shape.count == shape.count,
            stored.shape.dimensions.suffix(3) == shape.dimensions.suffix(3)
        else {
            throw RunError.stored(
                path: path, expected: "'\(name)' of \(shape)", found: "\(stored.shape)")
        }
        return stored.reshaped(shape)
    }

    /// The number of samples in a file of latents, and the size of each. Reads only the header.
    static func latentExtent(_ path: String, channels: Int) throws -> (samples: Int, Extent) {
        let file = try openCheckpoint(path)
        let name = try latentsName(file)
        let found = file.info(name).map(\.shape) ?? []
        guard [4, 5].contains(found.count), found[found.count - 4] == channels,
            found.allSatisfy({ $0 > 0 })
        else {
            throw RunError.stored(
                path: path, expected: "latents of [samples, \(channels), T, H, W]",
                found: found.isEmpty ? "no tensor '\(latents)'" : "'\(name)' of \(found)")
        }
        let samples = found.count == 5 ? found[0] : 1
        guard samples <= Request.mostSamples else {
            throw RunError.stored(
                path: path, expected: "at most \(Request.mostSamples) samples",
                found: "\(samples)")
        }
        let extents = found.suffix(3).map { $0 }
        return (samples, Extent(t: extents[0], h: extents[1], w: extents[2]))
    }

    /// latents: f32 `shape`
    static func readLatents(_ path: String, _ shape: Shape) throws -> Tensor {
        try read(try latentsName(try openCheckpoint(path)), path, shape)
    }

    private static func latentsName(_ file: any Checkpoint) throws -> String {
        try place(of: latents, "latents", axes: 4...5, in: file)
    }

    /// The tensor of this name, or the only one with as many axes.
    private static func place(
        of name: String, _ what: String, axes: ClosedRange<Int>, in file: any Checkpoint
    ) throws -> String {
        if file.info(name) != nil { return name }
        let candidates = file.names.filter { axes.contains(file.info($0)?.shape.count ?? 0) }
        if candidates.count == 1 { return candidates[0] }
        let names = candidates.isEmpty ? file.names : candidates
        throw RunError.stored(
            path: file.path, expected: "\(what), in a tensor '\(name)'",
            found: names.isEmpty ? "no tensors" : names.prefix(4).joined(separator: ", "))
    }

    /// Reads a tensor, which must contain floating-point numbers that are finite as `dtype`, too. → f32
    private static func numbers(
        _ name: String, in file: any Checkpoint, as dtype: DType
    ) throws -> Tensor {
        guard let stored = try file.tensor(name), stored.dtype.isFloatingPoint else {
            throw RunError.stored(
                path: file.path, expected: "floating-point numbers in a tensor '\(name)'",
                found: file.info(name).map { "\($0.dtype)" }
                    ?? file.names.prefix(4).joined(separator: ", "))
        }
        guard stored.allFinite else {
            throw RunError.stored(
                path: file.path, expected: "finite numbers in '\(name)'",
                found: "NaN or infinity")
        }
        let wide = stored.converted(to: .f32)
        guard wide.converted(to: dtype).allFinite else {
            throw RunError.stored(
                path: file.path, expected: "numbers in '\(name)' that \(dtype) can hold",
                found: "larger ones")
        }
        return wide
    }
}

// MARK: - The files of a run

extension Walk {
    /// Reads a product from its file.
    mutating func read(_ product: Product) throws {
        try device.check()
        let (start, geometry) = (run.options.start, run.family.geometry)
        switch product {
        case .text: if let path = start.text { state.texts = try readTexts(path) }
        case .conditioning:
            guard let path = start.conditioning else { return }
            let size = run.latents
            state.conditioning = device.place(
                try StoredTensors.read(
                    StoredTensors.conditioning, path,
                    [run.family.conditioningChannels, size.t, size.h, size.w]), as: .f32)
        case .latents:
            guard let path = start.latents else { return }
            let size = run.latents
            state.latents = device.place(
                try StoredTensors.readLatents(
                    path, [run.samples, geometry.channels, size.t, size.h, size.w]), as: .f32)
        }
    }

    private func readTexts(_ path: String) throws -> (TextEmbedding, TextEmbedding?) {
        let textDim = try run.models.transformerSizes(.transformer).textDim
        let dtype = run.request.arithmetic.precision.dtype
        func read(_ name: String) throws -> TextEmbedding? {
            try StoredTensors.readEmbedding(
                path, name, textLength: run.family.textLength, textDim: textDim, as: dtype
            ).map {
                TextEmbedding(rows: device.place($0.rows, as: dtype), count: $0.count)
            }
        }
        guard let positive = try read(StoredTensors.embedding) else {
            throw RunError.stored(path: path, expected: "a text embedding", found: "none")
        }
        guard run.request.sampling.isGuided else { return (positive, nil) }
        guard let negative = try read(StoredTensors.negativeEmbedding) else {
            throw RunError.stored(
                path: path,
                expected: "'\(StoredTensors.negativeEmbedding)', which guidance needs",
                found: "the prompt alone; save the embedding again from a guided run")
        }
        return (positive, negative)
    }

    /// Writes a product to its file. If that fails, the run tells so and goes on, unless nothing else would come of it.
    func write(_ product: Product) throws {
        let save = run.options.save
        let prompt = ["prompt": run.request.prompt]
        func write(
            _ path: String?, _ tensors: [(name: String, tensor: Tensor)],
            _ metadata: [String: String]
        ) throws {
            guard let path else { return }
            do {
                let written = try StoredTensors.write(
                    tensors, to: path, replacing: run.options.replacesSaved, metadata: metadata)
                tell(.notice(.saved(path: written)))
            } catch {
                guard run.options.makesFrames || product != .latents else { throw error }
                tell(.notice(.notSaved(path: path, reason: "\(error)")))
            }
        }
        switch product {
        case .text:
            guard let texts = state.texts else { return }
            func rows(_ text: TextEmbedding) -> Tensor {
                device.read(device.slice(text.rows, 0..<text.count))
            }
            try write(
                save.text,
                [(StoredTensors.embedding, rows(texts.positive))]
                    + (texts.negative.map { [(StoredTensors.negativeEmbedding, rows($0))] } ?? []),
                prompt)
        case .conditioning:
            guard let conditioning = state.conditioning else { return }
            try write(
                save.conditioning, [(StoredTensors.conditioning, device.read(conditioning))],
                ["image": run.request.image ?? ""])
        case .latents:
            guard let latents = state.latents else { return }
            try write(
                save.latents, [(StoredTensors.latents, device.read(latents))],
                prompt.merging(["seed": "\(run.request.seed)"]) { $1 })
        }
    }
}
