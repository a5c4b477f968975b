/// Chooses the faster versions of operations for the machine at hand.

/// The fastest operations that this machine and its libraries offer; nil where there are none.
func fastOperations(_ definitions: Definitions) -> (any FastOperations)? { nil }
