// The attribute classifier against PyTorch, and the captions it is asked about.

import CPU
import Checkpoints
import FoundationEssentials
import Media
import Tensors
import Testing

@testable import Quality

let goldenFolder: String = {
    let parts = #filePath.split(separator: "/").dropLast(2)
    return "/" + parts.joined(separator: "/") + "/Golden/quality"
}()

/// A file that is gone at the end.
func withTemporaryFile<R>(_ text: String? = nil, _ body: (String) throws -> R) throws -> R {
    let path = "/tmp/quality-\(UInt64.random(in: 0...UInt64.max)).txt"
    if let text { try Data(text.utf8).write(to: URL(filePath: path)) }
    defer { try? FileManager.default.removeItem(atPath: path) }
    return try body(path)
}

@Suite struct ClassifierTests {
    /// Random weights of the classifier's layers with few channels. `expected.logits` is what PyTorch 2.11 gives in
    /// f32 for nine frames of 52x38 (sizes that no stride divides) whose byte i is bits 13 ... 20 of 2654435761 i:
    /// conv3d, group_norm(8) and relu five times, then linear(relu(linear([red, mean, maximum]))).
    private static let path = goldenFolder + "/classifier.safetensors"
    private static let video: Video = {
        let count = 9 * 38 * 52 * 3
        return Video(
            width: 52, height: 38,
            pixels: (0..<count).map { UInt8(truncatingIfNeeded: ($0 * 2_654_435_761) >> 13) })
    }()

    @Test("logits equal PyTorch's, by the plain definitions and by the fast operations")
    func logitsEqualPyTorch() throws {
        let checkpoint = try openCheckpoint(Self.path)
        let expected = try #require(try checkpoint.tensor("expected.logits")).floats()
        for engine in [CPUBackend.Engine.definition, .automatic] {
            let classifier = try AttributeClassifier(
                checkpoint, on: CPUBackend(threads: 1, engine: engine))
            try classifier.check(frames: 9, width: 52, height: 38)
            let logits = classifier.logits(Self.video)
            #expect(logits.map(\.count) == Attribute.allCases.map(\.classes.count))
            #expect(logits.joined().count == 40 && expected.count == 40)
            for (x, y) in zip(logits.joined(), expected) {
                #expect(abs(x - y) < 1e-5 * max(1, abs(y)))
            }
            for (scores, best) in zip(logits, classifier.classes(Self.video)) {
                #expect(scores[best] == scores.max())
            }
        }
    }

    @Test func anotherSizeIsRefused() throws {
        let classifier = try AttributeClassifier(
            try openCheckpoint(Self.path), on: CPUBackend(threads: 1))
        #expect(throws: QualityError.self) {
            try classifier.check(frames: 33, width: 256, height: 144)
        }
    }
}

@Suite struct CaptionTests {
    private static let entry = """
        {"prompt": "a red ball", "shape": "sphere", "color": "red", "size": "large", "material": "shiny", \
        "motion": "right", "floor": "brown", "sky": "night", "camera": "pan_left"}
        """

    @Test func answersAreIndices() throws {
        let captions = try withTemporaryFile("[\(Self.entry)]") { try Caption.read($0) }
        #expect(captions == [Caption(prompt: "a red ball", answers: [0, 0, 1, 1, 0, 3, 2, 1])])
    }

    @Test(
        "a file that is not a list of captions is refused",
        arguments: [
            "", "[]", "{}", "[{\"prompt\": \"x\"}]",
            "[" + entry.replacing("brown", with: "wet") + "]",
        ])
    func bad(text: String) throws {
        #expect(throws: QualityError.self) {
            try withTemporaryFile(text) { try Caption.read($0) }
        }
    }
}
