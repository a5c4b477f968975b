// GPU architectures: which targets to compile for, and which kernels run where.

/// A compute capability: 9.0 is Hopper.
public struct Architecture: Hashable, Sendable, Comparable, CustomStringConvertible {
    public let major: Int
    public let minor: Int

    public init(major: Int, minor: Int) {
        self.major = major
        self.minor = minor
    }

    /// Parses `sm_90a`, `sm_90` or `90`; nil for anything else.
    public init?(_ name: String) {
        var digits = Substring(name)
        if digits.hasPrefix("sm_") { digits = digits.dropFirst(3) }
        if digits.hasSuffix("a") { digits = digits.dropLast() }
        guard digits.count >= 2, digits.allSatisfy(\.isNumber), let number = Int(digits) else {
            return nil
        }
        self.init(major: number / 10, minor: number % 10)
    }

    /// NVRTC's name of the target: `sm_80`. From 9.0 on it is the architecture-specific one (`sm_90a`), without which
    /// there is no wgmma and no setmaxnreg.
    public var description: String { "sm_\(major)\(minor)\(major >= 9 ? "a" : "")" }
    /// The compute capability: "9.0".
    public var capability: String { "\(major).\(minor)" }

    public static func < (left: Self, right: Self) -> Bool {
        (left.major, left.minor) < (right.major, right.minor)
    }

    public static let ampere = Architecture(major: 8, minor: 0)
    public static let ada = Architecture(major: 8, minor: 9)
    public static let hopper = Architecture(major: 9, minor: 0)
    public static let blackwell = Architecture(major: 12, minor: 0)
    /// The architectures that every change is compiled for.
    public static let tested: [Architecture] = [.ampere, .ada, .hopper, .blackwell]
}

/// Which architectures a translation unit is written for.
public enum KernelFamily: Hashable, Sendable {
    /// sm_80 and later: needs mma.sync and cp.async.
    case any
    /// sm_89 and later: needs mma.sync with fp8.
    case fp8
    /// Only sm_90a: needs wgmma, bulk tensor copies and setmaxnreg.
    case hopper

    /// Whether a unit of this family runs on the architecture.
    public func includes(_ architecture: Architecture) -> Bool {
        switch self {
        case .any: architecture >= .ampere
        case .fp8: architecture >= .ada
        case .hopper: architecture == .hopper
        }
    }
}
