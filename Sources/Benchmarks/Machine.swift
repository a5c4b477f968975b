/// The machine that was measured, in words.

import CUDA
import Glibc
import Ground
import SystemPackage
public import Tensors

/// The device and the processor of the machine.
public struct Machine: Encodable, Sendable {
    public let device: String
    public let processor: String
    public let cores: Int
    /// Of a GPU: the driver's version, the number of multiprocessors, and the bytes of memory.
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

    /// The processor's name and the number of logical cores, according to Linux.
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
