/// The numbers that training moves, under their names in checkpoints.

public import Checkpoints
import Ground
public import Tensors

/// The parameters of one net: f32 masters, and the numbers that the net computes with.
///
/// As a checkpoint it hands out the latter, so a net is made of it like of any file; each change gives the tensors new
/// memory, because what backends keep of a weight lives as long as its bytes.
public final class Parameters: Checkpoint {
    public let path: String
    public let names: [String]
    /// f32, on the host or the device, as the optimiser left them.
    public private(set) var masters: [String: Tensor] = [:]
    /// bf16 or f32: what the net sees.
    public let dtype: DType
    private var seen: [String: Tensor] = [:]
    private var infos: [String: TensorInfo] = [:]
    private var serials: (version: Int, names: [UInt64: String]) = (0, [:])
    /// Grows with every change.
    public private(set) var version = 0

    /// A copy of a checkpoint's tensors.
    /// - Parameters:
    ///   - dtype: bf16 for mixed precision: masters start from the rounded numbers, as the original's do.
    ///   - missing: tensors that start at zero where the checkpoint has none, such as SLA's projections.
    ///   - isKept: whose numbers this process keeps; of the others only shapes are known.
    public init(
        _ checkpoint: any Checkpoint, as dtype: DType,
        missing: [(name: String, shape: Shape)] = [],
        keeping isKept: (String) -> Bool = { _ in true }
    ) throws(CheckpointError) {
        path = checkpoint.path
        self.dtype = dtype
        let absent = missing.filter { checkpoint.info($0.name) == nil }
        names = checkpoint.names + absent.map(\.name)
        for name in checkpoint.names {
            guard let info = checkpoint.info(name), info.dtype.isFloatingPoint else {
                throw .dtype(
                    name, in: checkpoint.path, expected: "floating point",
                    found: checkpoint.info(name)?.dtype.description ?? "nothing")
            }
            let shape = Shape(info.shape)
            guard isKept(name), let tensor = try checkpoint.tensor(name) else {
                outline(name, shape)
                continue
            }
            guard tensor.isOnHost else {
                // An outline's: a plan needs no numbers.
                set(name, .outline(shape, .f32), seen: .outline(shape, dtype))
                continue
            }
            // A copy: the tensors of files may be mapped, and `converted` gives f32 back as it is.
            set(name, Tensor(tensor.converted(to: dtype).floats(), tensor.shape))
        }
        for (name, shape) in absent {
            if isKept(name) { set(name, .zeros(shape, .f32)) } else { outline(name, shape) }
        }
        version = 0
    }

    /// Notes a parameter whose numbers another process keeps.
    private func outline(_ name: String, _ shape: Shape) {
        seen[name] = .outline(shape, dtype)
        infos[name] = TensorInfo(name: name, shape: shape.dimensions, dtype: dtype)
    }

    /// Some tensors by name.
    public init(_ path: String, _ tensors: [(name: String, tensor: Tensor)], as dtype: DType) {
        self.path = path
        self.dtype = dtype
        names = tensors.map(\.name)
        for (name, tensor) in tensors {
            set(name, Tensor(tensor.converted(to: dtype).floats(), tensor.shape))
        }
        version = 0
    }

    /// Takes a new master.
    /// - Parameter seen: the number that the net sees, where it is at hand.
    public func set(_ name: String, _ master: Tensor, seen: Tensor? = nil) {
        masters[name] = master
        self.seen[name] = seen ?? (dtype == .f32 ? master : master.converted(to: dtype))
        infos[name] = TensorInfo(name: name, shape: master.shape.dimensions, dtype: dtype)
        version += 1
    }

    /// Takes what the net sees of a parameter whose master another process keeps.
    func see(_ name: String, _ tensor: Tensor) {
        masters[name] = nil
        seen[name] = tensor
        version += 1
    }

    /// Says that numbers which other processes keep have changed.
    func othersMoved() { version += 1 }

    /// Lets go of masters that other processes keep.
    func keepMasters(where isOwn: (String) -> Bool) {
        masters = masters.filter { isOwn($0.key) }
    }

    public func info(_ name: String) -> TensorInfo? { infos[name] }
    public func tensor(_ name: String) -> Tensor? { seen[name] }

    /// Names by the memory of what the net sees: how a recorder knows them.
    public var namesByStorage: [UInt64: String] {
        Dictionary(uniqueKeysWithValues: seen.map { ($1.storage.serial, $0) })
    }

    /// What a tensor is called that `tensor` gave.
    func name(of tensor: Tensor) -> String? {
        if serials.version != version || serials.names.isEmpty {
            serials = (version, namesByStorage)
        }
        return serials.names[tensor.storage.serial]
    }

    public var elementCount: Int { infos.values.reduce(0) { $0 + $1.shape.reduce(1, *) } }
}
