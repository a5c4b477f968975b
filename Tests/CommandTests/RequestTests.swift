/// Options of t2v and i2v → a request.

import ArgumentParser
import Catalog
import Checkpoints
import Families
import Glibc
import Media
import Runs
import Tensors
import Testing

@testable import turbodiffusion

/// What a command line asks for of a published model.
private func request(
    _ arguments: [String], model: String, of base: Request? = nil,
    picture: (width: Int, height: Int)? = nil
) throws -> Request {
    let entry = try #require(Catalog.published.entry(named: model))
    let normalized = TurboDiffusion.normalized(arguments)
    let generation: Generation =
        if entry.family.conditioning == .firstFrame {
            try ImageToVideoCommand.parse(normalized).generation
        } else {
            try TextToVideoCommand.parse(normalized).generation
        }
    return try RequestBuilder(
        options: generation.options, image: generation.image, boundary: generation.boundary,
        pictureSize: picture, draw: { 99 }
    ).request(for: entry.family, base: base, resolution: entry.resolution)
}

@Suite struct RequestTests {
    @Test("only a prompt: the model's defaults")
    func defaults() throws {
        for model in ["nano", "Wan2.1-1.3B", "Wan2.1-14B", "Wan2.2-T2V-A14B"] {
            let family = try #require(Catalog.published.entry(named: model)).family
            #expect(try request(["a cat"], model: model) == Request("a cat", for: family))
        }
        var picture = Request("x", for: .wan22I2V)
        picture.image = "p.jpg"
        #expect((picture.width, picture.height, picture.boundary) == (1280, 720, 0.9))
        #expect(
            try request(["--image_path", "p.jpg", "--prompt", "x"], model: "Wan2.2-A14B")
                == picture)
    }

    @Test("the original's command lines")
    func original() throws {
        let text = try request(
            [
                "--model", "Wan2.1-1.3B", "--dit_path", "a.pth", "--resolution", "480p", "--prompt",
                "A stylish woman", "--num_samples", "2", "--num_steps", "3", "--quant_linear",
                "--attention_type", "sagesla", "--sla_topk", "0.15", "--seed", "7", "--num_frames",
                "41", "--sigma_max", "100", "--aspect_ratio", "9:16", "--default_norm",
            ], model: "Wan2.1-1.3B")
        #expect(
            text
                == Request(
                    prompt: "A stylish woman", width: 480, height: 832, frames: 41, seed: 7,
                    samples: 2, sampling: .distilled(.init(steps: 3, sigmaMax: 100)),
                    arithmetic: Arithmetic(linears: .int8, topK: 0.15), boundary: 0.875))
        let picture = try request(
            [
                "--model", "Wan2.2-A14B", "--image_path", "p.jpg", "--adaptive_resolution",
                "--resolution", "720p", "--ode", "--prompt", "x", "--boundary", "0.85",
                "--high_noise_model_path", "h", "--low_noise_model_path", "l",
            ], model: "Wan2.2-A14B", picture: (1000, 1000))
        #expect((picture.width, picture.height) == (960, 960))
        #expect(picture.sampling == .distilled(.init(steps: 4, sigmaMax: 200, ode: true)))
        #expect(picture.boundary == 0.85 && picture.image == "p.jpg")
    }

    @Test("undistilled models have their own steps, guidance and shift")
    func undistilled() throws {
        let plain = ["x", "--sampler", "wan-unipc", "--attention_type", "original"]
        #expect(
            try request(plain, model: "Wan2.1-14B").sampling
                == .flow(.init(.wanUniPC, steps: 50, shift: 5, guidance: 5)))
        let picture = plain + ["--image_path", "p"]
        #expect(
            try request(picture + ["--size", "832x480"], model: "Wan2.2-A14B").sampling
                == .flow(.init(.wanUniPC, steps: 50, shift: 3, guidance: 5)))
        #expect(
            try request(picture, model: "Wan2.2-A14B").sampling
                == .flow(.init(.wanUniPC, steps: 50, shift: 5, guidance: 5)))
        #expect(
            try request(
                picture + ["--size=832x480", "--shift", "4", "--guidance", "2"],
                model: "Wan2.2-A14B"
            ).sampling == .flow(.init(.wanUniPC, steps: 50, shift: 4, guidance: 2)))
    }

    @Test("sizes: names with an aspect ratio, or pixels taken as given")
    func sizes() throws {
        func size(_ arguments: [String], _ model: String = "Wan2.1-14B") throws -> [Int] {
            let request = try request(["x"] + arguments, model: model)
            return [request.width, request.height]
        }
        #expect(try size(["--resolution", "720p"]) == [1280, 720])
        #expect(try size(["--size", "720", "--aspect-ratio", "9:16"]) == [704, 1280])
        #expect(try size(["--aspect-ratio", "1:1"]) == [640, 640])
        #expect(try size(["--resolution", "100x30"]) == [100, 30])
        #expect(try size(["--aspect-ratio", "1:1"], "nano") == [256, 144])
        #expect(throws: MediaError.self) { try size(["--resolution", "4k"]) }
        #expect(throws: MediaError.self) { try size(["--aspect-ratio", "2:1"]) }
    }

    @Test("a repeated request keeps what no option changes")
    func changes() throws {
        var base = Request(
            prompt: "a cat", width: 64, height: 48, frames: 9, seed: 3, samples: 2,
            sampling: .distilled(.init(steps: 2, sigmaMax: 90, ode: true)),
            arithmetic: Arithmetic(precision: .f32, linears: .fp8, attention: .sla, topK: 0.5),
            loras: [RequestedLoRA("a")], boundary: 0.5)
        #expect(try request([], model: "nano", of: base) == base)
        let changed = try request(["--seed", "4"], model: "nano", of: base)
        base.seed = 4
        #expect(changed == base)
        let other = try request(
            ["a dog", "--sampler", "euler", "--num_steps", "10", "--lora", "b:0.5"], model: "nano",
            of: base)
        #expect(other.prompt == "a dog" && other.loras == [RequestedLoRA("b", strength: 0.5)])
        #expect(other.sampling == .flow(.init(.euler, steps: 10, shift: 5, guidance: 5)))
        #expect(other.arithmetic == base.arithmetic && other.width == 64)
    }

    @Test("LoRAs in order, each for its expert")
    func loras() throws {
        let request = try request(
            [
                "x", "--low_noise_lora", "c", "--lora", "a:0.8", "--high_noise_lora", "b", "--lora",
                "d",
            ],
            model: "Wan2.2-T2V-A14B")
        #expect(
            request.loras == [
                RequestedLoRA("a", strength: 0.8), RequestedLoRA("d"),
                RequestedLoRA("b", expert: .highNoise), RequestedLoRA("c", expert: .lowNoise),
            ])
    }

    @Test("a prompt as an argument, as an option, and from a file of latents")
    func prompts() throws {
        #expect(try request(["a b"], model: "nano").prompt == "a b")
        #expect(try request(["--prompt", "a b"], model: "nano").prompt == "a b")
        #expect(try request(["--latents", "l.s"], model: "nano").prompt == "latents of l.s")
        #expect(throws: UserError.self) { try request(["a", "--prompt", "b"], model: "nano") }
    }

    @Test("seeds: numbers, or one that is drawn")
    func seeds() throws {
        #expect(try request(["x"], model: "nano").seed == 0)
        #expect(
            try request(["x", "--seed", "18446744073709551615"], model: "nano").seed == .max)
        for argument in ["random", "-1"] {
            #expect(try request(["x", "--seed", argument], model: "nano").seed == 99)
        }
        #expect(throws: (any Error).self) { try request(["x", "--seed", "-2"], model: "nano") }
    }

    @Test("choices that exclude each other")
    func conflicts() throws {
        #expect(throws: UserError.self) { try request(["x", "--guidance", "5"], model: "nano") }
        _ = try request(["x", "--guidance", "1"], model: "nano")
        // Values that cannot be, also where they would have no effect.
        #expect(throws: RequestError.self) { try request(["x", "--shift", "nan"], model: "nano") }
        #expect(throws: MediaError.self) {
            try request(["x", "--aspect_ratio", "a", "--size", "64x64"], model: "nano")
        }
        #expect(throws: UserError.self) {
            try request(["x", "--default_norm", "--norms", "reference"], model: "nano")
        }
        func options(_ arguments: String...) throws -> RunOptions {
            try TextToVideoCommand.parse(TurboDiffusion.normalized(arguments)).options.runOptions()
        }
        #expect(throws: UserError.self) { try options("x", "--skip_t5") }
        #expect(throws: UserError.self) {
            try options("x", "--text_embedding", "a", "--cached_embedding", "b")
        }
        #expect(try options("--skip_t5", "--cached_embedding", "a").start.text == "a")
    }

    @Test("stages that start from files or are written to them")
    func stages() throws {
        let options = try TextToVideoCommand.parse(
            TurboDiffusion.normalized([
                "--text_embedding", "a", "--save_text_embedding", "b", "--conditioning", "c",
                "--save_conditioning", "d", "--latents", "e", "--save_latents", "f",
                "--offload_dit",
            ])
        ).options.runOptions()
        #expect(options.start == .init(text: "a", conditioning: "c", latents: "e"))
        #expect(options.save == .init(text: "b", conditioning: "d", latents: "f"))
        #expect(!options.keepsTransformer && !options.replacesSaved)
    }
}

@Suite struct WithoutEffectTests {
    private func notes(_ arguments: String..., format: VideoFormat = .mp4) throws -> [String] {
        let models = try Catalog.published.open(ModelChoice("nano"))
        let options = try TextToVideoCommand.parse(
            TurboDiffusion.normalized(["x"] + arguments)
        ).options
        let request = try RequestBuilder(options: options).request(for: models.family)
        let run = try Run(request, models, try options.runOptions())
        return options.withoutEffect(on: run, format: format, resolution: nil).map {
            String($0.prefix { $0 != " " })
        }
    }

    @Test("of a run from latents nothing counts that latents are made with")
    func fromLatents() throws {
        let path = "/tmp/request-tests-\(UInt64.random(in: 0 ... .max)).safetensors"
        defer { unlink(path) }
        let latents = Tensor.zeros([16, 1, 4, 4], .f32)
        try writeCheckpoint(TensorCollection("latents", [("latents", latents)]), to: path)
        #expect(try notes("--latents", path) == [])
        #expect(try notes("--latents", path, "--lora", "l.safetensors") == ["--lora"])
        #expect(try notes("--latents", path, "--shift", "3") == ["--shift"])
    }

    @Test("options without effect are reported")
    func told() throws {
        #expect(try notes() == [])
        #expect(try notes("--shift", "3") == ["--shift"])
        #expect(try notes("--sampler", "euler", "--ode", "--shift", "3") == ["--ode"])
        #expect(try notes("--negative_prompt", "y") == ["--negative_prompt"])
        #expect(try notes("--sampler", "euler", "--negative_prompt", "y") == [])
        #expect(try notes("--attention_type", "original", "--sla_topk", "0.5") == ["--sla_topk"])
        #expect(try notes("--quant_linear", "--linears", "fp8") == ["--quant_linear"])
        #expect(try notes("--aspect_ratio", "1:1") == ["--aspect_ratio"])
        #expect(try notes("--aspect_ratio", "1:1", "--size", "64x64") == ["--aspect_ratio"])
        #expect(try notes("--aspect_ratio", "1:1", "--size", "480p") == [])
        #expect(try notes("--conditioning", "c") == ["--conditioning"])
        #expect(try notes("--crf", "20") == [])
        #expect(try notes("--crf", "20", format: .gif) == ["--crf"])
        #expect(
            try notes("--text_embedding", "t", "--save_text_embedding", "u")
                == ["--save_text_embedding"])
    }
}
