/// What a mistake in a command line is answered with, and what shells complete.

import ArgumentParser
import FoundationEssentials
import Glibc
import Testing

@testable import turbodiffusion

/// The line that a person reads.
private func line(_ words: String...) async -> String {
    do {
        _ = try await TurboDiffusion.command(words)
        return ""
    } catch {
        return TurboDiffusion.line(for: error, words) ?? ""
    }
}

@Suite struct UsageTests {
    @Test("a value that no training run can use is a wrong command line, and named by its option")
    func trainingValues() async throws {
        let cases: [([String], String)] = [
            (["rcm", "--guidance", "nan"], "--guidance is nan, expected 0 to 1e+38"),
            (["rcm", "--student-every", "0"], "--student-every is 0, expected 1 or more"),
            (["sla", "--clip", "inf"], "--clip is inf, expected above 0"),
            (["sla", "--sla-topk", "2"], "--sla-topk is 2.0, expected above 0"),
            (["lora", "--lr", "1e300"], "--lr is 1e+300, expected 0 to 1e+38"),
            (["lora", "--keep", "0"], "--keep is 0, expected 1 or more"),
            (["lora", "--threads", "0"], "--threads must be 1 to 4096, not 0"),
        ]
        for (words, expected) in cases {
            let words = ["train"] + words + ["--output", "/tmp/nowhere/run"]
            do {
                let parsed = try await TurboDiffusion.command(words)
                var command = try #require(parsed as? any AsyncParsableCommand)
                try await command.run()
                Issue.record("\(words) was taken")
            } catch {
                #expect(
                    error is UsageError || TurboDiffusion.exitCode(for: error) == .validationFailure
                )
                let line = TurboDiffusion.line(for: error, words) ?? ""
                #expect(line.contains(expected), "\(words): \(line)")
            }
        }
    }

    @Test("one line that says what to do, whatever the mistake")
    func lines() async {
        let cases: [([String], String)] = [
            (["t2w"], "no command 't2w': did you mean t2v?"),
            (["help", "nonsense"], "no command 'nonsense': expected one of t2v, i2v"),
            (["A red ball"], "turbodiffusion t2v \"A red ball\""),
            (["t2v", "--nonsense"], "Unknown option '--nonsense'"),
            (["t2v", "x", "--image_path", "a"], "'turbodiffusion i2v' has it"),
            (["t2v", "x", "--memory_limit", "12"], "did you mean 12GiB?"),
            (["t2v", "x", "--seed", "a"], "a number (default 0), or random"),
            (["t2v", "x", "--threads", "0"], "--threads must be 1 to 4096, not 0"),
            (["t2v", "x", "--card", "voodoo"], "rtx-4090"),
            (["convert", "a", "b.pth", "--num-heads", "2"], "leave it out, or give --add-sla"),
            (["merge"], "--base"), (["t2v", "a", "b"], "b"),
            (["inspect", "--diff", "a"], "exactly two"),
        ]
        for (words, expected) in cases {
            let text = await message(words)
            #expect(text.contains(expected), "\(words): \(text)")
            #expect(!text.contains("\n"))
        }
        #expect(await line("t2v", "--nonsense").hasSuffix("see 'turbodiffusion t2v --help'"))
    }

    private func message(_ words: [String]) async -> String {
        do {
            _ = try await TurboDiffusion.command(words)
            return ""
        } catch {
            return TurboDiffusion.line(for: error, words) ?? ""
        }
    }

    @Test("what is typed cannot steer the terminal")
    func controls() async {
        for words in [
            ["a\u{1B}[31mb"], ["t2v", "--a\u{1B}[31mb"], ["t2v", "x", "--seed", "\u{1B}]0;t\u{7}"],
            ["help", "\u{202E}x"],
        ] {
            let text = await message(words)
            #expect(!text.isEmpty && text.unicodeScalars.allSatisfy { $0.value >= 32 })
            #expect(text.contains("\\u{1B}") || text.contains("\\u{202E}"))
        }
    }

    @Test("an option that is given twice is told, one that may be repeated is not")
    func repeated() {
        let words = TurboDiffusion.normalized([
            "t2v", "--prompt", "a", "--prompt=b", "--lora", "x", "--lora", "y", "--num_steps", "1",
            "--num-steps", "2", "--", "--prompt",
        ])
        #expect(
            TurboDiffusion.repeatedOptions(words) == [
                "--num-steps is given more than once: the last one counts",
                "--prompt is given more than once: the last one counts",
            ])
        let served = ["serve", "--device", "cuda:0", "--device", "cuda:1"]
        #expect(TurboDiffusion.repeatedOptions(served).isEmpty)
        #expect(TurboDiffusion.repeatedOptions(["t2v"] + served.dropFirst()).count == 1)
    }
}

@Suite struct CompletionTests {
    private func script(_ shell: String) throws -> [String] {
        let words = ["--generate-completion-script", shell]
        let text = try #require(try TurboDiffusion.completionScript(words))
        return text.split(separator: "\n").map(String.init)
    }

    @Test("every shell knows both spellings of an option")
    func spellings() throws {
        let bash = try script("bash")
        let list = bash.filter {
            $0.contains("non_repeating_options=(") && $0.contains("--dit-path")
        }
        #expect(!list.isEmpty && list.allSatisfy { $0.contains(" --dit_path ") })
        #expect(bash.contains { $0.hasSuffix("'--attention-type'|'--attention_type')") })
        #expect(bash.contains { $0.contains("--high_noise_lora") })

        let zsh = try script("zsh")
        #expect(zsh.contains { $0.contains("'(--dit-path --dit_path)'{--dit-path,--dit_path}'[") })
        #expect(zsh.contains { $0.contains("'*'{--high-noise-lora,--high_noise_lora}'[") })

        let fish = try script("fish")
        #expect(fish.contains { $0.contains(" -l 'dit-path' -l 'dit_path' ") })
        #expect(fish.contains { $0.contains("string replace -a _ -") })
    }

    @Test("models, sizes and devices are completed")
    func values() throws {
        let bash = try script("bash").joined(separator: "\n")
        for value in ["Wan2.1-14B", "'720p'", "'cuda'", "'rtx-4090'"] {
            #expect(bash.contains(value), "\(value)")
        }
    }

    @Test("bash completes an underscored option and its value")
    func bash() throws {
        let path =
            FileManager.default.temporaryDirectory.path
            + "/complete-\(UInt64.random(in: 0 ... .max))"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let test = """
            complete_words() {
                COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
                COMPREPLY=()
                _turbodiffusion x "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
                echo "${COMPREPLY[*]}"
            }
            complete_words turbodiffusion t2v --num_s
            complete_words turbodiffusion t2v --attention_type s
            complete_words turbodiffusion t2v --model Wan2.1
            """
        let text = try script("bash").joined(separator: "\n") + "\n" + test + "\n"
        try Data(text.utf8).write(to: URL(fileURLWithPath: path))
        let output = path + ".out"
        defer { try? FileManager.default.removeItem(atPath: output) }
        #expect(Glibc.system("bash '\(path)' > '\(output)' 2>&1") == 0)
        let printed = FileManager.default.contents(atPath: output) ?? Data()
        let lines = String(decoding: printed, as: UTF8.self).split(separator: "\n")
        #expect(
            lines.map { $0.split(separator: " ").sorted() } == [
                ["--num_samples", "--num_steps"], ["sagesla", "sla"],
                ["Wan2.1-1.3B", "Wan2.1-14B", "Wan2.1-14B-720P"],
            ])
    }

    @Test("another shell is refused")
    func unknown() {
        #expect(throws: UsageError.self) {
            try TurboDiffusion.completionScript(["--generate-completion-script", "tcsh"])
        }
        #expect((try? TurboDiffusion.completionScript(["t2v", "x"])) == .some(nil))
    }
}
