/// The models and LoRAs of the service, by the names that clients use.

import Catalog
public import Families
import Ground
import SystemPackage

/// One model that is served.
public struct ServedModel: Sendable, Hashable {
    public let name: String
    public let models: ModelSet

    public init(name: String, models: ModelSet) {
        self.name = name
        self.models = models
    }
}

/// Names → files. Clients never say a path, and no name becomes one: names are looked up in lists.
struct Served: Sendable {
    let models: [ServedModel]
    let loraFolder: String?

    func model(_ name: String?, takesPicture: Bool) throws(APIError) -> ServedModel {
        guard let name else {
            let wanted: Family.Conditioning = takesPicture ? .firstFrame : .none
            guard
                let first = models.first(where: { $0.models.family.conditioning == wanted })
                    ?? models.first
            else { throw .notFound("model_not_found", "no model is served", param: "model") }
            return first
        }
        guard let model = models.first(where: { $0.name.lowercased() == name.lowercased() }) else {
            let names = models.map(\.name).joined(separator: ", ")
            throw .notFound(
                "model_not_found", "there is no model '\(name.prefix(80))'; there are: \(names)",
                param: "model")
        }
        return model
    }

    // MARK: LoRAs

    private static let endings = [".safetensors", ".pth", ".pt"]

    /// The files of the folder, without their endings.
    var loras: [String: String] {
        guard let loraFolder else { return [:] }
        let names = (try? FilePath(loraFolder).fileNames()) ?? []
        var loras: [String: String] = [:]
        for name in names {
            guard !name.hasPrefix("."), let ending = Self.endings.first(where: name.hasSuffix)
            else {
                continue
            }
            loras[String(name.dropLast(ending.count))] = FilePath(loraFolder).appending(name).string
        }
        return loras
    }

    func path(ofLoRA name: String) throws(APIError) -> String {
        guard let path = loras[name] else {
            throw .notFound(
                "lora_not_found", "there is no LoRA '\(name.prefix(80))'", param: "lora")
        }
        return path
    }
}
