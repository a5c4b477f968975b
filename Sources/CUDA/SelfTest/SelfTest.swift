// Checks and timings of single kernels on the machine's own card: what `kernels test` runs.

internal import Glibc

/// One kernel at one shape.
public struct SelfTestCase {
    /// `gemm int8 32760x1536x1536 gelu`: the family first, which `--only` selects by.
    public let name: String
    let run: (Context) throws -> SelfTestResult

    public init(_ name: String, run: @escaping (Context) throws -> SelfTestResult) {
        self.name = name
        self.run = run
    }
}

/// What came out of it.
public struct SelfTestResult: Sendable {
    /// ||got - expected|| / ||expected|| over the compared elements, and the largest difference.
    public var relativeError: Double
    public var maximumError: Double
    /// The case fails when `relativeError` exceeds this, or is not a number.
    public var tolerance: Double
    /// Median of one launch, by events; nil where it was not timed.
    public var microseconds: Double?
    /// Arithmetic operations (a multiply-add is two) and bytes moved by one launch.
    public var operations: Double
    public var bytes: Double
    public var note: String

    public init(
        relativeError: Double, maximumError: Double, tolerance: Double,
        microseconds: Double? = nil, operations: Double = 0, bytes: Double = 0, note: String = ""
    ) {
        self.relativeError = relativeError
        self.maximumError = maximumError
        self.tolerance = tolerance
        self.microseconds = microseconds
        self.operations = operations
        self.bytes = bytes
        self.note = note
    }

    /// A kernel that this card cannot run.
    static let notOnThisCard = SelfTestResult(
        relativeError: 0, maximumError: 0, tolerance: 0, note: "not on this card")

    public var passed: Bool { relativeError <= tolerance }
}

public enum SelfTest {
    /// All cases, in the order they are run: each area of operations contributes its list.
    public static var cases: [SelfTestCase] {
        matmulCases + normCases + attentionCases + frameCases
    }

    /// Runs the cases whose name contains `only` and prints a line about each.
    /// - Returns: how many failed.
    public static func run(only: String? = nil, on context: Context) -> Int {
        var failures = 0
        for test in cases where only.map({ test.name.contains($0) }) ?? true {
            do {
                let result = try test.run(context)
                if !result.passed { failures += 1 }
                print(line(test.name, result))
            } catch {
                failures += 1
                print("FAIL \(test.name): \(error)")
            }
            fflush(nil)
        }
        return failures
    }

    private static func line(_ name: String, _ result: SelfTestResult) -> String {
        var line = result.passed ? "ok   " : "FAIL "
        line += name + String(repeating: " ", count: max(1, 48 - name.count))
        line += "rel \(short(result.relativeError)) max \(short(result.maximumError))"
        if let time = result.microseconds {
            line += "  \(short(time)) us"
            if result.operations > 0 {
                line += "  \(short(result.operations / time / 1e6)) TFLOP/s"
            }
            if result.bytes > 0 { line += "  \(short(result.bytes / time / 1e3)) GB/s" }
        }
        return result.note.isEmpty ? line : line + "  " + result.note
    }

    /// Four significant digits.
    static func short(_ value: Double) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 32) { text in
            withVaList([value]) { _ = vsnprintf(text.baseAddress!, 32, "%.4g", $0) }
            return String(cString: text.baseAddress!)
        }
    }
}

// MARK: - Data

/// SplitMix64: the same numbers on every run.
struct SelfTestRandom {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// In [-1, 1).
    mutating func uniform() -> Float { Float(Int64(bitPattern: next()) >> 40) * 0x1p-23 }
    /// Nearly normal, variance 1: the sum of three uniform numbers.
    mutating func normal() -> Float { uniform() + uniform() + uniform() }
}

/// An array on the device that repeats a pattern, so that the host knows every element of a tensor of
/// any size: element i is `pattern[i % pattern.count]`.
struct SelfTestArray {
    let buffer: DeviceBuffer
    /// The values as the device's element type holds them.
    let pattern: [Float]

    var pointer: DevicePointer { buffer.pointer }
    subscript(index: Int) -> Float { pattern[index % pattern.count] }

    /// The sum of products of `count` elements from `start` with those of `other` from `otherStart`.
    func dot(_ start: Int, _ other: SelfTestArray, _ otherStart: Int, count: Int) -> Double {
        var (i, j) = (start % pattern.count, otherStart % other.pattern.count)
        var sum = 0.0
        for _ in 0..<count {
            sum += Double(pattern[i]) * Double(other.pattern[j])
            i = i + 1 == pattern.count ? 0 : i + 1
            j = j + 1 == other.pattern.count ? 0 : j + 1
        }
        return sum
    }
}

extension Context {
    /// The elements on the device.
    func upload<T: BitwiseCopyable>(_ elements: [T]) -> DeviceBuffer {
        let byteCount = elements.count * MemoryLayout<T>.stride
        let buffer = buffer(byteCount: byteCount)
        elements.withUnsafeBytes {
            stream.copy($0.baseAddress!, to: buffer.pointer, byteCount: byteCount)
        }
        stream.drain()
        return buffer
    }

    /// `count` elements from the device. Waits for the stream.
    func download<T: BitwiseCopyable>(
        _ type: T.Type, _ count: Int, from pointer: DevicePointer
    ) -> [T] {
        [T](unsafeUninitializedCapacity: count) { out, initialized in
            stream.copy(
                pointer, to: out.baseAddress!, byteCount: count * MemoryLayout<T>.stride)
            stream.drain()
            initialized = count
        }
    }

    /// `count` elements that repeat `pattern`, encoded by `encode`; `decode` tells what was kept.
    func repeating<T: BitwiseCopyable>(
        _ pattern: [Float], count: Int, encode: (Float) -> T, decode: (T) -> Float
    ) -> SelfTestArray {
        let kept = Array(pattern.prefix(max(count, 1)))
        let encoded = kept.map(encode)
        let stride = MemoryLayout<T>.stride
        let buffer = buffer(byteCount: count * stride)
        var filled = min(count, encoded.count) * stride
        encoded.withUnsafeBytes {
            stream.copy($0.baseAddress!, to: buffer.pointer, byteCount: filled)
        }
        while filled < count * stride {
            let more = min(filled, count * stride - filled)
            stream.copy(buffer.pointer, to: buffer.pointer + filled, byteCount: more)
            filled += more
        }
        stream.drain()
        return SelfTestArray(buffer: buffer, pattern: encoded.map(decode))
    }

    /// Median time of `body` in microseconds over `repeats` runs, after two unmeasured ones.
    func medianMicroseconds(repeats: Int = 9, _ body: () -> Void) throws -> Double {
        for _ in 0..<2 { body() }
        var times: [Float] = []
        for _ in 0..<repeats {
            let start = try Event(device, timing: true)
            let end = try Event(device, timing: true)
            start.record(in: stream)
            body()
            end.record(in: stream)
            end.synchronize()
            times.append(start.milliseconds(to: end) * 1000)
        }
        try synchronize()
        return Double(times.sorted()[repeats / 2])
    }
}

/// Relative and largest difference of pairs of numbers, accumulated.
struct SelfTestComparison {
    private var difference = 0.0
    private var magnitude = 0.0
    private(set) var maximum = 0.0

    mutating func add(_ got: Float, _ expected: Float) {
        let d = Double(got) - Double(expected)
        difference += d * d
        magnitude += Double(expected) * Double(expected)
        maximum = max(maximum, d.isNaN ? .infinity : d.magnitude)
    }

    var relative: Double {
        difference == 0 ? 0 : (difference / max(magnitude, 1e-300)).squareRoot()
    }
}
