/// Removes what training programs put around a model's own names.

/// A name without wrappers, and whether it belongs to an average of the weights.
struct UnwrappedName {
    let name: String
    /// The prefix that marks an average, such as `net_ema`; nil for the weights themselves.
    let average: String?

    /// Wrappers around modules, at any depth: FSDP, activation checkpointing, torch.compile, DDP.
    private static let inner: Set<Substring> = [
        "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module",
        "_forward_module",
    ]
    /// Names for the model as a whole, which come first.
    private static let outer: Set<Substring> = ["net", "model", "diffusion_model"]
    private static let averages: Set<Substring> = [
        "net_ema", "model_ema", "ema_model", "ema_net", "ema", "generator_ema",
    ]

    /// Takes time linear in the name's length.
    /// - Parameter asStored: nothing is taken away.
    init(_ full: String, asStored: Bool = false) {
        if asStored {
            (name, average) = (full, nil)
            return
        }
        let components = full.split(separator: ".", omittingEmptySubsequences: false)
        var average: String?
        var kept: [Substring] = []
        for (index, component) in components.enumerated() {
            // The last component is the tensor's own name.
            let isLast = index == components.count - 1 || components[index + 1].isEmpty
            if !isLast {
                if Self.inner.contains(component) { continue }
                if kept.isEmpty, Self.outer.contains(component) { continue }
                if kept.isEmpty, Self.averages.contains(component) {
                    average = String(component)
                    continue
                }
            }
            kept.append(component)
        }
        name = kept.count == components.count ? full : kept.joined(separator: ".")
        self.average = average
    }
}
