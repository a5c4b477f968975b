/// Cases of the video autoencoder and of the picture that image-to-video starts from.

import Checkpoints
import Media
import Models
import Runs
import Tensors

/// [T, H, W, C] → [C, T, H, W]
func channelsFirst(_ values: [Double], channels: Int) -> [Double] {
    let count = values.count / channels
    var result = [Double](repeating: 0, count: values.count)
    for index in 0..<count {
        for channel in 0..<channels {
            result[channel * count + index] = values[index * channels + channel]
        }
    }
    return result
}

/// [C, T, H, W] → [T, H, W, C]
func channelsLast(_ video: Tensor) -> Tensor {
    let channels = video.shape[0]
    let count = video.shape.count / channels
    let values = video.floats()
    var result = [Float](repeating: 0, count: values.count)
    for channel in 0..<channels {
        for index in 0..<count {
            result[index * channels + channel] = values[channel * count + index]
        }
    }
    return Tensor(result, [video.shape[1], video.shape[2], video.shape[3], channels])
}

/// in.latent: f32 [B, C, T, H, W]
func checkDecoder(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let latents = try fixture.f32("in.latent")
    for (name, dtype) in [("out.video_fp32", DType.f32), ("out.video_bf16iface", .bf16)]
    where fixture.has(name) {
        let decoder = try WanVAE.Decoder(
            Weights(try fixture.weights.open(), on: device, activations: dtype))
        let video = (0..<latents.shape[0]).flatMap { sample in
            decode(device.place(latents[sample], as: .f32), decoder, on: device)
        }
        try checks.compare(name, video, in: fixture)
    }
}

/// latents: [C, T, H, W] → [3, frames, 8H, 8W]
func decode(_ latents: Tensor, _ decoder: WanVAE.Decoder, on device: any Backend) -> [Double] {
    channelsFirst(
        decoder(latents, on: device).flatMap { device.read($0).doubles() }, channels: 3)
}

/// in.video: [B, 3, T, H, W] in -1...1
func checkEncoder(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let video = try fixture.f32("in.video")
    let ones = [Float](repeating: 1, count: 16)
    let zeros = [Float](repeating: 0, count: 16)
    let variants: [(String, DType, LatentStatistics)] = [
        ("out.latent_fp32", .f32, .wan), ("out.latent_bf16iface", .bf16, .wan),
        ("mid.mu_unscaled_fp32", .f32, LatentStatistics(mean: zeros, std: ones)),
    ]
    for (name, dtype, statistics) in variants where fixture.has(name) {
        let encoder = try WanVAE.Encoder(
            Weights(try fixture.weights.open(), on: device, activations: dtype),
            statistics: statistics)
        let latents = (0..<video.shape[0]).flatMap { sample in
            device.read(
                encoder(device.place(channelsLast(video[sample]), as: dtype), on: device)
            ).doubles()
        }
        try checks.compare(name, latents, in: fixture)
    }
}

// MARK: - Pictures

/// in.image_hwc: u8 [H, W, 3]
func picture(_ fixture: Fixture) throws -> RGBImage {
    let image = try fixture.tensor("in.image_hwc")
    return RGBImage(
        width: image.shape[1], height: image.shape[0],
        pixels: image.withElements(UInt8.self) { Array($0) })
}

func checkImagePreprocessing(
    _ fixture: Fixture, _ device: any Backend, _ checks: Checks
) throws {
    let resized = resize(
        try picture(fixture), width: try fixture.int("w"), height: try fixture.int("h"))
    try checks.compare(
        "out.resized_chw_u8", channelsFirst(resized.pixels.map { Double($0) }, channels: 3),
        in: fixture)
    if fixture.has("out.normalized_chw") {
        try checks.compare(
            "out.normalized_chw", channelsFirst(normalized(resized).doubles(), channels: 3),
            in: fixture)
    }
    if fixture.has("mid.resized_chw_float") {
        checks.skip(
            "mid.resized_chw_float", "pictures are resized in 8 bits, as in the reference")
    }
}

/// in.encoded_latents: f32 [B, 16, T, H, W]
func checkConditioning(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let latents = try fixture.f32("in.encoded_latents")
    var mask: [Double] = []
    var whole: [Double] = []
    for sample in 0..<latents.shape[0] {
        let y = firstFrameConditioning(
            device.place(latents[sample], as: .f32), maskChannels: 4, on: device)
        mask += device.read(y.slice(0..<4)).doubles()
        whole += device.read(y).doubles()
    }
    try checks.compare("out.mask", mask, in: fixture)
    try checks.compare("out.y", whole, in: fixture)
}
