/// The choice of a device by name.

/// A device, as users and programs name it.
public enum DeviceChoice: Sendable, Hashable, LosslessStringConvertible {
    /// The first GPU if it is usable, otherwise the CPU.
    case automatic
    case cpu
    /// A GPU; they are numbered from 0.
    case cuda(ordinal: Int)

    /// The names of all choices, where N stands for a number.
    public static let names = ["auto", "cpu", "cuda", "cuda:N"]

    /// nil if the name is none of `names`.
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
