/// The page of the report: what was done, where quality falls, tables.

import Families
import Ground
import Quality

extension Report {
    func page(_ charts: [NamedChart]) -> String {
        var parts = ["# What accelerating nano costs", introduction, findings]
        parts += charts.map { "![\($0.chart.description)](\($0.name).svg)" }
        parts += [topKTables, stepsTable, legend, fullTable]
        return parts.filter { !$0.isEmpty }.joined(separator: "\n\n") + "\n"
    }

    // MARK: What was done

    private var introduction: String {
        let captions = rows.first?.captions ?? 0
        var devices: [String] = []
        for row in rows where !devices.contains(row.device) { devices.append(row.device) }
        let all = Selection().configurations
        let missing = all.count { item in !rows.contains { $0.configuration == item } }
        let gaps =
            missing == 0
            ? ""
            : " Of all \(all.count) rows, \(missing) have not been measured: they are – below, or left out."
        return """
            Videos of \(captions) held-out captions, made by the undistilled teacher (50 Euler steps, shift 3, \
            guidance 3.5, dense attention) and by the distilled student in \(students.count) configurations on \
            \(devices.joined(separator: " and ")). A classifier says what it sees in each video: shape, color, \
            size, material, motion, floor, sky and camera. The score is the mean share of them that is what the \
            caption asked for. Caption *i* starts from the same noise in every configuration.\(gaps)

            Made by this command (several runs of it add up); the rows are in [quality.csv](quality.csv):

            ```
            \(command)
            ```
            """
    }

    // MARK: Where quality falls

    private var findings: String {
        guard let teacher else {
            return """
                ## Where quality starts to fall

                The teacher has not been measured, so there is nothing to compare the scores with.
                """
        }
        let typical = students.map(noise).sorted()
        let noise = typical.isEmpty ? noise(teacher) : typical[typical.count / 2]
        var lines = [
            """
            ## Where quality starts to fall

            The teacher scores **\(points(teacher.score)) %** (standard error \
            \(fixed(teacher.scoreError, 2))). With \(teacher.captions) captions, two rows that differ by less than \
            about **\(points(noise)) points** (two standard errors of a difference, computed for each row from its \
            own videos, caption by caption where the table says how each did) cannot be told apart. Below, a row *falls* if it is further below the teacher than that, \
            and falls *far* if it also loses more than \(points(Self.largeLoss)) points.
            """
        ]
        lines += [
            verdictOnDefault, verdictInShort, verdictsByTopK, verdictsBySteps, verdictsByLinears,
        ]
        lines.append(speed(teacher))
        return lines.filter { !$0.isEmpty }.joined(separator: "\n\n")
    }

    private var verdictOnDefault: String {
        guard let row = usualRow else { return "" }
        let words =
            switch verdict(row) {
            case .kept: "which is within the noise"
            case .measurable:
                "more than the noise of \(points(noise(row))), less than \(points(Self.largeLoss))"
            case .large: "more than \(points(Self.largeLoss))"
            }
        return """
            **With the program's defaults for nano** (4 steps, SLA, top-k 0.2, int8): \(points(row.score)) %, \
            \(described(loss(row)))\(lossError(row).map { " (standard error \(fixed($0, 2)))" } ?? ""), \(words).
            """
    }

    /// What the program does with nano by default; the same, quantised while loading, if that has not been measured.
    private var usualRow: Row? {
        [Linears.shipped, .int8].lazy.compactMap {
            row(steps: Configuration.mostSteps, .sla, $0, topK: Configuration.usualTopK)
        }.first
    }

    /// One sentence for each form of the linear layers, with SLA.
    private var verdictInShort: String {
        let sentences = kinds([.sla]).compactMap { kind -> String? in
            let shares = byTopK(
                steps: Configuration.mostSteps, .sla, kind.linears, down: true)
            let steps = bySteps(.sla, kind.linears)
            guard shares.count > 1 || steps.count > 1 else { return nil }
            func phrase(_ rows: [Row], _ name: String, _ value: (Row) -> String)
                -> String?
            {
                guard rows.count > 1, let last = rows.last else { return nil }
                guard let fall = firstFalls(rows).measurable else {
                    return "at no \(name) down to \(value(last))"
                }
                return "at \(name) \(value(fall)) (\(described(loss(fall))))"
            }
            let parts = [
                phrase(shares, "top-k") { shortest($0.configuration.topK ?? 1) },
                phrase(steps, "number of steps") { "\($0.configuration.steps)" },
            ].compactMap { $0 }
            return "- \(kind.linears.rawValue): " + parts.joined(separator: ", and ") + "."
        }
        if sentences.isEmpty { return "" }
        return
            "**In short**, going down from 4 steps and top-k 0.2, the score with SLA starts to fall\n\n"
            + sentences.joined(separator: "\n")
    }

    private var verdictsByTopK: String {
        var table = [
            ["attention", "linears", "top-k 0.2", "falls at", "falls far at", "above 0.2 falls at"]
        ]
        for kind in kinds([.sla, .sagesla]) {
            func rows(down: Bool) -> [Row] {
                byTopK(
                    steps: Configuration.mostSteps, kind.attention, kind.linears,
                    down: down)
            }
            let (down, up) = (rows(down: true), rows(down: false))
            guard !(down + up).isEmpty else { continue }
            let falls = firstFalls(down)
            let usual = Configuration.usualTopK
            func cell(_ row: Row?, of measured: [Row]) -> String {
                row.map { at(shortest($0.configuration.topK ?? 1), $0) }
                    ?? none(measured, shortest(measured.last?.configuration.topK ?? usual))
            }
            table.append([
                kind.attention.rawValue, kind.linears.rawValue,
                down.first { $0.configuration.topK == usual }.map { points($0.score) } ?? "–",
                cell(falls.measurable, of: down), cell(falls.large, of: down),
                cell(
                    firstFalls(up.filter { $0.configuration.topK != usual }).measurable, of: up),
            ])
        }
        guard table.count > 1 else { return "" }
        return "**Top-k**, 4 steps, from 0.2 (what the student was trained with) downwards:\n\n"
            + markdown(table)
    }

    private var verdictsBySteps: String {
        var table = [["attention", "linears", "4 steps", "falls at", "falls far at"]]
        for kind in kinds() {
            let rows = bySteps(kind.attention, kind.linears)
            guard rows.count > 1 else { continue }
            let falls = firstFalls(rows)
            func cell(_ row: Row?) -> String {
                row.map { at("\($0.configuration.steps)", $0) }
                    ?? none(rows, "\(rows.last?.configuration.steps ?? 0)")
            }
            table.append([
                kind.attention.rawValue, kind.linears.rawValue,
                rows.first { $0.configuration.steps == Configuration.mostSteps }
                    .map { points($0.score) } ?? "–",
                cell(falls.measurable), cell(falls.large),
            ])
        }
        guard table.count > 1 else { return "" }
        return "**Steps**, top-k 0.2, from 4 downwards:\n\n" + markdown(table)
    }

    private var verdictsByLinears: String {
        var table = [["attention", "linears", "score", "below the teacher", "verdict"]]
        for kind in kinds() {
            guard
                let row = row(
                    steps: Configuration.mostSteps, kind.attention, kind.linears,
                    topK: Configuration.usualTopK)
            else { continue }
            table.append([
                kind.attention.rawValue, kind.linears.rawValue, points(row.score),
                points(loss(row)) + (lossError(row).map { " ± \(fixed($0, 2))" } ?? ""),
                word(verdict(row)),
            ])
        }
        guard table.count > 1 else { return "" }
        return "**Linear layers and attention**, 4 steps, top-k 0.2:\n\n" + markdown(table)
    }

    private func speed(_ teacher: Row) -> String {
        guard let row = usualRow, row.device == teacher.device, row.seconds > 0
        else { return "" }
        return """
            **Time**: on \(row.device), the teacher takes \(milliseconds(teacher)) ms for a video and the student (4 \
            steps, SLA, int8) \(milliseconds(row)) ms: it is \(points(teacher.seconds / row.seconds)) times as fast.
            """
    }

    // MARK: Tables

    private var topKTables: String {
        let values = Set(students.compactMap(\.configuration.topK)).sorted()
        var table = [["4 steps"] + values.map { "top-k \(shortest($0))" }]
        for kind in kinds() {
            let steps = Configuration.mostSteps
            let cells = values.map { topK in
                kind.attention == .original
                    ? "" : cell(row(steps: steps, kind.attention, kind.linears, topK: topK))
            }
            let dense = row(
                steps: steps, kind.attention, kind.linears, topK: Configuration.usualTopK)
            let name = "\(kind.attention.rawValue), \(kind.linears.rawValue)"
            if kind.attention != .original {
                table.append([name] + cells)
            } else if let dense {
                table.append(["\(name): \(cell(dense))"] + cells)
            }
        }
        guard table.count > 1, !values.isEmpty else { return "" }
        return
            "## Scores\n\nPer cent right, in *italics* if it falls; in brackets, PSNR in dB against the reference.\n\n"
            + markdown(table)
    }

    private var stepsTable: String {
        var table = [["top-k 0.2", "1 step", "2 steps", "3 steps", "4 steps"]]
        for kind in kinds() {
            let cells = (1...Configuration.mostSteps).map {
                cell(
                    row(
                        steps: $0, kind.attention, kind.linears,
                        topK: Configuration.usualTopK))
            }
            if cells.contains(where: { $0 != "–" }) {
                table.append(["\(kind.attention.rawValue), \(kind.linears.rawValue)"] + cells)
            }
        }
        return table.count > 1 ? markdown(table) : ""
    }

    private var legend: String {
        """
        ## What the rows mean

        - **original** is dense attention, without the linear branch that the student was trained with; **sla** is \
        sparse-linear attention; **sagesla** is the same with 8-bit arithmetic (int8 QK, fp8 PV).
        - **top-k** selects whole blocks of keys, at least one. nano's 1,296 tokens are 21 blocks of 64 keys for \
        sla and, on Hopper, 11 of 128 for sagesla: there every top-k below 0.19 selects one block, and the rows agree.
        - **f32**: text encoder, transformer, attention and autoencoder in f32 (sla computes exactly; sagesla still \
        uses 8 bits). **bf16**: all of them in bf16. **int8** and **fp8**: like bf16, with the linear layers of the \
        transformer's blocks quantised while the bf16 weights are loaded (int8 in 128x128 blocks, as \
        `turbodiffusion quantize` writes them; fp8 e4m3 with one scale per row). **shipped**: like int8, from the \
        file that comes with the program, which `quantize --center-text` made.
        - **PSNR and SSIM** compare with the same student, noise and number of steps in f32 with dense attention; \
        the teacher is compared with four such steps. They tell how far a video is from that one, not how good it \
        is. PSNR is computed from the mean squared error of all videos, SSIM is the mean over frames and videos.
        - **time** is the median of a few videos made one after another, with the models loaded and the captions \
        encoded: from noise to 8-bit frames in host memory.
        - **±** is the standard error of the score, and of a difference that of the mean over the captions' \
        differences.
        - Noise stream *i* is what PyTorch's CPU generator gives for seed *i*.
        """
    }

    private var fullTable: String {
        let devices = Set(rows.map(\.device)).count
        var table = [
            ["model", "steps", "attention", "top-k", "linears"]
                + Attribute.allCases.map(\.rawValue)
                + ["score", "±", "PSNR", "SSIM", "ms a video"] + (devices > 1 ? ["device"] : [])
        ]
        for row in rows {
            let item = row.configuration
            var cells = [
                item.model.rawValue, "\(item.steps)", item.attention.rawValue,
                item.topK.map(shortest) ?? "", item.linears.rawValue,
            ]
            cells += row.accuracy.map { points($0) }
            cells += [
                "**\(points(row.score))**", fixed(row.scoreError, 2),
                item.isReference
                    ? "reference"
                    : row.psnr.map { fixed($0, 2) } ?? (row.similarity == nil ? "" : "equal"),
                row.similarity.map { fixed($0, 4) } ?? "", milliseconds(row),
            ]
            table.append(cells + (devices > 1 ? [row.device] : []))
        }
        return "## All rows\n\n" + markdown(table)
    }

    // MARK: Words and numbers

    private func cell(_ row: Row?) -> String {
        guard let row else { return "–" }
        let bold = verdict(row) == .kept ? "" : "*"
        return "\(bold)\(points(row.score))\(bold)"
            + (row.psnr.map { " (\(fixed($0, 1)))" } ?? "")
    }

    /// "0.1 (94.4)"
    private func at(_ place: String, _ row: Row) -> String {
        "**\(place)** (\(points(row.score)))"
    }

    private func none(_ measured: [Row], _ last: String) -> String {
        measured.isEmpty ? "–" : "not as far as \(last)"
    }

    private func word(_ verdict: Verdict) -> String {
        switch verdict {
        case .kept: "within the noise"
        case .measurable: "falls"
        case .large: "falls far"
        }
    }

    private func described(_ loss: Double) -> String {
        loss >= 0
            ? "\(points(loss)) points below the teacher"
            : "\(points(-loss)) points above the teacher"
    }

    private func points(_ value: Double) -> String { fixed(value, 1) }
    private func milliseconds(_ row: Row) -> String { fixed(row.seconds * 1000, 1) }

    private func markdown(_ rows: [[String]]) -> String {
        guard let first = rows.first else { return "" }
        func line(_ cells: [String]) -> String { "| " + cells.joined(separator: " | ") + " |" }
        return ([line(first), line(first.map { _ in "---" })] + rows.dropFirst().map(line))
            .joined(separator: "\n")
    }
}
