// What `make` hands to the program: the prompt as it was typed, and the name of a video that is not there yet.

import Glibc
import Testing

private let root = "/" + #filePath.split(separator: "/").dropLast(3).joined(separator: "/")

/// What a shell command prints.
private func shell(_ command: String) -> String {
    guard let stream = popen(command, "r") else { return "" }
    defer { pclose(stream) }
    var bytes: [UInt8] = []
    while case let byte = fgetc(stream), byte != EOF { bytes.append(UInt8(byte)) }
    return String(decoding: bytes, as: UTF8.self)
}

@Suite("make", .serialized)
final class MakeTests {
    /// The Makefile beside a program that prints its arguments, one a line, and makes the file of the last option.
    private let folder: String

    init() {
        var template = Array("/tmp/turbodiffusion-make-XXXXXX".utf8CString)
        folder = String(cString: mkdtemp(&template))
        _ = shell(
            """
            cd \(folder) && cp \(root)/Makefile . && mkdir -p Sources Scripts .build/release && touch Package.swift
            for name in check-swift install-packages; do printf '#!/bin/sh\\n' >Scripts/$name; done
            cat >.build/release/turbodiffusion <<'END'
            #!/bin/sh
            printf '%s\\n' "$@"; while [ $# -gt 1 ]; do shift; done; touch "$1"
            END
            chmod +x Scripts/* .build/release/turbodiffusion
            """)
    }

    deinit { _ = shell("rm -rf \(folder)") }

    private func make(prompt: String, inEnvironment: Bool) -> String {
        setenv(inEnvironment ? "PROMPT" : "TYPED", prompt, 1)
        defer { unsetenv(inEnvironment ? "PROMPT" : "TYPED") }
        let argument = inEnvironment ? "" : "PROMPT=\"$TYPED\""
        return shell("cd \(folder) && rm -rf output && make -s video \(argument) 2>&1")
    }

    @Test(
        "a prompt is neither expanded nor executed",
        arguments: [
            #"a "big" ball"#, "it costs $5", "x `touch /tmp/executed`", "$(shell echo expanded)",
            "$HOME ${HOME} $$",
            #"a 'quoted' \ one; touch x"#, "number #1: 100% \\n", "- a cat", "一只猫", "two\nlines",
        ], [false, true])
    func prompts(prompt: String, inEnvironment: Bool) {
        let printed = make(prompt: prompt, inEnvironment: inEnvironment)
        #expect(
            printed == """
                t2v
                --model
                nano
                --prompt=\(prompt)
                --save_path
                output/video.mp4

                """)
    }

    @Test("no earlier video is replaced")
    func numbered() {
        _ = make(prompt: "a ball", inEnvironment: false)
        for name in ["output/video-2.mp4", "output/video-3.mp4"] {
            #expect(shell("cd \(folder) && make -s video").hasSuffix("\(name)\n"))
        }
    }

    @Test("help is for users")
    func help() {
        let help = shell("make -s -C \(root)")
        #expect(help.contains("make video") && help.contains("OPTIONS"))
        #expect(!help.contains("SwiftPM"))
    }
}
