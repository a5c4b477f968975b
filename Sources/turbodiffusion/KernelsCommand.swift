/// `turbodiffusion kernels`: compile the CUDA kernels without a GPU, check them, test them on one.

import ArgumentParser
import CUDA
import Glibc
import Ground
import Synchronization

struct KernelsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kernels",
        abstract: "Compile, check and test the CUDA kernels.",
        subcommands: [Build.self, Check.self, Test.self])

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
                    throw ValidationError("'\(name)' is no architecture from sm_80 on")
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
            Output.line("\(built.count) files of kernels in \(output)")
        }
    }

    struct Check: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract:
                "Compile every kernel for every tested architecture; fail on spilled registers.",
            discussion:
                "Needs NVRTC but no GPU. What has not changed since the last time is cached.")

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
            abstract: "Check and time single kernels on this machine's GPU.")

        @Option(name: .customLong("cuda-libraries"), help: "Folders with NVIDIA's libraries.")
        var libraries: String?

        @Option(help: "Which GPU.")
        var device = 0

        @Option(help: "Only cases whose name contains this.")
        var only: String?

        @Flag(help: "Wait for every kernel: a failure then names the kernel that caused it.")
        var debugKernels = false

        func run() async throws {
            var options = CUDABackend.Options()
            options.libraries = libraries
            options.waitsForEachKernel = debugKernels
            let backend = try CUDABackend(ordinal: device, options) { noteSlow($0) }
            Output.line("on \(backend.name)")
            let failures = SelfTest.run(only: only, on: backend.context)
            if failures > 0 { throw ExitCode.failure }
        }
    }

    /// Compiles with a line about everything that takes time.
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
                + Output.seconds(built.seconds))
    }
}
