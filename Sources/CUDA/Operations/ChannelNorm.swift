// The autoencoder's norm over channels.

import Ground
import Tensors

/// How the channels of one pixel are distributed over lanes.
struct ChannelPlan: Hashable {
    let vector, lanes, count: Int
    /// Positions of one group of lanes, so that enough bytes are in flight.
    var positions: Int { Self.positions(vector: vector, count: count) }
    /// Positions of a block of 256 threads.
    var perBlock: Int { 256 / lanes * positions }

    private static func positions(vector: Int, count: Int) -> Int {
        vector == 1 ? 1 : max(1, 4 / count)
    }

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
        func arguments(_ vector: Int, _ lanes: Int, _ count: Int) -> String {
            "\(vector), \(lanes), \(count), \(positions(vector: vector, count: count))"
        }
        return [8, 16].map { arguments(vector, $0, 1) }
            + [vector, 1].flatMap { v in counts(vector: v).map { arguments(v, 32, $0) } }
    }

    var arguments: String { "\(vector), \(lanes), \(count), \(positions)" }
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
        let out = tensor(x.shape, x.dtype)
        let kernel:
            Kernel<DevicePointer, DevicePointer, DevicePointer, Int64, Int32, Float, Int32> =
                context.kernel(
                    "channel_norm<\(Self.typeName(x.dtype)), \(plan.arguments)>",
                    of: ChannelNorm.unit)
        kernel(
            LaunchShape(
                grid: Extents(ceilDivide(x.shape.rows, plan.perBlock)), block: 256), out.pointer,
            x.pointer, gamma.pointer,
            Int64(x.shape.rows), Int32(channels), Float(channels).squareRoot(),
            o.silu ? 1 : 0)
        return out
    }
}
