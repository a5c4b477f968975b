/// What a caption says about a video, and what the classifier finds in it.

import FoundationEssentials
import Ground
import SystemPackage

/// One of eight questions, with the answers in the order of the classifier's outputs.
public enum Attribute: String, CaseIterable, Sendable {
    case shape, color, size, material, motion, floor, sky, camera

    /// The possible answers.
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

/// A prompt, with the answers that a video made from it should give.
public struct Caption: Sendable, Equatable {
    public let prompt: String
    /// Indices into the classes of each attribute, in the order of `Attribute.allCases`.
    public let answers: [Int]

    public init(prompt: String, answers: [Int]) {
        self.prompt = prompt
        self.answers = answers
    }
}

extension Caption {
    /// Reads a JSON list of objects with `prompt` and one word for each attribute.
    /// - Throws: ``QualityError/captions(path:reason:)``.
    public static func read(_ path: String) throws(QualityError) -> [Caption] {
        func failure(_ reason: String) -> QualityError { .captions(path: path, reason: reason) }
        let bytes: [UInt8]
        do { bytes = try FilePath(path).contents() } catch { throw failure(error.reason) }
        guard
            let entries = try? JSONDecoder().decode([[String: String]].self, from: Data(bytes))
        else {
            throw failure("expected JSON: [{\"prompt\": …, \"shape\": …, …}, …]")
        }
        if entries.isEmpty { throw failure("it is empty") }
        var captions: [Caption] = []
        for (index, entry) in entries.enumerated() {
            guard let prompt = entry["prompt"], !prompt.isEmpty else {
                throw failure("caption \(index) has no prompt")
            }
            var answers: [Int] = []
            for attribute in Attribute.allCases {
                let word = entry[attribute.rawValue]
                guard let answer = attribute.classes.firstIndex(where: { $0 == word }) else {
                    throw failure(
                        "caption \(index) has \(attribute.rawValue) '\(word ?? "missing")', "
                            + "expected one of \(attribute.classes.joined(separator: " "))")
                }
                answers.append(answer)
            }
            captions.append(Caption(prompt: prompt, answers: answers))
        }
        return captions
    }
}
