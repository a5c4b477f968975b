/// Host memory that is free.

import SystemPackage

/// Bytes of host memory that can be had without swapping; nil where the system does not tell.
public func availableMemory() -> Int? {
    guard let bytes = try? FilePath("/proc/meminfo").contents() else { return nil }
    let text = String(decoding: bytes, as: UTF8.self)
    let line = text.split(separator: "\n").first { $0.hasPrefix("MemAvailable:") }
    let kilobytes = line?.split(separator: " ").dropFirst().first.flatMap { Int($0) }
    return kilobytes.map { $0 * 1024 }
}
