/// Cases recorded from the original implementation: `Tests/Golden/<group>/<name>.json` and
/// `.safetensors`.

import CPU
import Checkpoints
import FoundationEssentials
import Tensors
import Testing

/// One case. Shapes have a leading batch axis, which the models do not: tensors are read entry by
/// entry.
struct Golden: CustomTestStringConvertible, Sendable {
    let group, name: String
    let description: Description

    struct Description: Decodable, Sendable {
        struct Config: Decodable, Sendable {
            var num_heads, frames, latent_frames: Int?
            var attention_type, backend: String?
            var sla_topk: Double?
            var BLKQ, BLKK: Int?
            var fast_norm: Bool?
            var lens: [Int]?
            var n: Int?
        }
        struct Tolerance: Decodable, Sendable { var rel_l2, max_abs: Double? }
        enum Weights: Decodable, Sendable {
            case files([String])
            case roles([String: String])

            init(from decoder: any Decoder) throws {
                let value = try decoder.singleValueContainer()
                if let file = try? value.decode(String.self) {
                    self = .files([file])
                } else if let files = try? value.decode([String].self) {
                    self = .files(files)
                } else {
                    self = .roles(try value.decode([String: String].self))
                }
            }
        }
        var op: String?
        var compute_dtype: String?
        var config: Config?
        var tolerance: [String: Tolerance]
        var weights: Weights?
    }

    var testDescription: String { "\(group)/\(name)" }

    /// Another folder of the same layout may be named in the environment.
    static let folder =
        ProcessInfo.processInfo.environment["TURBODIFFUSION_GOLDEN"]
        ?? #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(2)
        .joined(separator: "/") + "/Golden"

    /// All cases of a group that are there and whose operation is one of `operations`.
    static func cases(_ group: String, _ operations: String...) -> [Golden] {
        let names =
            (try? FileManager.default.contentsOfDirectory(atPath: "\(folder)/\(group)")) ?? []
        return names.filter { $0.hasSuffix(".json") }.sorted().compactMap { file in
            guard let data = FileManager.default.contents(atPath: "\(folder)/\(group)/\(file)"),
                let description = try? JSONDecoder().decode(Description.self, from: data),
                operations.contains(description.op ?? "")
            else { return nil }
            return Golden(
                group: group, name: String(file.dropLast(5)), description: description)
        }
    }

    var config: Description.Config { description.config! }

    /// The tensors of the case.
    func tensors() throws -> any Checkpoint {
        try openCheckpoint("\(Self.folder)/\(group)/\(name).safetensors")
    }

    func checkpoints() throws -> any Checkpoint {
        guard case .files(let files) = description.weights else {
            throw GoldenError("\(testDescription) names no single set of weights")
        }
        let parts = try files.map { try openCheckpoint("\(Self.folder)/\($0)") }
        return parts.count == 1 ? parts[0] : Joined(parts)
    }

    func tolerance(_ tensor: String) -> Description.Tolerance {
        description.tolerance.filter { tensor.hasPrefix($0.key) }
            .max { $0.key.count < $1.key.count }!.value
    }

    /// Compares with the recorded tensor, in the measure that its tolerance names.
    func expect(
        _ found: Tensor, equals name: String, entry: Int = 0, rows: Range<Int>? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        var expected = try tensors().need(name)[entry]
        if let rows { expected = expected.slice(rows) }
        #expect(
            found.shape.count == expected.shape.count, "\(name): \(found.shape)",
            sourceLocation: sourceLocation)
        let (a, b) = (expected.floats(), found.floats())
        let limits = tolerance(name)
        let error = relativeError(a, b)
        let largest = zip(a, b).map { abs($0 - $1) }.max() ?? 0
        #expect(
            error <= limits.rel_l2 ?? .infinity, "\(testDescription) \(name)",
            sourceLocation: sourceLocation)
        #expect(
            Double(largest) <= limits.max_abs ?? .infinity, "\(testDescription) \(name)",
            sourceLocation: sourceLocation)
    }
}

struct GoldenError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// ||b - a|| / ||a||
func relativeError(_ a: [Float], _ b: [Float]) -> Double {
    var (difference, norm) = (0.0, 0.0)
    for (x, y) in zip(a, b) {
        difference += (Double(x) - Double(y)) * (Double(x) - Double(y))
        norm += Double(x) * Double(x)
    }
    return (difference / norm).squareRoot()
}

extension Checkpoint {
    func need(_ name: String) throws -> Tensor {
        guard let tensor = try tensor(name) else { throw GoldenError("no tensor \(name)") }
        return tensor
    }
}

/// Several files read as one.
final class Joined: Checkpoint {
    let parts: [any Checkpoint]
    init(_ parts: [any Checkpoint]) { self.parts = parts }
    var path: String { parts[0].path }
    var names: [String] { parts.flatMap(\.names) }
    func info(_ name: String) -> TensorInfo? { parts.lazy.compactMap { $0.info(name) }.first }
    func tensor(_ name: String) throws(CheckpointError) -> Tensor? {
        for part in parts {
            if let tensor = try part.tensor(name) { return tensor }
        }
        return nil
    }
}
