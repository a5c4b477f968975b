/// What `--json` prints is what docs/events.md says, field by field.

import FoundationEssentials
import Glibc
import Ground
import SystemPackage
import Testing

@testable import Media

/// The fields of a JSON object: "run.request.prompt", "files[]".
private func allFields(_ value: JSON, _ path: String = "") -> Set<String> {
    switch value {
    case .object(let members):
        Set(
            members.flatMap { key, value in
                allFields(value, path.isEmpty ? key : path + "." + key)
            })
    case .list(let entries):
        entries.isEmpty ? [path + "[]"] : Set(entries.flatMap { allFields($0, path + "[]") })
    case .other: [path]
    }
}

/// A JSON value of any shape.
private enum JSON: Decodable {
    case object([String: JSON])
    case list([JSON])
    case other(String)

    init(from decoder: any Decoder) throws {
        if let object = try? [String: JSON](from: decoder) {
            self = .object(object)
        } else if let list = try? [JSON](from: decoder) {
            self = .list(list)
        } else {
            self = .other((try? String(from: decoder)) ?? "")
        }
    }

    subscript(key: String) -> JSON? {
        if case .object(let members) = self { members[key] } else { nil }
    }
    var text: String? { if case .other(let text) = self { text } else { nil } }
}

/// Fields by the events that have them, as the page lists them.
private func documented() throws -> [String: [String]] {
    let page = FilePath(projectFolder).appending("docs/events.md")
    let text = String(decoding: try page.contents(), as: UTF8.self)
    var found: [String: [String]] = [:]
    var events: [String] = []
    for line in text.split(separator: "\n") {
        if line.hasPrefix("## ") {
            events = line.dropFirst(3).split(separator: ", ").map(String.init)
        } else if line.hasPrefix("| `"), let cell = line.split(separator: "|").first {
            let names = cell.split(separator: "`").map(String.init).filter {
                $0.contains(where: \.isLetter)
            }
            for event in events { found[event, default: []] += names }
        }
    }
    return found
}

/// Whether a printed field is the documented one: `*` stands for any key, `?` for nothing.
private func matches(_ field: String, _ documented: String) -> Bool {
    let known = documented.filter { $0 != "?" }.split(separator: ".")
    let parts = field.split(separator: ".")
    if known.last == "**" {
        return parts.count >= known.count
            && zip(known.dropLast(), parts).allSatisfy { $0 == "*" || $0 == $1 }
    }
    return known.count == parts.count && zip(known, parts).allSatisfy { $0 == "*" || $0 == $1 }
}

@Suite struct EventTests {
    private static let program = FilePath("/proc/self/exe").followingLinks.folder
        .appending("turbodiffusion").string

    /// Carries out a command line in a folder that is gone afterwards.
    private func events(_ arguments: [String]) async throws -> (code: Int32?, [JSON]) {
        var template = Array("/tmp/turbodiffusion-events-XXXXXX".utf8CString)
        let folder = FilePath(platformString: try #require(mkdtemp(&template)))
        defer { _ = system("rm -rf '\(folder.string)'") }
        let output = folder.appending("events")
        let child = try await Child.start(
            "/bin/sh",
            ["-c", "cd \"$0\" && exec \"$@\" > events", folder.string, Self.program]
                + arguments)
        let remains = await child.remains
        let text = String(decoding: try output.contents(), as: UTF8.self)
        let lines = try text.split(separator: "\n").map {
            try JSONDecoder().decode(JSON.self, from: Data($0.utf8))
        }
        let code: Int32? = if case .exited(let code) = remains.ending { code } else { nil }
        return (code, lines)
    }

    private let tiny = [
        "--model", projectFolder + "/Models/nano", "--num_frames", "5", "--num_steps", "2",
        "--resolution", "32x32", "--device", "cpu", "--json",
    ]

    @Test(
        "every field that is printed is documented, and every documented one that is always there is printed"
    )
    func fields() async throws {
        let long = "a cat " + String(repeating: "a red ball, ", count: 400)
        let runs = [
            ["t2v", long, "--seeds", "1,2", "--save_path", "{seed}.gif", "--shift", "2"] + tiny,
            ["t2v", "a red ball", "--save_path", "/nowhere/v.mp4"] + tiny,
            ["t2v", "a red ball", "--dry_run", "--card", "4090"] + tiny,
        ]
        let known = try documented()
        var printed: [String: Set<String>] = [:]
        var names: [[String]] = []
        for arguments in runs {
            let (code, lines) = try await events(arguments)
            #expect(code == (arguments.contains("/nowhere/v.mp4") ? 1 : 0))
            names.append(lines.compactMap { $0["event"]?.text })
            for line in lines {
                let event = try #require(line["event"]?.text)
                let own = try #require(known[event], "\(event)")
                for field in allFields(line) {
                    #expect(own.contains { matches(field, $0) }, "\(event): \(field)")
                    printed[event, default: []].insert(field)
                }
            }
        }
        // The request comes first, progress is rare, every run has its end, and the job has one.
        #expect(names[0].first == "run.started" && names[0].last == "job.finished")
        #expect(names[0].count { $0 == "run.finished" } == 2)
        #expect(names[0].contains("notice") && names[0].contains("stage.finished"))
        #expect(names[1] == ["run.failed"] && names[2] == ["plan"])
        for (event, fields) in known {
            let found = try #require(printed[event], "\(event)")
            for field in fields where !field.contains("?") {
                #expect(
                    found.contains { matches($0, field) || $0.hasPrefix(field + ".") },
                    "\(event): \(field)")
            }
        }
    }

    @Test("a mistake in the command line is an event too")
    func usage() async throws {
        let (code, lines) = try await events(["t2v", "--nonsense", "--json"])
        #expect(code == 64 && lines.count == 1)
        #expect(lines[0]["event"]?.text == "run.failed" && lines[0]["code"]?.text == "usage")
    }

    @Test("what exists is skipped, the rest is made")
    func skipping() async throws {
        let script = tiny.joined(separator: " ")
        let child = try await Child.start(
            "/bin/sh",
            [
                "-c",
                """
                cd "$(mktemp -d)" && printf 'a red ball\\n# none\\na blue cone\\n' > p.txt &&
                "$0" t2v --prompts p.txt --seeds 0,1 --save_path '{n}-{seed}.gif' \(script) > 1 &&
                rm 2-0.gif && "$0" t2v --prompts - --seeds 0,1 --save_path '{n}-{seed}.gif' \(script) < p.txt > 2 &&
                [ "$(ls *.gif | tr '\\n' ' ')" = "1-0.gif 1-1.gif 2-0.gif 2-1.gif " ] &&
                [ "$(grep -c run.finished 1)" = 4 ] && [ "$(grep -c run.finished 2)" = 1 ] &&
                [ "$(grep -c '"id":"load","part":"text-encoder"' 1)" -lt 8 ] && grep -q '"made":1' 2 && rm -r "$PWD"
                """, Self.program,
            ])
        #expect(await child.remains.ending == .exited(0))
    }
}
