/// What `doctor --times` prints: the rates of a GPU and the times of its main operations, as a block to send with a report.

import Benchmarks
import CPU
import CUDA
import Ground
import Terminal
import Verification

enum CardTimes {
    /// Rows of the operation table, at the size of the 1.3B model and the autoencoder at 480p, with the arithmetic whose
    /// rate limits them. Of the sparse attentions a card has one or two.
    static let operations: [(name: String, arithmetic: ArithmeticKind)] = [
        ("linear int8Blocks none 32760x1536x1536", .int8),
        ("linear int8Blocks gelu to int8Blocks 32760x1536x8960", .int8),
        ("linearAdd int8Blocks gate 32760x8960x1536", .int8),
        ("linear bf16 none 32760x1536x1536", .bf16),
        ("sparseLinearAttention sm80 32760x12x128 top 0.1", .int8),
        ("sparseLinearAttention sm89_pp 32760x12x128 top 0.1", .int8),
        ("sparseLinearAttention sm90 32760x12x128 top 0.1", .int8),
        ("attention bf16 32760x512x12x128", .bf16),
        ("modulatedLayerNorm bf16 to int8Blocks 32760x1536", .f32),
        ("channelNorm bf16 1597440x96", .f32),
        ("convolution bf16 2+4x480x832 96->96 333", .bf16),
        ("attention bf16 6240x6240x1x384", .bf16),
    ]

    /// Measures in about ten seconds.
    /// - Throws: the device's errors.
    static func lines(_ gpu: CUDABackend) throws -> [String] {
        let ceilings = try Ceilings.measure(gpu, threads: nil)
        let rates = ArithmeticKind.allCases.compactMap { kind in
            ceilings.arithmetic[kind].map { "\(kind.rawValue) \(Int(($0 / 1e12).rounded())) T/s" }
        }
        let table = OperationTable(seed: 1)
        let reference = CPUBackend(engine: .definition)
        let times = operations.compactMap { operation -> String? in
            let time = table.run(
                .fast, subject: gpu, reference: reference, filter: operation.name
            ).compactMap(\.time).first { $0.name == operation.name }
            guard let time else { return nil }
            let arithmetic = ceilings.arithmetic[operation.arithmetic].flatMap { rate in
                time.teraflops.map { $0 * 1e12 / rate }
            }
            let share = max(arithmetic ?? 0, time.gigabytesPerSecond * 1e9 / ceilings.copy)
            return
                "\(operation.name): \(time.line), \(Int((100 * share).rounded())) % of the ceiling"
        }
        let properties = gpu.context.properties
        return [
            "\(gpu.name), \(properties.architecture), \(properties.multiprocessors) multiprocessors, "
                + "driver \(properties.driver)",
            "copying \(Int((ceilings.copy / 1e9).rounded())) GB/s, "
                + rates.joined(separator: ", "),
        ] + times
    }
}
