/// What a caption says of a video, and what the classifier finds in it.

import FoundationEssentials
import Pipelines

/// One of eight questions, with the answers in the order of the classifier's outputs.
public enum Attribute: String, CaseIterable, Sendable {
    case shape, color, size, material, motion, floor, sky, camera

    public var classes: [String] {
        switch self {
        case .shape: ["sphere", "cube", "cylinder", "cone"]
        case .color: ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"]
        case .size: ["small", "large"]
        case .material: ["matte", "shiny"]
        case .motion:
            [
                "right", "left", "toward", "away", "bounce", "spin", "circle", "jump", "fall",
                "grow", "still",
            ]
        case .floor: ["checkered", "grey", "green", "brown"]
        case .sky: ["day", "sunset", "night"]
        case .camera: ["static", "pan_left", "pan_right", "orbit", "zoom_in", "zoom_out"]
        }
    }
}

/// A prompt with the answers that a video of it should give.
public struct Caption: Sendable, Equatable {
    public let prompt: String
    /// Indices into the classes of each attribute, in the order of `Attribute.allCases`.
    public let answers: [Int]
}

extension Caption {
    /// Reads a JSON list of objects with `prompt` and one word for each attribute.
    /// - Throws: ``RequestError``
    public static func read(_ path: String) throws -> [Caption] {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw RequestError("cannot read \(path): expected a list of captions (JSON)")
        }
        let entries: [[String: String]]
        do {
            entries = try JSONDecoder().decode([[String: String]].self, from: data)
        } catch {
            throw RequestError(
                "\(path) is no list of captions: expected [{\"prompt\": …, \"shape\": …, …}, …]")
        }
        guard !entries.isEmpty else { throw RequestError("\(path) holds no captions") }
        return try entries.enumerated().map { index, entry in
            guard let prompt = entry["prompt"], !prompt.isEmpty else {
                throw RequestError("\(path): caption \(index) has no prompt")
            }
            let answers = try Attribute.allCases.map { attribute in
                let word = entry[attribute.rawValue]
                guard let answer = attribute.classes.firstIndex(where: { $0 == word }) else {
                    throw RequestError(
                        "\(path): caption \(index) has \(attribute.rawValue) "
                            + "'\(word ?? "missing")', expected one of "
                            + attribute.classes.joined(separator: " "))
                }
                return answer
            }
            return Caption(prompt: prompt, answers: answers)
        }
    }
}
