/// Adding the difference of two checkpoints to a third.

import Tensors

/// What a merge did with the tensors.
public struct MergedCheckpoint {
    public let checkpoint: DerivedCheckpoint
    /// How many tensors all three have: base + w (target - diffBase).
    public let merged: Int
    /// Tensors kept from the base, because another checkpoint lacks them.
    public let keptFromBase: [String]
    /// Tensors taken from the target, because the base lacks them.
    public let takenFromTarget: [String]
}

/// base + weight · (target − diffBase), tensor by tensor, in f32, rounded to the base's type. This adds
/// what a fine-tuning of the attention changed to a distilled model.
///
/// As https://github.com/thu-ml/TurboDiffusion/blob/aaecff5/turbodiffusion/scripts/merge_models.py, but
/// tensors with the same name and different shapes are refused, not skipped.
/// - Throws: `.shape`, or `.incompatible` if a tensor is quantised or the files have nothing in
///   common; reading a tensor also throws if a sum is not finite.
public func merged(
    base: any Checkpoint, target: any Checkpoint, diffBase: any Checkpoint, weight: Float = 1
) throws(CheckpointError) -> MergedCheckpoint {
    for file in [base, target, diffBase] {
        try requireRead(file)
        let matrices = try QuantizedMatrices(of: file)
        let codes = file.names.first {
            matrices.byCodes[$0] != nil || LinearFormat(codes: splitLeaf($0).leaf) != nil
        }
        if let codes {
            throw .incompatible(
                path: file.path,
                reason: "'\(codes)' is quantised; only plain checkpoints can be merged, and "
                    + "'turbodiffusion convert --dequantize' makes it one")
        }
    }
    var entries: [DerivedCheckpoint.Entry] = []
    var kept: [String] = []
    for info in base.infos {
        let name = info.name
        guard let b = target.info(name), let c = diffBase.info(name) else {
            kept.append(name)
            entries.append(.from(base, info))
            continue
        }
        for (other, file) in [(b, target), (c, diffBase)] {
            guard other.shape == info.shape else {
                throw .shape(name, in: file.path, expected: info.shape, found: other.shape)
            }
            for (stored, path) in [(info, base.path), (other, file.path)]
            where !stored.dtype.isFloatingPoint || stored.dtype.byteCount == 1 {
                throw .incompatible(
                    path: path,
                    reason: "'\(name)' holds \(stored.dtype); only plain checkpoints can be merged")
            }
        }
        entries.append(
            DerivedCheckpoint.Entry(info: info) { () throws(CheckpointError) in
                let flat: Shape = [info.shape.reduce(1, *)]
                let x = try base.require(name).reshaped(flat)
                let y = try target.require(name).reshaped(flat)
                let z = try diffBase.require(name).reshaped(flat)
                let result = computed(Shape(info.shape), info.dtype) { range in
                    var sum = x.slice(range).floats()
                    let to = y.slice(range).floats()
                    let from = z.slice(range).floats()
                    for i in sum.indices { sum[i] += weight * (to[i] - from[i]) }
                    return sum
                }
                guard result.allFinite else {
                    throw .incompatible(
                        path: base.path,
                        reason:
                            "'\(name)' would hold numbers that are not finite in \(info.dtype)")
                }
                return result
            } forget: {
                for file in [base, target, diffBase] { file.forget(name) }
            })
    }
    let count = entries.count - kept.count
    guard count > 0 else {
        throw .incompatible(
            path: base.path,
            reason: "it has no tensor in common with \(target.path) and \(diffBase.path)")
    }
    let taken = target.infos.filter { base.info($0.name) == nil }
    entries += taken.map { .from(target, $0) }
    return MergedCheckpoint(
        checkpoint: try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries),
        merged: count, keptFromBase: kept, takenFromTarget: taken.map(\.name))
}
