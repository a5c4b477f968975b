/// The strength that an adapter was trained with: alpha in its keys, in the header of its file, or
/// in PEFT's `adapter_config.json` beside it.

import Ground
import Tensors

/// What is said about alpha outside the keys.
struct AdapterConfiguration {
    private(set) var alpha: Double?
    private var alphas: [(pattern: String, alpha: Double)] = []
    private var isRankStabilized = false
    let saysDoRA: Bool
    /// Where the configuration was found, for messages.
    let source: String?

    /// - Throws: `.malformed`, or `.incompatible` if it asks for something that is not supported.
    init(of file: any Checkpoint) throws(CheckpointError) {
        var found: (text: [UInt8], source: String)?
        if let text = file.metadata["lora_adapter_metadata"] {
            found = (Array(text.utf8), "its header")
        } else if file.format != nil {
            let folder = file.path.lastIndex(of: "/").map { String(file.path[...$0]) } ?? ""
            let path = folder + "adapter_config.json"
            if let text = try smallFile(path) { found = (text, path) }
        }
        source = found?.source
        guard let found else {
            saysDoRA = false
            return
        }
        guard case .object(let members)? = JSONValue(parsing: found.text) else {
            throw .malformed(path: file.path, reason: "\(found.source) is not a JSON object")
        }
        var own: [String: JSONValue] = [:]
        // diffusers prefixes each name with the pipeline's part that it belongs to.
        for (key, value) in members {
            let parts = key.split(separator: ".")
            guard let last = parts.last, parts.count == 1 || parts[0] != "text_encoder" else {
                continue
            }
            own[String(last)] = value
        }
        alpha = own["lora_alpha"]?.number
        isRankStabilized = own["use_rslora"]?.bool ?? false
        saysDoRA = own["use_dora"]?.bool ?? false
        guard own["fan_in_fan_out"]?.bool != true else {
            throw .incompatible(
                path: file.path,
                reason: "\(found.source) says fan_in_fan_out: transposed matrices are not supported"
            )
        }
        if case .object(let patterns)? = own["alpha_pattern"] {
            for (pattern, value) in patterns {
                guard let alpha = value.number,
                    !pattern.contains(where: { "*+?()[]{}|\\$^".contains($0) })
                else {
                    throw .incompatible(
                        path: file.path,
                        reason: "\(found.source) gives alpha by the pattern '\(pattern)', which is "
                            + "not the end of a name")
                }
                alphas.append((pattern, alpha))
            }
        }
    }

    /// alpha / rank of a module (in the adapter's spelling), or alpha / √rank for rsLoRA; 1 without an alpha.
    func scale(of module: String, rank: Int) -> Double {
        let special = alphas.first { pair in
            module == pair.pattern || module.hasSuffix("." + pair.pattern)
        }
        guard let alpha = special?.alpha ?? alpha else { return 1 }
        return alpha / (isRankStabilized ? Double(rank).squareRoot() : Double(rank))
    }
}

/// The bytes of a file of at most 1 MB; nil if there is none.
private func smallFile(_ path: String) throws(CheckpointError) -> [UInt8]? {
    do throws(CheckpointError) {
        let file = try openFile(path)
        guard file.bytes.count <= 1 << 20 else {
            throw file.fail("more than 1 MB of configuration")
        }
        return Array(file.bytes)
    } catch {
        if case .unreadable = error { return nil }
        throw error
    }
}
