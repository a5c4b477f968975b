/// The keys of adapters: which module of the model a key refers to, and which part of its change it
/// holds.

/// A part of the change of one module.
enum AdapterPart: Hashable {
    /// Low rank: up [out, rank], down [rank, in].
    case up, down
    /// Added to the module's bias, scaled like the weight.
    case upBias
    case alpha
    /// DoRA's norms of the changed matrix.
    case magnitude
    /// The full difference of the tensor with this leaf.
    case difference(String)
    /// The whole new tensor with this leaf.
    case replacement(String)
    /// LoHa: (w1_a · w1_b) ∘ (w2_a · w2_b).
    case hadamard(String)
    /// LoKr: w1 ⊗ w2, either of them whole or a product.
    case kronecker(String)

    /// The leaf of the tensor that it changes; nil if it changes nothing by itself.
    var leaf: String? {
        switch self {
        case .alpha: nil
        case .up, .down, .magnitude, .hadamard, .kronecker: "weight"
        case .upBias: "bias"
        case .difference(let leaf), .replacement(let leaf): leaf
        }
    }
}

/// A parsed key.
struct AdapterKey {
    enum Content {
        case part(AdapterPart)
        /// A kind of change that is not supported.
        case foreign(String)
    }

    /// The module in the adapter's spelling, without prefixes.
    let module: String
    let content: Content

    /// Prefixes before the model's own names; there may be several.
    private static let prefixes = [
        "base_model.", "model.", "diffusion_model.", "transformer.", "transformer_2.", "unet.",
        "pipe.", "dit.",
        "net.",
        "module.", "lora_unet_", "lora_transformer_", "lycoris_",
    ]

    /// Key components after the module's name that say what the tensor is.
    private static let parts: [String: AdapterPart] = [
        "lora_B": .up, "lora_up": .up, "lora_A": .down, "lora_down": .down, "alpha": .alpha,
        "lora_magnitude_vector": .magnitude, "dora_scale": .magnitude,
        "diff": .difference("weight"), "diff_b": .difference("bias"),
        "diff_m": .difference("modulation"), "w_norm": .difference("weight"),
        "b_norm": .difference("bias"),
        "hada_w1_a": .hadamard("w1_a"), "hada_w1_b": .hadamard("w1_b"),
        "hada_w2_a": .hadamard("w2_a"), "hada_w2_b": .hadamard("w2_b"),
        "lokr_w1": .kronecker("w1"), "lokr_w1_a": .kronecker("w1_a"),
        "lokr_w1_b": .kronecker("w1_b"), "lokr_w2": .kronecker("w2"),
        "lokr_w2_a": .kronecker("w2_a"), "lokr_w2_b": .kronecker("w2_b"),
    ]

    /// Kinds of change that are refused, by the key components that identify them.
    private static let foreign: [String: String] = [
        "lora_mid": "a LoCon in Tucker form", "hada_t1": "a LoHa in Tucker form",
        "hada_t2": "a LoHa in Tucker form", "lokr_t2": "a LoKr in Tucker form",
        "oft_blocks": "OFT", "oft_diag": "OFT", "oft_R": "OFT", "boft_R": "BOFT", "boft_s": "BOFT",
        "a1": "GLoRA", "a2": "GLoRA", "b1": "GLoRA", "b2": "GLoRA", "on_input": "IA3",
        "ia3_l": "IA3", "vera_lambda_b": "VeRA", "vera_lambda_d": "VeRA", "lora_E": "AdaLoRA",
        "lora_embedding_A": "a LoRA of an embedding", "lora_embedding_B": "a LoRA of an embedding",
        "reshape_weight": "a change of shapes",
        "set_weight": "a replaced weight of another program",
        "scalar": "a learned strength (scalar)",
    ]

    init(_ key: String) {
        var rest = key[...]
        while let prefix = Self.prefixes.first(where: { rest.hasPrefix($0) }) {
            rest = rest.dropFirst(prefix.utf8.count)
        }
        let components = rest.split(separator: ".", omittingEmptySubsequences: false).map(
            String.init)
        for (index, component) in components.enumerated() where index > 0 {
            let after = components.dropFirst(index + 1)
            // "lora.up.weight" is lora_up.weight
            let isSplit = component == "lora" && ["up", "down"].contains(after.first)
            let name = isSplit ? "lora_" + (after.first ?? "") : component
            func module() -> String { components[..<index].joined(separator: ".") }
            if let kind = Self.foreign[name] {
                self.init(module: module(), content: .foreign(kind))
                return
            }
            if let part = Self.parts[name] {
                // The part may be followed by PEFT's name of the adapter and by "weight".
                let leaf = after.last == "bias" ? "bias" : "weight"
                let content: Content =
                    switch (part, leaf) {
                    case (.up, "bias"): .part(.upBias)
                    case (_, "bias"): .foreign("a bias of '\(name)'")
                    default: .part(part)
                    }
                self.init(module: module(), content: content)
                return
            }
        }
        // A whole tensor: PEFT saves modules that were trained along with the adapters this way.
        var module = components.dropLast()
        if module.count > 2, module.dropLast().last == "modules_to_save" { module.removeLast(2) }
        if module.last == "base_layer" { module.removeLast() }
        let leaf = components.last ?? ""
        self.init(
            module: module.joined(separator: "."),
            content: ["weight", "bias", "modulation"].contains(leaf)
                ? .part(.replacement(leaf)) : .foreign("'\(leaf)'"))
    }

    private init(module: String, content: Content) {
        self.module = module
        self.content = content
    }
}

/// The modules of a model by the names that an adapter gives them: Wan's own or Hugging Face's,
/// with dots or, in kohya's files, with underscores.
struct AdapterModules {
    private var modules: [String: String] = [:]

    /// - Parameters:
    ///   - base: the model, in original names.
    ///   - keys: the adapter's keys, which show whose names it uses.
    init(_ base: any Checkpoint, keys: [String]) {
        let kind = KeyLayout.detect(base.names)?.0
        let foreign = ["attn1", "attn2", "condition_embedder", "proj_out", "SelfAttention"]
        let isForeign = keys.contains { key in foreign.contains { key.contains($0) } }
        let translation = isForeign ? kind.map { KeyTranslation($0) } : nil
        let own = Set(base.names.lazy.map { splitLeaf($0).module }).filter { !$0.isEmpty }
        func add(_ spelled: String, _ module: String) {
            for name in [spelled, String(spelled.map { $0 == "." ? "_" : $0 })]
            where modules[name] == nil { modules[name] = module }
        }
        // Hugging Face's norm2 is Wan's norm3, so the adapter's own spelling takes precedence.
        if let translation { for module in own { add(translation.foreign(module), module) } }
        for module in own { add(module, module) }
    }

    subscript(_ spelled: String) -> String? { modules[spelled] }
}
