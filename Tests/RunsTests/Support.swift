/// What the tests of the pipelines share: nano at a tiny size on the CPU.

import CPU
import Pipelines
import Synchronization
import Tensors

let projectFolder: String = {
    let parts = #filePath.split(separator: "/").dropLast(3)
    return "/" + parts.joined(separator: "/")
}()

func nano() throws -> ModelSet { try ModelSet(folder: projectFolder + "/Models/nano") }

func pipeline(_ models: ModelSet, threads: Int? = nil) -> VideoPipeline {
    VideoPipeline(models) {
        OpenedDevice(CPUBackend(threads: threads), sageArchitecture: .sm90)
    }
}

/// 64x64, nine frames.
func tinyRequest(_ prompt: String = "a red cube spins on a green floor") -> VideoRequest {
    VideoRequest(
        prompt: prompt, width: 64, height: 64, frames: 9, seed: 5, attention: .sla, topK: 0.5)
}

/// Events of a run, in order.
final class EventList: Sendable {
    private let list = Mutex<[PipelineEvent]>([])
    func add(_ event: PipelineEvent) { list.withLock { $0.append(event) } }
    var events: [PipelineEvent] { list.withLock { $0 } }

    /// Names of the stages that started.
    var started: [String] {
        events.compactMap { if case .started(let stage) = $0 { stage.name } else { nil } }
    }
    var finished: [String] {
        events.compactMap { if case .finished(let report) = $0 { report.stage.name } else { nil } }
    }
}

/// All frames of a request.
func frames(
    of request: VideoRequest, _ pipeline: VideoPipeline, _ options: RunOptions = RunOptions()
) async throws -> [UInt8] {
    var frames: [UInt8] = []
    _ = try await pipeline.generate(request, options) { frames += $0.bytes }
    return frames
}
