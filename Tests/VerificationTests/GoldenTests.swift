/// The chosen fixtures of the reference implementation, run on the CPU by the same code as `turbodiffusion verify`.

import CPU
import Tensors
import Testing

@testable import Verification

/// Tests/Golden, found from this file.
let golden: String = {
    let parts = #filePath.split(separator: "/").dropLast(2)
    return "/" + parts.joined(separator: "/") + "/Golden"
}()

@Suite(.serialized)
struct GoldenTests {
    @Test("Every case agrees with the reference implementation")
    func cases() throws {
        let verifier = try Verifier(folder: golden, on: CPUBackend(), acceptsLoose: false)
        let results = verifier.run()
        #expect(results.count > 30)
        for result in results where result.verdict == .failed {
            for failure in result.failures.prefix(4) {
                Issue.record("\(result.id): \(failure)")
            }
        }
    }

    @Test("The plain definitions agree with the reference implementation too")
    func definitions() throws {
        let verifier = try Verifier(
            folder: golden, on: CPUBackend(engine: .definition), acceptsLoose: false)
        for group in ["attention", "int8", "norms", "ops", "dit_quant", "vae/decode_1"] {
            for result in verifier.run(filter: group) where result.verdict == .failed {
                for failure in result.failures.prefix(4) {
                    Issue.record("\(result.id): \(failure)")
                }
            }
        }
    }

    @Test("Arithmetic that a device lacks is skipped, with a reason, and everything else checked")
    func missingArithmetic() throws {
        let device = Limited(CPUBackend())
        let table = OperationTable(seed: 7).run(subject: device, reference: CPUBackend())
        let verifier = try Verifier(folder: golden, on: device, acceptsLoose: false)
        let cases = verifier.run(filter: "attention/") + verifier.run(filter: "dit_sla/")
        #expect((table + cases).allSatisfy { $0.verdict != .failed })
        let skipped = table.filter { $0.verdict == .skipped }
        #expect(!skipped.isEmpty)
        #expect(skipped.allSatisfy { $0.name.contains("sm") || $0.name.contains("fp8Rows") })
        let notes = cases.flatMap(\.checks).compactMap(\.note)
        #expect(notes.contains { $0.contains("does not support the arithmetic") })
        #expect(notes.contains { $0.contains("does not support this arithmetic") })
    }

    @Test(
        "An 8-bit code on a rounding boundary neither fails a device that is right nor saves one that is wrong"
    )
    func roundingBoundaries() throws {
        func results(on device: any Backend) throws -> [CaseResult] {
            try Verifier(folder: golden, on: device, acceptsLoose: false).run(filter: "dit_quant")
        }
        for seed: UInt64 in 1...4 {
            for result in try results(on: LastPlaces(CPUBackend(), seed: seed)) {
                #expect(result.verdict == .passed, "\(result.failures)")
            }
        }
        let wrong = try results(on: Louder(CPUBackend()))
        #expect(
            wrong.allSatisfy { result in
                result.checks.contains { $0.name == "out.v_fp32act" && $0.verdict == .failed }
            })
    }
}

/// A CPU whose dense attention is half a percent too large in f32.
private final class Louder: ForwardingBackend {
    override func run(_ operation: Operation) -> [Tensor] {
        // Before it is quantised for the next layer.
        if case .attention(let o) = operation, o.format != .plain { return [o.composed(on: self)] }
        let results = super.run(operation)
        guard case .attention = operation, results[0].dtype == .f32 else { return results }
        return [Tensor(results[0].floats().map { $0 * 1.005 }, results[0].shape)]
    }
}

/// A card without SageAttention and without fp8, which refuses what it lacks.
private final class Limited: ForwardingBackend {
    override func supports(_ arithmetic: SparseAttention.Arithmetic) -> Bool {
        arithmetic == .exact || arithmetic == .bf16
    }
    override func supports(_ format: LinearFormat) -> Bool { format != .fp8Rows }

    override func run(_ operation: Operation) -> [Tensor] {
        switch operation {
        case .sparseLinearAttention(let o): precondition(supports(o.spec.arithmetic))
        case .linear(let o): precondition(supports(o.weight.inputFormat))
        default: break
        }
        return super.run(operation)
    }
}
