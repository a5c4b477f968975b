/// Tensors of Wan's relatives that the models here do not have.

import Tensors

/// What tensors that no model asks for would have done, by the start of a module's name (after
/// "blocks.N." for a module in a block).
private let knownParts: [(start: String, part: String)] = [
    ("vace_", "VACE (videos as conditions)"),
    ("img_emb", "a CLIP image branch (Wan2.1 image-to-video)"),
    ("cross_attn.k_img", "a CLIP image branch (Wan2.1 image-to-video)"),
    ("cross_attn.v_img", "a CLIP image branch (Wan2.1 image-to-video)"),
    ("cross_attn.norm_k_img", "a CLIP image branch (Wan2.1 image-to-video)"),
    ("to_gate_compress", "the gates of video sparse attention (VSA)"),
    ("self_attn.to_gate_compress", "the gates of video sparse attention (VSA)"),
    ("gate_compress", "the gates of video sparse attention (VSA)"),
    ("self_attn.gate_compress", "the gates of video sparse attention (VSA)"),
    ("ref_conv", "a reference picture (Fun-Control)"),
    ("control_adapter", "camera control (Fun-Camera)"), ("cam_", "camera control"),
    ("face_adapter", "faces (Wan2.2 Animate)"), ("face_encoder", "faces (Wan2.2 Animate)"),
    ("motion_encoder", "motion (Wan2.2 Animate)"),
    ("pose_patch_embedding", "poses (Wan2.2 Animate)"),
    ("dwpose_embedding", "poses (UniAnimate)"),
    ("audio_", "sound (speech-to-video)"), ("casual_audio_encoder", "sound (Wan2.2 S2V)"),
    ("fps_", "frame rates (SkyReels)"),
]

/// Refuses tensors that would change what a model computes.
/// - Parameter names: the tensors that the model did not ask for, in original names.
/// - Throws: `.incompatible`.
func refuseForeignParts(
    _ names: [String], _ kind: DetectedModel.Kind, in file: any Checkpoint
) throws(CheckpointError) {
    guard kind == .wanTransformer else { return }
    for name in names {
        guard let part = foreignPart(name, file.info(name)) else { continue }
        throw .incompatible(
            path: file.path,
            reason:
                "'\(name)' belongs to \(part), which is not supported: without it the model would "
                + "compute something else")
    }
}

/// What a tensor of a transformer would do; nil if it is not known to do anything.
private func foreignPart(_ name: String, _ info: TensorInfo?) -> String? {
    var rest = name[...]
    var isInBlock = false
    if name.hasPrefix("blocks.") {
        let parts = name.split(separator: ".", maxSplits: 2)
        isInBlock = parts.count == 3 && Int(parts[1]) != nil
        if isInBlock { rest = parts[2] }
    }
    if let known = knownParts.first(where: { rest.hasPrefix($0.start) }) { return known.part }
    if name.contains("lora_") { return "an adapter that has not been merged" }
    // A parameter inside a block affects every step, whatever its name.
    let isParameter = info.map { $0.dtype.isFloatingPoint && $0.shape.reduce(1, *) > 0 } ?? false
    return isInBlock && isParameter && !rest.hasSuffix("_extra_state")
        ? "an unknown part of the blocks" : nil
}
