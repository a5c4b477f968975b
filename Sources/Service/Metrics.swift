/// Counters for Prometheus.

import Glibc
import Ground
import Synchronization
import SystemPackage

/// What happened since the process began, in the text format of Prometheus.
final class Metrics: Sendable {
    private struct Sum {
        var count = 0
        var total = 0.0
        mutating func add(_ value: Double) {
            count += 1
            total += value
        }
    }
    private struct State {
        var requests: [String: Int] = [:]
        var requestSeconds = Sum()
        var videos: [String: Int] = [:]
        var stages: [String: Sum] = [:]
        var waiting = Sum()
        var peakBytes = 0
    }
    private let state = Mutex(State())

    func countRequest(method: String, status: Int, seconds: Double) {
        state.withLock { state in
            state.requests["method=\"\(method)\",status=\"\(status)\"", default: 0] += 1
            state.requestSeconds.add(seconds)
        }
    }
    func countVideo(_ status: String) { state.withLock { $0.videos[status, default: 0] += 1 } }
    func addWaiting(_ seconds: Double) { state.withLock { $0.waiting.add(seconds) } }
    func addStage(_ name: String, seconds: Double, peakBytes: Int) {
        state.withLock { state in
            state.stages[name, default: Sum()].add(seconds)
            state.peakBytes = max(state.peakBytes, peakBytes)
        }
    }

    /// - Parameter gauges: what is so now.
    func text(_ gauges: [(name: String, help: String, value: Int)]) -> String {
        let state = state.withLock { $0 }
        var text = ""
        func family(_ name: String, _ type: String, _ help: String, _ lines: [String]) {
            text += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
            for line in lines { text += line + "\n" }
        }
        func sum(_ name: String, _ labels: String, _ sum: Sum) -> [String] {
            ["\(name)_sum\(labels) \(fixed(sum.total, 6))", "\(name)_count\(labels) \(sum.count)"]
        }
        family(
            "turbodiffusion_requests_total", "counter", "Answered requests.",
            state.requests.sorted { $0.key < $1.key }.map {
                "turbodiffusion_requests_total{\($0.key)} \($0.value)"
            })
        family(
            "turbodiffusion_request_seconds", "summary",
            "From a request's header to its answer's; bodies that stream are not in it.",
            sum("turbodiffusion_request_seconds", "", state.requestSeconds))
        family(
            "turbodiffusion_videos_total", "counter", "Videos that are over, by how.",
            state.videos.sorted { $0.key < $1.key }.map {
                "turbodiffusion_videos_total{status=\"\($0.key)\"} \($0.value)"
            })
        family(
            "turbodiffusion_stage_seconds", "summary", "Stages of finished videos.",
            state.stages.sorted { $0.key < $1.key }.flatMap {
                sum("turbodiffusion_stage_seconds", "{stage=\"\($0.key)\"}", $0.value)
            })
        family(
            "turbodiffusion_queue_wait_seconds", "summary", "From acceptance to the begin.",
            sum("turbodiffusion_queue_wait_seconds", "", state.waiting))
        let own = [
            ("turbodiffusion_device_peak_bytes", "Most device memory of a stage.", state.peakBytes),
            ("process_resident_memory_bytes", "Resident memory.", Self.residentBytes),
            ("process_open_fds", "Open descriptors.", Self.count("/proc/self/fd")),
            ("process_threads", "Threads.", Self.count("/proc/self/task")),
        ]
        for (name, help, value) in gauges + own {
            family(name, "gauge", help, ["\(name) \(value)"])
        }
        return text
    }

    private static func count(_ folder: String) -> Int {
        (try? FilePath(folder).fileNames())?.count ?? 0
    }

    private static var residentBytes: Int {
        guard let bytes = try? FilePath("/proc/self/statm").contents() else { return 0 }
        let pages = String(decoding: bytes, as: UTF8.self).split(separator: " ").dropFirst().first
        return (pages.flatMap { Int($0) } ?? 0) * Int(sysconf(Int32(_SC_PAGESIZE)))
    }
}
