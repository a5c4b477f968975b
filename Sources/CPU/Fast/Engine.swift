/// Chooses the fastest versions of operations for this machine.

internal import CDrivers

/// The fastest operations on this machine with its libraries; nil if there are only the definitions.
func fastOperations(_ definitions: Definitions, _ engine: CPUBackend.Engine)
    -> (any FastOperations)?
{
    switch engine {
    case .automatic where cpu_variant_found() != CPU_NO_VECTORS: VectorOperations(definitions)
    case .automatic, .oneDNN:
        (try? OneDNN.shared.get()).map { OneDNNOperations($0, definitions) }
    case .definition: nil
    }
}

extension CPUBackend {
    /// Version of the oneDNN that was found; nil where there is none.
    public static var oneDNNVersion: String? { (try? OneDNN.shared.get())?.version }

    /// What this machine lacks to compute at full speed and how to get it, in one line; nil if
    /// nothing. Without it operations run by their definitions: right, and several times slower.
    public static var advice: String? {
        if cpu_variant_found() != CPU_NO_VECTORS { return nil }
        if case .failure(let reason) = OneDNN.shared { return reason.description }
        return nil
    }
}
