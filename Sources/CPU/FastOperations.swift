/// The interface of faster versions of operations.

import Tensors

/// Faster versions of some operations. Results are in the memory pool that the implementation was made with.
protocol FastOperations: AnyObject {
    /// Part of the backend's name: "oneDNN 2.6".
    var name: String { get }
    /// nil if there is no faster version for these arguments, so that the definition has to run.
    func run(_ operation: Operation) -> [Tensor]?
}
