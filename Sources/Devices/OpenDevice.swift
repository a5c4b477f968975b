/// Opening a device, and what the user should know about that.

import CPU
public import CUDA
import Ground
public import Tensors

/// How a device is opened.
public struct DeviceOptions: Sendable {
    /// Number of threads for the CPU; nil for one per processor.
    public var threads: Int?
    /// Options for GPUs; ignored on the CPU.
    public var cuda = CUDABackend.Options()
    /// The most memory to take of a GPU, in bytes; nil: all there is.
    public var memoryLimit: Int? {
        get { cuda.memoryLimit }
        set { cuda.memoryLimit = newValue }
    }

    public init() {}
}

/// Something that the user should know about a device that is being opened.
public enum DeviceNote: Sendable, CustomStringConvertible {
    /// A file of kernels has been compiled or loaded.
    case kernels(file: String, seconds: Double)
    /// There is a GPU, but it cannot be used, so the CPU is used instead.
    case fallsBack(CUDAUnavailable)
    /// Two GPUs of a group cannot write to each other's memory.
    case noPeerAccess(from: Int, to: Int)

    public var description: String {
        switch self {
        case .kernels(let file, let seconds):
            "kernels of \(file) ready after \(describe(seconds: seconds))"
        case .fallsBack(let reason): "\(reason); the CPU is used"
        case .noPeerAccess(let from, let to):
            "GPU \(from) has no access to the memory of GPU \(to): what they exchange goes by way of the host"
        }
    }
}

extension DeviceChoice {
    /// Whether a GPU will be opened, as far as this can be known without opening it.
    public var isGPU: Bool {
        switch self {
        case .cpu: false
        case .cuda: true
        case .automatic: (try? Driver()) != nil
        }
    }

    /// Opens the device. The backend must stay on the calling thread.
    /// - Parameter note: may be called from any thread.
    /// - Throws: what ``CUDABackend`` throws, if a GPU was named or has failed.
    public func open(
        _ options: DeviceOptions = DeviceOptions(),
        note: @escaping @Sendable (DeviceNote) -> Void = { _ in }
    ) throws -> any Backend {
        func gpu(_ ordinal: Int) throws -> any Backend {
            try CUDABackend(ordinal: ordinal, options.cuda) {
                note(.kernels(file: $0.file, seconds: $0.seconds))
            }
        }
        switch self {
        case .cpu: return CPUBackend(threads: options.threads)
        case .cuda(let ordinal): return try gpu(ordinal)
        case .automatic:
            do {
                return try gpu(0)
            } catch let reason as CUDAUnavailable {
                if !reason.meansNoGPU { note(.fallsBack(reason)) }
                return CPUBackend(threads: options.threads)
            }
        }
    }
}

extension CUDAUnavailable {
    /// Whether this machine simply has no NVIDIA GPU, which a user of the CPU need not be told.
    var meansNoGPU: Bool {
        switch self {
        case .noDevice: true
        case .missingLibrary(let name, _, _): name.hasPrefix("libcuda.")
        default: false
        }
    }
}
