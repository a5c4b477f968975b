/// Low-rank adapters (LoRA, arXiv 2106.09685) beside the linear layers of a net.

public import Checkpoints
import Glibc
import Ground
public import Tensors

/// y = x W^T + b + (alpha / rank) (x A^T) B^T: A and B are trained, W is of any format.
public final class LowRankAdapters {
    /// `<layer>.lora_A.weight` [rank, in] and `<layer>.lora_B.weight` [out, rank]
    public let parameters: Parameters
    public let rank: Int
    public let alpha: Double
    /// The layers, by the base's names.
    public let layers: [String]
    var scale: Float { Float(alpha / Double(rank)) }

    /// Linear layers of the blocks, as PEFT's targets name them.
    public static let standardTargets = [
        "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q",
        "cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.0", "ffn.2",
    ]

    /// Fresh adapters: A uniform within 1 / sqrt(in), B zero, so that nothing changes at first.
    /// - Parameters:
    ///   - targets: ends of the names of the layers.
    ///   - seed: determines A.
    public init(
        of base: any Checkpoint, rank: Int, alpha: Double, targets: [String], as dtype: DType,
        seed: UInt64
    ) {
        ensure(rank > 0, "LowRankAdapters: rank \(rank)")
        self.rank = rank
        self.alpha = alpha
        var layers: [String] = []
        var tensors: [(name: String, tensor: Tensor)] = []
        var random = SplitMix64(seed: seed)
        for name in base.names {
            guard let layer = Self.layer(ofMatrix: name), layer.hasPrefix("blocks."),
                targets.contains(where: { layer.hasSuffix(".\($0)") }),
                let shape = base.info(name)?.shape, shape.count == 2
            else { continue }
            let (outputs, inputs) = (shape[0], shape[1])
            let bound = 1 / Double(inputs).squareRoot()
            let a = (0..<rank * inputs).map { _ in
                Float((Double(random.next() >> 11) * 0x1p-52 - 1) * bound)
            }
            layers.append(layer)
            tensors.append(("\(layer).lora_A.weight", Tensor(a, [rank, inputs])))
            tensors.append(("\(layer).lora_B.weight", .zeros([outputs, rank], .f32)))
        }
        self.layers = layers
        parameters = Parameters("adapters of \(base.path)", tensors, as: dtype)
    }

    /// `blocks.0.ffn.0` of `blocks.0.ffn.0.weight`; nil for what is no matrix of a layer.
    static func layer(ofMatrix name: String) -> String? {
        LinearFormat.leaves.first { name.hasSuffix("." + $0) }.map {
            String(name.dropLast($0.count + 1))
        }
    }

    // MARK: Files

    /// How the keys of a file of adapters are written.
    public enum Layout: String, Sendable, Hashable, Codable, CaseIterable {
        case peft, comfyui
    }

    /// PEFT's `adapter_config.json` of adapters that are exported in its layout, where alpha is in the numbers.
    public var configuration: String {
        let targets = Set(
            layers.map { $0.split(separator: ".").dropFirst(2).joined(separator: ".") }
        )
        .sorted().map { PlainValue.text($0).json }.joined(separator: ", ")
        return """
            {
              "base_model_name_or_path": null,
              "bias": "none",
              "inference_mode": true,
              "init_lora_weights": true,
              "lora_alpha": \(rank),
              "lora_dropout": 0.0,
              "peft_type": "LORA",
              "r": \(rank),
              "target_modules": [\(targets)],
              "task_type": null
            }

            """
    }

    /// The adapters as a file holds them, in bf16.
    public func exported(_ layout: Layout, _ values: [String: Tensor]) -> any Checkpoint {
        var tensors: [(name: String, tensor: Tensor)] = []
        for layer in layers {
            let prefix = layout == .peft ? "base_model.model.\(layer)" : "diffusion_model.\(layer)"
            let (down, up) =
                layout == .peft
                ? ("lora_A.weight", "lora_B.weight") : ("lora_down.weight", "lora_up.weight")
            tensors.append(
                ("\(prefix).\(down)", values["\(layer).lora_A.weight"]!.converted(to: .bf16)))
            // PEFT keeps alpha in a file beside; the factor goes into B, so that the file says all.
            let b = values["\(layer).lora_B.weight"]!
            let isScaled = layout == .peft && scale != 1
            let scaled = isScaled ? Tensor(b.floats().map { $0 * scale }, b.shape) : b
            tensors.append(("\(prefix).\(up)", scaled.converted(to: .bf16)))
            if layout == .comfyui {
                tensors.append(("\(prefix).alpha", Tensor([Float(alpha)], [1])))
            }
        }
        return TensorCollection("adapters", tensors)
    }
}

/// Adds the adapters to the linear layers that pass by. What asks for 8-bit results gets plain ones: derivatives go
/// through numbers, and layers with 8-bit weights quantise what they take by themselves.
final class AdaptedBackend: ForwardingBackend {
    private let adapters: LowRankAdapters
    private let names: NamedCheckpoint
    private struct Pair {
        let down, up: Tensor
        let scale: Tensor?
    }
    private var pairs: [Tensor.Identity: Pair] = [:]

    init(_ base: any Backend, _ adapters: LowRankAdapters, names: NamedCheckpoint) {
        self.adapters = adapters
        self.names = names
        super.init(base)
    }

    override func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        let placed = super.place(weight, as: dtype, in: group)
        adapt(placed, of: weight.matrix)
        return placed
    }

    /// Places the adapter of a layer beside its weight.
    private func adapt(_ placed: LinearWeight, of host: Tensor) {
        let parameters = adapters.parameters
        guard let name = names.name(of: host),
            let layer = LowRankAdapters.layer(ofMatrix: name),
            let down = parameters.tensor("\(layer).lora_A.weight"),
            let up = parameters.tensor("\(layer).lora_B.weight")
        else { return }
        let (factor, outputs) = (adapters.scale, up.shape[0])
        func vector() -> Tensor {
            base.place(
                Tensor([Float](repeating: factor, count: outputs), [outputs]), as: .f32, in: nil)
        }
        pairs[placed.matrix.identity] = Pair(
            down: base.place(down, as: parameters.dtype, in: nil),
            up: base.place(up, as: parameters.dtype, in: nil),
            scale: factor == 1 ? nil : vector())
    }

    override func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        let placed = super.place(weight, quantizedTo: format, in: group)
        adapt(placed, of: weight)
        return placed
    }

    override func run(_ operation: Operation) -> [Tensor] {
        switch operation {
        case .linear(let o): [linear(o)]
        case .linearAdd(let o):
            if pairs[o.weight.matrix.identity] == nil {
                super.run(operation)
            } else {
                [
                    base.gatedAdd(
                        o.residual,
                        adapted(o.x, o.weight, bias: o.bias, dtype: o.residual.dtype), gate: o.gate)
                ]
            }
        // 8-bit layers quantise what they take by themselves.
        case .quantize(let o): [o.x]
        default: super.run(operation.withPlainResult)
        }
    }

    private func linear(_ o: Operation.Linear) -> Tensor {
        guard pairs[o.weight.matrix.identity] != nil else {
            return super.run(Operation.linear(o).withPlainResult)[0]
        }
        let y = adapted(o.x, o.weight, bias: o.bias, dtype: o.resultType)
        return o.activation == .none ? y : base.activate(y, o.activation)
    }

    private func adapted(
        _ x: Tensor, _ weight: LinearWeight, bias: Tensor?, dtype: DType
    ) -> Tensor {
        let y = base.linear(x, weight, bias: bias, dtype: dtype)
        let pair = pairs[weight.matrix.identity]!
        let inner = base.linear(x, .dense(pair.down), bias: nil, dtype: dtype)
        return base.linearAdd(inner, .dense(pair.up), bias: nil, to: y, gate: pair.scale)
    }
}

extension Operation {
    /// The same without quantising what it gives.
    var withPlainResult: Operation {
        switch self {
        case .linear(var o):
            o.format = .plain
            return .linear(o)
        case .layerNorm(var o):
            o.format = .plain
            return .layerNorm(o)
        case .modulatedLayerNorm(var o):
            o.format = .plain
            return .modulatedLayerNorm(o)
        case .rmsNorm(var o):
            o.format = .plain
            return .rmsNorm(o)
        case .attention(var o):
            o.format = .plain
            return .attention(o)
        case .sparseLinearAttention(var o):
            o.format = .plain
            return .sparseLinearAttention(o)
        default: return self
        }
    }
}
