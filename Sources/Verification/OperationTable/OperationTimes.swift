/// How long operations take, and which have become slower.

import FoundationEssentials
import Ground
import SystemPackage
import Tensors

/// The time of one launch of an operation.
public struct OperationTime: Sendable, Codable, Equatable {
    public var name: String
    /// The median time.
    public var microseconds: Double
    /// 10^12 multiplications and additions per second; nil for operations that do not consist of these.
    public var teraflops: Double?
    /// 10^9 bytes per second, counting every input and every output once.
    public var gigabytesPerSecond: Double

    init(_ name: String, seconds: Double, work: Operation.Cost) {
        self.name = name
        microseconds = seconds * 1e6
        teraflops = work.flops > 0 ? Double(work.flops) / seconds / 1e12 : nil
        gigabytesPerSecond = Double(work.bytes) / seconds / 1e9
    }

    /// "20.1 us, 760 TFLOP/s, 510 GB/s"
    public var line: String {
        "\(brief(microseconds)) us, " + (teraflops.map { "\(brief($0)) TFLOP/s, " } ?? "")
            + "\(brief(gigabytesPerSecond)) GB/s"
    }
}

/// The times on one machine: what `kernels test --json` writes.
public struct TimeTable: Sendable, Codable, Equatable {
    public var device: String
    /// The version of the device's driver, if it has one.
    public var driver: String?
    public var times: [OperationTime]

    public init(device: String, driver: String?, times: [OperationTime]) {
        self.device = device
        self.driver = driver
        self.times = times
    }

    /// An operation in two tables.
    public struct Change: Sendable, Equatable {
        public var name: String
        public var before, now: Double

        /// Whether it became slower by more than 5 %.
        public var isSlower: Bool { now > before * 1.05 }

        /// "slower  linear bf16 …  20.1 us, was 18.9: +6.3 %"
        public var line: String {
            let share = (now / before - 1) * 100
            return "\(isSlower ? "slower" : "      ")  \(name)  \(brief(now)) us, "
                + "was \(brief(before)): \(share >= 0 ? "+" : "")\(brief(share)) %"
        }
    }

    /// Throws if the times are of another device: they cannot be compared.
    public func checkDevice(_ name: String) throws(TimeTableError) {
        if device != name {
            throw TimeTableError("the earlier times are of \(device), this is \(name)")
        }
    }

    /// The operations that are in both tables, with the times of `earlier` as those before.
    public func changes(since earlier: TimeTable) -> [Change] {
        let before = Dictionary(
            earlier.times.map { ($0.name, $0.microseconds) }, uniquingKeysWith: { $1 })
        return times.compactMap { time in
            before[time.name].map {
                Change(name: time.name, before: $0, now: time.microseconds)
            }
        }
    }
}

extension TimeTable {
    /// Reads a file written by `kernels test --json`.
    public init(readingFrom path: String) throws(TimeTableError) {
        guard let bytes = try? FilePath(path).contents(),
            let table = try? JSONDecoder().decode(TimeTable.self, from: Data(bytes))
        else {
            throw TimeTableError("\(path) does not contain times written by `kernels test --json`")
        }
        self = table
    }

    /// The content of such a file.
    public func encoded() throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes]
        return Array(try encoder.encode(self))
    }
}

/// Why times cannot be read or compared.
public struct TimeTableError: Error, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

extension Backend {
    /// The median time of one launch, in seconds.
    func medianSeconds(_ launch: () -> Void) throws -> Double {
        func seconds(_ count: Int) throws -> Double {
            let start = ContinuousClock.now
            for _ in 0..<count { launch() }
            try synchronize()
            return (ContinuousClock.now - start) / .seconds(1)
        }
        // In batches of 10 ms, waiting for the device costs less than 1 %. Growing to that size also warms
        // the device up.
        var count = 1
        var batch = try seconds(count)
        while batch < 0.01 {
            count *= 2
            batch = try seconds(count)
        }
        let batches = try (0..<(batch > 1 ? 3 : 9)).map { _ in try seconds(count) }
        return median(batches) / Double(count)
    }
}
