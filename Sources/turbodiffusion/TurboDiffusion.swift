/// The command line: one file a command.

import ArgumentParser
import Glibc

@main
struct TurboDiffusion: AsyncParsableCommand {
    static let programVersion = "0.1.0"

    static let configuration = CommandConfiguration(
        commandName: "turbodiffusion",
        abstract:
            "Fast video diffusion: Wan models with SageAttention, SLA, rCM and 8-bit linears.",
        discussion: "Options may be written with '-' or '_' between words.",
        version: programVersion,
        subcommands: [
            TextToVideoCommand.self, ImageToVideoCommand.self, InspectCommand.self,
            QuantizeCommand.self, MergeCommand.self, ConvertCommand.self, LoRACommand.self,
            CompareCommand.self, QualityCommand.self, VerifyCommand.self, BenchCommand.self,
            KernelsCommand.self, DoctorCommand.self,
        ])

    static func main() async {
        // A write to a closed pipe is an error to report, not a reason to die silently.
        signal(SIGPIPE, SIG_IGN)
        Interruption.install()
        await main(normalized(Array(CommandLine.arguments.dropFirst())))
    }

    /// `--dit_path` and `--dit-path` are the same option: the original's command lines work unchanged.
    static func normalized(_ arguments: [String]) -> [String] {
        var isLiteral = false
        return arguments.map { argument in
            if argument == "--" { isLiteral = true }
            guard !isLiteral, argument.hasPrefix("--") else { return argument }
            let end = argument.firstIndex(of: "=") ?? argument.endIndex
            return String(argument[..<end].map { $0 == "_" ? "-" : $0 }) + argument[end...]
        }
    }
}
