/// A tensor on its way from a device to the host.

import Ground

/// What `Backend.beginRead` returns. A backend whose device works by itself subclasses it.
open class HostCopy {
    private let tensor: Tensor?

    /// A copy that is there already. tensor: in host memory
    public init(_ tensor: Tensor) { self.tensor = tensor }

    /// For subclasses, which override `wait`.
    public init() { tensor = nil }

    /// Whether `wait` would return at once.
    open var isComplete: Bool { true }

    /// Whether the device works on it by itself; it may have ended already.
    open var isAsynchronous: Bool { !isComplete }

    /// The tensor in host memory, once it is there. Throws the first error that the device reported.
    open func wait() throws -> Tensor {
        guard let tensor else { programmingError("HostCopy: a subclass overrides wait") }
        return tensor
    }
}
