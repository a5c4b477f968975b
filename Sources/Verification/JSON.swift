/// JSON documents whose keys are not known beforehand.

import FoundationEssentials
import Ground
import SystemPackage

/// A JSON value. Numbers have the precision of `Double`.
public enum JSON: Sendable, Equatable, Decodable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSON])
    case object([String: JSON])

    public init(from decoder: any Decoder) throws {
        if let keyed = try? decoder.container(keyedBy: AnyKey.self) {
            var object: [String: JSON] = [:]
            for key in keyed.allKeys {
                object[key.stringValue] = try keyed.decode(JSON.self, forKey: key)
            }
            self = .object(object)
        } else if var unkeyed = try? decoder.unkeyedContainer() {
            var array: [JSON] = []
            while !unkeyed.isAtEnd { array.append(try unkeyed.decode(JSON.self)) }
            self = .array(array)
        } else {
            let value = try decoder.singleValueContainer()
            if value.decodeNil() {
                self = .null
            } else if let bool = try? value.decode(Bool.self) {
                self = .bool(bool)
            } else if let number = try? value.decode(Double.self) {
                self = .number(number)
            } else {
                self = .string(try value.decode(String.self))
            }
        }
    }

    private struct AnyKey: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    /// Reads a file; throws for anything that is not JSON.
    init(path: String) throws {
        let bytes: [UInt8]
        do { bytes = try FilePath(path).contents() } catch {
            throw FixtureError("cannot read \(error)")
        }
        do {
            self = try JSONDecoder().decode(JSON.self, from: Data(bytes))
        } catch {
            throw FixtureError("\(path) is not JSON: \(error)")
        }
    }

    subscript(_ key: String) -> JSON? {
        guard case .object(let object) = self, let value = object[key], value != .null else {
            return nil
        }
        return value
    }

    var string: String? { if case .string(let value) = self { value } else { nil } }
    var double: Double? { if case .number(let value) = self { value } else { nil } }
    var bool: Bool? { if case .bool(let value) = self { value } else { nil } }
    var array: [JSON]? { if case .array(let value) = self { value } else { nil } }
    var object: [String: JSON]? { if case .object(let value) = self { value } else { nil } }
    var int: Int? { double.flatMap { Int(exactly: $0) } }
    var doubles: [Double]? { array.map { $0.compactMap(\.double) } }
    var ints: [Int]? { array.map { $0.compactMap(\.int) } }
}

/// A fixture that cannot be read, or lacks something that its operation needs.
struct FixtureError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
