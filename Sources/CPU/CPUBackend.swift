/// The CPU as a backend. It runs the fastest version that exists of each operation.

import CDrivers
import Ground
public import Tensors

/// Computes on the cores of the processor. Results do not depend on the number of threads.
public final class CPUBackend: Backend {
    /// Which versions of the operations are used.
    public enum Engine: Sendable {
        /// The fastest ones on this machine.
        case automatic
        /// Those for AVX2 alone, on processors that have more too.
        case avx2
        /// The definitions, in plain Swift; all other versions are tested against them.
        case definition
    }

    public let name: String
    public let membership: Membership
    let definitions: Definitions
    let fast: VectorOperations?

    /// A backend with `threads` threads, the caller's included; nil for one per available processor.
    /// - Parameter membership: its place in a group of CPU backends.
    public init(
        threads: Int? = nil, engine: Engine = .automatic, membership: Membership = .alone
    ) {
        self.membership = membership
        definitions = Definitions(
            memory: MemoryPool(), threads: Threads(count: min(threads ?? Threads.available, 4096)))
        fast =
            switch engine {
            case .automatic: VectorOperations(definitions, cpu_variant_found())
            case .avx2: VectorOperations(definitions, CPU_AVX_2)
            case .definition: nil
            }
        let count = definitions.threads.count
        name =
            "CPU (\(count) thread\(count == 1 ? "" : "s"), \(fast?.name ?? "definitions"))"
    }

    /// Processors that are online.
    public static var processors: Int { Threads.available }

    // MARK: Memory

    public var memory: MemoryUse { definitions.memory.use }
    public func resetPeak() { definitions.memory.resetPeak() }
    public func synchronize() throws {}

    /// Shares the tensor's memory if its dtype stays the same and its elements are aligned.
    public func place(_ host: Tensor, as dtype: DType, in group: WeightGroup?) -> Tensor {
        let target = host.dtype.isFloatingPoint ? dtype : host.dtype
        let aligned = Int(bitPattern: host.hostAddress) % host.dtype.byteCount == 0
        if target == host.dtype && aligned { return host }
        return definitions.converted(aligned ? host : copy(host), to: target)
    }

    public func place(_ weight: LinearWeight, as dtype: DType, in group: WeightGroup?)
        -> LinearWeight
    {
        switch weight {
        case .dense(let matrix): .dense(place(matrix, as: dtype, in: group))
        case .int8Blocks(let matrix, let scale):
            .int8Blocks(weight: matrix, scale: place(scale, as: .f32, in: group))
        case .fp8Rows(let matrix, let scale):
            .fp8Rows(weight: matrix, scale: place(scale, as: .f32, in: group))
        }
    }

    public func place(
        _ weight: Tensor, quantizedTo format: LinearFormat, in group: WeightGroup?
    ) -> LinearWeight {
        definitions.quantizedWeight(
            place(weight, as: weight.dtype, in: group), to: format)
    }

    /// Blocks kept for reuse go, and pages that the allocator keeps.
    public func releaseUnusedMemory() {
        definitions.memory.resetPeak()
        heap_trim()
    }

    public func read(_ x: Tensor) -> Tensor {
        let host = Tensor.host(x.shape, x.dtype)
        host.hostAddress.copyMemory(from: x.hostAddress, byteCount: x.byteCount)
        return host
    }

    private func copy(_ x: Tensor) -> Tensor {
        let result = definitions.memory.tensor(x.shape, x.dtype)
        result.hostAddress.copyMemory(from: x.hostAddress, byteCount: x.byteCount)
        return result
    }

    // MARK: Operations

    public func run(_ operation: Operation) -> [Tensor] {
        switch operation {
        case .attention(let o) where o.format != .plain: [o.composed(on: self)]
        case .sparseLinearAttention(let o) where o.format != .plain: [o.composed(on: self)]
        case .channelNorm(let o) where !o.margin.isEmpty: [o.composed(on: self)]
        case .exchange(let o): [definitions.collective(o, membership)]
        case .gather(let o): [definitions.collective(o, membership)]
        case .halo(let o): [definitions.collective(o, membership)]
        default: fast?.run(operation) ?? define(operation)
        }
    }

    private func define(_ operation: Operation) -> [Tensor] {
        switch operation {
        case .linear(let o): [definitions.linear(o)]
        case .linearAdd(let o): [o.composed(on: self)]
        case .quantize(let o): [definitions.quantize(o.x, to: o.format)]
        case .layerNorm(let o): [definitions.layerNorm(o)]
        case .modulatedLayerNorm(let o): [definitions.modulatedLayerNorm(o)]
        case .rmsNorm(let o): [definitions.rmsNorm(o)]
        case .rmsNormRope(let o): [definitions.rmsNormRope(o)]
        case .channelNorm(let o): [definitions.channelNorm(o)]
        case .gatedAdd(let o): [definitions.gatedAdd(o)]
        case .geluGate(let o): [definitions.geluGate(o)]
        case .rcmStep(let o): [definitions.rcmStep(o)]
        case .combine(let o): [definitions.combine(o)]
        case .noise(let o): [definitions.noise(o)]
        case .attention(let o): [definitions.attention(o)]
        case .relativeAttention(let o): [definitions.relativeAttention(o)]
        case .blockMap(let o): definitions.blockMap(o.q, o.k, o.spec).tensors
        case .sparseLinearAttention(let o): [definitions.sparseLinearAttention(o)]
        case .sageOperands(let o): definitions.sageOperands(o).tensors
        case .view(let o): [o.result]
        case .concatenate(let o): [definitions.concatenate(o)]
        case .embedding(let o): [o.composed(on: self)]
        case .patchify(let o): [definitions.patchify(o)]
        case .unpatchify(let o): [definitions.unpatchify(o)]
        case .channelsLast(let o): [definitions.channelsLast(o)]
        case .channelsFirst(let o): [definitions.channelsFirst(o)]
        case .convolution(let o): [definitions.convolution(o)]
        case .interleaveTime(let o): [definitions.interleaveTime(o.x)]
        case .rgb8(let o): [definitions.rgb8(o.x)]
        case .nv12(let o): [definitions.nv12(o.x)]
        case .joinRows(let o): [definitions.joinRows(o)]
        case .exchange, .gather, .halo:
            programmingError("\(operation.name): no definition is asked")
        case .training(.adamWList(let o)): o.composed(on: self)
        case .training(let o): definitions.training(o)
        }
    }
}
