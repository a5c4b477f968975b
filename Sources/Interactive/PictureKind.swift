/// Pictures in a terminal.

import FoundationEssentials
import Glibc
public import Media

/// How a terminal shows a picture.
public enum PictureKind: String, Sendable, CaseIterable {
    case kitty, iterm2, sixel
    /// Half blocks in 256 colours, or in all of them.
    case blocks, truecolor
    case off

    /// What can be set.
    public static let names = ["auto"] + allCases.map(\.rawValue)

    /// What the terminal says of itself can do.
    /// - Parameter environment: a variable's value.
    public init(environment: (String) -> String?) {
        func has(_ name: String) -> Bool { environment(name)?.isEmpty == false }
        let (term, program) = (environment("TERM") ?? "", environment("TERM_PROGRAM") ?? "")
        let colors = environment("COLORTERM") ?? ""
        let blocks: PictureKind =
            ["truecolor", "24bit"].contains(colors) ? .truecolor : .blocks
        if term == "dumb" || term.isEmpty {
            self = .off
        } else if has("TMUX") || has("STY") || term.hasPrefix("screen") || term.hasPrefix("tmux") {
            // A multiplexer lets no picture through, unless it is told to.
            self = blocks
        } else if has("KITTY_WINDOW_ID") || term.contains("kitty") || program == "ghostty"
            || term.contains("ghostty")
        {
            self = .kitty
        } else if program == "iTerm.app" || program == "WezTerm"
            || environment("LC_TERMINAL") == "iTerm2"
        {
            // LC_TERMINAL comes along over ssh.
            self = .iterm2
        } else if ["foot", "mlterm", "contour", "yaft"].contains(where: term.hasPrefix) {
            self = .sixel
        } else {
            self = blocks
        }
    }

    /// Of this process.
    public static var ofTerminal: PictureKind {
        PictureKind { getenv($0).map { String(cString: $0) } }
    }

    /// The text that shows a picture from the cursor on, and the rows that it takes. The cursor is below it then.
    /// - Parameter columns: that there are.
    public func text(_ image: RGBImage, columns: Int) -> (text: String, rows: Int) {
        // Cells are about twice as high as wide.
        let width = max(1, min(image.width, columns, 64))
        let height = max(2, (image.height * width / image.width + 1) / 2 * 2)
        let rows = height / 2
        switch self {
        case .off: return ("", 0)
        case .blocks, .truecolor:
            let small = resize(image, width: width, height: height)
            return (Self.blocks(small, inFull: self == .truecolor), rows)
        case .kitty:
            return (Self.kitty(image, columns: width, rows: rows) + "\r\n", rows)
        case .iterm2:
            let png = image.png
            let text =
                "\u{1B}]1337;File=inline=1;size=\(png.count);width=\(width);height=\(rows);preserveAspectRatio=0:"
                + Data(png).base64EncodedString() + "\u{07}\r\n"
            return (text, rows)
        case .sixel:
            // Most terminals have cells of 10 by 20 pixels, or near it; what is left of the last row stays empty.
            let shown = resize(image, width: width * 8, height: rows * 16 / 6 * 6)
            return (Self.sixel(shown) + "\r\n", rows)
        }
    }

    private static func blocks(_ image: RGBImage, inFull: Bool) -> String {
        func color(_ x: Int, _ y: Int) -> String {
            let pixel = (y * image.width + x) * 3
            let levels = image.pixels[pixel..<pixel + 3].map(Int.init)
            if inFull { return "2;\(levels[0]);\(levels[1]);\(levels[2])" }
            // xterm's cube of 6 x 6 x 6 colours, whose levels are 0, 95, 135, 175, 215, 255.
            let steps = levels.map { $0 < 48 ? 0 : $0 < 115 ? 1 : ($0 - 35) / 40 }
            return "5;\(16 + 36 * steps[0] + 6 * steps[1] + steps[2])"
        }
        var text = ""
        for y in stride(from: 0, to: image.height - 1, by: 2) {
            for x in 0..<image.width {
                text += "\u{1B}[38;\(color(x, y));48;\(color(x, y + 1))m▀"
            }
            text += "\u{1B}[0m\r\n"
        }
        return text
    }

    /// https://sw.kovidgoyal.net/kitty/graphics-protocol/
    private static func kitty(_ image: RGBImage, columns: Int, rows: Int) -> String {
        let content = Array(Data(image.pixels).base64EncodedString().utf8)
        var text = ""
        for start in stride(from: 0, to: content.count, by: 4096) {
            let chunk = content[start..<min(start + 4096, content.count)]
            let isLast = start + 4096 >= content.count
            let head =
                start == 0
                ? "a=T,q=2,f=24,s=\(image.width),v=\(image.height),c=\(columns),r=\(rows),"
                : ""
            text +=
                "\u{1B}_G\(head)m=\(isLast ? 0 : 1);\(String(decoding: chunk, as: UTF8.self))\u{1B}\\"
        }
        return text
    }

    /// DEC's sixels in a cube of 6 x 6 x 6 colours.
    /// - Parameter image: its height is a multiple of 6.
    private static func sixel(_ image: RGBImage) -> String {
        var text = "\u{1B}P0;1q\"1;1;\(image.width);\(image.height)"
        func color(_ x: Int, _ y: Int) -> Int {
            let pixel = (y * image.width + x) * 3
            let steps = image.pixels[pixel..<pixel + 3].map { (Int($0) * 5 + 127) / 255 }
            return 36 * steps[0] + 6 * steps[1] + steps[2]
        }
        for index in 0..<216 {
            text += "#\(index);2;\(index / 36 * 20);\(index / 6 % 6 * 20);\(index % 6 * 20)"
        }
        for band in stride(from: 0, to: image.height - 5, by: 6) {
            let colors = (0..<image.width).map { x in (0..<6).map { color(x, band + $0) } }
            for index in Set(colors.joined()).sorted() {
                text += "#\(index)"
                var (last, count) = ("", 0)
                func flush() {
                    if count > 3 {
                        text += "!\(count)\(last)"
                    } else {
                        text += String(repeating: last, count: count)
                    }
                }
                for column in colors {
                    var bits = 0
                    for (row, found) in column.enumerated() where found == index {
                        bits |= 1 << row
                    }
                    let character = String(UnicodeScalar(UInt8(63 + bits)))
                    if character != last {
                        flush()
                        (last, count) = (character, 0)
                    }
                    count += 1
                }
                flush()
                text += "$"
            }
            text += "-"
        }
        return text + "\u{1B}\\"
    }
}
