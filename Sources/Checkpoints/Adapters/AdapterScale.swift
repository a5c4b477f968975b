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
    private let path: String

    /// - Throws: `.malformed`, or `.incompatible` if it asks for something that is not supported.
    init(of file: any Checkpoint) throws(CheckpointError) {
        path = file.path
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
        let place = found.source
        func fail(_ reason: String) -> CheckpointError {
            .incompatible(path: file.path, reason: "\(place) \(reason)")
        }
        /// What is said under a name, which diffusers prefixes with each part of the pipeline that it is said of.
        func value<T>(
            _ name: String, _ kind: String, _ read: (JSONValue) -> T?
        ) throws(CheckpointError) -> T? {
            let said = members.filter { key, value in
                let parts = key.split(separator: ".")
                return parts.last == name[...] && value != .null
                    && (parts.count == 1 || !parts[0].hasPrefix("text_encoder"))
            }.sorted { $0.key < $1.key }
            guard let first = said.first else { return nil }
            if let other = said.first(where: { $0.value != first.value }) {
                throw fail("says one thing by '\(first.key)' and another by '\(other.key)'")
            }
            guard let result = read(first.value) else {
                throw fail("gives '\(first.key)' a value that is not \(kind)")
            }
            return result
        }
        alpha = try value("lora_alpha", "a number") { $0.number }
        isRankStabilized = try value("use_rslora", "true or false") { $0.bool } ?? false
        saysDoRA = try value("use_dora", "true or false") { $0.bool } ?? false
        guard try value("fan_in_fan_out", "true or false", { $0.bool }) != true else {
            throw fail("says fan_in_fan_out: transposed matrices are not supported")
        }
        let patterns = try value("alpha_pattern", "an object") { $0.object } ?? [:]
        for (pattern, number) in patterns {
            guard !pattern.contains(where: { "*+?()[]{}|\\$^".contains($0) }) else {
                throw fail(
                    "gives alpha by the pattern '\(pattern)', which is not the end of a name")
            }
            guard let alpha = number.number else {
                throw fail("gives '\(pattern)' an alpha that is not a number")
            }
            alphas.append((pattern, alpha))
        }
    }

    /// alpha / rank of a module (in the adapter's spelling), or alpha / √rank for rsLoRA; 1 without an alpha.
    /// - Throws: where two patterns give it two alphas: PEFT takes the first one of the file, other programs the longest.
    func scale(of module: String, rank: Int) throws(CheckpointError) -> Double {
        let matching = alphas.filter { pair in
            module == pair.pattern || module.hasSuffix("." + pair.pattern)
        }.sorted { $0.pattern < $1.pattern }
        if let other = matching.first(where: { $0.alpha != matching[0].alpha }) {
            throw .incompatible(
                path: path,
                reason: "alpha_pattern gives '\(module)' one alpha by '\(matching[0].pattern)' and "
                    + "another by '\(other.pattern)'")
        }
        guard let alpha = matching.first?.alpha ?? alpha else { return 1 }
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
