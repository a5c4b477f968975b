/// The machine that was measured, in words.

import CUDA
import Glibc
import Ground
import SystemPackage
public import Tensors

public struct Machine: Encodable, Sendable {
    public let device: String
    public let processor: String
    public let cores: Int
    /// GPUs: the driver, multiprocessors, bytes of memory.
    public let driver: String?
    public let multiprocessors: Int?
    public let memoryBytes: Int?

    public init(_ backend: any Backend) {
        device = backend.name
        (processor, cores) = Self.processor()
        let card = (backend as? CUDABackend)?.context.properties
        driver = card?.driver
        multiprocessors = card?.multiprocessors
        memoryBytes = card?.totalMemory
    }

    /// The name that Linux gives the processor, and how many of them may be used.
    private static func processor() -> (name: String, cores: Int) {
        let cores = Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))
        let text = (try? FilePath("/proc/cpuinfo").contents()) ?? []
        let line = String(decoding: text, as: UTF8.self).split(separator: "\n")
            .first { $0.hasPrefix("model name") }
        let name = line.flatMap { $0.split(separator: ":").last }
            .map { String($0.drop { $0 == " " }) }
        return (name ?? "unknown processor", cores)
    }
}
