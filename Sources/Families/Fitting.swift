/// What the parts of a model must fit, told by the headers of their files before gigabytes are read.

public import Checkpoints
import Models
public import Tensors

/// A part that does not belong to its model.
public enum FittingError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The file holds another kind of model.
    case wrongKind(path: String, expected: String, found: String)
    /// The transformer takes another input: an image-to-video model for a request without a picture, or the reverse.
    case conditioning(path: String, channels: Int, expected: Int)
    /// Two experts of different models.
    case experts(first: String, second: String, difference: String)
    /// A size that two parts must share.
    case size(
        what: String, path: String, found: Int, otherPath: String, expected: Int)
    /// An autoencoder that makes latents of another size.
    case strides(path: String, found: Extent, family: String, expected: Extent)
    /// Sparse-linear attention was asked for, and the checkpoint has no weights for it.
    case noLinearBranch(path: String)

    public var description: String {
        switch self {
        case .wrongKind(let path, let expected, let found):
            "\(path) holds \(found), expected \(expected)"
        case .conditioning(let path, let channels, let expected):
            "\(path) is \(channels > expected ? "an image-to-video" : "a text-to-video") model "
                + "(\(channels) input channels), expected \(expected) channels"
        case .experts(let first, let second, let difference):
            "\(first) and \(second) are not two experts of one model: \(difference)"
        case .size(let what, let path, let found, let otherPath, let expected):
            "\(path) has \(what) \(found), \(otherPath) has \(expected): they do not belong together"
        case .strides(let path, let found, let family, let expected):
            "\(path) makes one latent of \(found.t)x\(found.h)x\(found.w) pixels, "
                + "\(family) has \(expected.t)x\(expected.h)x\(expected.w): they do not belong together"
        case .noLinearBranch(let path):
            "\(path) has no weights for sparse-linear attention (proj_l)"
        }
    }
}

extension ModelSource {
    /// The sizes of a transformer, from its header.
    /// - Throws: ``FittingError`` where the file holds something else.
    public func transformerSizes(_ part: ModelPart) throws -> WanTransformerArchitecture {
        let checkpoint = try checkpoint(part)
        let found = DetectedModel(
            checkpoint, heads: family.heads, patch: family.geometry.patch)
        guard case .wanTransformer(let sizes) = found else {
            throw FittingError.wrongKind(
                path: checkpoint.path, expected: "a Wan transformer",
                found: found?.title ?? "no known model")
        }
        return sizes
    }

    /// Checks that the parts that a run will use fit each other and the family.
    /// - Parameters:
    ///   - attention: what the transformers are asked to do.
    ///   - parts: those that the run will load.
    public func checkFit(_ parts: [ModelPart], attention: AttentionChoice) throws {
        var first: (path: String, sizes: WanTransformerArchitecture)?
        for part in parts where part.isTransformer {
            let path = try checkpoint(part).path
            let sizes = try transformerSizes(part)
            guard sizes.inputChannels == family.inputChannels else {
                throw FittingError.conditioning(
                    path: path, channels: sizes.inputChannels, expected: family.inputChannels)
            }
            if attention != .original, !sizes.hasSparseLinearAttention {
                throw FittingError.noLinearBranch(path: path)
            }
            if let first, let difference = Self.difference(first.sizes, sizes) {
                throw FittingError.experts(first: first.path, second: path, difference: difference)
            }
            first = first ?? (path, sizes)
        }
        if parts.contains(.textEncoder), let first {
            let checkpoint = try checkpoint(.textEncoder)
            guard case .umT5(let sizes) = DetectedModel(checkpoint) else {
                throw FittingError.wrongKind(
                    path: checkpoint.path, expected: "a umT5 encoder",
                    found: DetectedModel(checkpoint)?.title ?? "no known model")
            }
            guard sizes.dim == first.sizes.textDim else {
                throw FittingError.size(
                    what: "text width", path: checkpoint.path, found: sizes.dim,
                    otherPath: first.path, expected: first.sizes.textDim)
            }
        }
        for part in parts where part == .decoder || part == .imageEncoder {
            let checkpoint = try checkpoint(part)
            guard case .wanVAE(let sizes) = DetectedModel(checkpoint) else {
                throw FittingError.wrongKind(
                    path: checkpoint.path, expected: "a Wan VAE",
                    found: DetectedModel(checkpoint)?.title ?? "no known model")
            }
            guard sizes.latentChannels == family.geometry.channels else {
                throw FittingError.size(
                    what: "latent channels", path: checkpoint.path, found: sizes.latentChannels,
                    otherPath: family.name, expected: family.geometry.channels)
            }
            guard sizes.stride == family.geometry.stride else {
                throw FittingError.strides(
                    path: checkpoint.path, found: sizes.stride, family: family.name,
                    expected: family.geometry.stride)
            }
        }
    }

    private static func difference(
        _ a: WanTransformerArchitecture, _ b: WanTransformerArchitecture
    ) -> String? {
        a.dim == b.dim && a.layers == b.layers && a.inputChannels == b.inputChannels
            && a.textDim == b.textDim && a.heads == b.heads
            ? nil
            : "\(a.title), \(a.layers) layers of width \(a.dim), and \(b.title), \(b.layers) of \(b.dim)"
    }
}
