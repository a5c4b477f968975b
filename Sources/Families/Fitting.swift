/// Whether the parts of a model fit together. Only the headers of their files are read, before gigabytes are loaded.

public import Checkpoints
import Ground
import Models
public import Tensors

/// A part of a model that does not fit.
public enum FittingError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The file has only the other half of an autoencoder.
    case half(path: String, part: ModelPart)
    /// The transformer takes another number of input channels: it is for image to video instead of text to video, or
    /// the reverse.
    case conditioning(path: String, channels: Int, expected: Int)
    /// The two experts belong to different models.
    case experts(first: String, second: String, difference: String)
    /// A size that two parts must share.
    case size(
        what: String, path: String, found: Int, otherPath: String, expected: Int)
    /// One latent of the autoencoder stands for another number of pixels.
    case strides(path: String, found: Extent, family: String, expected: Extent)
    /// A size that the arithmetic that was asked for cannot have.
    case width(what: String, path: String, found: Int, expected: String)
    /// The checkpoint has no weights for sparse-linear attention, which was asked for.
    case noLinearBranch(path: String)

    public var description: String {
        switch self {
        case .half(let path, let part): "\(path) contains no \(part.title)"
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
        case .width(let what, let path, let found, let expected):
            "\(path): \(what) must be \(expected), not \(found)"
        case .noLinearBranch(let path):
            "\(path) has no weights for sparse-linear attention (proj_l)"
        }
    }
}

extension ModelSource {
    /// The checkpoint of a part, with the tensor names of the original.
    public func checkpoint(_ part: ModelPart) throws -> any Checkpoint {
        try file(part).checkpoint
    }

    /// The sizes of a transformer, from the header of its file.
    public func transformerSizes(_ part: ModelPart) throws -> WanTransformerArchitecture {
        guard case .wanTransformer(let sizes) = try file(part).model else {
            programmingError("transformerSizes: \(part.title)")
        }
        return sizes
    }

    /// Checks that the parts of a run fit each other and the family.
    /// - Parameters:
    ///   - parts: the parts that the run will load.
    ///   - attention: the attention that the transformers must support.
    ///   - linears: the form of linear layers that they must support.
    /// - Throws: `FittingError`, or what reading the headers throws.
    public func checkFit(
        _ parts: [ModelPart], attention: AttentionChoice, linears: LinearChoice = .stored
    ) throws {
        var first: (path: String, sizes: WanTransformerArchitecture)?
        for part in parts where part.isTransformer {
            let (path, sizes) = (self.path(part), try transformerSizes(part))
            guard sizes.inputChannels == family.inputChannels else {
                throw FittingError.conditioning(
                    path: path, channels: sizes.inputChannels, expected: family.inputChannels)
            }
            if attention != .original, !sizes.hasSparseLinearAttention {
                throw FittingError.noLinearBranch(path: path)
            }
            try Self.checkWidths(sizes, path, attention, linears)
            if let first, let difference = Self.difference(first.sizes, sizes) {
                throw FittingError.experts(first: first.path, second: path, difference: difference)
            }
            first = first ?? (path, sizes)
        }
        if parts.contains(.textEncoder), let first {
            guard case .umT5(let sizes) = try file(.textEncoder).model else {
                programmingError("checkFit: another kind of text encoder")
            }
            guard sizes.dim == first.sizes.textDim else {
                throw FittingError.size(
                    what: "text width", path: path(.textEncoder), found: sizes.dim,
                    otherPath: first.path, expected: first.sizes.textDim)
            }
            if try file(.textEncoder).linearFormats != [.plain] {
                try Self.checkQuantized(
                    [sizes.dim, sizes.attentionDim, sizes.feedForward], path(.textEncoder))
            }
        }
        for part in parts where part == .decoder || part == .imageEncoder {
            guard case .wanVAE(let sizes) = try file(part).model else {
                programmingError("checkFit: another kind of VAE")
            }
            let path = path(part)
            guard part == .decoder ? sizes.hasDecoder : sizes.hasEncoder else {
                throw FittingError.half(path: path, part: part)
            }
            guard sizes.latentChannels == family.geometry.channels else {
                throw FittingError.size(
                    what: "latent channels", path: path, found: sizes.latentChannels,
                    otherPath: family.name, expected: family.geometry.channels)
            }
            guard sizes.stride == family.geometry.stride else {
                throw FittingError.strides(
                    path: path, found: sizes.stride, family: family.name,
                    expected: family.geometry.stride)
            }
        }
    }

    /// What the kernels of all machines can do.
    static func checkWidths(
        _ sizes: WanTransformerArchitecture, _ path: String, _ attention: AttentionChoice,
        _ linears: LinearChoice
    ) throws(FittingError) {
        if attention != .original, sizes.headDim > 128 || 256 % sizes.headDim != 0 {
            throw .width(
                what: "the width of heads, for sparse-linear attention", path: path,
                found: sizes.headDim, expected: "a power of two up to 128")
        }
        guard sizes.linears != .plain || linears != .stored else { return }
        try checkQuantized([sizes.dim, sizes.feedForward], path)
    }

    private static func checkQuantized(_ widths: [Int], _ path: String) throws(FittingError) {
        for width in widths where width % 16 != 0 {
            throw .width(
                what: "the width of quantised layers", path: path, found: width,
                expected: "a multiple of 16")
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
