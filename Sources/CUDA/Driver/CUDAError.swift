// Errors of the NVIDIA libraries, as values with everything that a report needs.

/// A failed call of the driver or of NVRTC.
public struct CUDAError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The library's error code, for example 700.
    public let code: Int32
    /// The name of the code, for example `CUDA_ERROR_ILLEGAL_ADDRESS`.
    public let name: String
    /// The library's description.
    public let text: String
    /// The function that failed, and what it should do: `cuLaunchKernel gelu<bf16>`.
    public let call: String

    public init(code: Int32, name: String, text: String, call: String) {
        self.code = code
        self.name = name
        self.text = text
        self.call = call
    }

    public var description: String {
        "\(call): \(name) (\(code)): \(text)" + (advice.map { "; \($0)" } ?? "")
    }

    /// What to do about it, if that is known.
    public var advice: String? {
        switch code {
        case 2:
            "a smaller size or --memory-limit needs less memory, and nvidia-smi lists what else "
                + "uses it"
        case 46, 101, 214, 219, 220, 226, 800, 999:
            "the GPU or its driver failed: look at nvidia-smi and dmesg (Xid), reset the GPU or "
                + "restart the machine"
        case 34, 35, 802, 803, 804:
            "the NVIDIA driver is not ready or too old for this library: update it, or restart the "
                + "machine after an update"
        case 200, 209, 218, 222, 300:
            "the compiled kernels do not fit the driver: delete the folder of kernels that "
                + "'doctor' names, or update the driver"
        case 700, 702, 710, 714...719, 721:
            "the GPU stopped the program: 'turbodiffusion doctor' checks whether it computes "
                + "correctly; please report this line"
        default: nil
        }
    }
}

/// Why CUDA cannot be used on this machine. The description says what was missing and what to do.
public enum CUDAUnavailable: Error, Hashable, Sendable, CustomStringConvertible {
    /// The library is in none of the searched folders.
    case missingLibrary(name: String, searched: [String], reason: String)
    /// A library lacks a function that we need.
    case missingSymbol(symbol: String, library: String)
    case noDevice
    case noSuchDevice(ordinal: Int, count: Int)
    /// The installed driver is too old for the purpose.
    case driverTooOld(found: String, needed: String, purpose: String)
    case deviceTooOld(name: String, capability: String, needed: String)
    case failed(CUDAError)

    public var description: String {
        switch self {
        case .missingLibrary(let name, _, _) where name.hasPrefix("libcuda."):
            "no CUDA device: no NVIDIA driver (\(name)) is installed"
        case .missingLibrary(let name, let searched, let reason):
            """
            \(name) not found (\(reason)); looked in \(searched.joined(separator: ", ")). Install it (pip \
            install nvidia-cuda-nvrtc, or the CUDA toolkit) or name its folder with --cuda-libraries \
            or TURBODIFFUSION_CUDA_LIBRARIES
            """
        case .missingSymbol(let symbol, let library):
            "\(library) has no function \(symbol): it is older than CUDA 12.0; update it"
        case .noDevice:
            "no CUDA device: the driver is installed but shows no NVIDIA GPU"
        case .noSuchDevice(let ordinal, let count):
            "no CUDA device \(ordinal): this machine has \(count) (numbered from 0)"
        case .driverTooOld(let found, let needed, let purpose):
            "driver \(found) found, \(needed) needed for \(purpose): update the NVIDIA driver"
        case .deviceTooOld(let name, let capability, let needed):
            "\(name) has compute capability \(capability); \(needed) or later is needed"
        case .failed(let error):
            error.description
        }
    }
}
