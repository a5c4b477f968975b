// The autoencoder's norm over channels.

import Ground
import Tensors

/// How the channels of one pixel are distributed over lanes.
struct ChannelPlan: Hashable {
    let vector, lanes, count: Int

    /// The numbers of accesses per lane that the kernels are compiled for, up to 64 elements in all.
    private static func counts(vector: Int) -> [Int] {
        vector == 1 ? [64] : [1, 2, 4, 64 / vector]
    }

    init(channels: Int, dtype: DType, aligned: Bool) {
        let vector = aligned ? 16 / dtype.byteCount : 1
        let vectors = ceilDivide(channels, vector)
        let lanes = aligned ? [8, 16].first { vectors <= $0 } ?? 32 : 32
        guard let count = Self.counts(vector: vector).first(where: { vectors <= $0 * lanes }) else {
            programmingError("channelNorm: \(channels) channels are too many")
        }
        self.vector = vector
        self.lanes = lanes
        self.count = count
    }

    static func instances(_ dtype: DType) -> [String] {
        let vector = 16 / dtype.byteCount
        return [8, 16].map { "\(vector), \($0), 1" }
            + [vector, 1].flatMap { v in counts(vector: v).map { "\(v), 32, \($0)" } }
    }

    var arguments: String { "\(vector), \(lanes), \(count)" }
}

enum ChannelNorm {
    static let unit = KernelUnit(
        "channel_norm.cu",
        kernels: [DType.bf16, .f32].flatMap { type in
            ChannelPlan.instances(type).map { plan in
                "channel_norm<\(CUDABackend.typeName(type)), \(plan)>"
            }
        })
    static let units = [unit]
}

extension CUDABackend {
    func channelNorm(_ o: Operation.ChannelNorm) -> Tensor {
        let x = o.x
        let channels = x.shape.columns
        requireActivations(x, "channelNorm")
        let gamma = converted(o.gamma, to: .f32)
        let plan = ChannelPlan(
            channels: channels, dtype: x.dtype,
            aligned: x.hasAlignedRows && gamma.byteOffset % 16 == 0)
        let out = tensor(o.results[0].shape, x.dtype)
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, Int64, Int64, Int64, Int64, Int32,
                Float, Int32
            > = context.kernel(
                "channel_norm<\(Self.typeName(x.dtype)), \(plan.arguments)>",
                of: ChannelNorm.unit)
        let pixel = channels * x.dtype.byteCount
        func launch(
            _ source: DevicePointer, _ target: DevicePointer, runs: Int, positions: Int,
            sourcePitch: Int, targetPitch: Int
        ) {
            kernel(
                .elements(runs * positions * plan.lanes), target, source, gamma.pointer,
                Int64(runs * positions), Int64(positions), Int64(sourcePitch), Int64(targetPitch),
                Int32(channels), Float(channels).squareRoot(), o.silu ? 1 : 0)
        }
        if o.margin.isEmpty {
            let positions = x.shape.rows
            launch(
                x.pointer, out.pointer, runs: 1, positions: positions, sourcePitch: 0,
                targetPitch: 0)
            return out
        }
        // Own rows first: those of other devices may still be on their way.
        for (tensor, transfer) in o.margin.parts(around: x) {
            launch(
                tensor.pointer + transfer.source.offset, out.pointer + transfer.target.offset,
                runs: transfer.rows, positions: transfer.width / pixel,
                sourcePitch: transfer.source.pitch / pixel,
                targetPitch: transfer.target.pitch / pixel)
        }
        return out
    }
}
