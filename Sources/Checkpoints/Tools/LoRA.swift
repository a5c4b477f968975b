/// Low-rank adaptations: merged into a checkpoint on disk, or while it is loaded.

import Tensors

/// An adaptation and how strongly it is wanted.
public struct LoRA {
    public let checkpoint: any Checkpoint
    /// Factor of the change; 1 is as it was trained.
    public let strength: Float

    public init(_ checkpoint: any Checkpoint, strength: Float = 1) {
        self.checkpoint = checkpoint
        self.strength = strength
    }

    public init(path: String, strength: Float = 1) throws(CheckpointError) {
        self.init(try openCheckpoint(path), strength: strength)
    }
}

/// A checkpoint with adaptations merged in.
public struct AdaptedCheckpoint {
    /// Computes the changed tensors when they are asked for.
    public let checkpoint: any Checkpoint
    /// Tensors that were changed.
    public let changed: [String]
    /// Keys of the adaptations that belong to nothing in the checkpoint, with the file's name
    /// before them.
    public let unmatched: [String]
}

/// weight + strength · (alpha / rank) · up · down for every layer that an adaptation names.
///
/// Understood are the layouts of kohya (`lora_unet_blocks_0_self_attn_q.lora_down.weight`,
/// `.alpha`), ComfyUI (`diffusion_model.blocks.0.self_attn.q.lora_A.weight`, full differences
/// `.diff`, `.diff_b`, `.diff_m`) and diffusers or PEFT
/// (`transformer.blocks.0.attn1.to_q.lora_A.weight`). Quantised layers are dequantised, changed and
/// quantised again.
/// - Throws: `.incompatible` where an adaptation was made for another model or is of an unknown
///   kind.
public func adapted(
    _ base: any Checkpoint, by loras: [LoRA]
) throws(CheckpointError) -> AdaptedCheckpoint {
    let base = try inOriginalNames(base)
    if loras.isEmpty { return AdaptedCheckpoint(checkpoint: base, changed: [], unmatched: []) }
    let modules = ModuleTable(base)
    var changes: [String: [Change]] = [:]
    var unmatched: [String] = []
    for lora in loras {
        let (found, strangers) = try parsed(lora, modules, base)
        guard !found.isEmpty else {
            throw .incompatible(
                path: lora.checkpoint.path,
                reason: "none of its \(lora.checkpoint.names.count) keys belongs to a layer of "
                    + "\(base.path); the first: "
                    + lora.checkpoint.names.prefix(3).joined(separator: ", "))
        }
        for (target, change) in found { changes[target, default: []].append(change) }
        unmatched += strangers.map { "\(lora.checkpoint.path): \($0)" }
    }
    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        let (module, leaf) = splitLeaf(info.name)
        let list = changes[module + (leaf == "bias" ? ".bias" : ".weight")] ?? changes[info.name]
        switch (list, leaf) {
        case (let list?, "int8_weight"), (let list?, "fp8_weight"):
            let format: LinearStorage = leaf == "int8_weight" ? .int8 : .fp8
            try checkQuantized(info, module, format, base)
            entries += quantizedEntries(module, info.shape, format) {
                () throws(CheckpointError) in
                defer { base.forget(info.name) }
                let matrix = try changed(try numbers(of: module, format, base), by: list)
                return format == .int8 ? Int8Blocks.quantize(matrix) : FP8Rows.quantize(matrix)
            }
        case (_?, "scale"):
            continue  // made with its codes
        case (let list?, _):
            entries.append(
                DerivedCheckpoint.Entry(info: info) { () throws(CheckpointError) in
                    try changed(try base.require(info.name), by: list)
                } forget: {
                    base.forget(info.name)
                })
        default: entries.append(.from(base, info))
        }
    }
    return AdaptedCheckpoint(
        checkpoint: try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries),
        changed: changes.keys.sorted(), unmatched: unmatched)
}

// MARK: - Reading the keys

/// A change of one tensor.
enum Change {
    /// scale · up · down. up: [out, rank]; down: [rank, in]
    case lowRank(any Checkpoint, up: String, down: String, scale: Float)
    /// scale · difference
    case full(any Checkpoint, String, scale: Float)
}

/// The modules of a checkpoint by all the names that adaptations give them.
private struct ModuleTable {
    private var modules: [String: String] = [:]

    init(_ base: any Checkpoint) {
        let translation = KeyLayout.detect(base.names).map { KeyTranslation($0.0) }
        for name in base.names {
            let module = splitLeaf(name).module
            let foreign = translation?.foreign(module) ?? module
            for alias in [module, foreign] {
                modules[alias] = modules[alias] ?? module
                // kohya writes dots as underscores
                let flat = String(alias.map { $0 == "." ? "_" : $0 })
                modules[flat] = modules[flat] ?? module
            }
            // Wan's own names win over Hugging Face's for other things (norm2, norm3).
            modules[module] = module
        }
    }

    subscript(_ name: String) -> String? { modules[name] }
}

private enum Part {
    case up, down, alpha
    /// A full difference of the tensor with this leaf.
    case difference(String)

    static let suffixes: [(String, Part)] = {
        var list: [(String, Part)] = []
        for (names, part) in [
            (["lora_B", "lora_up", "lora.up"], up), (["lora_A", "lora_down", "lora.down"], down),
        ] {
            for name in names {
                for end in [".weight", ".default.weight", ""] {
                    list.append((".\(name)\(end)", part))
                }
            }
        }
        return list + [
            (".alpha", alpha), (".diff", .difference("weight")),
            (".diff_b", .difference("bias")), (".diff_m", .difference("modulation")),
        ]
    }()
}

private let loraPrefixes = [
    "base_model.model.", "diffusion_model.", "transformer.", "unet.", "lora_unet_",
    "lora_transformer_",
]

private func parsed(
    _ lora: LoRA, _ modules: ModuleTable, _ base: any Checkpoint
) throws(CheckpointError) -> (changes: [(String, Change)], unmatched: [String]) {
    struct Adapter {
        var up, down, alpha: String?
        var keys: [String] = []
    }
    let file = lora.checkpoint
    var order: [String] = []
    var adapters: [String: Adapter] = [:]
    var changes: [(String, Change)] = []
    var unmatched: [String] = []
    for key in file.names {
        var rest = key[...]
        while let prefix = loraPrefixes.first(where: { rest.hasPrefix($0) }) {
            rest = rest.dropFirst(prefix.count)
        }
        guard let (suffix, part) = Part.suffixes.first(where: { rest.hasSuffix($0.0) }) else {
            unmatched.append(key)
            continue
        }
        let alias = String(rest.dropLast(suffix.count))
        if case .difference(let leaf) = part {
            // A modulation is a tensor of the block, not a module of its own.
            let target =
                leaf == "modulation"
                ? "\(alias).modulation" : modules[alias].map { "\($0).\(leaf)" }
            guard let target,
                let stored = base.info(target)
                    ?? (leaf == "weight" ? storedMatrix(alias, modules, base) : nil)
            else {
                unmatched.append(key)
                continue
            }
            let found = file.info(key)?.shape ?? []
            guard found.reduce(1, *) == stored.shape.reduce(1, *) else {
                throw foreign(file, target, found, stored.shape, base)
            }
            changes.append((target, .full(file, key, scale: lora.strength)))
            continue
        }
        guard let module = modules[alias] else {
            unmatched.append(key)
            continue
        }
        if adapters[module] == nil { order.append(module) }
        var adapter = adapters.removeValue(forKey: module) ?? Adapter()
        adapter.keys.append(key)
        switch part {
        case .up: adapter.up = key
        case .down: adapter.down = key
        default: adapter.alpha = key
        }
        adapters[module] = adapter
    }
    for module in order {
        guard let adapter = adapters[module] else { continue }
        guard let up = adapter.up, let down = adapter.down,
            let stored = storedMatrix(module, modules, base)
        else {
            unmatched += adapter.keys
            continue
        }
        let change = try lowRank(lora, module, up, down, adapter.alpha, stored.shape, base)
        changes.append(("\(module).weight", change))
    }
    return (changes, unmatched)
}

/// The weight of a module in whatever form it has.
private func storedMatrix(
    _ alias: String, _ modules: ModuleTable, _ base: any Checkpoint
) -> TensorInfo? {
    guard let module = modules[alias] else { return nil }
    return ["weight", "int8_weight", "fp8_weight"].lazy
        .compactMap { base.info("\(module).\($0)") }.first
}

private func lowRank(
    _ lora: LoRA, _ module: String, _ up: String, _ down: String, _ alpha: String?,
    _ stored: [Int], _ base: any Checkpoint
) throws(CheckpointError) -> Change {
    let file = lora.checkpoint
    guard let u = file.info(up)?.shape, let d = file.info(down)?.shape, u.count >= 2, d.count >= 2,
        stored.count >= 2
    else {
        throw .incompatible(path: file.path, reason: "'\(module)' is not changed by two matrices")
    }
    // Convolutions are seen as matrices.
    let (outputs, rank) = (u[0], u.dropFirst().reduce(1, *))
    let inputs = d.dropFirst().reduce(1, *)
    guard rank == d[0], rank > 0 else {
        throw .incompatible(
            path: file.path, reason: "'\(module)' has factors \(u) and \(d) that do not multiply")
    }
    guard outputs == stored[0], inputs == stored.dropFirst().reduce(1, *) else {
        throw foreign(
            file, module, [outputs, inputs], [stored[0], stored.dropFirst().reduce(1, *)], base)
    }
    var scale = lora.strength
    if let alpha {
        guard let value = try file.require(alpha).floats().first, value.isFinite else {
            throw .incompatible(path: file.path, reason: "'\(alpha)' is no number")
        }
        scale *= value / Float(rank)
    }
    return .lowRank(file, up: up, down: down, scale: scale)
}

/// The error for an adaptation of another model: its width, where the shapes tell it.
private func foreign(
    _ file: any Checkpoint, _ module: String, _ found: [Int], _ stored: [Int],
    _ base: any Checkpoint
) -> CheckpointError {
    if case .wanTransformer(let model) = DetectedModel(base), found.count == stored.count,
        let place = stored.firstIndex(of: model.dim), found[place] != model.dim
    {
        return .incompatible(
            path: file.path,
            reason: "made for a transformer of width \(found[place]), \(base.path) has "
                + "\(model.dim)")
    }
    return .incompatible(
        path: file.path,
        reason: "made for another model: it changes '\(module)' of shape \(found), "
            + "\(base.path) has \(stored)")
}
