/// `--device`: which machine computes.

import ArgumentParser
import CPU
import CUDA
import Tensors

enum DeviceChoice: Sendable, Equatable, ExpressibleByArgument {
    /// The first usable GPU, or the CPU.
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

    var defaultValueDescription: String { self == .automatic ? "auto" : "cpu" }
    static var allValueStrings: [String] { ["auto", "cpu", "cuda", "cuda:N"] }

    /// Opens the device. The backend belongs to the thread that calls this.
    /// - Parameters:
    ///   - threads: of the CPU; nil for all.
    ///   - memoryLimit: bytes of device memory, for GPUs.
    ///   - debugKernels: wait for every kernel, so that a failure names the kernel that caused it.
    ///   - note: told what the user should know: kernels being compiled, a GPU that cannot be used.
    func open(
        threads: Int? = nil, memoryLimit: Int? = nil, residentWeights: Int? = nil,
        debugKernels: Bool = false, note: @escaping @Sendable (String) -> Void = { _ in }
    ) throws -> any Backend {
        var options = CUDABackend.Options()
        options.memoryLimit = memoryLimit
        options.residentWeights = residentWeights
        options.waitsForEachKernel = debugKernels
        func gpu(_ ordinal: Int) throws -> any Backend {
            try CUDABackend(ordinal: ordinal, options) { built in
                note("kernels of \(built.file) ready after \(Output.seconds(built.seconds))")
            }
        }
        func cpu() -> any Backend {
            if let advice = CPUBackend.advice { note(advice) }
            return CPUBackend(threads: threads)
        }
        switch self {
        case .cpu: return cpu()
        case .cuda(let ordinal): return try gpu(ordinal)
        case .automatic:
            do {
                return try gpu(0)
            } catch let error as CUDAUnavailable {
                if !Self.meansNoDevice(error) { note("\(error); the CPU is used") }
                return cpu()
            }
        }
    }

    /// Whose 8-bit arithmetic the original would use on this device. On a CPU, that of a Hopper card is imitated.
    static func sageArchitecture(of backend: any Backend) -> SageArchitecture {
        [SageArchitecture.sm90, .sm89Accumulate16].first { backend.supports(.sage($0)) } ?? .sm80
    }

    /// A machine without an NVIDIA GPU is nothing to talk about.
    private static func meansNoDevice(_ error: CUDAUnavailable) -> Bool {
        switch error {
        case .noDevice: true
        case .missingLibrary(let name, _, _): name.hasPrefix("libcuda.")
        default: false
        }
    }
}
