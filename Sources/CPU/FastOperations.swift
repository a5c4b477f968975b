/// What may replace a definition: faster versions of some operations.

import Tensors

/// Faster versions of operations. Results are in memory of the pool that the implementation was made with.
protocol FastOperations: AnyObject {
    /// For the name of the backend: "oneDNN 2.6".
    var name: String { get }
    /// nil where there is none for these arguments: the definition runs.
    func run(_ operation: Operation) -> [Tensor]?
}
