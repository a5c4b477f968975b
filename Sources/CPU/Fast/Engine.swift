/// Chooses the faster versions of operations for the machine at hand.

internal import CDrivers

/// The fastest operations that this machine and its libraries offer; nil where there are none.
func fastOperations(_ definitions: Definitions) -> (any FastOperations)? {
    cpu_kernels_available() != 0 ? VectorOperations(definitions) : nil
}
