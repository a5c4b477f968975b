/// `turbodiffusion doctor`: what this machine has, whether it works, and what to do if it does not.

import ArgumentParser
import CPU
import CUDA
import Ground
import Media
import SystemPackage
import Terminal
import Verification

struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract:
            "Look at the machine: GPU, driver, libraries, compiled kernels, ffmpeg; test the GPU.",
        discussion: "The exit status is 1 if a GPU is present but cannot be used.")

    @Option(
        name: .customLong("cuda-libraries"),
        help: "Folders with NVIDIA's libraries, separated by colons.", completion: .directory)
    var libraries: String?

    @Flag(help: "Skip the GPU's self-test.")
    var quick = false

    func run() async throws {
        var findings = [processor(), await ffmpeg()]
        let cuda = Diagnosis.run(libraries: libraries)
        findings += cuda
        for finding in findings { show(finding) }
        let hasCard = cuda.contains { $0.subject.hasPrefix("card") }
        guard hasCard else { return }
        let isUsable = !cuda.contains { $0.verdict == .missing }
        let passed = isUsable && (quick || selfTest())
        if !passed { throw ExitCode.failure }
    }

    private func show(_ finding: Finding) {
        let mark =
            switch finding.verdict {
            case .fine: "ok  "
            case .warning: "note"
            case .missing: "--  "
            }
        let subject =
            finding.subject + String(repeating: " ", count: max(0, 10 - finding.subject.count))
        Output.line("\(mark) \(subject) \(finding.text)")
        if let advice = finding.advice { Output.line("                → \(advice)") }
    }

    private func processor() -> Finding {
        let advice = CPUBackend.advice
        return Finding(
            "processor", advice == nil ? .fine : .warning, CPUBackend(threads: nil).name,
            advice: advice)
    }

    /// Looks for ffmpeg and tries to encode .mp4, the default format.
    private func ffmpeg() async -> Finding {
        do {
            let ffmpeg = try FFmpeg.find()
            let path = FilePath.temporaryFolder.appending("doctor.mp4").string
            try await VideoWriter.check(
                .init(path: path, replaces: true, width: 64, height: 64, ffmpeg: ffmpeg))
            return Finding("ffmpeg", .fine, ffmpeg.ffmpeg)
        } catch {
            return Finding("ffmpeg", .missing, "\(error)", advice: "apt-get install ffmpeg")
        }
    }

    /// Checks every operation on the GPU against the CPU, at small sizes.
    /// - Returns: whether all passed.
    private func selfTest() -> Bool {
        let start = ContinuousClock.now
        var options = CUDABackend.Options()
        options.libraries = libraries
        do {
            let gpu = try CUDABackend(ordinal: 0, options)
            var failures = 0
            let results = OperationTable(seed: 1).run(
                subject: gpu, reference: CPUBackend(threads: nil)
            ) { result in
                guard result.verdict == .failed else { return }
                failures += 1
                // Once the device has failed, all later operations fail too.
                guard failures <= 3 else { return }
                let reason = result.failures.first ?? "failed"
                show(Finding("self-test", .missing, "\(result.name): \(reason)"))
            }
            let seconds = describe(seconds: (ContinuousClock.now - start) / .seconds(1))
            show(
                Finding(
                    "self-test", failures == 0 ? .fine : .missing,
                    "\(results.count) operations, \(failures) wrong, in \(seconds)",
                    advice: failures == 0
                        ? nil : "rerun with 'turbodiffusion verify' and report the output"))
            return failures == 0
        } catch {
            show(Finding("self-test", .missing, "\(error)"))
            return false
        }
    }
}
