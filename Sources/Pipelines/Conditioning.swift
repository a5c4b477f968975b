/// What an image-to-video model is told about its first frame.

public import Tensors

/// A mask that is 1 on the first latent frame, then the picture's latents.
/// latents: f32 [16, T, H, W] → f32 [20, T, H, W]
public func imageConditioning(_ latents: Tensor, on device: any Backend) -> Tensor {
    let channels = 4
    let frame = latents.shape[2] * latents.shape[3]
    let shape: Shape = [channels, latents.shape[1], latents.shape[2], latents.shape[3]]
    var mask = [Float](repeating: 0, count: shape.count)
    for channel in 0..<channels {
        let start = channel * latents.shape[1] * frame
        for index in start..<start + frame { mask[index] = 1 }
    }
    return device.concatenate([device.place(Tensor(mask, shape), as: .f32), latents])
}
