/// The inputs of a run that come from outside: the tokens of the prompts, and the picture.

import Checkpoints
import Families
package import Media
package import Tokenizers

/// The inputs of a run, in the form that its stages take.
package struct RunInputs: Sendable {
    package var prompt: Tokens?
    package var negativePrompt: Tokens?
    /// Number of the tokenizer's tokens; 0 if the prompts were not made by a tokenizer.
    package var vocabularySize = 0
    /// The picture, resized to the size of the video.
    package var image: RGBImage?

    package init(prompt: Tokens? = nil, negativePrompt: Tokens? = nil, image: RGBImage? = nil) {
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.image = image
    }

    /// Reads the inputs that `run` needs.
    init(reading run: Run) async throws {
        let (request, start) = (run.request, run.options.start)
        if start.latents != nil { return }
        if start.text == nil {
            let tokenizer = try TokenizerCache.shared.tokenizer(path: run.models.tokenizer)
            vocabularySize = tokenizer.vocabularySize
            let length = run.family.textLength
            prompt = tokenizer.encode(prompt: request.prompt, length: length)
            if request.sampling.isGuided {
                negativePrompt = tokenizer.encode(
                    prompt: request.negativePrompt ?? run.family.defaults.negativePrompt,
                    length: length)
            }
        }
        if start.conditioning == nil, let path = request.image {
            image = resize(
                try await readImage(path: path), width: request.width, height: request.height)
        }
    }
}

extension Run {
    /// Throws where the tokenizer has tokens that the text encoder does not know. Reads the tokenizer, which a plan does
    /// not.
    public func checkVocabulary() throws {
        guard try parts.contains(.textEncoder), options.start.text == nil,
            case .umT5(let encoder) = try models.file(.textEncoder).model
        else { return }
        let tokenizer = try TokenizerCache.shared.tokenizer(path: models.tokenizer)
        try requireVocabulary(of: tokenizer.vocabularySize, knownTo: encoder)
    }

    func requireVocabulary(of tokens: Int, knownTo encoder: UMT5Architecture) throws(RunError) {
        if encoder.vocabulary >= tokens { return }
        throw .vocabulary(
            tokenizer: models.tokenizer, tokens: tokens, textEncoder: models.path(.textEncoder),
            known: encoder.vocabulary)
    }
}
