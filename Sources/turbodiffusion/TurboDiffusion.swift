/// The command line: one file a command.

import ArgumentParser
import CProcess
import Glibc
import Ground
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
            TextToVideoCommand.self, ImageToVideoCommand.self, InteractiveCommand.self,
            ServeCommand.self, ModelsCommand.self, GetCommand.self, RemoveCommand.self,
            InspectCommand.self,
            QuantizeCommand.self, MergeCommand.self, ConvertCommand.self, LoRACommand.self,
            CompareCommand.self, EncodeCommand.self, VerifyCommand.self, BenchCommand.self,
            KernelsCommand.self, DoctorCommand.self, TrainCommand.self, DatasetCommand.self,
        ])

    static func main() async {
        require_processor()
        Interruption.install()
        var code = EXIT_SUCCESS
        do {
            code = await execute(try words())
        } catch {
            Output.note("Error: \(error)")
            code = ExitCode.validationFailure.rawValue
        }
        // A reader that closed the pipe has seen enough; any other failure means that output is missing.
        if let failure = TextStream.output.failure, code == EXIT_SUCCESS {
            if failure != .brokenPipe { Output.note("cannot write the output: \(failure)") }
            code = EXIT_FAILURE
        }
        end(code)
    }

    /// Ends the process at once. What libraries do at an exit, a GPU's driver above all, costs tenths of a second and is
    /// done by the system anyway; profilers alone write their results then.
    private static func end(_ code: Int32) -> Never {
        if getenv("CUDA_INJECTION64_PATH") != nil { Glibc.exit(code) }
        // Of a device that is still being opened.
        TemporaryPath.removeAll()
        fflush(nil)
        _exit(code)
    }
}
