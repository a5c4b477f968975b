/// The tensors that an architecture expects in its checkpoints.

import Ground
package import Tensors

/// A tensor that a model of known sizes needs.
public struct ExpectedTensor: Sendable, Hashable {
    /// What is stored under the name.
    public enum Content: Sendable, Hashable {
        /// Floating point of any width.
        case numbers
        /// The matrix of a linear layer that quantisation may replace; here it is floating point.
        case quantizableMatrix
        case int8Codes
        case fp8Codes
        case scales

        /// The element type in words.
        var type: String {
            switch self {
            case .numbers, .quantizableMatrix, .scales: "floating point"
            case .int8Codes: "i8"
            case .fp8Codes: "f8e4m3"
            }
        }
    }

    public let name: String
    public let shape: [Int]
    public let content: Content

    init(_ name: String, _ shape: [Int], _ content: Content = .numbers) {
        self.name = name
        self.shape = shape
        self.content = content
    }

    /// Whether a stored tensor fits: its shape and its element type.
    public func accepts(_ info: TensorInfo) -> Bool {
        guard shapesAgree(stored: info.shape, wanted: shape) else { return false }
        return switch content {
        case .numbers, .quantizableMatrix, .scales: info.dtype.isFloatingPoint
        case .int8Codes: info.dtype == .i8
        case .fp8Codes: info.dtype == .f8e4m3
        }
    }
}

/// Whether a stored shape may be read as the wanted one: equal except for extents of one, or with the
/// axes after the first folded into one (a convolution that is used as a linear layer).
func shapesAgree(stored: [Int], wanted: [Int]) -> Bool {
    if stored.filter({ $0 != 1 }) == wanted.filter({ $0 != 1 }) { return true }
    return wanted.count == 2 && stored.count > 2 && stored[0] == wanted[0]
        && stored.dropFirst().reduce(1, *) == wanted[1]
}

/// How the linear layers of a checkpoint are stored: `weight`; `int8_weight` and `scale`, as in the original's `-quant`
/// checkpoints; or `fp8_weight` and `scale`.
extension LinearFormat {
    var isQuantized: Bool { self != .plain }

    /// The leaves of a layer's matrix, in all forms.
    package static let leaves = ["weight", "int8_weight", "fp8_weight"]

    /// The form whose codes have this leaf.
    init?(codes leaf: String) {
        switch leaf {
        case "int8_weight": self = .int8Blocks
        case "fp8_weight": self = .fp8Rows
        default: return nil
        }
    }

    /// The tensors of a linear layer `[outputs, inputs]` in this form, without its bias.
    func tensors(_ name: String, _ outputs: Int, _ inputs: Int) -> [ExpectedTensor] {
        switch self {
        case .plain: [ExpectedTensor(name + ".weight", [outputs, inputs], .quantizableMatrix)]
        case .int8Blocks:
            [
                ExpectedTensor(name + ".int8_weight", [outputs, inputs], .int8Codes),
                ExpectedTensor(
                    name + ".scale", [ceilDivide(outputs, 128), ceilDivide(inputs, 128)], .scales),
            ]
        case .fp8Rows:
            [
                ExpectedTensor(name + ".fp8_weight", [outputs, inputs], .fp8Codes),
                ExpectedTensor(name + ".scale", [outputs], .scales),
            ]
        }
    }

    /// The form in which the layer `name` is stored; nil if the checkpoint does not have it.
    static func stored(_ name: String, in checkpoint: any Checkpoint) -> LinearFormat? {
        if checkpoint.info(name + ".int8_weight") != nil { return .int8Blocks }
        if checkpoint.info(name + ".fp8_weight") != nil { return .fp8Rows }
        return checkpoint.info(name + ".weight") != nil ? .plain : nil
    }
}

/// The number of entries `prefix` 0, `prefix` 1, … among the names.
func countEntries(_ prefix: String, in checkpoint: any Checkpoint) -> Int {
    var highest = -1
    for name in checkpoint.names where name.hasPrefix(prefix) {
        let digits = name.dropFirst(prefix.count).prefix { $0 != "." }
        // A name may claim any number; only plausible ones count.
        if let index = Int(digits), index < 1000 { highest = max(highest, index) }
    }
    return highest + 1
}

/// Whether numbers read from a file may be extents of a model: so small that products of a few do not
/// overflow.
func isPlausible(_ extents: Int...) -> Bool { extents.allSatisfy { (1...1 << 20).contains($0) } }
