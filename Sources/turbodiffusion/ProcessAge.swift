/// How long this process has existed.

import Glibc
import Ground
import SystemPackage

enum ProcessAge {
    /// Seconds since the process began, to a hundredth; nil where the system does not tell.
    static var seconds: Double? {
        // The name, in brackets, may have spaces in it; the start is the twentieth number after it, in clock ticks.
        guard let bytes = try? FilePath("/proc/self/stat").contents(),
            let end = bytes.lastIndex(of: UInt8(ascii: ")"))
        else { return nil }
        let words = bytes[(end + 1)...].split(separator: UInt8(ascii: " "))
        guard words.count > 19, let ticks = Double(String(decoding: words[19], as: UTF8.self))
        else { return nil }
        guard let uptime = try? FilePath("/proc/uptime").contents(),
            let now = Double(
                String(decoding: uptime.prefix { $0 != UInt8(ascii: " ") }, as: UTF8.self))
        else { return nil }
        let age = now - ticks / Double(sysconf(Int32(_SC_CLK_TCK)))
        // In a container the one may be of the machine and the other not.
        return age >= 0 && age < 1e6 ? age : nil
    }
}
