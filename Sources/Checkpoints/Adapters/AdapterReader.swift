/// Turns the keys of an adapter into changes of a model's tensors, from headers alone.

import Tensors

/// Reads one adapter for one model.
struct AdapterReader {
    private let file: any Checkpoint
    private let strength: Float
    private let base: any Checkpoint
    private let modules: AdapterModules
    private let matrices: QuantizedMatrices
    /// The changes, with the name of each tensor in the model.
    private(set) var changes: [(target: String, change: Change)] = []
    private(set) var unmatched: [String] = []
    /// Decisions that a user should know of.
    private(set) var notes: [String] = []

    init(_ lora: LoRA, _ base: any Checkpoint, _ matrices: QuantizedMatrices) {
        self.matrices = matrices
        file = lora.checkpoint
        strength = lora.strength
        self.base = base
        modules = AdapterModules(base, keys: file.names)
    }

    /// The parts of one module's change, and what it is called in the adapter and in the model.
    private struct Module {
        let spelled, name: String
        var parts: [AdapterPart: String] = [:]

        func has(_ isWanted: (AdapterPart) -> Bool) -> Bool { parts.keys.contains(where: isWanted) }
    }

    mutating func read() throws(CheckpointError) {
        let configuration = try AdapterConfiguration(of: file)
        var order: [String] = []
        var found: [String: Module] = [:]
        for key in file.names {
            let parsed = AdapterKey(key)
            guard let name = modules[parsed.module] else {
                unmatched.append(key)
                continue
            }
            switch parsed.content {
            case .foreign(let kind):
                throw fail("'\(name)' is changed by \(kind), which is not supported (\(key))")
            case .part(let part):
                if found[name] == nil { order.append(name) }
                let earlier = found[name, default: Module(spelled: parsed.module, name: name)]
                    .parts.updateValue(key, forKey: part)
                if let earlier {
                    throw fail("'\(name)' is changed twice: '\(earlier)' and '\(key)'")
                }
            }
        }
        for (key, type) in file.foreignTypes.sorted(by: { $0.key < $1.key }) {
            guard let name = modules[AdapterKey(key).module] else { continue }
            throw fail("'\(name)' is changed by '\(key)' of type \(type), which is not supported")
        }
        for module in order.compactMap({ found[$0] }) { try read(module, configuration) }
        if let source = configuration.source, let alpha = configuration.alpha,
            !found.values.contains(where: { $0.parts[.alpha] != nil })
        {
            notes.append("\(file.path): its alpha of \(alpha) comes from \(source)")
        }
        if configuration.saysDoRA,
            !changes.contains(where: { if case .decompose = $0.change { true } else { false } })
        {
            throw fail(
                "\(configuration.source ?? "its header") says DoRA, but there are no magnitudes")
        }
    }

    private mutating func read(
        _ module: Module, _ configuration: AdapterConfiguration
    ) throws(CheckpointError) {
        try refuseReplacedChanges(of: module)
        var parts = module.parts
        func take(_ part: AdapterPart) -> String? { parts.removeValue(forKey: part) }
        let alpha = take(.alpha)
        var difference: Difference?
        if let up = parts[.up], let down = parts[.down] {
            (parts[.up], parts[.down]) = (nil, nil)
            difference = .factor(try .product(up, down, in: file))
        } else if module.has({ if case .hadamard = $0 { true } else { false } }) {
            guard let a = take(.hadamard("w1_a")), let b = take(.hadamard("w1_b")),
                let c = take(.hadamard("w2_a")), let d = take(.hadamard("w2_b"))
            else { throw fail("'\(module.name)' is changed by a LoHa with a missing part") }
            let (first, second) = (
                try Factor.product(a, b, in: file), try Factor.product(c, d, in: file)
            )
            guard first.rows == second.rows, first.columns == second.columns else {
                throw fail("'\(module.name)' is changed by a LoHa with two different shapes")
            }
            difference = .elementwise(first, second)
        } else if module.has({ if case .kronecker = $0 { true } else { false } }) {
            func factor(_ name: String) throws(CheckpointError) -> Factor {
                if let whole = take(.kronecker(name)) {
                    return .whole(try StoredMatrix(whole, in: file))
                }
                guard let a = take(.kronecker(name + "_a")), let b = take(.kronecker(name + "_b"))
                else {
                    throw fail("'\(module.name)' is changed by a LoKr with a missing part")
                }
                return try .product(a, b, in: file)
            }
            let (a, b) = (try factor("w1"), try factor("w2"))
            guard !a.rows.multipliedReportingOverflow(by: b.rows).overflow,
                !a.columns.multipliedReportingOverflow(by: b.columns).overflow
            else { throw fail("'\(module.name)' is changed by a LoKr of impossible size") }
            difference = .kronecker(a, b)
        }
        let upBias = take(.upBias)
        let magnitude = take(.magnitude)
        if let difference {
            let scale = try self.scale(of: difference, module, alpha, configuration)
            try add(difference, scale: scale, magnitude, to: module)
            if let upBias {
                let target = module.name + ".bias"
                guard let stored = base.info(target) else {
                    throw fail("'\(upBias)' changes a bias, and '\(module.name)' has none")
                }
                try append(
                    .add(.factor(.whole(try whole(upBias, for: stored))), scale: scale), to: target)
            }
        } else if let key = magnitude ?? upBias {
            throw fail("'\(key)' is part of a change whose matrices are missing")
        }
        for (part, key) in parts.sorted(by: { $0.value < $1.value }) {
            switch part {
            case .difference(let leaf): try replace(leaf, of: module, key, isDifference: true)
            case .replacement(let leaf): try replace(leaf, of: module, key, isDifference: false)
            default:
                throw fail("'\(key)' is part of an incomplete change of '\(module.name)'")
            }
        }
    }

    /// Refuses a whole tensor beside a change of the same tensor, of which it would leave nothing.
    private func refuseReplacedChanges(of module: Module) throws(CheckpointError) {
        for (part, key) in module.parts.sorted(by: { $0.value < $1.value }) {
            guard case .replacement(let leaf) = part else { continue }
            let others = module.parts.filter { $0.key != part && $0.key.leaf == leaf }
            guard let other = others.values.min() else { continue }
            throw fail("'\(module.name)' is changed twice: '\(other)' and '\(key)'")
        }
    }

    /// strength · alpha / rank
    private func scale(
        of difference: Difference, _ module: Module, _ alpha: String?,
        _ configuration: AdapterConfiguration
    ) throws(CheckpointError) -> Float {
        let rank: Int?
        switch difference {
        case .factor(let factor), .elementwise(let factor, _): rank = factor.rank
        case .kronecker(let a, let b): rank = b.rank ?? a.rank
        }
        guard let rank else { return strength }  // alpha does not apply to full matrices
        guard let alpha else {
            return strength * Float(try configuration.scale(of: module.spelled, rank: rank))
        }
        let value = try file.require(alpha)
        guard value.shape.count == 1, value.allFinite else {
            throw fail("'\(alpha)' is not a number")
        }
        return strength * value.floats()[0] / Float(rank)
    }

    /// Adds the change of a module's matrix.
    private mutating func add(
        _ difference: Difference, scale: Float, _ magnitude: String?, to module: Module
    ) throws(CheckpointError) {
        guard let stored = storedMatrix(module.name) else {
            unmatched += module.parts.values.sorted()
            return
        }
        let (rows, columns) = foldedExtents(stored.shape)
        guard difference.rows == rows, difference.columns == columns else {
            // A LoRA for text to video on an image-to-video model: all other layers fit.
            if module.name == "patch_embedding", difference.rows == rows {
                unmatched += module.parts.values.sorted().map {
                    "\($0) (for \(difference.columns / 4) channels, the model has \(columns / 4))"
                }
                return
            }
            throw foreign(module.name, [difference.rows, difference.columns], [rows, columns])
        }
        guard let magnitude else {
            return try append(.add(difference, scale: scale), to: stored.name)
        }
        let norms = try StoredMatrix(magnitude, in: file)
        // [out, 1] or [out]: the norm of each row; [1, in]: of each column.
        let alongRows = norms.rows == rows && norms.columns == 1
        guard alongRows || norms.rows == 1 && norms.columns == columns else {
            throw fail(
                "'\(magnitude)' [\(norms.rows), \(norms.columns)] does not fit [\(rows), \(columns)]"
            )
        }
        // The strength applies to the whole change, direction and magnitude.
        try append(
            .decompose(
                difference, scale: strength == 0 ? 0 : scale / strength, magnitude: norms,
                alongRows: alongRows, strength: strength), to: stored.name)
    }

    /// Adds a full tensor to the model's, or replaces the model's by it.
    private mutating func replace(
        _ leaf: String, of module: Module, _ key: String, isDifference: Bool
    ) throws(CheckpointError) {
        let stored =
            leaf == "weight" ? storedMatrix(module.name) : base.info("\(module.name).\(leaf)")
        guard let stored else {
            unmatched.append(key)
            return
        }
        let matrix = try whole(key, for: stored)
        try append(
            isDifference
                ? .add(.factor(.whole(matrix)), scale: strength)
                : .replace(matrix, strength: strength), to: stored.name)
    }

    /// A tensor of the adapter with the extents of the model's.
    private func whole(_ key: String, for stored: TensorInfo) throws(CheckpointError)
        -> StoredMatrix
    {
        let shape = file.info(key)?.shape ?? []
        guard
            shapesAgree(stored: shape, wanted: stored.shape)
                || shapesAgree(stored: stored.shape, wanted: shape)
        else { throw foreign(stored.name, shape, stored.shape) }
        let (rows, columns) = foldedExtents(stored.shape)
        return StoredMatrix(key, in: file, rows: rows, columns: columns)
    }

    private mutating func append(_ change: Change, to target: String) throws(CheckpointError) {
        guard let stored = base.info(target),
            stored.dtype.isFloatingPoint || matrices.byCodes[target] != nil
                || LinearFormat(codes: splitLeaf(target).leaf) != nil
        else {
            throw fail(
                "it changes '\(target)', which has no floating-point numbers in \(base.path)")
        }
        changes.append((target, change))
    }

    /// The weight of a module, in whatever form it is stored.
    private func storedMatrix(_ module: String) -> TensorInfo? {
        LinearFormat.leaves.lazy.compactMap { base.info("\(module).\($0)") }.first
    }

    private func fail(_ reason: String) -> CheckpointError {
        .incompatible(path: file.path, reason: reason)
    }

    /// The error for an adapter made for another model; it names that model's width if the shapes tell it.
    private func foreign(_ module: String, _ found: [Int], _ stored: [Int]) -> CheckpointError {
        if case .wanTransformer(let model) = DetectedModel(base), found.count == stored.count,
            let place = stored.firstIndex(of: model.dim), found[place] != model.dim
        {
            return fail(
                "made for a transformer of width \(found[place]), \(base.path) has \(model.dim)")
        }
        return fail(
            "made for another model: it changes '\(module)' of shape \(found), "
                + "\(base.path) has \(stored)")
    }
}
