/// `turbodiffusion doctor`: what this machine has, whether it works, and what to do if it does not.

import ArgumentParser
import CPU
import CUDA
import Catalog
import Downloads
import Families
import Ground
import Media
import SystemPackage
import Terminal
import Verification

struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract:
            "Look at the machine: processor, memory, disk, models, ffmpeg, GPU; test the GPU.",
        discussion: "The exit status is 1 if a GPU is present but cannot be used.")

    @Option(
        name: .customLong("cuda-libraries"),
        help: "Folders with NVIDIA's libraries, separated by colons.", completion: .directory)
    var libraries: String?

    @Flag(help: "Skip the GPU's self-test.")
    var quick = false

    @Flag(help: "Time the GPU's main operations, as a block to send with a report.")
    var times = false

    @Flag(help: "Print JSON, one finding a line.")
    var json = false

    func run() async throws {
        var findings = [processor(), memory(), disk(), await ffmpeg()]
        findings += models() + settings()
        let cuda = Diagnosis.run(libraries: libraries)
        findings += cuda
        for finding in findings { show(finding) }
        let hasCard = cuda.contains { $0.subject.hasPrefix("card") }
        guard hasCard else { return }
        let isUsable = !cuda.contains { $0.verdict == .missing }
        let passed = isUsable && (quick || selfTest())
        if !passed { throw ExitCode.failure }
        if times { try printTimes() }
    }

    private func printTimes() throws {
        var options = CUDABackend.Options()
        options.libraries = libraries
        do {
            let lines = try CardTimes.lines(try CUDABackend(ordinal: 0, options))
            for line in lines {
                if json { show(Finding("times", .fine, line)) } else { Output.line(line) }
            }
        } catch {
            show(Finding("times", .missing, "\(error)"))
            throw ExitCode.failure
        }
    }

    private struct Line: Encodable {
        var subject, verdict, text: String
        var advice: String?
    }

    private func show(_ finding: Finding) {
        if json {
            let verdict =
                switch finding.verdict {
                case .fine: "fine"
                case .warning: "warning"
                case .missing: "missing"
                }
            return Output.json(
                Line(
                    subject: finding.subject, verdict: verdict, text: finding.text,
                    advice: finding.advice))
        }
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
        Finding("processor", .fine, CPUBackend(threads: nil).name)
    }

    /// What runs are planned by: within the container's limits, and what is cached counts as free.
    private func memory() -> Finding {
        let memory = HostMemory.current
        return Finding(
            "memory", .fine,
            "\(describe(bytes: memory.available)) are free; with swap there are \(describe(bytes: memory.most))"
        )
    }

    private func disk() -> Finding {
        let free = FilePath(".").freeBytes
        return Finding(
            "disk", (free ?? .max) < 1 << 30 ? .warning : .fine,
            (free.map { describe(bytes: $0) } ?? "an unknown amount") + " free in this folder",
            advice: (free ?? .max) < 1 << 30 ? "videos and temporary files need room" : nil)
    }

    /// The published models: those whose files are all here, then the names of the others.
    private func models() -> [Finding] {
        var (here, others) = ([Finding](), [String]())
        for name in Catalog.published.names {
            do throws(CatalogError) {
                let models = try Catalog.published.open(ModelChoice(name))
                try models.checkPresence(of: ModelFile.allCases)
                here.append(Finding("model", .fine, "\(name): all files are here"))
            } catch {
                others.append(name)
            }
        }
        if others.isEmpty { return here }
        let text = "not here: " + others.joined(separator: ", ")
        return here + [
            Finding(
                "model", here.isEmpty ? .warning : .fine, text,
                advice:
                    "'turbodiffusion models' lists them, 'turbodiffusion get NAME' downloads one")
        ]
    }

    /// What can be set once for all commands, and where each value is from.
    private func settings() -> [Finding] {
        var findings: [Finding] = []
        if case .failure(let error) = Settings.loaded {
            findings.append(
                Finding("settings", .missing, "\(error)", advice: "defaults count until then"))
        }
        for key in Settings.Key.allCases {
            guard let value = Settings.current[key] else { continue }
            findings.append(
                Finding("settings", .fine, "\(key.rawValue) = \(value.text) (\(value.source))"))
        }
        do throws(DownloadError) {
            findings.append(Finding("downloads", .fine, try downloadLibrary()))
        } catch { findings.append(Finding("downloads", .warning, "\(error)")) }
        return findings
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
