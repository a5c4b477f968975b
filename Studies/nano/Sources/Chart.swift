/// Line charts as SVG: small, self-contained, readable on light and dark pages.

import Glibc
import Ground

/// Panels side by side with the same axes, and one legend for all.
struct Chart {
    struct Point {
        var x, y: Double
        /// Written beside the point.
        var label: String?
        init(_ x: Double, _ y: Double, label: String? = nil) {
            (self.x, self.y, self.label) = (x, y, label)
        }
    }

    struct Series {
        var name: String
        var points: [Point]
        /// Decides colour and marker, so that a name looks the same in all charts.
        var style: Int
        /// Whether points are drawn without lines between them.
        var isLoose = false
    }

    struct Panel {
        var title: String
        var series: [Series]
    }

    /// A horizontal line over all panels, in a band of values that cannot be told apart from it.
    struct Level {
        var name: String
        var y: Double
        var margin: Double
    }

    struct Axis {
        var title: String
        var ticks: [Double]
        var isLogarithmic = false
        /// nil: the range of the ticks.
        var range: ClosedRange<Double>?
        var digits = 2
    }

    var title: String
    var description: String
    var x, y: Axis
    var level: Level?
    var panels: [Panel]
}

extension Chart {
    private static let panelSize = (width: 268.0, height: 210.0)
    private static let margin = (left: 52.0, top: 58.0, gap: 22.0, right: 18.0, axis: 44.0)
    private static let legendLine = 20.0

    /// The whole picture.
    var svg: String {
        let width =
            Self.margin.left + Double(panels.count) * (Self.panelSize.width + Self.margin.gap)
            - Self.margin.gap + Self.margin.right
        let names = legend
        let perLine = max(1, Int((width - 30) / 120))
        let lines = ceilDivide(names.count, perLine)
        let bottom = Self.margin.top + Self.panelSize.height + Self.margin.axis
        let height = bottom + Double(lines) * Self.legendLine + 8
        var parts = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(n(width)) \(n(height))\" "
                + "width=\"\(n(width))\" height=\"\(n(height))\" role=\"img\" "
                + "aria-label=\"\(escaped(description))\">",
            "<title>\(escaped(title))</title><desc>\(escaped(description))</desc>", Self.style,
            "<rect class=\"page\" width=\"100%\" height=\"100%\"/>",
            text(16, 24, title, "head"),
        ]
        for (index, panel) in panels.enumerated() {
            let left =
                Self.margin.left + Double(index) * (Self.panelSize.width + Self.margin.gap)
            parts += draw(panel, left: left, showsScale: index == 0, clip: "c\(index)")
        }
        parts.append(
            text(
                14, Self.margin.top + Self.panelSize.height / 2, y.title, "note mid",
                turned: true))
        for (index, entry) in names.enumerated() {
            let column = Double(index % perLine)
            let line = Double(index / perLine)
            let (left, level) = (30 + column * 120, bottom + line * Self.legendLine + 4)
            if let style = entry.style {
                parts.append(
                    "<path class=\"line s\(style)\" d=\"M\(n(left)) \(n(level))h22\"/>")
                parts.append(mark(style, left + 11, level))
            } else {
                parts.append("<path class=\"level\" d=\"M\(n(left)) \(n(level))h22\"/>")
            }
            parts.append(text(left + 28, level + 4, entry.name, "note"))
        }
        return parts.joined(separator: "\n") + "\n</svg>\n"
    }

    private var legend: [(name: String, style: Int?)] {
        var entries: [(name: String, style: Int?)] = []
        for series in panels.flatMap(\.series)
        where !entries.contains(where: { $0.name == series.name }) {
            entries.append((series.name, series.style))
        }
        if let level { entries.append((level.name, nil)) }
        return entries
    }

    // MARK: One panel

    private func draw(_ panel: Panel, left: Double, showsScale: Bool, clip: String) -> [String] {
        let (width, height) = Self.panelSize
        let top = Self.margin.top
        func across(_ value: Double) -> Double { left + width * share(value, x, inset: 0.05) }
        func down(_ value: Double) -> Double { top + height * (1 - share(value, y, inset: 0)) }
        var parts = [
            text(left + width / 2, top - 10, panel.title, "mid"),
            "<clipPath id=\"\(clip)\"><rect x=\"\(n(left))\" y=\"\(n(top))\" "
                + "width=\"\(n(width))\" height=\"\(n(height))\"/></clipPath>",
        ]
        for tick in y.ticks {
            let level = n(down(tick))
            parts.append("<path class=\"grid\" d=\"M\(n(left)) \(level)h\(n(width))\"/>")
            if showsScale {
                parts.append(
                    text(left - 6, down(tick) + 4, fixed(tick, y.digits), "note end"))
            }
        }
        for tick in x.ticks {
            parts.append(
                text(across(tick), top + height + 16, shortest(tick), "note mid"))
        }
        parts.append(text(left + width / 2, top + height + 32, x.title, "note mid"))
        parts.append("<g clip-path=\"url(#\(clip))\">")
        if let level {
            let (upper, lower) = (down(level.y + level.margin), down(level.y - level.margin))
            parts.append(
                "<rect class=\"band\" x=\"\(n(left))\" y=\"\(n(upper))\" width=\"\(n(width))\" "
                    + "height=\"\(n(lower - upper))\"/>")
            parts.append(
                "<path class=\"level\" d=\"M\(n(left)) \(n(down(level.y)))h\(n(width))\"/>")
        }
        for series in panel.series where !series.isLoose && series.points.count > 1 {
            let path = series.points.map { "\(n(across($0.x))) \(n(down($0.y)))" }
            parts.append(
                "<path class=\"line s\(series.style)\" d=\"M\(path.joined(separator: "L"))\"/>")
        }
        parts.append("</g>")
        let floor = (y.range ?? span(y)).lowerBound
        var lowest: [Double: Int] = [:]
        for series in panel.series {
            for point in series.points {
                if point.y < floor {
                    // The point is below the panel: write its number at the edge.
                    let place = lowest[point.x, default: 0]
                    lowest[point.x] = place + 1
                    parts.append(
                        text(
                            max(across(point.x), left + 16),
                            top + height - 5 - 12 * Double(place),
                            fixed(point.y, 1) + "↓", "small mid f\(series.style)"))
                    continue
                }
                parts.append(mark(series.style, across(point.x), down(point.y)))
                if let label = point.label {
                    parts.append(
                        text(across(point.x), down(point.y) - 7, label, "small mid"))
                }
            }
        }
        return parts
    }

    private func span(_ axis: Axis) -> ClosedRange<Double> {
        (axis.ticks.min() ?? 0)...(axis.ticks.max() ?? 1)
    }

    /// Where a value lies between the ends of an axis, 0 ... 1.
    private func share(_ value: Double, _ axis: Axis, inset: Double) -> Double {
        let range = axis.range ?? span(axis)
        func place(_ value: Double) -> Double { axis.isLogarithmic ? log(value) : value }
        let (low, high) = (place(range.lowerBound), place(range.upperBound))
        let inner = high > low ? (place(value) - low) / (high - low) : 0.5
        return inset + inner * (1 - 2 * inset)
    }

    // MARK: Pieces of SVG

    private func mark(_ style: Int, _ x: Double, _ y: Double) -> String {
        let fill = "class=\"f\(style)\""
        return switch style % 4 {
        case 0: "<circle \(fill) cx=\"\(n(x))\" cy=\"\(n(y))\" r=\"3.4\"/>"
        case 1:
            "<rect \(fill) x=\"\(n(x - 3.1))\" y=\"\(n(y - 3.1))\" width=\"6.2\" height=\"6.2\"/>"
        case 2: "<path \(fill) d=\"M\(n(x)) \(n(y - 4.2))l4.2 7.4h-8.4z\"/>"
        default: "<path \(fill) d=\"M\(n(x)) \(n(y - 4.4))l4.4 4.4l-4.4 4.4l-4.4 -4.4z\"/>"
        }
    }

    private func text(
        _ x: Double, _ y: Double, _ text: String, _ classes: String, turned: Bool = false
    ) -> String {
        let turn = turned ? " transform=\"rotate(-90 \(n(x)) \(n(y)))\"" : ""
        return "<text class=\"\(classes)\" x=\"\(n(x))\" y=\"\(n(y))\"\(turn)>"
            + "\(escaped(text))</text>"
    }

    private func escaped(_ text: String) -> String {
        var result = ""
        for character in text {
            switch character {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case "\"": result += "&quot;"
            default: result.append(character)
            }
        }
        return result
    }

    private func n(_ value: Double) -> String { shortest((value * 10).rounded() / 10) }

    /// Colours for light pages and for dark ones.
    private static let style: String = {
        let colors = [
            ("#0969da", "#58a6ff"), ("#bc4c00", "#f0883e"), ("#1a7f37", "#3fb950"),
            ("#8250df", "#bc8cff"), ("#57606a", "#a5afba"),
        ]
        func rules(_ color: (Int) -> String) -> String {
            colors.indices.map { ".s\($0){stroke:\(color($0))}.f\($0){fill:\(color($0))}" }
                .joined()
        }
        return "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}"
            + ".head{font-size:14px;font-weight:600}.note{font-size:11px;fill:#57606a}"
            + ".small{font-size:10px}.mid{text-anchor:middle}.end{text-anchor:end}"
            + ".page{fill:#fff}.grid{stroke:#d8dee4}.line{fill:none;stroke-width:1.8}"
            + ".level{fill:none;stroke:#57606a;stroke-dasharray:5 4}"
            + ".band{fill:#57606a;opacity:.13}" + rules { colors[$0].0 }
            + "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#a5afba}"
            + ".page{fill:#0d1117}.grid{stroke:#2a3038}.level{stroke:#a5afba}"
            + ".band{fill:#a5afba}" + rules { colors[$0].1 } + "}</style>"
    }()
}

/// About `count` round numbers that span a range, spaced by 1, 2 or 5 times a power of ten.
func roundTicks(_ low: Double, _ high: Double, count: Int = 6) -> [Double] {
    guard high > low else { return [low] }
    let raw = (high - low) / Double(count)
    let power = pow(10, floor(log10(raw)))
    let step = [1, 2, 5, 10].map { $0 * power }.first { $0 >= raw * 0.999 } ?? raw
    let (first, last) = (Int(floor(low / step + 1e-9)), Int(ceil(high / step - 1e-9)))
    return (first...last).map { Double($0) * step }
}
