/// The objects of the protocol.

import Families
import FoundationEssentials
import Glibc
import Jobs
import Media
import Runs
import Sessions
import Synchronization
import Tensors

func base64(_ bytes: [UInt8]) -> String { Data(bytes).base64EncodedString() }

extension VideoService {
    /// A video as clients see it.
    func json(_ job: Job) -> JSON {
        let (request, order) = (job.order.request, job.order)
        let (running, position, estimate) = state.withLock { state in
            (
                state.running[job.id],
                job.status == .queued ? state.order.countAhead(of: job.id, at: now()) : nil,
                job.cost * state.order.secondsPerCost
            )
        }
        let seconds = Double(request.frames) / Double(max(request.framesPerSecond, 1))
        let progress =
            switch job.status {
            case .completed: 100
            case .inProgress: Int(min(running?.fraction ?? 0, 0.99) * 100)
            case .queued, .failed, .cancelled: 0
            }
        var members: [String: JSON] = [
            "id": .string(job.id), "object": "video", "model": .string(order.model),
            "status": .string(job.status.rawValue), "progress": .number(progress),
            "created_at": time(job.created),
            "completed_at": time(job.status == .completed ? job.completed : nil),
            "expires_at": time(job.expires), "started_at": time(job.started),
            "prompt": .string(request.prompt),
            "size": .string("\(request.width)x\(request.height)"),
            "seconds": .string(JSON.number(seconds, digits: 2).text),
            "remixed_from_video_id": .text(job.remixOf),
            "error": job.failure.map { ["code": .string($0.code), "message": .string($0.message)] }
                ?? .null,
        ]
        members.merge([
            "width": .number(request.width), "height": .number(request.height),
            "num_frames": .number(request.frames), "fps": .number(request.framesPerSecond),
            "seed": .number("\(request.seed)"),
            "num_inference_steps": .number(request.sampling.steps),
            "input_reference": .bool(order.hasPicture),
            "loras": .array(
                request.loras.map {
                    ["name": .string($0.path), "scale": .number(Double($0.strength))]
                }),
            "queue_position": .number(position.map { $0 + 1 }), "attempts": .number(job.attempts),
            "stage": .text(running?.stage?.title), "estimated_seconds": .number(estimate),
            "inference_time_s": .number(job.report?.totalSeconds),
            "stage_durations": .object(
                Dictionary(
                    (job.report?.stages ?? []).map { ($0.stage.title, JSON.number($0.seconds)) }
                ) { first, _ in first }),
            "peak_memory_mb": .number(job.report.map { Double($0.peakBytes) / 0x1p20 }, digits: 1),
            "file_bytes": .number(job.fileBytes), "request": JSON(encoding: request),
        ]) { $1 }
        return .object(members)
    }

    private func time(_ seconds: Double?) -> JSON { .number(seconds.map { Int($0) }) }

    /// When a client should ask again, in milliseconds: often enough for a bar that moves. The first answer decides for
    /// the `openai` client's whole wait.
    func pollPause(_ job: Job) -> Int {
        let seconds = state.withLock { job.cost * $0.order.secondsPerCost }
        return Int(min(max(seconds / 10, 0.1), 5) * 1000)
    }

    func list(_ objects: [JSON], ids: [String], hasMore: Bool) -> JSON {
        [
            "object": "list", "data": .array(objects), "first_id": .text(ids.first),
            "last_id": .text(ids.last), "has_more": .bool(hasMore),
        ]
    }

    // MARK: Models

    func modelList() -> JSON {
        list(served.models.map(json), ids: served.models.map(\.name), hasMore: false)
    }

    func json(_ model: ServedModel) -> JSON {
        var loaded: Set<String> = []
        for session in sessions { loaded.formUnion(session.residents.map(\.path)) }
        let family = model.models.family
        let (defaults, geometry) = (family.defaults, family.geometry)
        func extent(_ extent: Extent) -> JSON {
            .array([extent.t, extent.h, extent.w].map { .number($0) })
        }
        return [
            "id": .string(model.name), "object": "model", "created": .number(Int(started)),
            "owned_by": "turbodiffusion",
            "takes_image": .bool(family.conditioning == .firstFrame),
            "is_loaded": .bool(loaded.contains(model.models.transformer)),
            "has_two_experts": .bool(model.models.lowNoiseTransformer != nil),
            "defaults": [
                "width": .number(defaults.width), "height": .number(defaults.height),
                "num_frames": .number(defaults.frames), "fps": .number(defaults.framesPerSecond),
                "num_inference_steps": .number(defaults.distilled.steps),
                "attention_type": .string(defaults.attention.rawValue),
                "sla_topk": .number(defaults.topK),
            ],
            "limits": [
                "multiple": extent(geometry.multiple), "largest": extent(geometry.largest),
                "max_frames": .number(min(options.frameLimit, geometry.largest.t)),
                "max_pixels": .number(options.pixelLimit),
            ],
        ]
    }

    // MARK: Pictures

    /// Of a finished video, made when it is first asked for.
    /// - Returns: its file.
    func picture(_ picture: VideoPicture, of job: Job) async throws -> String {
        let path = folders.picture(job.id, picture.rawValue)
        if access(path, R_OK) == 0 { return path }
        try await picture.write(
            of: folders.video(job.id), frames: job.order.request.frames, to: path)
        // Deleted meanwhile.
        if try store.job(job.id) == nil {
            folders.remove(job.id)
            throw APIError.noVideo(job.id)
        }
        return path
    }

    /// Gauges of now.
    func metricsText() throws -> String {
        var models = 0
        for session in sessions { models += session.residents.count }
        let (queued, running) = state.withLock { ($0.order.count, $0.running.count) }
        return metrics.text([
            ("turbodiffusion_queue_length", "Requests that wait.", queued),
            ("turbodiffusion_running", "Requests that run.", running),
            ("turbodiffusion_loaded_models", "Models on devices.", models),
            ("turbodiffusion_disk_bytes", "Bytes of all videos.", try store.counts().fileBytes),
        ])
    }
}
