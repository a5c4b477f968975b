/// The charts of the report.

import Families
import Glibc

extension Report {
    struct NamedChart {
        var name: String
        var chart: Chart
    }

    /// The charts for which there are rows.
    var charts: [NamedChart] {
        [scoreByTopK, scoreBySteps, distanceByTopK, scoreByTime].compactMap { $0 }
    }

    private var level: Chart.Level? {
        teacher.map {
            Chart.Level(name: "teacher ± noise", y: $0.score, margin: noise($0))
        }
    }

    /// From the best score down to scores that are clearly worse; lower ones are written at the edge.
    private func scores(_ rows: [Row]) -> Chart.Axis {
        let best = max(rows.map(\.score).max() ?? 100, teacher?.score ?? 0)
        let lowest = rows.map(\.score).min() ?? best
        let ticks = roundTicks(max(lowest, best - 9) - 0.5, min(100, best + 1))
        return Chart.Axis(
            title: "attribute score, %", ticks: ticks,
            digits: ticks.allSatisfy { $0 == $0.rounded() } ? 0 : 1)
    }

    private static let shares = Chart.Axis(
        title: "top-k (share of key blocks)", ticks: [0.05, 0.1, 0.2, 0.5, 1], isLogarithmic: true)

    private func style(_ linears: Linears) -> Int { Linears.allCases.firstIndex(of: linears) ?? 0 }

    private func topKPanels(_ value: (Row) -> Double?) -> [Chart.Panel] {
        [AttentionChoice.sla, .sagesla].compactMap { attention in
            let series = kinds([attention]).compactMap { kind -> Chart.Series? in
                let rows =
                    byTopK(
                        steps: Configuration.mostSteps, attention, kind.linears, down: true
                    ).reversed()
                    + byTopK(
                        steps: Configuration.mostSteps, attention, kind.linears,
                        down: false
                    ).filter { $0.configuration.topK != Configuration.usualTopK }
                let points = rows.compactMap { row in
                    value(row).map { Chart.Point(row.configuration.topK ?? 1, $0) }
                }
                return points.isEmpty
                    ? nil
                    : Chart.Series(
                        name: kind.linears.rawValue, points: points, style: style(kind.linears))
            }
            return series.isEmpty
                ? nil : Chart.Panel(title: "\(attention.rawValue), 4 steps", series: series)
        }
    }

    private var fourSteps: [Row] {
        students.filter {
            $0.configuration.steps == Configuration.mostSteps
                && $0.configuration.topK != nil
        }
    }

    private var scoreByTopK: NamedChart? {
        let panels = topKPanels(\.score)
        guard panels.contains(where: \.hasLine) else { return nil }
        return NamedChart(
            name: "score-topk",
            chart: Chart(
                title: "Attribute score by top-k",
                description: "Score of four steps for every share of key blocks and every form of "
                    + "the linear layers, with the teacher's score.",
                x: Self.shares, y: scores(fourSteps), level: level, panels: panels))
    }

    private var distanceByTopK: NamedChart? {
        let panels = topKPanels(\.psnr)
        let values = panels.flatMap(\.series).flatMap(\.points).map(\.y)
        guard let low = values.min(), let high = values.max(), panels.contains(where: \.hasLine)
        else { return nil }
        return NamedChart(
            name: "psnr-topk",
            chart: Chart(
                title: "PSNR against the same student with dense attention in f32",
                description: "PSNR of four steps for every share of key blocks and every form of "
                    + "the linear layers.",
                x: Self.shares,
                y: Chart.Axis(
                    title: "PSNR, dB", ticks: roundTicks(low - 0.2, high + 0.2), digits: 1),
                level: nil, panels: panels))
    }

    private var scoreBySteps: NamedChart? {
        let panels = AttentionChoice.allCases.compactMap { attention -> Chart.Panel? in
            let series = kinds([attention]).compactMap { kind -> Chart.Series? in
                let points = bySteps(attention, kind.linears).map {
                    Chart.Point(Double($0.configuration.steps), $0.score)
                }
                return points.isEmpty
                    ? nil
                    : Chart.Series(
                        name: kind.linears.rawValue, points: points, style: style(kind.linears))
            }
            let top = shortest(Configuration.usualTopK)
            return series.isEmpty
                ? nil
                : Chart.Panel(
                    title: attention == .original
                        ? "original (dense)" : "\(attention.rawValue), top-k \(top)",
                    series: series)
        }
        guard panels.contains(where: \.hasLine) else { return nil }
        let rows = kinds().flatMap { bySteps($0.attention, $0.linears) }
        return NamedChart(
            name: "score-steps",
            chart: Chart(
                title: "Attribute score by steps",
                description: "Score of one to four steps for every attention and every form of "
                    + "the linear layers, with the teacher's score.",
                x: Chart.Axis(title: "steps", ticks: [1, 2, 3, 4]), y: scores(rows),
                level: level, panels: panels))
    }

    /// The scores of every number of steps and attention in bf16, and of the teacher, over the time that a video takes.
    private var scoreByTime: NamedChart? {
        var series = AttentionChoice.allCases.enumerated().compactMap {
            index, attention -> Chart.Series? in
            let points = bySteps(attention, .bf16).map {
                Chart.Point($0.seconds * 1000, $0.score, label: "\($0.configuration.steps)")
            }
            return points.isEmpty
                ? nil : Chart.Series(name: attention.rawValue, points: points, style: index)
        }
        if let teacher {
            series.append(
                Chart.Series(
                    name: "teacher",
                    points: [Chart.Point(teacher.seconds * 1000, teacher.score, label: "50")],
                    style: 3, isLoose: true))
        }
        guard series.contains(where: { $0.points.count > 1 }) else { return nil }
        let times = series.flatMap(\.points).map(\.x)
        guard let low = times.min(), let high = times.max(), low > 0 else { return nil }
        let rows = AttentionChoice.allCases.flatMap { bySteps($0, .bf16) }
        let decades = (Int(floor(log10(low)))...Int(ceil(log10(high)))).flatMap { power in
            [1, 2, 5].map { $0 * pow(10, Double(power)) }
        }
        let first = decades.last { $0 <= low } ?? low
        let last = decades.first { $0 >= high } ?? high
        return NamedChart(
            name: "score-time",
            chart: Chart(
                title: "Attribute score by time",
                description: "Score over the time that a video takes, for one to four steps of "
                    + "every attention in bf16 and for the teacher's fifty.",
                x: Chart.Axis(
                    title: "ms a video",
                    ticks: decades.filter { (first...last).contains($0) }, isLogarithmic: true),
                y: scores(rows + [teacher].compactMap { $0 }), level: level,
                panels: [Chart.Panel(title: "bf16, top-k 0.2, by steps", series: series)]))
    }
}

extension Chart.Panel {
    /// Whether something is to be seen that a table does not say better.
    fileprivate var hasLine: Bool { series.contains { $0.points.count > 1 } }
}
