/// Verification in a child process: a case that ends it is a case that failed, and the next ones are checked all the same.

import CProcess
import FoundationEssentials
import Glibc
import Ground
import SystemPackage
import Verification

enum VerifyingChild {
    /// A line that the child prints.
    enum Message: Codable {
        case device(String)
        case result(CaseResult)
    }

    /// Runs children until all cases are done.
    /// - Parameter tell: told of the device, once, and of each result.
    static func run(_ command: VerifyCommand, tell: (Message) -> Void) throws {
        let cases = try Verifier.cases(in: command.folder, filter: command.filter)
        var count = 0
        var hasDevice = false
        while true {
            let end = try start(command, from: count) { message in
                if case .device = message {
                    if !hasDevice { tell(message) }
                    hasDevice = true
                } else {
                    count += 1
                    tell(message)
                }
            }
            if end.status == 0 { break }
            // An error in words is one of all cases.
            if let line = end.words.first(where: { $0.hasPrefix("Error: ") }) {
                throw UserError("verify", String(line.dropFirst("Error: ".count)))
            }
            guard hasDevice, count < cases.count else {
                throw UserError("verify", "the checks ended their process: \(end.reason)")
            }
            count += 1
            tell(.result(cases[count - 1].ended(because: end.reason)))
        }
    }

    private struct End {
        /// As waitpid(2) has it.
        var status: Int32
        var words: [Substring]

        /// What a failed precondition says, or the signal.
        var reason: String {
            for line in words {
                if let mark = line.firstRange(of: "Fatal error: ") {
                    return String(line[mark.upperBound...])
                }
            }
            return status & 0x7F == 0
                ? "status \(status >> 8 & 0xFF)" : "signal \(status & 0x7F)"
        }
    }

    private static func start(
        _ command: VerifyCommand, from first: Int, tell: (Message) -> Void
    ) throws -> End {
        var arguments = ["turbodiffusion", "verify", "--first", "\(first)"]
        arguments += ["--device", "\(command.device)", "--seed", "\(command.seed)"]
        if let threads = command.threads { arguments += ["--threads", "\(threads)"] }
        if let filter = command.filter { arguments += ["--filter=\(filter)"] }
        if command.operations { arguments.append("--operations") }
        if command.debugKernels { arguments.append("--debug-kernels") }
        arguments += ["--", command.folder]
        var strings = arguments.map { strdup($0) } + [nil]
        defer { for string in strings { free(string) } }
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0, let results = fdopen(ends[0], "r") else {
            throw UserError("verify", "no pipe for the checks: \(Errno(rawValue: errno))")
        }
        defer { fclose(results) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        let words = try ScratchFile()
        var process = pid_t()
        let code = child_start(
            "/proc/self/exe", &strings, [STDIN_FILENO, ends[1], words.descriptor], &process)
        close(ends[1])
        guard code == 0 else {
            throw UserError("verify", "the checks cannot be started: \(Errno(rawValue: code))")
        }
        let decoder = JSONDecoder()
        decoder.nonConformingFloatDecodingStrategy = .convertFromString(
            positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while case let length = getline(&line, &capacity, results), length > 0, let line {
            let data = Data(bytes: line, count: length)
            if let message = try? decoder.decode(Message.self, from: data) { tell(message) }
        }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
        let text = String(
            decoding: try words.read(from: 0, count: min(words.size, 1 << 20)), as: UTF8.self)
        if status == 0 { write(STDERR_FILENO, text, text.utf8.count) }
        return End(status: status, words: text.split(separator: "\n"))
    }
}
