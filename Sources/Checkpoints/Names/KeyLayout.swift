/// The names that different programs give to the same tensors.

/// Whose names the tensors of a checkpoint have.
public enum KeyLayout: String, Sendable, CaseIterable {
    /// Wan's own names, as TurboDiffusion uses them.
    case original
    /// Hugging Face: `WanTransformer3DModel`, `AutoencoderKLWan`, `UMT5EncoderModel`.
    case diffusers
    /// ComfyUI: Wan's own names for transformer and VAE, Hugging Face's for the text encoder.
    case comfyui
    /// llama.cpp: its own names for the text encoder.
    case llamacpp

    /// The model and the layout that the names belong to; nil if they belong to no known model.
    /// ComfyUI's names for a transformer or VAE are the original ones.
    public static func detect(_ names: [String]) -> (DetectedModel.Kind, KeyLayout)? {
        let markers: [(String, DetectedModel.Kind, KeyLayout)] = [
            ("condition_embedder.", .wanTransformer, .diffusers),
            ("blocks.0.attn1.", .wanTransformer, .diffusers),
            ("blocks.0.self_attn.", .wanTransformer, .original),
            ("token_embedding.", .umT5, .original),
            ("encoder.block.0.layer.0.", .umT5, .diffusers),
            ("enc.blk.0.", .umT5, .llamacpp),
            ("shared.", .umT5, .diffusers),
            ("encoder.conv_in.", .wanVAE, .diffusers),
            ("decoder.conv_in.", .wanVAE, .diffusers),
            ("encoder.conv1.", .wanVAE, .original),
            ("decoder.conv1.", .wanVAE, .original),
        ]
        let match = markers.first { marker in names.contains { $0.hasPrefix(marker.0) } }
        return match.map { ($0.1, $0.2) }
    }

    /// Whether this layout uses the original's names for a kind of model.
    func isOriginal(_ kind: DetectedModel.Kind) -> Bool {
        self == .original || self != .diffusers && kind != .umT5
    }

    /// Whether the patch embedding is a convolution in this layout (in the original it is a matrix).
    var hasConvolutionalPatches: Bool { self != .original }
}

/// Original names ⇄ those of another program. A name is a module and a leaf (`weight`, `bias`, `int8_weight`, …);
/// modules are looked up, leaves stay, and whatever is not in a table keeps its name.
struct KeyTranslation {
    private let toForeign: [String: String]
    private let toOriginal: [String: String]

    init(_ kind: DetectedModel.Kind, _ layout: KeyLayout = .diffusers) {
        let pairs: [(String, String)] =
            switch kind {
            case .wanTransformer: Self.transformer
            case .umT5: layout == .llamacpp ? Self.llamaUMT5 : Self.umT5
            case .wanVAE: Self.vae
            }
        toForeign = Dictionary(uniqueKeysWithValues: pairs)
        toOriginal = Dictionary(uniqueKeysWithValues: pairs.map { ($1, $0) })
    }

    func foreign(_ name: String) -> String { translate(name, toForeign) }
    func original(_ name: String) -> String { translate(name, toOriginal) }

    private func translate(_ name: String, _ table: [String: String]) -> String {
        // No table has a longer name, and the search below is not linear in the number of parts.
        guard name.utf8.count <= 256 else { return name }
        let (pattern, number) = Self.numbered(name)
        // Find the longest module in the table; the rest is the leaf.
        var module = pattern[...]
        while true {
            if let found = table[String(module)] {
                return Self.filled(found + pattern[module.endIndex...], number)
            }
            guard let dot = module.lastIndex(of: ".") else { return name }
            module = module[..<dot]
        }
    }

    /// "blocks.12.ffn.0.bias" → ("blocks.#.ffn.0.bias", "12")
    private static func numbered(_ name: String) -> (String, String) {
        for prefix in ["blocks.", "encoder.block.", "enc.blk."] where name.hasPrefix(prefix) {
            let rest = name.dropFirst(prefix.count)
            let digits = rest.prefix { $0.isASCII && $0.isNumber }
            guard !digits.isEmpty else { continue }
            return (prefix + "#" + rest.dropFirst(digits.count), String(digits))
        }
        return (name, "")
    }

    private static func filled(_ pattern: String, _ number: String) -> String {
        guard let place = pattern.firstIndex(of: "#") else { return pattern }
        return pattern[..<place] + number + pattern[pattern.index(after: place)...]
    }

    /// https://github.com/huggingface/diffusers/blob/v0.35.0/scripts/convert_wan_to_diffusers.py
    private static let transformer: [(String, String)] = {
        var pairs = [
            ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
            ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
            ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
            ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
            ("time_projection.1", "condition_embedder.time_proj"),
            ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
            ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
            ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
            ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
            ("head.modulation", "scale_shift_table"),
            ("head.head", "proj_out"),
            ("blocks.#.modulation", "blocks.#.scale_shift_table"),
            ("blocks.#.ffn.0", "blocks.#.ffn.net.0.proj"),
            ("blocks.#.ffn.2", "blocks.#.ffn.net.2"),
            // Hugging Face numbers the norms in the order in which they are used.
            ("blocks.#.norm3", "blocks.#.norm2"),
            ("blocks.#.norm2", "blocks.#.norm3"),
            ("blocks.#.cross_attn.k_img", "blocks.#.attn2.add_k_proj"),
            ("blocks.#.cross_attn.v_img", "blocks.#.attn2.add_v_proj"),
            ("blocks.#.cross_attn.norm_k_img", "blocks.#.attn2.norm_added_k"),
        ]
        for (ours, theirs) in [("self_attn", "attn1"), ("cross_attn", "attn2")] {
            for (a, b) in [
                ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"),
                ("norm_q", "norm_q"), ("norm_k", "norm_k"),
            ] { pairs.append(("blocks.#.\(ours).\(a)", "blocks.#.\(theirs).\(b)")) }
        }
        return pairs
    }()

    /// https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/umt5/modeling_umt5.py
    private static let umT5: [(String, String)] = {
        var pairs = [
            ("token_embedding", "shared"), ("norm", "encoder.final_layer_norm"),
            ("blocks.#.norm1", "encoder.block.#.layer.0.layer_norm"),
            (
                "blocks.#.pos_embedding.embedding",
                "encoder.block.#.layer.0.SelfAttention.relative_attention_bias"
            ),
            ("blocks.#.norm2", "encoder.block.#.layer.1.layer_norm"),
            ("blocks.#.ffn.gate.0", "encoder.block.#.layer.1.DenseReluDense.wi_0"),
            ("blocks.#.ffn.fc1", "encoder.block.#.layer.1.DenseReluDense.wi_1"),
            ("blocks.#.ffn.fc2", "encoder.block.#.layer.1.DenseReluDense.wo"),
        ]
        for name in ["q", "k", "v", "o"] {
            pairs.append(
                ("blocks.#.attn.\(name)", "encoder.block.#.layer.0.SelfAttention.\(name)"))
        }
        return pairs
    }()

    /// https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py (T5ENCODER)
    private static let llamaUMT5: [(String, String)] = {
        var pairs = [
            ("token_embedding", "token_embd"), ("norm", "enc.output_norm"),
            ("blocks.#.norm1", "enc.blk.#.attn_norm"),
            ("blocks.#.pos_embedding.embedding", "enc.blk.#.attn_rel_b"),
            ("blocks.#.norm2", "enc.blk.#.ffn_norm"),
            ("blocks.#.ffn.gate.0", "enc.blk.#.ffn_gate"),
            ("blocks.#.ffn.fc1", "enc.blk.#.ffn_up"), ("blocks.#.ffn.fc2", "enc.blk.#.ffn_down"),
        ]
        for name in ["q", "k", "v", "o"] {
            pairs.append(("blocks.#.attn.\(name)", "enc.blk.#.attn_\(name)"))
        }
        return pairs
    }()

    /// https://github.com/huggingface/diffusers/blob/v0.35.0/scripts/convert_wan_to_diffusers.py
    private static let vae: [(String, String)] = {
        var pairs = [("conv1", "quant_conv"), ("conv2", "post_quant_conv")]
        let residual = [
            ("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"),
            ("residual.6", "conv2"), ("shortcut", "conv_shortcut"),
        ]
        for side in ["encoder", "decoder"] {
            pairs.append(("\(side).conv1", "\(side).conv_in"))
            pairs.append(("\(side).head.0", "\(side).norm_out"))
            pairs.append(("\(side).head.2", "\(side).conv_out"))
            for (ours, theirs) in [("0", "0"), ("2", "1")] {
                for (a, b) in residual {
                    pairs.append(
                        (
                            "\(side).middle.\(ours).\(a)",
                            "\(side).mid_block.resnets.\(theirs).\(b)"
                        ))
                }
            }
            for part in ["norm", "to_qkv", "proj"] {
                pairs.append(
                    ("\(side).middle.1.\(part)", "\(side).mid_block.attentions.0.\(part)"))
            }
        }
        // In the encoder both number all steps alike; in the decoder Hugging Face groups them by
        // resolution: three residual blocks and one upsampling step.
        for index in 0..<11 {
            let (ours, theirs) = ("encoder.downsamples.\(index)", "encoder.down_blocks.\(index)")
            for (a, b) in residual { pairs.append(("\(ours).\(a)", "\(theirs).\(b)")) }
            for part in ["resample.1", "time_conv"] {
                pairs.append(("\(ours).\(part)", "\(theirs).\(part)"))
            }
        }
        for index in 0..<15 {
            let (ours, group) = ("decoder.upsamples.\(index)", "decoder.up_blocks.\(index / 4)")
            guard index % 4 < 3 else {
                for part in ["resample.1", "time_conv"] {
                    pairs.append(("\(ours).\(part)", "\(group).upsamplers.0.\(part)"))
                }
                continue
            }
            for (a, b) in residual {
                pairs.append(("\(ours).\(a)", "\(group).resnets.\(index % 4).\(b)"))
            }
        }
        return pairs
    }()
}
