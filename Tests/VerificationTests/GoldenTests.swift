/// The chosen fixtures of the reference implementation, run on the CPU by the same code as `turbodiffusion verify`.

import CPU
import Tensors
import Testing
import Verification

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

    @Test("The fast operations agree with the definitions, and repeat to the bit")
    func operationTable() {
        let results = OperationTable(seed: 7).run(
            subject: CPUBackend(), reference: CPUBackend(threads: 1, engine: .definition))
        #expect(results.count > 100)
        for result in results where result.verdict == .failed {
            for failure in result.failures.prefix(2) {
                Issue.record("\(result.id): \(failure)")
            }
        }
    }
}
