/// The losses of a run as a picture (SVG): one panel for each net, the losses and their running mean.

import Glibc
import Ground

/// Draws what `loss.csv` holds.
struct LossPicture {
    private struct Series {
        var name: String
        var points: [(iteration: Double, loss: Double)] = []
    }
    private var series: [Series] = []
    private static let (width, height) = (720.0, 220.0)
    private static let margin = (left: 74.0, top: 34.0, right: 18.0, bottom: 40.0)
    /// Points that are drawn of a curve; more are drawn as means.
    private static let most = 600

    /// - Parameter csv: the lines of `loss.csv`; those of skipped iterations and what is not finite are left out.
    init(csv: String) {
        for line in csv.split(separator: "\n").dropFirst() {
            let fields = line.split(separator: ",", omittingEmptySubsequences: false)
            guard fields.count >= 7, fields[6].isEmpty, let iteration = Double(fields[0]),
                let loss = Double(fields[2]), loss.isFinite
            else { continue }
            let name = String(fields[1])
            let index =
                series.firstIndex { $0.name == name }
                ?? {
                    series.append(Series(name: name))
                    return series.count - 1
                }()
            series[index].points.append((iteration, loss))
        }
    }

    /// nil where there is nothing to draw.
    var svg: String? {
        guard !series.isEmpty else { return nil }
        let panel = Self.margin.top + Self.height + Self.margin.bottom
        let size = (
            w: Self.margin.left + Self.width + Self.margin.right, h: Double(series.count) * panel
        )
        var parts = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(n(size.w)) \(n(size.h))\" "
                + "width=\"\(n(size.w))\" height=\"\(n(size.h))\" role=\"img\" aria-label=\"losses\">",
            """
            <style>text{font:12px sans-serif;fill:#444}.e{text-anchor:end}.m{text-anchor:middle}\
            .g{stroke:#ddd;fill:none}.r{stroke:#9bbce0;fill:none;stroke-width:1}\
            .s{stroke:#1f5fa8;fill:none;stroke-width:2}</style>
            """,
            "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
        ]
        for (index, one) in series.enumerated() {
            parts += draw(one, top: Double(index) * panel + Self.margin.top)
        }
        return parts.joined(separator: "\n") + "\n</svg>\n"
    }

    private func draw(_ series: Series, top: Double) -> [String] {
        let points = Self.thinned(series.points)
        let lows = points.map(\.loss)
        let (least, largest) = (lows.min()!, lows.max()!)
        // Losses that fall far are read better by their powers of ten.
        let isLogarithmic = least > 0 && largest / least > 50
        func level(_ loss: Double) -> Double { isLogarithmic ? log10(loss) : loss }
        var (low, high) = (level(least), level(largest))
        if high - low < 1e-12 * max(1, abs(high)) { (low, high) = (low - 0.5, high + 0.5) }
        let (first, last) = (
            points.first!.iteration, max(points.last!.iteration, points[0].iteration + 1)
        )
        func x(_ iteration: Double) -> Double {
            Self.margin.left + Self.width * (iteration - first) / (last - first)
        }
        func y(_ loss: Double) -> Double {
            top + Self.height * (1 - (level(loss) - low) / (high - low))
        }
        var parts = [
            "<text x=\"\(n(Self.margin.left))\" y=\"\(n(top - 10))\">loss of the \(series.name)"
                + "\(isLogarithmic ? ", logarithmic" : "")</text>"
        ]
        for step in 0...4 {
            let share = Double(step) / 4
            let value = low + (high - low) * share
            let height = top + Self.height * (1 - share)
            parts.append(
                "<path class=\"g\" d=\"M\(n(Self.margin.left)) \(n(height))h\(n(Self.width))\"/>"
                    + "<text class=\"e\" x=\"\(n(Self.margin.left - 6))\" y=\"\(n(height + 4))\">"
                    + "\(Self.short(isLogarithmic ? pow(10, value) : value))</text>")
            let iteration = (first + (last - first) * share).rounded()
            parts.append(
                "<text class=\"m\" x=\"\(n(x(iteration)))\" y=\"\(n(top + Self.height + 18))\">"
                    + "\(Int(iteration))</text>")
        }
        func path(_ points: [(iteration: Double, loss: Double)], _ style: String) -> String {
            let places = points.map { "\(n(x($0.iteration))) \(n(y($0.loss)))" }
            // One point is a line of no length: a dot.
            return "<path class=\"\(style)\" stroke-linecap=\"round\" d=\"M"
                + places.joined(separator: "L") + (places.count == 1 ? "h0" : "") + "\"/>"
        }
        parts.append(path(points, "r"))
        let running = Self.running(points)
        if running.count > 1 { parts.append(path(running, "s")) }
        return parts
    }

    /// At most so many points: means of neighbours.
    private static func thinned(_ points: [(iteration: Double, loss: Double)])
        -> [(iteration: Double, loss: Double)]
    {
        let group = (points.count + most - 1) / most
        guard group > 1 else { return points }
        return stride(from: 0, to: points.count, by: group).map { start in
            let part = points[start..<min(start + group, points.count)]
            let count = Double(part.count)
            return (
                part.reduce(0) { $0 + $1.iteration } / count,
                part.reduce(0) { $0 + $1.loss } / count
            )
        }
    }

    /// The mean of the last twentieth, point by point.
    private static func running(_ points: [(iteration: Double, loss: Double)])
        -> [(iteration: Double, loss: Double)]
    {
        let window = max(4, points.count / 20)
        return points.indices.map { index in
            let part = points[max(0, index - window + 1)...index]
            return (points[index].iteration, part.reduce(0) { $0 + $1.loss } / Double(part.count))
        }
    }

    private static func short(_ value: Double) -> String {
        let size = abs(value)
        return size != 0 && (size < 0.01 || size >= 100_000)
            ? "\(Float(String(fixed(value / pow(10, floor(log10(size))), 2))) ?? 0)e\(Int(floor(log10(size))))"
            : fixed(value, size >= 100 ? 0 : 3)
    }

    private func n(_ value: Double) -> String { fixed(value, 1) }
}
