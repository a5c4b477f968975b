// What is measured in which order, the table that survives a stop, and what the report says of its rows.

import Families
import FoundationEssentials
import Quality
import Testing

@testable import NanoStudy

private func row(
    _ configuration: Configuration, score: Double, error: Double = 0.4,
    psnr: Double? = 30.125, captions: Int = 200, right: [Int] = []
) -> Row {
    Row(
        configuration, captions: captions,
        accuracy: Attribute.allCases.map { _ in score }, scoreError: error, psnr: psnr,
        similarity: psnr == nil ? nil : 0.95, seconds: 0.0425, device: "a card",
        right: right)
}

private func student(
    _ attention: AttentionChoice = .sla, _ linears: Linears = .bf16, topK: Double? = 0.2,
    steps: Int = 4
) -> Configuration {
    Configuration(
        .student, steps: steps, attention: attention, linears: linears, topK: topK)
}

@Suite struct SelectionTests {
    @Test func everything() {
        let list = Selection().configurations
        // Dense attention has no top-k.
        #expect(list.count == 1 + 4 * 5 * (1 + 6 + 6))
        #expect(Set(list).count == list.count)
        #expect(list[0] == .reference(steps: 4))
        #expect(list[1] == .teacher)
        #expect(list[2...4].elementsEqual([3, 2, 1].map { .reference(steps: $0) }))
        // The rest of four steps, then fewer at the usual shares, then the rest.
        #expect(list[5..<69].allSatisfy { $0.steps == 4 })
        #expect(list[69..<141].allSatisfy { $0.steps < 4 && [nil, 0.2, 0.1].contains($0.topK) })
        #expect(list[141...].allSatisfy { $0.steps < 4 && ![nil, 0.2, 0.1].contains($0.topK) })
    }

    @Test func aPart() {
        var selection = Selection()
        selection.models = [.student]
        selection.steps = [2, 2]
        selection.attention = [.sagesla, .original]
        selection.linears = [.int8]
        selection.topK = [0.3, 0.1, 0.1]
        #expect(
            Set(selection.configurations) == [
                student(.sagesla, .int8, topK: 0.3, steps: 2),
                student(.sagesla, .int8, topK: 0.1, steps: 2),
                student(.original, .int8, topK: nil, steps: 2),
            ])
        #expect(selection.configurations.count == 3)
    }

    @Test func theTeacherIsComparedWithFourSteps() {
        #expect(Configuration.teacher.reference == .reference(steps: 4))
        #expect(student(steps: 3).reference == .reference(steps: 3))
        #expect(Configuration.reference(steps: 2).isReference)
        #expect(!student(.original, .bf16, topK: nil).isReference)
    }
}

@Suite struct TableTests {
    @Test func rowsComeBack() throws {
        try withTemporaryFile { path in
            var table = try Table(path: path)
            #expect(table.rows.isEmpty)
            let rows = [
                row(.teacher, score: 97.25), row(.reference(steps: 4), score: 95.5, psnr: nil),
                row(student(.sagesla, .fp8, topK: 0.05, steps: 1), score: 75),
            ]
            for row in rows { try table.append(row) }
            let again = try Table(path: path)
            #expect(again.rows == rows)
            #expect(again[.teacher]?.score == 97.25)
            #expect(again[student()] == nil)
            try again.check(captions: 200)
            #expect(throws: StudyError.self) { try again.check(captions: 4) }
        }
    }

    @Test func eachCaptionComesBack() throws {
        try withTemporaryFile { path in
            var table = try Table(path: path)
            let rows = [
                row(.teacher, score: 75, captions: 3, right: [8, 0, 7]),
                row(student(.sla, .shipped), score: 75, captions: 3),
            ]
            for row in rows { try table.append(row) }
            #expect(try Table(path: path).rows == rows)
            // Another number of captions, and more right answers than there are questions.
            #expect(Row(line: rows[0].line[...].dropLast()) == nil)
            #expect(Row(line: rows[0].line.dropLast() + "9") == nil)
        }
    }

    @Test("a row that was cut off is measured again", arguments: [1, 5, 40])
    func cutOff(missing: Int) throws {
        try withTemporaryFile { path in
            var table = try Table(path: path)
            try table.append(row(.teacher, score: 97))
            let whole = FileManager.default.contents(atPath: path)!
            try table.append(row(student(), score: 96.5))
            let both = FileManager.default.contents(atPath: path)!
            try both.dropLast(missing).write(to: URL(filePath: path))
            var again = try Table(path: path)
            #expect(again.rows.map(\.configuration) == [.teacher])
            #expect(FileManager.default.contents(atPath: path) == whole)
            try again.append(row(student(), score: 96.5))
            #expect(FileManager.default.contents(atPath: path) == both)
        }
    }

    @Test("the header alone, even cut off, is an empty table", arguments: [0, 1, 7])
    func headerOnly(missing: Int) throws {
        try withTemporaryFile(String((Row.header + "\n").dropLast(missing))) { path in
            var table = try Table(path: path)
            #expect(table.rows.isEmpty)
            try table.append(row(.teacher, score: 97))
            #expect(try Table(path: path).rows.count == 1)
        }
    }

    @Test(
        "other files are refused and left alone",
        arguments: [
            "group,what\nceiling,copy\n", Row.header + "\nteacher,50\n",
        ])
    func otherFiles(text: String) throws {
        try withTemporaryFile(text) { path in
            #expect(throws: StudyError.self) { try Table(path: path) }
            #expect(FileManager.default.contents(atPath: path) == Data(text.utf8))
        }
    }
}

@Suite struct FindingsTests {
    /// Scores as nano has them: top-k 0.1 loses measurably, 0.05 much, top-k 1 a little; one step a little.
    private func report() throws -> Report {
        try withTemporaryFile { path in
            var table = try Table(path: path)
            try table.append(row(.teacher, score: 97.2))
            try table.append(row(.reference(steps: 4), score: 95.9, psnr: nil))
            for (topK, score) in [
                (1, 95.9), (0.5, 97.1), (0.2, 96.9), (0.15, 96.6), (0.1, 94.4), (0.05, 75.2),
            ] { try table.append(row(student(topK: topK), score: score)) }
            for (steps, score) in [(3, 96.7), (2, 96.2), (1, 95.8)] {
                try table.append(row(student(steps: steps), score: score))
            }
            try table.append(row(student(.sla, .int8), score: 96.1))
            return Report(table, command: "make study FOLDER=FOLDER")
        }
    }

    @Test func fallsAreFound() throws {
        let report = try report()
        let down = report.byTopK(steps: 4, .sla, .bf16, down: true)
        #expect(down.map(\.configuration.topK) == [0.2, 0.15, 0.1, 0.05])
        let falls = report.firstFalls(down)
        #expect(falls.measurable?.configuration.topK == 0.1)
        #expect(falls.large?.configuration.topK == 0.05)
        // Two standard errors of a difference of two rows of 0.4: 1.13.
        let steps = report.firstFalls(report.bySteps(.sla, .bf16))
        #expect(steps.measurable?.configuration.steps == 1)
        #expect(steps.large == nil)
        #expect(report.verdict(report.row(steps: 4, .sla, .int8, topK: 0.2)!) == .kept)
    }

    @Test func pageIsComplete() throws {
        let files = try report().files
        #expect(
            files.map(\.name) == [
                "README.md", "score-topk.svg", "score-steps.svg", "psnr-topk.svg",
                "score-time.svg",
            ])
        let page = files[0].text
        for part in [
            "| sla | bf16 | 96.9 | **0.1** (94.4) | **0.05** (75.2) | **1** (95.9) |",
            "| sla | bf16 | 96.9 | **1** (95.8) | not as far as 1 |",
            "(4 steps, SLA, top-k 0.2, int8): 96.1 %, 1.1 points below the teacher",
            "make study FOLDER=FOLDER", "](score-topk.svg)",
        ] { #expect(page.contains(part), "\(part)") }
        for file in files.dropFirst() {
            #expect(file.text.hasPrefix("<svg ") && file.text.hasSuffix("</svg>\n"))
            #expect(!file.text.contains("\"nan") && !file.text.contains("inf"))
            #expect(file.text.utf8.count < 20_000)
        }
    }

    @Test("a difference is as certain as the differences of its captions")
    func paired() throws {
        try withTemporaryFile { path in
            var table = try Table(path: path)
            // 25 points below the teacher in one caption of four: 6.25 points, and as much by chance.
            try table.append(row(.teacher, score: 81.25, captions: 4, right: [8, 2, 8, 8]))
            try table.append(
                row(student(.sla, .shipped), score: 75, captions: 4, right: [8, 2, 6, 8]))
            let report = Report(table, command: "x")
            let student = report.students[0]
            #expect(abs(report.lossError(student)! - 6.25) < 1e-9)
            #expect(report.noise(student) == 12.5)
            let page = report.files[0].text
            #expect(page.contains("6.3 points below the teacher (standard error 6.25)"))
            #expect(page.contains("| sla | shipped | 75.0 | 6.3 ± 6.25 | within the noise |"))
            // A chart of single points says nothing.
            #expect(report.files.map(\.name) == ["README.md"])
            #expect(row(.teacher, score: 1).differenceError(student) == nil)
        }
    }

    @Test("a few rows make a page as well")
    func few() throws {
        try withTemporaryFile { path in
            var table = try Table(path: path)
            try table.append(row(student(), score: 96))
            let files = Report(table, command: "x").files
            #expect(files[0].text.contains("The teacher has not been measured"))
            try table.append(row(.teacher, score: 97))
            let page = Report(table, command: "x").files[0].text
            #expect(!page.split { !$0.isLetter }.contains { $0 == "nan" || $0 == "inf" })
        }
    }

    @Test func ticksAreRound() {
        #expect(roundTicks(93.4, 98.1, count: 5) == [93, 94, 95, 96, 97, 98, 99])
        #expect(roundTicks(5, 5) == [5])
        #expect([0.05, 0.2, 1, 42.5].map(shortest) == ["0.05", "0.2", "1", "42.5"])
    }
}
