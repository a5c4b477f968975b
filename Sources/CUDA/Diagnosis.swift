// What a machine has for CUDA, and what to do if something is missing. `doctor` prints it.

internal import CDrivers

/// The result of one check.
public struct Finding: Hashable, Sendable {
    /// Whether something is in order, usable with a loss, or missing.
    public enum Verdict: Hashable, Sendable { case fine, warning, missing }

    /// What was checked: "driver", "card 0", …
    public let subject: String
    public let verdict: Verdict
    /// What was found.
    public let text: String
    /// What to do about it.
    public let advice: String?

    public init(_ subject: String, _ verdict: Verdict, _ text: String, advice: String? = nil) {
        self.subject = subject
        self.verdict = verdict
        self.text = text
        self.advice = advice
    }
}

/// Checks of this machine.
public enum Diagnosis {
    /// Checks driver, cards, compiler and compiled kernels; takes well under a second.
    public static func run(libraries: String? = nil, pack: String? = nil) -> [Finding] {
        var findings: [Finding] = []
        var newest: Int?
        var architectures: [Architecture] = []
        do {
            let (driver, opening) = try timed { () throws(CUDAUnavailable) in
                try Driver(libraries: libraries)
            }
            newest = driver.version / 1000
            findings.append(Finding("driver", .fine, driver.described))
            let start = start(driver, opening, libraries, pack)
            for ordinal in 0..<driver.deviceCount {
                findings.append(card(driver, ordinal, &architectures))
            }
            if driver.deviceCount > 1 { findings.append(group(driver)) }
            findings.append(start)
        } catch {
            findings.append(driverProblem(error))
        }
        findings += compiler(libraries, pack, newest, architectures)
        return findings
    }

    private static func card(
        _ driver: Driver, _ ordinal: Int, _ architectures: inout [Architecture]
    ) -> Finding {
        let subject = "card \(ordinal)"
        do {
            let device = try Device(driver, ordinal: ordinal)
            let p = device.properties
            architectures.append(p.architecture)
            let free = device.freeMemory
            let text =
                "\(p.name), compute capability \(p.architecture.capability), "
                + "\(p.multiprocessors) multiprocessors, \(gibibytes(free)) of "
                + "\(gibibytes(p.totalMemory)) GiB free"
            if free < p.totalMemory / 4 * 3 {
                return Finding(
                    subject, .warning, text,
                    advice: "other processes use this card's memory: nvidia-smi lists them")
            }
            return Finding(subject, .fine, text)
        } catch {
            return Finding(subject, .missing, "\(error)")
        }
    }

    /// Whether the cards can make a video together.
    private static func group(_ driver: Driver) -> Finding {
        let cards = 0..<driver.deviceCount
        let properties = cards.map { driver.properties(of: $0) }
        let unlike = cards.first { properties[$0].architecture != properties[0].architecture }
        if let unlike {
            return Finding(
                "group", .warning, "cards 0 and \(unlike) differ in compute capability",
                advice: "--devices takes cards that are alike")
        }
        let apart = cards.flatMap { from in
            cards.filter { $0 != from && !driver.canAccess(from: from, to: $0) }.map {
                "\(from) to \($0)"
            }
        }
        return Finding(
            "group", .fine,
            "\(cards.count) cards for --devices cuda:all; "
                + (apart.isEmpty
                    ? "each writes to the others' memory"
                    : "by way of the host's memory: \(apart.prefix(4).joined(separator: ", "))"
                        + (apart.count > 4 ? " and \(apart.count - 4) more" : "")))
    }

    /// Measures what a program has to wait for before its first launch, on the first card. Must be called before
    /// anything else uses the card.
    private static func start(
        _ driver: Driver, _ opening: Double, _ libraries: String?, _ pack: String?
    ) -> Finding {
        do {
            let (device, making) = try timed { try Device(driver) }
            let (source, looking) = try timed {
                let source = try KernelSource(pack: pack, libraries: libraries)
                _ = source.readiness(for: device.properties.architecture)
                return source
            }
            var text =
                "driver \(milliseconds(opening)), context \(milliseconds(making)), "
                + "looking kernels up \(milliseconds(looking))"
            if source.readiness(for: device.properties.architecture).missing.isEmpty {
                let kernels = KernelLibrary(device, source)
                let (_, loading) = try timed { try kernels.loadAll() }
                text +=
                    "; loading all files of kernels \(milliseconds(loading)) (a run loads only "
                    + "those that it uses)"
            }
            return Finding("start", .fine, text)
        } catch {
            return Finding("start", .missing, "\(error)")
        }
    }

    private static func timed<Result, Failure: Error>(
        _ body: () throws(Failure) -> Result
    ) throws(Failure) -> (Result, seconds: Double) {
        let start = ContinuousClock.now
        let result = try body()
        return (result, (ContinuousClock.now - start) / .seconds(1))
    }

    private static func milliseconds(_ seconds: Double) -> String {
        "\(Int((seconds * 1000).rounded())) ms"
    }

    private static func driverProblem(_ error: CUDAUnavailable) -> Finding {
        switch error {
        case .missingLibrary(let name, _, _) where name.hasPrefix("libcuda."):
            Finding(
                "driver", .missing, "no CUDA device: no NVIDIA driver (libcuda.so.1) is installed",
                advice: "on a machine with an NVIDIA GPU install its driver, 525 or later; "
                    + "without one everything runs on the CPU")
        case .noDevice:
            Finding(
                "driver", .missing, "no CUDA device: the driver is installed but shows no GPU",
                advice: "check nvidia-smi; in a container pass the GPUs on (docker run --gpus all)")
        default:
            Finding("driver", .missing, "\(error)")
        }
    }

    private static func compiler(
        _ libraries: String?, _ pack: String?, _ newest: Int?, _ architectures: [Architecture]
    ) -> [Finding] {
        let source: KernelSource
        do {
            source = try KernelSource(pack: pack, libraries: libraries)
        } catch {
            return [Finding("kernels", .missing, "\(error)")]
        }
        var findings: [Finding] = []
        do {
            findings.append(
                Finding("compiler", .fine, try source.describedCompiler(newest: newest)))
        } catch {
            findings.append(
                Finding(
                    "compiler", .warning, "NVRTC not found",
                    advice: "pip install nvidia-cuda-nvrtc, or install the CUDA toolkit, or use a "
                        + "pack of compiled kernels; name its folder with --cuda-libraries"))
        }
        for architecture in Set(architectures).sorted() {
            let ready = source.readiness(for: architecture)
            let text =
                "\(ready.packed) of \(ready.total) files for \(architecture) in the pack, "
                + "\(ready.cached) in the cache, \(ready.missing.count) to compile on first use"
            findings.append(
                Finding(
                    "kernels", ready.missing.isEmpty ? .fine : .warning, text,
                    advice: ready.missing.isEmpty
                        ? nil : "the next GPU run compiles them; 'kernels build' does it now"))
        }
        if let cache = source.cache {
            let (count, bytes) = cache.contents
            findings.append(
                Finding("cache", .fine, "\(cache.folder): \(count) files, \(bytes >> 20) MiB"))
        }
        return findings
    }

    private static func gibibytes(_ byteCount: Int) -> String {
        let tenths = (byteCount * 10 + (1 << 29)) >> 30
        return "\(tenths / 10).\(tenths % 10)"
    }
}
