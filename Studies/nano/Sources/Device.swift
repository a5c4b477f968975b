/// `--device`: where the videos are made.

import ArgumentParser
import CPU
import CUDA
import Runs
import Tensors

enum Device: Sendable, Equatable, ExpressibleByArgument {
    /// The first GPU, or the CPU where there is none.
    case automatic
    case cpu
    case cuda(ordinal: Int)

    init?(argument: String) {
        switch argument {
        case "auto": self = .automatic
        case "cpu": self = .cpu
        case "cuda": self = .cuda(ordinal: 0)
        default:
            guard argument.hasPrefix("cuda:"), let ordinal = Int(argument.dropFirst(5)),
                ordinal >= 0
            else { return nil }
            self = .cuda(ordinal: ordinal)
        }
    }

    /// No device is opened yet.
    var isGPU: Bool { self != .cpu && ((try? Driver())?.deviceCount ?? 0) > 0 }

    /// - Parameters:
    ///   - threads: of the CPU; nil for all.
    ///   - note: told when kernels have been compiled.
    func open(threads: Int?, note: @escaping @Sendable (String) -> Void) throws -> OpenedDevice {
        var ordinal = 0
        if case .cuda(let chosen) = self { ordinal = chosen }
        let isCPU = self == .cpu || self == .automatic && !isGPU
        let backend: any Backend =
            isCPU
            ? CPUBackend(threads: threads)
            : try CUDABackend(ordinal: ordinal, CUDABackend.Options()) {
                note("kernels of \($0.file) are ready")
            }
        return OpenedDevice(
            backend,
            sageArchitecture: [SageArchitecture.sm90, .sm89Accumulate16].first {
                backend.supports(.sage($0))
            } ?? .sm80)
    }
}
