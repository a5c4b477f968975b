/// What the tests of runs share: nano at a tiny size on the CPU.

import CPU
import Catalog
import Families
import Media
import Runs
import Synchronization
import Tensors

let projectFolder: String = {
    let parts = #filePath.split(separator: "/").dropLast(3)
    return "/" + parts.joined(separator: "/")
}()

func nano() throws -> ModelSet {
    try Catalog.published.open(ModelChoice(projectFolder + "/Models/nano"))
}

func engine(threads: Int? = nil) -> Engine {
    Engine { OpenedDevice(CPUBackend(threads: threads), sageArchitecture: .sm90) }
}

/// 64x64, nine frames.
func tinyRequest(_ prompt: String = "a red cube spins on a green floor") -> Request {
    Request(
        prompt: prompt, width: 64, height: 64, frames: 9, seed: 5,
        arithmetic: Arithmetic(attention: .sla, topK: 0.5))
}

/// Euler without guidance, or with.
func euler(steps: Int, guidance: Double = 1) -> Sampling {
    .flow(.init(.euler, steps: steps, guidance: guidance))
}

/// Events of a run, in order.
final class EventList: Sendable {
    private let list = Mutex<[RunEvent]>([])
    func add(_ event: RunEvent) { list.withLock { $0.append(event) } }
    var events: [RunEvent] { list.withLock { $0 } }

    /// Titles of the stages that started.
    var started: [String] {
        events.compactMap { if case .stageStarted(let stage) = $0 { stage.title } else { nil } }
    }
    var finished: [String] {
        events.compactMap {
            if case .stageFinished(let report) = $0 { report.stage.title } else { nil }
        }
    }
    var notices: [Notice] {
        events.compactMap { if case .notice(let notice) = $0 { notice } else { nil } }
    }
}

/// All frames of a request.
func frames(
    of request: Request, _ models: ModelSet, on engine: Engine = engine(),
    _ options: RunOptions = RunOptions(), events: EventList = EventList()
) async throws -> [UInt8] {
    var frames: [UInt8] = []
    _ = try await engine.finish(try Run(request, models, options), events: events.add) {
        frames += $0.bytes
    }
    return frames
}
