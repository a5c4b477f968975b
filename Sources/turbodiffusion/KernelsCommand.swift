/// `turbodiffusion kernels`: compile the CUDA kernels without a GPU, check them, test and time them on one.

import ArgumentParser
import CPU
import CUDA
import Devices
import Glibc
import Ground
import SystemPackage
import Tensors
import Terminal
import Verification

struct KernelsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kernels",
        abstract: "Compile, check and test the CUDA kernels.",
        subcommands: [Build.self, Check.self, Test.self, Tune.self])

    struct Compilation: ParsableArguments {
        @Option(
            name: .customLong("cuda-libraries"),
            help: "Folders with NVRTC, separated by colons.", completion: .directory)
        var libraries: String?

        @Option(name: .customLong("arch"), help: "sm_80, sm_89, sm_90a, …; may be repeated.")
        var names: [String] = []

        func architectures() throws -> [Architecture] {
            try names.map { name in
                guard let architecture = Architecture(name), architecture >= .ampere else {
                    throw ValidationError("'\(name)' is not an architecture from sm_80 on")
                }
                return architecture
            }
        }
    }

    struct Build: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Compile all kernels into a pack that travels with the program.",
            discussion: """
                Needs NVRTC but no GPU. Put the pack beside the binary as kernels.pack, or name it.
                Code for sm_80 runs on every card of compute capability 8.x.
                """)

        @OptionGroup var compilation: Compilation

        @Option(name: .shortAndLong, help: "The pack to write.", completion: .file())
        var output = "kernels.pack"

        func validate() throws {
            if compilation.names.isEmpty { throw ValidationError("name at least one --arch") }
        }

        func run() async throws {
            let source = try KernelSource(pack: nil, libraries: compilation.libraries)
            let built = try compile(source, for: try compilation.architectures())
            do { try KernelSource.write(built, to: output) } catch {
                throw ValidationError("cannot write \(error)")
            }
            Output.line("\(built.count) files of kernels in \(output.printable)")
        }
    }

    struct Check: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract:
                "Compile every kernel for every tested architecture; fail if one spills more than 16 bytes of registers.",
            discussion:
                "Needs NVRTC but no GPU. Unchanged kernels come from the cache.")

        @OptionGroup var compilation: Compilation

        func run() async throws {
            let chosen = try compilation.architectures()
            let source = try KernelSource(pack: nil, libraries: compilation.libraries)
            let built = try compile(source, for: chosen.isEmpty ? Architecture.tested : chosen)
            var spills = 0
            for unit in built {
                for kernel in unit.spills {
                    spills += 1
                    Output.line("spills: \(unit.file) for \(unit.architecture): \(kernel)")
                }
            }
            let kernels = built.reduce(0) { $0 + $1.kernelCount }
            Output.line(
                "\(kernels) kernels in \(built.count) compilations, \(spills) with spilled registers"
            )
            if spills > 0 { throw ExitCode.failure }
        }
    }

    struct Test: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Check every operation on this machine's GPU, or time them.",
            discussion: """
                Without --fast: small awkward shapes, against the definitions on the CPU, and twice, for equal bits.
                With --fast: the shapes of the published models; the median time of a launch as the models make it, \
                and a sample of each result against the definitions.
                The exit status is 1 if anything fails, or is slower than in --against.
                """)

        @Option(name: .customLong("cuda-libraries"), help: "Folders with NVIDIA's libraries.")
        var libraries: String?

        @Option(
            help: "Which GPU: N or cuda:N; or cpu.",
            transform: { text in
                guard let choice = DeviceChoice(numberOrName: text)
                else { throw ValidationError("'\(text)' is not a device") }
                return choice
            })
        var device = DeviceChoice.cuda(ordinal: 0)

        @Option(help: "Only operations whose name contains this.")
        var only: String?

        @Flag(help: "Time operations at the shapes of the published models.")
        var fast = false

        @Flag(help: "Use the kernels that run on every card, not those made for this one.")
        var generic = false

        @Option(help: "With --fast: write the times to this new file.", completion: .file())
        var json: String?

        @Option(
            help: "With --fast: earlier times to compare with; more than 5 % slower fails.",
            completion: .file())
        var against: String?

        @Flag(help: "List the kernels that were never launched.")
        var unused = false

        @Flag(help: "Wait for every kernel: a failure then names the kernel that caused it.")
        var debugKernels = false

        func validate() throws {
            if !fast, json != nil || against != nil {
                throw ValidationError("--json and --against need --fast")
            }
            if generic, device == .cpu {
                throw ValidationError("--generic needs a GPU: the cpu has no such kernels")
            }
            if table.names(mode, filter: only).isEmpty {
                throw ValidationError("no operation has '\(only ?? "")' in its name")
            }
        }

        private var table: OperationTable { OperationTable(seed: 1) }
        private var mode: OperationTable.Mode { fast ? .fast : .right }

        func run() async throws {
            let earlier = try against.map { try TimeTable(readingFrom: $0) }
            // Measuring takes minutes, so a file that cannot be written is refused first.
            let file = try json.map { try PendingFile(FilePath($0), overwrite: false) }
            let backend = try open()
            let gpu = backend as? CUDABackend
            let name = backend.name + (generic ? ", generic kernels" : "")
            Output.line("on \(name)")
            try earlier?.checkDevice(name)
            let results = table.run(
                mode, subject: backend, reference: CPUBackend(engine: .definition), filter: only
            ) { result in
                Output.line(result.line)
                for failure in result.failures where result.verdict == .failed {
                    Output.line("       \(failure)")
                }
            }
            if let kernels = gpu?.context.kernels {
                let (count, idle) = kernels.usage
                Output.line("\(count - idle.count) of \(count) kernels were launched")
                if unused { idle.forEach(Output.line) }
            }
            let times = TimeTable(
                device: name, driver: gpu?.context.properties.driver,
                times: results.compactMap(\.time))
            try file?.write(times.encoded())
            try file?.commit()
            let changes = earlier.map(times.changes) ?? []
            changes.forEach { Output.line($0.line) }
            if earlier != nil {
                Output.line(
                    "\(changes.count) of \(times.times.count) operations compared, "
                        + "\(changes.count(where: \.isSlower)) slower")
            }
            if results.contains(where: { $0.verdict == .failed })
                || changes.contains(where: \.isSlower)
            {
                throw ExitCode.failure
            }
        }

        private func open() throws -> any Backend {
            var options = DeviceOptions()
            options.cuda.libraries = libraries
            options.cuda.waitsForEachKernel = debugKernels
            options.cuda.usesGenericKernels = generic
            options.cuda.poisonsMemory = !fast
            return try device.open(options) { note in
                if case .kernels(_, let seconds) = note, seconds <= 0.1 { return }
                Output.note("\(note)")
            }
        }
    }

    /// Compiles all kernels, with a note about each file that takes more than 0.1 s.
    private static func compile(
        _ source: KernelSource, for architectures: [Architecture]
    ) throws -> [KernelSource.Built] {
        Output.note(try source.describedCompiler())
        return try source.build(for: architectures, renews: true) { noteSlow($0) }
    }

    private static func noteSlow(_ built: KernelSource.Built) {
        guard built.seconds > 0.1 else { return }
        Output.note(
            "\(built.file) for \(built.architecture): \(built.kernelCount) kernels, "
                + describe(seconds: built.seconds))
    }
}
