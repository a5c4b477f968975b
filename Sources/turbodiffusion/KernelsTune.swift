/// `turbodiffusion kernels tune`: what this card prefers where kernels of equal results compete.

import ArgumentParser
import CUDA
import Devices
import Terminal

extension KernelsCommand {
    struct Tune: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Measure which tiles this machine's GPU prefers, in at most ten seconds.",
            discussion: """
                What was measured is kept beside the compiled kernels, for this card, driver and version. It only chooses \
                between kernels with equal results, and of those that run on every card: Hopper's own were measured \
                already.
                """)

        @Option(
            name: .customLong("cuda-libraries"), help: "Folders with NVIDIA's libraries.",
            completion: .directory)
        var libraries: String?

        @Option(
            help: "Which GPU: N or cuda:N.",
            transform: { text in
                guard let choice = DeviceChoice(numberOrName: text), case .cuda = choice else {
                    throw ValidationError("'\(text)' is not a GPU")
                }
                return choice
            })
        var device = DeviceChoice.cuda(ordinal: 0)

        @Flag(help: "Forget what was measured.")
        var reset = false

        func run() async throws {
            var options = DeviceOptions()
            options.cuda.libraries = libraries
            let backend = try device.open(options) { Output.note("\($0)") }
            guard let gpu = backend as? CUDABackend else {
                throw ValidationError("\(device) is not a GPU")
            }
            if reset {
                let wasThere = gpu.forgetTuning()
                return Output.line(
                    wasThere ? "forgotten: heuristics choose again" : "nothing was measured")
            }
            let report = try gpu.tune()
            Output.line("on \(gpu.name)")
            (report.tuning.lines + report.notes).forEach(Output.line)
            if !report.isKept, !report.tuning.lines.isEmpty {
                Output.note("note: not kept, for there is no folder that only you can write to")
            }
        }
    }
}
