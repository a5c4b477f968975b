/// Opening a device, and what the user should be told of it.

public import CPU
public import CUDA
import Ground
public import Tensors

/// How a device is opened.
public struct DeviceOptions: Sendable {
    /// Threads of the CPU; nil for all.
    public var threads: Int?
    /// What a GPU may take and where its kernels come from; the CPU ignores it.
    public var cuda = CUDABackend.Options()
    /// The most memory to take of a GPU, in bytes; nil: all there is.
    public var memoryLimit: Int? {
        get { cuda.memoryLimit }
        set { cuda.memoryLimit = newValue }
    }

    public init() {}
}

/// What a user should know of a device that is being opened.
public enum DeviceNote: Sendable, CustomStringConvertible {
    /// A file of kernels was compiled or loaded.
    case kernels(file: String, seconds: Double)
    /// A GPU was looked for and there is one, but it cannot be used: the CPU takes its place.
    case fallsBack(CUDAUnavailable)
    /// Why the CPU does not compute at its full speed.
    case slowCPU(advice: String)

    public var description: String {
        switch self {
        case .kernels(let file, let seconds):
            "kernels of \(file) ready after \(describe(seconds: seconds))"
        case .fallsBack(let reason): "\(reason); the CPU is used"
        case .slowCPU(let advice): advice
        }
    }
}

extension DeviceChoice {
    /// Whether a GPU will be opened, as far as that can be told without opening it.
    public var isGPU: Bool {
        switch self {
        case .cpu: false
        case .cuda: true
        case .automatic: (try? Driver()) != nil
        }
    }

    /// Opens the device. The backend belongs to the thread that calls this.
    /// - Parameter note: told from any thread.
    /// - Throws: what ``CUDABackend`` throws, where a GPU was named or has failed.
    public func open(
        _ options: DeviceOptions = DeviceOptions(),
        note: @escaping @Sendable (DeviceNote) -> Void = { _ in }
    ) throws -> any Backend {
        func gpu(_ ordinal: Int) throws -> any Backend {
            try CUDABackend(ordinal: ordinal, options.cuda) {
                note(.kernels(file: $0.file, seconds: $0.seconds))
            }
        }
        func cpu() -> any Backend {
            if let advice = CPUBackend.advice { note(.slowCPU(advice: advice)) }
            return CPUBackend(threads: options.threads)
        }
        switch self {
        case .cpu: return cpu()
        case .cuda(let ordinal): return try gpu(ordinal)
        case .automatic:
            do {
                return try gpu(0)
            } catch let reason as CUDAUnavailable {
                if !reason.meansNoGPU { note(.fallsBack(reason)) }
                return cpu()
            }
        }
    }
}

extension CUDAUnavailable {
    /// Whether this machine simply has no NVIDIA GPU, of which a user of the CPU need not hear.
    var meansNoGPU: Bool {
        switch self {
        case .noDevice: true
        case .missingLibrary(let name, _, _): name.hasPrefix("libcuda.")
        default: false
        }
    }
}
