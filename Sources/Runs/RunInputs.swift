/// What a run takes from outside before its first stages: tokens of the prompts, the picture.

import Families
package import Media
package import Tokenizers

/// The inputs of a run as its stages take them.
package struct RunInputs: Sendable {
    package var prompt: Tokens?
    package var negativePrompt: Tokens?
    /// Pieces of the tokenizer; 0 where the tokens come from elsewhere.
    package var vocabularySize = 0
    /// The picture at the size of the video.
    package var image: RGBImage?

    package init(prompt: Tokens? = nil, negativePrompt: Tokens? = nil, image: RGBImage? = nil) {
        self.prompt = prompt
        self.negativePrompt = negativePrompt
        self.image = image
    }

    /// Reads what `run` will ask for.
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
