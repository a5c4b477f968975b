/// The table of operations: what it finds on the CPU, that it finds faults, and what it says of times.

import CPU
import FoundationEssentials
import Tensors
import Testing

@testable import Verification

struct OperationTableTests {
    private let table = OperationTable(seed: 7)

    @Test("The fast operations agree with the definitions, and repeat to the bit")
    func fastOperations() {
        let results = table.run(
            subject: CPUBackend(), reference: CPUBackend(threads: 1, engine: .definition))
        #expect(results.count > 200)
        for result in results where result.verdict != .passed {
            Issue.record("\(result.id): \(result.failures.prefix(2))")
        }
    }

    @Test("Every row has a unique name, fits its operation, and gives it work to do")
    func rows() {
        var names: Set<String> = []
        for row in table.rows {
            #expect(names.insert("\(row.mode) \(row.name)").inserted, "\(row.name)")
            #expect(table.work(of: row).bytes > 0, "\(row.name)")
        }
        // The models' shapes are worth timing; what nobody computes at scale is only checked.
        let timed = Set(table.rows.filter { $0.mode == .fast }.map(\.operation))
        let checked = Set(table.rows.filter { $0.mode == .right }.map(\.operation))
        #expect(checked.subtracting(timed) == ["embedding", "concatenate", "layerNorm"])
    }

    @Test("The work of an operation follows from its shapes")
    func work() throws {
        let row = try #require(table.rows.first { $0.name == "linear bf16 none 32760x1536x1536" })
        let work = table.work(of: row)
        #expect(work.flops == 2 * 32760 * 1536 * 1536)
        #expect(work.bytes == 2 * (2 * 32760 * 1536 + 1536 * 1536) + 4 * 1536)
    }

    /// All that the CPU can compute whole in a moment.
    @Test("A sample equals that part of the whole result")
    func samples() {
        let device = CPUBackend(engine: .definition)
        var sampled: Set<String> = []
        func check(_ name: String, _ prepare: (Operands) -> () -> Tensor) {
            let whole = Operands(on: device, seed: 3, samples: true)
            let cut = Operands(on: device, seed: 3, samples: true, isCut: true)
            let (result, part) = (prepare(whole)(), prepare(cut)())
            #expect(whole.values(of: result) == cut.values(of: part), "\(name)")
            if part.shape.count < result.shape.count {
                sampled.insert(String(name.prefix { $0 != " " }))
            }
        }
        for row in table.rows where row.mode == .fast {
            let work = table.work(of: row)
            if work.flops < 3_000_000_000, work.bytes < 120_000_000 {
                check(row.name, row.prepare)
            }
        }
        #expect(sampled.isSuperset(of: ["linear", "attention"]))
        for layer: ConvolutionLayer in [
            .init(1, 40, 48, 8, to: 40, history: 2, adds: true),
            .init(2, 36, 34, 8, to: 8, kernel: (1, 3, 3), upsample: true, adds: true),
            .init(2, 40, 48, 8, to: 8, kernel: (1, 3, 3), stride: 2, adds: true),
        ] {
            check("convolution \(layer)") { $0.convolution(layer, .f32) }
        }
        #expect(sampled.contains("convolution"))
    }

    @Test("Large tensors repeat a sequence whose length no row or tile divides")
    func largeInputs() {
        let device = CPUBackend()
        let whole = Operands(on: device, seed: 5, samples: true).normal([3000, 700], .bf16)
        #expect(whole.shape == [3000, 700])
        let cut = Operands(on: device, seed: 5, samples: true, isCut: true)
        let rows = cut.normal([cut.axis(0, 3000), Axis(700)], .bf16)
        #expect(rows.slice(128..<256).floats() == whole.slice(1408..<1536).floats())
        #expect(rows[0].floats() != rows[128].floats())
    }

    @Test("A device that computes something else fails, wherever it does so")
    func faults() {
        let reference = CPUBackend(engine: .definition)
        let wrong = table.run(
            subject: Wrong(CPUBackend()), reference: reference, filter: "operations/GatedAdd bf16")
        #expect(wrong.count == 5)
        #expect(
            wrong.allSatisfy { $0.checks.contains { $0.name == "result" && $0.verdict == .failed } }
        )
        let restless = table.run(
            subject: Restless(CPUBackend()), reference: reference, filter: "rgb8 f32")
        #expect(!restless.isEmpty)
        #expect(
            restless.allSatisfy {
                $0.checks.contains { $0.name == "repeated" && $0.verdict == .failed }
            })
        let wide = table.run(
            subject: Wide(CPUBackend()), reference: reference, filter: "operations/GatedAdd bf16")
        #expect(
            wide.allSatisfy { $0.checks.contains { $0.name == "type" && $0.verdict == .failed } })
    }

    @Test("Times come with the work done in them and with the elements compared")
    func times() throws {
        let results = table.run(
            .fast, subject: CPUBackend(), reference: CPUBackend(engine: .definition),
            filter: "attention f32 576x576")
        let result = try #require(results.first)
        #expect(result.verdict == .passed, "\(result.failures)")
        let time = try #require(result.time)
        let flops = 4.0 * 576 * 576 * 96
        #expect(abs(time.teraflops! * time.microseconds * 1e6 / flops - 1) < 1e-9)
        #expect(result.checks.contains { $0.name == "4608 of 55296 elements" })
        #expect(result.line.contains(" us, "))
    }

    @Test("The time of a launch does not include waiting for the device")
    func batches() throws {
        let device = CPUBackend()
        var launches = 0
        let seconds = try device.medianSeconds {
            launches += 1
            let start = ContinuousClock.now
            while ContinuousClock.now - start < .microseconds(20) {}
        }
        #expect(launches > 9 * 100)
        #expect(seconds >= 20e-6)
    }

    @Test(
        "Operations that became slower by more than 5 % are reported; tables of other devices are refused"
    )
    func changes() throws {
        func table(_ device: String, _ times: [(String, Double)]) -> TimeTable {
            TimeTable(
                device: device, driver: nil,
                times: times.map {
                    OperationTime($0.0, seconds: $0.1 * 1e-6, work: Operation.Cost())
                })
        }
        let path =
            FileManager.default.temporaryDirectory.path
            + "/times-\(UInt64.random(in: 0...9 << 40)).json"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let before = table("a card", [("a", 100), ("b", 100), ("gone", 1)])
        try Data(before.encoded()).write(to: URL(fileURLWithPath: path))
        let earlier = try TimeTable(readingFrom: path)
        #expect(earlier == before)
        let changes = table("a card", [("a", 104), ("b", 106), ("new", 1)]).changes(since: earlier)
        #expect(changes.map(\.name) == ["a", "b"])
        #expect(changes.map(\.isSlower) == [false, true])
        #expect(changes[1].line == "slower  b  106 us, was 100: +6 %")
        try earlier.checkDevice("a card")
        #expect(throws: TimeTableError.self) { try earlier.checkDevice("another") }
        #expect(throws: TimeTableError.self) { try TimeTable(readingFrom: path + ".missing") }
    }
}

/// Adds a little too much.
private final class Wrong: ForwardingBackend {
    override func run(_ operation: Operation) -> [Tensor] {
        guard case .gatedAdd = operation else { return super.run(operation) }
        return super.run(operation).map { y in
            Tensor(y.floats().map { $0 * 1.01 }, y.shape).converted(to: y.dtype)
        }
    }
}

/// Adds in f32 only.
private final class Wide: ForwardingBackend {
    override func run(_ operation: Operation) -> [Tensor] {
        guard case .gatedAdd = operation else { return super.run(operation) }
        return super.run(operation).map { $0.converted(to: .f32) }
    }
}

/// Gives other bytes each time.
private final class Restless: ForwardingBackend {
    private var calls: UInt8 = 0

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        if case .rgb8 = operation {
            calls += 1
            results[0].withMutable(UInt8.self) { $0[0] = calls }
        }
        return results
    }
}
