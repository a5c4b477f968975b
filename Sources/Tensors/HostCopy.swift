/// A copy of a tensor from a device to the host that may still be in progress.

import Ground

/// The result of `Backend.beginRead`. A backend whose device works asynchronously subclasses it.
open class HostCopy {
    private let tensor: Tensor?

    /// A copy that is already complete. tensor: in host memory
    public init(_ tensor: Tensor) { self.tensor = tensor }

    /// For subclasses, which must override `wait`.
    public init() { tensor = nil }

    /// Whether `wait` would return at once.
    open var isComplete: Bool { true }

    /// Whether the device works on it by itself; it may have ended already.
    open var isAsynchronous: Bool { !isComplete }

    /// Waits until the copy is complete and returns the tensor in host memory. Throws the first error that the device
    /// has reported.
    open func wait() throws -> Tensor {
        guard let tensor else { programmingError("HostCopy: a subclass overrides wait") }
        return tensor
    }
}
