/// The command line: one file a command.

import ArgumentParser
import Glibc
import SystemPackage
import Terminal

@main
struct TurboDiffusion: AsyncParsableCommand {
    static let programVersion = "0.2.0"

    static let configuration = CommandConfiguration(
        commandName: "turbodiffusion",
        abstract:
            "Fast video diffusion: Wan models with SageAttention, SLA, rCM and 8-bit linears.",
        discussion: "Options may be written with '-' or '_' between words.",
        version: programVersion,
        subcommands: [
            TextToVideoCommand.self, ImageToVideoCommand.self, ServeCommand.self,
            InspectCommand.self,
            QuantizeCommand.self, MergeCommand.self, ConvertCommand.self, LoRACommand.self,
            CompareCommand.self, VerifyCommand.self, BenchCommand.self,
            KernelsCommand.self, DoctorCommand.self,
        ])

    static func main() async {
        Interruption.install()
        await main(normalized(Array(CommandLine.arguments.dropFirst())))
        // Whoever closed the pipe has seen enough; who lacks a part of the result must be told.
        guard let failure = TextStream.output.failure else { return }
        if failure != .brokenPipe { Output.note("cannot write the output: \(failure)") }
        Glibc.exit(EXIT_FAILURE)
    }

    /// `--dit_path` and `--dit-path` are the same option: the original's command lines work unchanged. Values may begin
    /// with a dash, and are told from options as Python's argparse tells them.
    static func normalized(_ arguments: [String]) -> [String] {
        let end = arguments.firstIndex(of: "--") ?? arguments.endIndex
        var result: [String] = []
        var positional: [String] = []
        for argument in arguments[..<end] {
            if isValue(argument) {
                if let option = result.last, option.hasPrefix("--"), !option.contains("=") {
                    result[result.count - 1] = option + "=" + argument
                } else {
                    positional.append(argument)
                }
            } else if argument.hasPrefix("--") {
                let name = argument.prefix { $0 != "=" }
                result.append(
                    String(name.map { $0 == "_" ? "-" : $0 }) + argument.dropFirst(name.count))
            } else {
                result.append(argument)
            }
        }
        let rest = positional + arguments[end...].dropFirst()
        return rest.isEmpty ? result : result + ["--"] + rest
    }

    /// Begins with a dash and is no option: "- a cat", "-5".
    private static func isValue(_ argument: String) -> Bool {
        guard argument.hasPrefix("-") else { return false }
        return Double(argument) != nil
            || argument.prefix { $0 != "=" }.contains(where: \.isWhitespace)
    }
}
