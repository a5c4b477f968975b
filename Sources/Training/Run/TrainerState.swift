/// A trainer's state, to a file and back, and what is published of it.

public import Checkpoints
import Tensors

extension Trainer {
    /// Everything that the next iteration depends on, but for settings, models and data.
    /// - Returns: nil in all processes but the first.
    public func state() throws -> (any Checkpoint)? {
        var tensors: [(name: String, tensor: Tensor)] = []
        for (role, trained) in nets {
            let parameters = trained.parameters
            var masters = parameters.masters
            if settings.asReference {
                // The original keeps what nets see, and makes masters of it after a pause.
                for name in masters.keys {
                    masters[name] = device.place(
                        device.read(parameters.tensor(name)!).converted(to: .f32), as: .f32)
                }
            }
            try trained.withMoments {
                for (kind, values) in [
                    ("master", masters), ("exp_avg", trained.optimizer.means),
                    ("exp_avg_sq", trained.optimizer.squares),
                    ("ema", trained.average?.values ?? [:]),
                ] {
                    let all = try whole(values, of: trained)
                    tensors += parameters.names.compactMap { name in
                        all[name].map { ("\(role).\(kind).\(name)", $0) }
                    }
                }
            }
        }
        if let group, !group.place.isFirst { return nil }
        // Squares of large gradients may overflow without harm: the step is zero then.
        for (name, tensor) in tensors where !name.contains(".exp_avg") {
            try requireFinite(name, tensor)
        }
        var facts = ["iteration": "\(iteration)", "recipe": settings.recipe.rawValue]
        for (role, trained) in nets { facts["\(role).steps"] = "\(trained.optimizer.steps)" }
        return TensorCollection("state of iteration \(iteration)", tensors, metadata: facts)
    }

    /// What belongs to parameters, from all processes. values: f32 → on the host; own values only in all processes but
    /// the first
    private func whole(_ values: [String: Tensor], of trained: TrainedNet) throws -> [String:
        Tensor]
    {
        try trained.sharing?.collected(values) ?? values.mapValues { device.read($0) }
    }

    private var nets: [(String, TrainedNet)] {
        [("student", student)] + (critic.map { [("critic", $0)] } ?? [])
    }

    /// Goes on where a state was taken: the next iteration has the same bits.
    /// - Throws: `CheckpointError` where it is another model's.
    public func restore(_ state: any Checkpoint) throws(CheckpointError) {
        // Numbers of passes and samples are made of it: they must not overflow.
        let possible = 0...1 << 40
        guard let iteration = state.metadata["iteration"].flatMap({ Int($0) }),
            possible.contains(iteration), state.metadata["recipe"] == settings.recipe.rawValue
        else {
            throw .incompatible(
                path: state.path, reason: "it is no state of a run of '\(settings.recipe.rawValue)'"
            )
        }
        for (role, trained) in nets {
            let parameters = trained.parameters
            let masters = Set(parameters.names.map { "\(role).master.\($0)" })
            if adapters != nil,
                let other = state.names.first(where: {
                    $0.hasPrefix("\(role).master.") && !masters.contains($0)
                })
            {
                // What was learned there would be lost with the next checkpoint.
                throw .incompatible(
                    path: state.path,
                    reason: "it holds '\(other)', which this run does not train: go on with the "
                        + "model and the layers (--targets) that it began with")
            }
            func read(_ kind: String, _ name: String) throws(CheckpointError) -> Tensor? {
                let full = "\(role).\(kind).\(name)"
                guard let tensor = try state.tensor(full) else { return nil }
                let expected = parameters.info(name)!.shape
                guard tensor.shape.dimensions == expected, tensor.dtype == .f32 else {
                    throw .shape(
                        full, in: state.path, expected: expected, found: tensor.shape.dimensions)
                }
                // A copy: the file may be removed while the run goes on.
                return Tensor(tensor.floats(), tensor.shape)
            }
            var (means, squares, averages): ([String: Tensor], [String: Tensor], [String: Tensor]) =
                ([:], [:], [:])
            for name in parameters.names {
                guard let master = try read("master", name) else {
                    throw .missing("\(role).master.\(name)", in: state.path, nearest: [])
                }
                if trained.average != nil, state.info("\(role).ema.\(name)") == nil {
                    throw .missing("\(role).ema.\(name)", in: state.path, nearest: [])
                }
                if trained.sharing?.isSeen(name) ?? true { parameters.set(name, master) }
                // What others keep is not placed first and dropped then.
                guard trained.sharing?.isOwn(name) ?? true else { continue }
                means[name] = try read("exp_avg", name).map { device.place($0, as: .f32) }
                squares[name] = try read("exp_avg_sq", name).map { device.place($0, as: .f32) }
                averages[name] = try read("ema", name).map { device.place($0, as: .f32) }
            }
            guard let steps = state.metadata["\(role).steps"].flatMap({ Int($0) }),
                possible.contains(steps)
            else {
                throw .incompatible(
                    path: state.path, reason: "it does not say how many steps the \(role) has made")
            }
            trained.withMoments {
                trained.optimizer.restore(means: means, squares: squares, steps: steps)
                trained.average?.restore(averages)
                trained.keepOwn()
            }
            parameters.othersMoved()
        }
        self.iteration = iteration
    }

    /// What is not finite would replace a good checkpoint, or pass for a trained net.
    private func requireFinite(_ name: String, _ tensor: Tensor) throws(DataError) {
        if tensor.allFinite { return }
        throw DataError(
            "after iteration \(iteration) '\(name)' holds numbers that are not finite, so nothing is "
                + "written: a smaller --lr or a longer --warmup may help")
    }

    /// What is published: the trained net or its average, in bf16.
    /// - Returns: nil in all processes but the first.
    /// - Throws: `DataError` where no iteration has changed anything, or what it became is not finite.
    public func exported(average: Bool) throws -> (any Checkpoint)? {
        guard nets.contains(where: { $0.1.optimizer.steps > 0 }) else {
            throw DataError(
                "every iteration was skipped, so there is nothing to write: 'turbodiffusion dataset "
                    + "check' finds samples that are not finite")
        }
        let parameters = student.parameters
        let host = try whole(
            average ? student.average?.values ?? [:] : parameters.masters, of: student)
        if let group, !group.place.isFirst { return nil }
        let result: any Checkpoint =
            adapters?.exported(settings.layout, host)
            ?? TensorCollection(
                "trained transformer",
                parameters.names.compactMap { name in
                    host[name].map { (name, $0.converted(to: .bf16)) }
                })
        for name in result.names { try requireFinite(name, try result.tensor(name)!) }
        return result
    }
}
