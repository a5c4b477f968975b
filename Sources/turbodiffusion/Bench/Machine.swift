/// The machine that was measured, in words.

import CPU
import CUDA
import FoundationEssentials
import Tensors

struct Machine: Encodable {
    var device: String
    var processor: String
    var cores: Int
    /// GPUs: the driver, multiprocessors, bytes of memory.
    var driver: String?
    var multiprocessors: Int?
    var memoryBytes: Int?

    init(_ backend: any Backend, threads: Int?) {
        device = backend.name
        (processor, cores) = Self.processor()
        guard let gpu = backend as? CUDABackend else { return }
        let properties = gpu.context.properties
        driver = properties.driver
        multiprocessors = properties.multiprocessors
        memoryBytes = properties.totalMemory
    }

    var lines: [String] {
        var lines = ["device     \(device)"]
        if let driver, let multiprocessors, let memoryBytes {
            lines.append(
                "driver     \(driver); \(multiprocessors) multiprocessors, "
                    + Output.bytes(memoryBytes))
        }
        lines.append("processor  \(processor), \(cores) logical cores")
        return lines
    }

    /// The name that Linux gives the processor, and how many of them may be used.
    private static func processor() -> (name: String, cores: Int) {
        let cores = ProcessInfo.processInfo.activeProcessorCount
        guard let data = FileManager.default.contents(atPath: "/proc/cpuinfo") else {
            return ("unknown processor", cores)
        }
        let line = String(decoding: data, as: UTF8.self).split(separator: "\n")
            .first { $0.hasPrefix("model name") }
        let name = line.flatMap { $0.split(separator: ":").last }
            .map { String($0.drop { $0 == " " }) }
        return (name ?? "unknown processor", cores)
    }
}
