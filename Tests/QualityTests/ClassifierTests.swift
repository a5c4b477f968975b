// The attribute classifier against PyTorch, and the captions it is asked about.

import Checkpoints
import FoundationEssentials
import Media
import Pipelines
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

    @Test func logitsEqualPyTorch() throws {
        let classifier = try AttributeClassifier(path: Self.path)
        try classifier.check(frames: 9, width: 52, height: 38)
        let expected = try #require(try openCheckpoint(Self.path).tensor("expected.logits"))
        let logits = classifier.logits(Self.video)
        #expect(logits.map(\.count) == Attribute.allCases.map(\.classes.count))
        let pairs = zip(logits.joined(), expected.floats())
        #expect(pairs.count(where: { _ in true }) == 40)
        for (x, y) in pairs { #expect(abs(x - y) < 1e-5 * max(1, abs(y))) }
        for (scores, best) in zip(logits, classifier.classes(Self.video)) {
            #expect(scores[best] == scores.max())
        }
    }

    @Test func anotherSizeIsRefused() throws {
        let classifier = try AttributeClassifier(path: Self.path)
        #expect(throws: RequestError.self) {
            try classifier.check(frames: 33, width: 256, height: 144)
        }
    }

    @Test("a convolution, number by number", arguments: [1, 2])
    func convolution(stride: Int) throws {
        let (size, inputs, outputs) = (Extent(3, 5, 6), 3, 18)
        var state: UInt64 = 9
        func values(_ count: Int) -> [Float] {
            (0..<count).map { _ in
                state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                return Float(Int64(bitPattern: state) >> 40) * 0x1p-23
            }
        }
        let x = Volume(size: size, channels: inputs, values: values(size.count * inputs))
        let (kernel, bias) = (values(outputs * inputs * 27), values(outputs))
        let weights = Weights(
            NamedTensors([
                "weight": Tensor(kernel, [outputs, inputs, 3, 3, 3]),
                "bias": Tensor(bias, [outputs]),
            ]), on: NullBackend(), activations: .f32)
        let convolution = try VolumeConvolution(
            weights, from: inputs, kernel: Extent(3, 3, 3),
            stride: Extent(stride, stride, stride), padding: Extent(1, 1, 1))
        let y = convolution(x)
        #expect(y.size == Extent(2 / stride + 1, 4 / stride + 1, 5 / stride + 1))
        for index in y.values.indices {
            let (output, place) = (index % outputs, index / outputs)
            let (t, h, w) = (
                place / (y.size.h * y.size.w), place / y.size.w % y.size.h, place % y.size.w
            )
            var sum = Double(bias[output])
            for tap in 0..<27 {
                let (i, j, k) = (
                    t * stride + tap / 9 - 1, h * stride + tap / 3 % 3 - 1,
                    w * stride + tap % 3 - 1
                )
                guard 0..<3 ~= i, 0..<5 ~= j, 0..<6 ~= k else { continue }
                for input in 0..<inputs {
                    sum +=
                        Double(x.values[((i * 5 + j) * 6 + k) * inputs + input])
                        * Double(kernel[(output * inputs + input) * 27 + tap])
                }
            }
            #expect(abs(Double(y.values[index]) - sum) < 1e-5)
        }
    }
}

/// Tensors by name.
private final class NamedTensors: Checkpoint {
    let path = "memory"
    private let tensors: [String: Tensor]
    init(_ tensors: [String: Tensor]) { self.tensors = tensors }
    var names: [String] { tensors.keys.sorted() }
    func info(_ name: String) -> TensorInfo? {
        tensors[name].map {
            TensorInfo(name: name, shape: $0.shape.dimensions, dtype: $0.dtype)
        }
    }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? { tensors[name] }
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
        "what is no list of captions is told",
        arguments: [
            "", "[]", "{}", "[{\"prompt\": \"x\"}]",
            "[" + entry.replacing("brown", with: "wet") + "]",
        ])
    func bad(text: String) throws {
        #expect(throws: RequestError.self) {
            try withTemporaryFile(text) { try Caption.read($0) }
        }
    }
}
