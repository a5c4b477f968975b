/// What only a whole process shows: signals, and an output that cannot be written.

import Glibc
import Ground
import SystemPackage
import Testing

/// The program that is built beside the tests.
private let program = FilePath("/proc/self/exe").followingLinks.folder.appending("turbodiffusion")
    .string
private let nano =
    "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/") + "/Models/nano"

/// Runs a script of the shell, `$P` being the program, in a folder that is gone afterwards.
/// - Returns: what it printed to its standard output.
private func shell(_ script: String) throws -> [String] {
    var template = Array("/tmp/process-XXXXXX".utf8CString)
    let folder = FilePath(try #require(mkdtemp(&template).map { String(cString: $0) }))
    defer { _ = Glibc.system("rm -r '\(folder)'") }
    let output = FilePath(folder.string + ".out")
    defer { unlink(output.string) }
    setenv("P", program, 1)
    setenv("NANO", nano, 1)
    #expect(Glibc.system("cd '\(folder)' && { \(script); } > '\(output)'") == 0)
    return String(decoding: try output.contents(), as: UTF8.self)
        .split(separator: "\n").map(String.init)
}

@Suite struct ProcessTests {
    @Test("a result that cannot be written is an error; a reader that has gone is not told")
    func outputs() throws {
        let lines = try shell(
            """
            "$P" inspect "$NANO/vae.safetensors" > /dev/full 2> words; echo $?; cat words;
            { "$P" inspect "$NANO/vae.safetensors" 2> words; echo $? > code; } | true; cat code words
            """)
        #expect(lines == ["1", "cannot write the output: No space left on device", "1"])
    }

    @Test("doctor tells the machine, for people and for programs")
    func doctor() throws {
        let lines = try shell(#""$P" doctor --quick; "$P" doctor --quick --json"#)
        for subject in ["processor", "memory", "disk", "ffmpeg", "model", "driver"] {
            #expect(lines.contains { $0.contains(" \(subject) ") && !$0.hasPrefix("{") })
            #expect(
                lines.contains { $0.hasPrefix("{") && $0.contains("\"subject\":\"\(subject)\"") })
        }
        #expect(lines.contains { $0.contains("\"verdict\":\"fine\"") })
    }

    @Test("a folder of a model is inspected as a whole")
    func folder() throws {
        let lines = try shell(
            """
            "$P" inspect "$NANO"; mkdir m; cp "$NANO/vae.safetensors" m/a.safetensors
            cp "$NANO/config.json" m/b.safetensors; "$P" inspect m > out 2> words; echo $?; cat out
            """)
        #expect(lines[0].hasSuffix("Models/nano: a folder of 3 checkpoints"))
        #expect(lines.contains { $0.contains("text to video, 256x144, 33 frames") })
        for name in ["student_sla_quant.pth", "text_encoder.safetensors", "vae.safetensors"] {
            #expect(lines.contains { $0.hasPrefix(name) && $0.hasSuffix("complete") })
        }
        #expect(lines.contains("1") && lines.contains { $0.hasPrefix("b.safetensors") })
    }

    @Test("a standard input that is closed is told")
    func closedInput() throws {
        let lines = try shell(#""$P" encode --size 8x8 v.gif <&- 2>&1; echo $?; ls"#)
        #expect(lines.count == 2 && lines[1] == "1")
        #expect(lines[0].contains("standard input is closed"))
    }

    @Test("a data set that finds no room says so")
    func noRoom() throws {
        let lines = try shell(
            """
            echo "a red ball" > prompts
            (ulimit -f 1; "$P" dataset make --model "$NANO" --prompts prompts --output d --device cpu \\
                --num-frames 1 --num-steps 1 2>&1) | tail -n 1
            """)
        #expect(lines.count == 1 && lines[0].hasPrefix("Error: cannot write "), "\(lines)")
        #expect(lines[0].hasSuffix("File too large"), "\(lines)")
    }

    @Test("words that are no UTF-8 text are told, and do not become others")
    func encoding() throws {
        let lines = try shell(
            #""$P" t2v "$(printf 'a \377\376 ball')" --save_path v.png 2>&1; echo $?; ls"#)
        #expect(lines.count == 2 && lines[1] == "64")
        #expect(lines[0].contains("argument 2 is not UTF-8"))
    }

    @Test(
        "a result takes three lines, stages are told when asked, and a note when the model is out of its depth"
    )
    func summary() throws {
        let lines = try shell(
            """
            set -- --model "$NANO" --num_frames 1 --num_steps 2 --resolution 32x32 --device cpu
            "$P" t2v "a red ball" "$@" --save_path a.png 2> words; grep -c "note: .*32x32" words
            "$P" t2v "a red ball" "$@" --save_path b.png --verbose 2> words | wc -l; grep -c step words
            TERM=dumb "$P" t2v "a cat" "$@" --save_path 'c-{seed}.png' --seed 7 > /dev/null 2> words; cat words; ls
            """)
        #expect(lines[0].contains(" on CPU") && lines[0].contains("2 steps"))
        #expect(lines[1].contains("host memory") && lines[1].hasSuffix("32x32, 1 frame, seed 0"))
        #expect(
            lines[2] == "wrote a.png" && lines[3] == "1")
        #expect((Int(lines[4]) ?? 0) > 10 && lines[5] == "2")
        #expect(lines.contains { $0.contains("the word cat") } && lines.contains("c-7.png"))
    }
}
