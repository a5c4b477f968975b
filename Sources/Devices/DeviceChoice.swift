/// Which machine computes, by name: what a user or a program asks for.

public enum DeviceChoice: Sendable, Hashable, LosslessStringConvertible {
    /// The first GPU where there is a usable one, otherwise the CPU.
    case automatic
    case cpu
    /// GPUs are numbered from 0.
    case cuda(ordinal: Int)

    /// How choices are written; N stands for a number.
    public static let names = ["auto", "cpu", "cuda", "cuda:N"]

    /// nil for what is none of `names`.
    public init?(_ name: String) {
        switch name {
        case "auto": self = .automatic
        case "cpu": self = .cpu
        case "cuda": self = .cuda(ordinal: 0)
        default:
            let digits = name.dropFirst("cuda:".count)
            guard name.hasPrefix("cuda:"), digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
                let ordinal = Int(digits)
            else { return nil }
            self = .cuda(ordinal: ordinal)
        }
    }

    public var description: String {
        switch self {
        case .automatic: "auto"
        case .cpu: "cpu"
        case .cuda(let ordinal): "cuda:\(ordinal)"
        }
    }
}
