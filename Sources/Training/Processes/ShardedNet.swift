/// The weights of one net, split over processes.

import Ground
import Tensors

/// Which process keeps which tensors of a net, and the device that gathers them.
struct Shards {
    let device: ShardedDevice
    /// By the names of the checkpoint's tensors.
    let owners: [String: Int]
}

/// Places the weights of a net as outlines, and keeps those of this process. What is placed in one group is one unit,
/// such as a block; what is in no group is another.
final class ShardedNet: WeightPlacer {
    private let shards: Shards
    private let isConstant: Bool
    private let nameOf: (Tensor) -> String?
    private var units: [String: ShardedDevice.Unit] = [:]
    private var outlines: [Form: LinearWeight] = [:]

    /// - Parameters:
    ///   - isConstant: whether the weights are placed once; otherwise each placing brings new numbers.
    ///   - nameOf: what a tensor of the checkpoint is called; nil for tensors from elsewhere.
    ///   - base: the shards' device, or one above it.
    init(
        _ shards: Shards, isConstant: Bool, on base: any Backend,
        nameOf: @escaping (Tensor) -> String?
    ) {
        self.shards = shards
        self.isConstant = isConstant
        self.nameOf = nameOf
        super.init(base)
    }

    override func weight(
        _ host: Tensor, as dtype: DType, _ format: LinearFormat, in group: WeightGroup?,
        _ place: (any Backend) -> LinearWeight
    ) -> LinearWeight? {
        guard let name = nameOf(host), let owner = shards.owners[name] else { return nil }
        let device = shards.device
        let key = Form(name: name, dtype: dtype, format: format)
        let known = outlines[key]
        if let known, isConstant { return known }
        let outline = known ?? place(NullBackend())
        if known == nil {
            let unit = units[group?.name ?? ""] ?? ShardedDevice.Unit()
            units[group?.name ?? ""] = unit
            for tensor in outline.tensors { device.add(tensor, owner: owner, to: unit) }
            outlines[key] = outline
        }
        let own = owner == device.exchange.rank ? place(base).tensors : nil
        for (index, tensor) in outline.tensors.enumerated() {
            device.renew(tensor, own: own?[index])
        }
        return outline
    }

    /// Sums gradients that are complete over all processes. gradients: by the names of the parameters, nil for zeros;
    /// equal names and order in all processes → own ones
    func sums(_ gradients: [(name: String, shape: Shape, gradient: Tensor?)]) -> [String: Tensor] {
        shards.device.sums(
            gradients.map { name, shape, gradient in
                ProcessGroup.Owned(
                    name: name,
                    tensor: gradient ?? base.place(.zeros(shape, .f32), as: .f32),
                    owner: shards.owners[name]!)
            })
    }
}

extension LinearWeight {
    /// The elements and their scales.
    fileprivate var tensors: [Tensor] {
        switch self {
        case .dense(let matrix): [matrix]
        case .int8Blocks(let matrix, let scale), .fp8Rows(let matrix, let scale): [matrix, scale]
        }
    }
}
