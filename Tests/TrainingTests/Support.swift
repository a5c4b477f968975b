/// Random tensors and a small random transformer.

import Checkpoints
import Ground
import Tensors
import Training

/// Numbers that depend on the seed alone.
struct Random {
    private var generator: SplitMix64
    init(_ seed: UInt64) { generator = SplitMix64(seed: seed) }

    /// In -1...1.
    mutating func float() -> Float { Float(generator.next() >> 40) / Float(1 << 23) - 1 }

    mutating func tensor(_ shape: Shape, scale: Float = 1, around center: Float = 0) -> Tensor {
        Tensor((0..<shape.count).map { _ in center + scale * float() }, shape)
    }

    mutating func latents(_ shape: Shape) -> LatentValues { LatentValues(tensor(shape)) }
}

/// Settings for the small random transformer.
func tinySettings(_ recipe: TrainingSettings.Recipe) -> TrainingSettings {
    var settings = TrainingSettings(recipe)
    settings.batch = 2
    settings.warmup = 1
    settings.isHalf = false
    settings.optimizer.learningRate = 1e-3
    settings.criticOptimizer.learningRate = 1e-3
    settings.rcm.tangentWarmup = 1
    settings.rcm.studentEvery = 2
    (settings.queryBlock, settings.keyBlock) = (4, 4)
    settings.rank = 2
    if recipe == .sla { settings.topK = 0.5 }
    return settings
}

func inner(_ a: Tensor, _ b: Tensor) -> Double {
    zip(a.floats(), b.floats()).reduce(0) { $0 + Double($1.0) * Double($1.1) }
}

/// a + h b
func moved(_ a: Tensor, _ h: Float, _ b: Tensor) -> Tensor {
    Tensor(zip(a.floats(), b.floats()).map { $0 + h * $1 }, a.shape)
}

/// A transformer with random weights, of two blocks where nothing else is said.
func randomParameters(seed: UInt64, isSparse: Bool, dim: Int = 32, layers: Int = 2) -> Parameters {
    let sizes = WanTransformerArchitecture(
        dim: dim, layers: layers, feedForward: 48, heads: 2, inputChannels: 4, outputChannels: 4,
        textDim: 12, frequencyDim: 16, hasSparseLinearAttention: isSparse)
    var random = Random(seed)
    let tensors = DetectedModel.wanTransformer(sizes).tensors().map { expected in
        let shape = Shape(expected.shape)
        let isGain = expected.name.contains("norm") && expected.name.hasSuffix("weight")
        let scale = 1 / Float(max(shape.columns, 1)).squareRoot()
        return (
            name: expected.name,
            tensor: random.tensor(shape, scale: isGain ? 0.2 : scale, around: isGain ? 1 : 0)
        )
    }
    return Parameters("random transformer", tensors, as: .f32)
}

func sparse(_ topK: Double) -> SparseAttention {
    SparseAttention(topK: topK, arithmetic: .exact, queryBlock: 8, keyBlock: 4)
}

/// Random numbers for recipes.
final class TestDraws: RandomSource {
    private var random: Random
    init(seed: UInt64) { random = Random(seed) }
    func normals(_ count: Int) -> [Float] { (0..<count).map { _ in random.float() } }
    func uniforms(_ count: Int) -> [Float] { (0..<count).map { _ in abs(random.float()) * 0.99 } }
    func noise(_ count: Int, _ shape: Shape) -> [LatentValues] {
        (0..<count).map { _ in random.latents(shape) }
    }
}
