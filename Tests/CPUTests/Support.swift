/// What the tests share: fixtures, random numbers and measures of difference.

import CPU
import FoundationEssentials
import Glibc
import Tensors

/// A case of Tests/Golden: named tensors and the tolerances that go with them.
struct Fixture {
    let name: String
    private let bytes: [UInt8]
    private let entries: [String: Entry]
    private let description: Description

    private struct Entry: Decodable {
        let dtype: String
        let shape: [Int]
        let data_offsets: [Int]
    }

    private struct Header: Decodable {
        var entries: [String: Entry] = [:]
        init(from decoder: any Decoder) throws {
            let values = try decoder.singleValueContainer().decode([String: Value].self)
            for (name, value) in values { entries[name] = value.entry }
        }
        private struct Value: Decodable {
            let entry: Entry?
            init(from decoder: any Decoder) throws { entry = try? Entry(from: decoder) }
        }
    }

    struct Tolerance: Decodable {
        var rel_l2: Double?
        var max_abs: Double?
        var exact: Bool?
        var max_mismatch_fraction: Double?
    }

    private struct Description: Decodable {
        let tolerance: [String: Tolerance]
        let config: Numbers
        struct Numbers: Decodable {
            var topk_ratio: Double?
            var eps: Float?
            var reference_defined: Bool?
        }
    }

    static let folder: String = {
        var parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
        parts.removeLast(2)
        return parts.joined(separator: "/") + "/Golden"
    }()

    /// Names of the cases of a group; empty where the group was not copied.
    static func names(_ group: String) -> [String] {
        guard let directory = opendir("\(folder)/\(group)") else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) {
                String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasSuffix(".json") { names.append("\(group)/\(name.dropLast(5))") }
        }
        return names.sorted()
    }

    init(_ name: String) throws {
        self.name = name
        bytes = Self.contents("\(Self.folder)/\(name).safetensors")
        let length = bytes.withUnsafeBytes { Int($0.loadUnaligned(as: UInt64.self)) }
        entries = try JSONDecoder().decode(Header.self, from: Data(bytes[8..<8 + length])).entries
        let json = Self.contents("\(Self.folder)/\(name).json")
        description = try JSONDecoder().decode(Description.self, from: Data(json))
        start = 8 + length
    }

    private let start: Int

    private static func contents(_ path: String) -> [UInt8] {
        guard let file = fopen(path, "rb") else { return [] }
        defer { fclose(file) }
        fseek(file, 0, SEEK_END)
        let count = ftell(file)
        rewind(file)
        return [UInt8](unsafeUninitializedCapacity: count) { out, read in
            read = fread(out.baseAddress!, 1, count, file)
        }
    }

    var topK: Double { description.config.topk_ratio! }
    var epsilon: Float { description.config.eps! }
    var isReferenceDefined: Bool { description.config.reference_defined ?? true }
    func has(_ name: String) -> Bool { entries[name] != nil }

    subscript(_ name: String) -> Tensor {
        guard let entry = entries[name] else { fatalError("\(self.name) has no \(name)") }
        let dtypes: [String: DType] = [
            "F64": .f64, "F32": .f32, "F16": .f16, "BF16": .bf16, "F8_E4M3": .f8e4m3, "I64": .i64,
            "I32": .i32, "I8": .i8, "U8": .u8,
        ]
        let tensor = Tensor.host(Shape(entry.shape), dtypes[entry.dtype]!)
        bytes.withUnsafeBytes {
            tensor.hostAddress.copyMemory(
                from: $0.baseAddress! + start + entry.data_offsets[0], byteCount: tensor.byteCount)
        }
        return tensor
    }

    /// The tolerance with the longest name that `name` starts with.
    func tolerance(_ name: String) -> Tolerance {
        let key = description.tolerance.keys.filter { name.hasPrefix($0) }.max {
            $0.count < $1.count
        }
        return description.tolerance[key!]!
    }

    /// How `values` differ from the tensor `name`; nil if they agree.
    func difference(_ values: [Float], _ name: String) -> String? {
        let expected = self[name].floats()
        let tolerance = tolerance(name)
        guard expected.count == values.count else {
            return "\(self.name) \(name): \(values.count) values, \(expected.count) expected"
        }
        let pairs = zip(values, expected)
        let mismatches = pairs.count { $0 != $1 }
        let largest = pairs.map { abs(Double($0) - Double($1)) }.max() ?? 0
        let relative = relativeDifference(values, expected)
        var faults: [String] = []
        if tolerance.exact == true && mismatches > 0 { faults.append("\(mismatches) differ") }
        if let limit = tolerance.rel_l2, !(relative <= limit) {
            faults.append("rel_l2 \(relative) > \(limit)")
        }
        if let limit = tolerance.max_abs, !(largest <= limit) {
            faults.append("max_abs \(largest) > \(limit)")
        }
        if let limit = tolerance.max_mismatch_fraction,
            Double(mismatches) > limit * Double(values.count)
        {
            faults.append("\(mismatches) of \(values.count) differ, \(limit) allowed")
        }
        return faults.isEmpty ? nil : "\(self.name) \(name): " + faults.joined(separator: ", ")
    }
}

/// ||a - b|| / ||b||; NaN where either has one.
func relativeDifference(_ a: [Float], _ b: [Float]) -> Double {
    var (distance, norm) = (0.0, 0.0)
    for (x, y) in zip(a, b) {
        distance += (Double(x) - Double(y)) * (Double(x) - Double(y))
        norm += Double(y) * Double(y)
    }
    return norm == 0 ? distance.squareRoot() : (distance / norm).squareRoot()
}

func relativeDifference(_ a: Tensor, _ b: Tensor) -> Double {
    a.shape == b.shape ? relativeDifference(a.floats(), b.floats()) : .infinity
}

/// Reproducible numbers, roughly normal.
struct Random {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 1 }

    /// 0 to 1
    mutating func unit() -> Float {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return Float(state >> 40) * 0x1p-24
    }

    mutating func tensor(
        _ shape: Shape, _ dtype: DType = .f32, mean: Float = 0, deviation: Float = 1
    ) -> Tensor {
        let values = (0..<shape.count).map { _ in
            let sum = (0..<6).reduce(Float(0)) { sum, _ in sum + unit() }
            return mean + deviation * (sum - 3) * Float(2).squareRoot()
        }
        return Tensor(values, shape).converted(to: dtype)
    }
}

/// The bits of a host tensor.
func bits(_ x: Tensor) -> [UInt8] {
    [UInt8](UnsafeRawBufferPointer(start: x.hostAddress, count: x.byteCount))
}

/// A tensor of literals, which `Tensor.init` alone would take for integers as well.
func tensor(_ values: [Float], _ shape: Shape) -> Tensor { Tensor(values, shape) }
