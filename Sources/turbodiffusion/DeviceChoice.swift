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

    var defaultValueDescription: String {
        switch self {
        case .automatic: "auto"
        case .cpu: "cpu"
        case .cuda(let ordinal): "cuda:\(ordinal)"
        }
    }
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

    /// Refuses a run that needs more device memory than other programs have left, before anything is loaded.
    /// - Parameter needed: bytes that the plan asks for.
    static func checkFreeMemory(_ needed: Int, on backend: any Backend) throws {
        guard let gpu = backend as? CUDABackend else { return }
        let (free, total) = (gpu.context.device.freeMemory, gpu.context.properties.totalMemory)
        guard needed > free else { return }
        throw UserError("device.memory", shortage(needed, free: free, total: total))
    }

    static func shortage(_ needed: Int, free: Int, total: Int) -> String {
        let gibibytes = free >> 30
        let advice =
            gibibytes > 0 ? "close them, or try --memory-limit \(gibibytes)GiB" : "close them"
        return
            "the run needs \(Output.bytes(needed)) of device memory, only \(Output.bytes(free)) of "
            + "\(Output.bytes(total)) are free: other programs hold \(Output.bytes(total - free)) "
            + "(nvidia-smi lists them); \(advice)"
    }

    /// Whose 8-bit arithmetic the original would use on this device. On a CPU, that of a Hopper card is imitated.
    static func sageArchitecture(of backend: any Backend) -> SageArchitecture {
        [SageArchitecture.sm90, .sm89Accumulate16].first { backend.supports(.sage($0)) } ?? .sm80
    }

    /// A machine without an NVIDIA GPU is no news.
    private static func meansNoDevice(_ error: CUDAUnavailable) -> Bool {
        switch error {
        case .noDevice: true
        case .missingLibrary(let name, _, _): name.hasPrefix("libcuda.")
        default: false
        }
    }
}
