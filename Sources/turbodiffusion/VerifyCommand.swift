/// `turbodiffusion verify`: fixtures of the reference implementation, run on this machine.

import ArgumentParser
import CPU
import CUDA
import Devices
import Ground
import Tensors
import Terminal
import Verification

struct VerifyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Check this program on this machine against fixtures.",
        discussion: """
            Runs every case below FOLDER and prints a line for each: what was measured and what is allowed. \
            On a GPU, every operation is also checked against the CPU and for repeatability. \
            The exit status is 1 if anything fails.

            Example:
              turbodiffusion verify Tests/Golden --device cuda
            """)

    @Argument(help: "A folder of fixtures.", completion: .directory)
    var folder: String

    @Option(help: "Where to compute: auto, cpu, cuda or cuda:N.")
    var device = DeviceChoice.automatic

    @Option(help: "CPU threads (default: all).")
    var threads: Int?

    @Option(help: "Only cases whose group, name or operation contains this.")
    var filter: String?

    @Option(help: "Seed of the inputs of the operation table.")
    var seed: UInt64 = 1

    @Flag(help: "Check every operation against the plain definitions, on the CPU too.")
    var operations = false

    @Flag(help: "Wait for every GPU kernel: a failure then names the kernel that caused it.")
    var debugKernels = false

    @Flag(help: "Print JSON, one object per case.")
    var json = false

    @Flag(name: .shortAndLong, help: "Print all skipped checks, with the reason.")
    var verbose = false

    /// Of a child: how many cases its predecessors have done.
    @Option(help: .hidden)
    var first: Int?

    func validate() throws { try checkThreads(threads) }

    func run() async throws {
        if let first { return try check(from: first) }
        var results: [CaseResult] = []
        try VerifyingChild.run(self) { message in
            switch message {
            case .device(let name): if !json { Output.line("on \(name)") }
            case .result(let result):
                results.append(result)
                show(result)
            }
        }
        guard !results.isEmpty else {
            throw UserError(
                "verify.nothing",
                filter.map { "\(folder) has no case with '\($0.printable)' in its name" }
                    ?? "\(folder) holds no fixtures: expected a folder with an INDEX.json")
        }
        let failed = results.count { $0.verdict == .failed }
        if !json {
            let checks = results.reduce(0) { $0 + $1.checks.count { $0.verdict == .passed } }
            Output.line(
                "\(results.count) cases, \(failed) failed; \(checks) checks passed")
        }
        if failed > 0 { throw ExitCode.failure }
    }

    /// What a child does: tells every result.
    private func check(from first: Int) throws {
        var options = DeviceOptions()
        options.threads = threads
        options.cuda.waitsForEachKernel = debugKernels
        let backend = try device.open(options) { Output.note("\($0)") }
        let isCPU = backend is CPUBackend
        Output.json(VerifyingChild.Message.device(backend.name))
        let tell = { (result: CaseResult) in Output.json(VerifyingChild.Message.result(result)) }
        try Verifier(folder: folder, on: backend, acceptsLoose: !isCPU)
            .run(filter: filter, from: first, each: tell)
        guard operations || !isCPU else { return }
        OperationTable(seed: seed).run(
            subject: backend, reference: CPUBackend(threads: threads, engine: .definition),
            filter: filter, each: tell)
    }

    private func show(_ result: CaseResult) {
        if json { return Output.json(result) }
        Output.line(result.line)
        for failure in result.failures where result.verdict == .failed {
            Output.line("       \(failure)")
        }
        for check in result.checks where check.verdict == .passed && check.hangsOnRounding {
            Output.line("       \(check.name) passed: \(check.note ?? "")")
        }
        guard verbose else { return }
        for check in result.checks where check.verdict == .skipped {
            Output.line("       \(check.name) skipped: \(check.note ?? "")")
        }
    }
}
