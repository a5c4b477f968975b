/// From HTTP to the service and back.

import FoundationEssentials
import HTTPTypes
import Hummingbird
import Jobs
import NIOCore
import ServiceResources
import Synchronization

extension HTTPField.Name {
    static let pollPause = Self("openai-poll-after-ms")!
    static let shouldRetry = Self("x-should-retry")!
    static let idempotencyKey = Self("idempotency-key")!
}

/// Answers one request.
struct Routes: Sendable {
    let service: VideoService
    let access: Guard
    private let files = FileIO()

    init(_ service: VideoService) {
        self.service = service
        access = Guard(service.options)
    }

    /// Every answer, also that something is wrong.
    func respond(to request: Request, context: some RequestContext) async -> Response {
        let start = ContinuousClock.now
        var response: Response
        do {
            do { try access.check(request) } catch {
                _ = try? await Self.bytes(of: request, limit: 0)
                throw error
            }
            let bytes = try await Self.bytes(of: request, limit: service.options.bodyLimit)
            response = try await route(request, bytes, context)
        } catch {
            response = Self.response(for: error, log: service.options.log)
        }
        addCrossOrigin(request, &response)
        if request.method == .head { response = response.createHeadResponse() }
        response.headers[.xContentTypeOptions] = "nosniff"
        service.metrics.countRequest(
            method: Self.known(request.method), status: Int(response.status.code),
            seconds: (ContinuousClock.now - start) / .seconds(1))
        return response
    }

    private static func known(_ method: HTTPRequest.Method) -> String {
        [.get, .post, .delete, .head, .options].contains(method) ? method.rawValue : "other"
    }

    private static func response(for error: any Error, log: (String) -> Void) -> Response {
        let error = APIError(error)
        if error.status >= 500, error.status != 503, error.status != 501 { log(error.message) }
        var response = Self.response(error.json, status: .init(code: error.status))
        if let seconds = error.retryAfter { response.headers[.retryAfter] = "\(seconds)" }
        if error.status == 401 { response.headers[.wwwAuthenticate] = "Bearer" }
        if error.status == 409 { response.headers[.shouldRetry] = "false" }
        return response
    }

    /// CORS, for the origins that were named.
    private func addCrossOrigin(_ request: Request, _ response: inout Response) {
        guard let origin = request.headers[.origin], access.allows(origin) else { return }
        response.headers[.accessControlAllowOrigin] = origin
        response.headers[.vary] = "Origin"
        response.headers[.accessControlExposeHeaders] = "openai-poll-after-ms, retry-after"
    }

    // MARK: Routing

    private func route(_ request: Request, _ bytes: [UInt8], _ context: some RequestContext)
        async throws -> Response
    {
        let path = request.uri.path
        let parts = path.split(separator: "/", omittingEmptySubsequences: false).dropFirst().map(
            String.init)
        if request.method == .options { return try preflight(request) }
        let isRead = request.method == .get || request.method == .head
        func need(_ method: HTTPRequest.Method) throws(APIError) {
            let isRight = method == .get ? isRead : request.method == method
            if !isRight { throw .notAllowed(request.method.rawValue, path) }
        }
        switch (parts.first, parts.dropFirst().first) {
        case ("v1", "videos"):
            return try await videos(request, bytes, Array(parts.dropFirst(2)), context)
        case ("v1", "models"):
            try need(.get)
            if parts.count == 2 { return Self.response(service.modelList()) }
            let name = parts.dropFirst(2).joined(separator: "/")
            let model = try service.served.model(percentDecoded(name), takesPicture: false)
            return Self.response(service.json(model))
        case ("v1", "loras") where parts.count == 2:
            try need(.get)
            let names = service.served.loras.keys.sorted()
            let objects = names.map { JSON.object(["id": .string($0), "object": "lora"]) }
            return Self.response(service.list(objects, ids: names, hasMore: false))
        case ("v1", "events") where parts.count == 2:
            try need(.get)
            return try events(of: nil)
        case ("health", nil):
            try need(.get)
            return Self.response(["status": "ok"])
        case ("ready", nil):
            try need(.get)
            let (isReady, isStopping) = service.state.withLock { ($0.isReady, $0.isStopping) }
            if isStopping { throw APIError.stopping }
            if !isReady { throw APIError.starting }
            return Self.response(["status": "ready"])
        case ("metrics", nil):
            try need(.get)
            return Response(
                status: .ok, headers: [.contentType: "text/plain; version=0.0.4; charset=utf-8"],
                body: ResponseBody(byteBuffer: ByteBuffer(string: try service.metricsText())))
        case ("openapi.json", nil), ("", nil), ("page", _):
            try need(.get)
            return try resource(path == "/openapi.json" ? "openapi.json" : parts.last ?? "")
        default:
            throw APIError.notFound("no_such_route", "there is nothing at \(path.prefix(80))")
        }
    }

    private func preflight(_ request: Request) throws -> Response {
        guard let origin = request.headers[.origin], access.allows(origin) else {
            return Response(status: .noContent)
        }
        return Response(
            status: .noContent,
            headers: [
                .accessControlAllowMethods: "GET, POST, DELETE",
                .accessControlAllowHeaders: "authorization, content-type, idempotency-key",
                .accessControlMaxAge: "600",
            ])
    }

    // MARK: Videos

    private func videos(
        _ request: Request, _ bytes: [UInt8], _ parts: [String], _ context: some RequestContext
    ) async throws -> Response {
        func body() throws(APIError) -> Body {
            try Body(bytes, contentType: request.headers[.contentType])
        }
        let isRead = request.method == .get || request.method == .head
        func refuse() -> APIError { .notAllowed(request.method.rawValue, request.uri.path) }
        switch (parts.first, parts.dropFirst().first, parts.count) {
        case (nil, _, 0):
            if isRead { return try list(request) }
            guard request.method == .post else { throw refuse() }
            let key = request.headers[.idempotencyKey]
            return videoResponse(try await service.create(try body(), key: key))
        case ("plan", nil, 1) where request.method == .post:
            return Self.response(try await service.plan(try body()))
        case ("edits", _, _), ("extensions", _, _), ("characters", _, _):
            throw APIError.notImplemented(
                "no model of this service does that; it makes videos from text and from a first picture"
            )
        case (let id?, nil, 1):
            if isRead { return videoResponse(try job(id)) }
            guard request.method == .delete else { throw refuse() }
            _ = try job(id)
            try service.delete(id)
            return Self.response(["id": .string(id), "object": "video.deleted", "deleted": true])
        case (let id?, "content", 2):
            guard isRead else { throw refuse() }
            let wanted = try job(id)
            do { return try await content(request, wanted, context) } catch {
                // Deleted while it was being read.
                _ = try job(id)
                throw error
            }
        case (let id?, "events", 2):
            guard isRead else { throw refuse() }
            return try events(of: try job(id))
        case (let id?, "cancel", 2):
            guard request.method == .post else { throw refuse() }
            _ = try job(id)
            return videoResponse(try service.cancel(id))
        case (let id?, "remix", 2):
            guard request.method == .post else { throw refuse() }
            let base = try job(id)
            let key = request.headers[.idempotencyKey]
            return videoResponse(
                try await service.create(try body(), key: key, base: base))
        default:
            throw APIError.notFound(
                "no_such_route", "there is nothing at \(request.uri.path.prefix(80))")
        }
    }

    private func job(_ id: String) throws -> Job {
        guard Job.isID(id), let job = try service.store.job(id) else { throw APIError.noVideo(id) }
        return job
    }

    /// A request's body. It is read to its end also where it is refused: whoever sends first and then looks for the answer
    /// would wait for ever.
    private static func bytes(of request: Request, limit: Int) async throws -> [UInt8] {
        var bytes: [UInt8] = []
        var count = 0
        for try await buffer in request.body {
            count += buffer.readableBytes
            if count <= limit { bytes += buffer.readableBytesView } else { bytes = [] }
            if count > 1 << 30 { break }
        }
        if count > limit { throw APIError.tooLarge(limit: limit) }
        return bytes
    }

    private func list(_ request: Request) throws -> Response {
        let query = request.uri.queryParameters
        var (limit, newestFirst) = (20, true)
        var statuses = Job.Status.allCases
        for (name, value) in query {
            switch name {
            case "limit":
                guard let number = Int(value), (0...100).contains(number) else {
                    throw APIError.value("limit", "\(value)", expected: "0 to 100")
                }
                limit = number
            case "order":
                guard value == "asc" || value == "desc" else {
                    throw APIError.value("order", "\(value)", expected: "asc or desc")
                }
                newestFirst = value == "desc"
            case "status":
                statuses = try value.split(separator: ",").map { word throws(APIError) in
                    guard let status = Job.Status(rawValue: String(word)) else {
                        let all = Job.Status.allCases.map(\.rawValue).joined(separator: ", ")
                        throw .value("status", "\(word)", expected: "some of \(all)")
                    }
                    return status
                }
            case "after": break
            default:
                throw APIError.invalid(
                    "unknown_field", "there is no parameter '\(name.prefix(80))'",
                    param: String(name.prefix(80)))
            }
        }
        let after = query["after"].map(String.init)
        guard
            let page = try service.store.list(
                after: after, limit: limit, newestFirst: newestFirst, statuses: statuses)
        else { throw APIError.noVideo(after ?? "") }
        return Self.response(
            service.list(
                page.jobs.map(service.json), ids: page.jobs.map(\.id), hasMore: page.hasMore))
    }

    // MARK: Contents

    private func content(_ request: Request, _ job: Job, _ context: some RequestContext)
        async throws
        -> Response
    {
        let variant = request.uri.queryParameters["variant"].map(String.init) ?? "video"
        if variant == "preview" {
            guard
                let png = service.state.withLock({ state in
                    state.previews.first { $0.id == job.id }?.png
                })
            else {
                throw APIError.notFound("video_not_ready", "there is no preview of '\(job.id)'")
            }
            return Response(
                status: .ok, headers: [.contentType: "image/png", .cacheControl: "no-store"],
                body: ResponseBody(byteBuffer: ByteBuffer(bytes: png)))
        }
        guard variant == "video" || VideoPicture(rawValue: variant) != nil else {
            throw APIError.value(
                "variant", variant, expected: "video, thumbnail, spritesheet or preview")
        }
        guard job.status == .completed else {
            throw APIError.notFound(
                "video_not_ready", "'\(job.id)' has no video: it is \(job.status.rawValue)")
        }
        if let picture = VideoPicture(rawValue: variant) {
            let path = try await service.picture(picture, of: job)
            return Response(
                status: .ok, headers: [.contentType: "image/webp"],
                body: try await files.loadFile(path: path, context: context))
        }
        return try await video(request, job, context)
    }

    private func video(_ request: Request, _ job: Job, _ context: some RequestContext) async throws
        -> Response
    {
        let path = service.folders.video(job.id)
        let size = job.fileBytes ?? 0
        var headers: HTTPFields = [
            .contentType: "video/mp4", .acceptRanges: "bytes",
            .contentDisposition: "inline; filename=\"\(job.id).mp4\"",
            // What an id stands for never changes.
            .eTag: "\"\(job.id)\"",
        ]
        if let text = request.headers[.range], let wanted = ByteRange(text, size: size) {
            guard let range = wanted.range else {
                headers[.contentRange] = "bytes */\(size)"
                return Response(status: .rangeNotSatisfiable, headers: headers)
            }
            headers[.contentRange] = "bytes \(range.lowerBound)-\(range.upperBound)/\(size)"
            return Response(
                status: .partialContent, headers: headers,
                body: try await files.loadFile(path: path, range: range, context: context))
        }
        return Response(
            status: .ok, headers: headers,
            body: try await files.loadFile(path: path, context: context))
    }

    private func resource(_ name: String) throws -> Response {
        guard let resource = Resource(name.isEmpty ? "index.html" : name) else {
            throw APIError.notFound("no_such_route", "there is nothing of this name")
        }
        return Response(
            status: .ok,
            headers: [
                .contentType: resource.contentType, .cacheControl: "no-cache",
                .contentSecurityPolicy:
                    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
                    + "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
            ], body: ResponseBody(byteBuffer: ByteBuffer(bytes: resource.bytes)))
    }

    // MARK: Answers

    static func response(_ json: JSON, status: HTTPResponse.Status = .ok) -> Response {
        Response(
            status: status, headers: [.contentType: "application/json"],
            body: ResponseBody(byteBuffer: ByteBuffer(string: json.text)))
    }

    private func videoResponse(_ job: Job) -> Response {
        var response = Self.response(service.json(job))
        if !job.status.isOver {
            response.headers[.pollPause] = "\(service.pollPause(job))"
        }
        return response
    }

    /// - Parameter job: nil for all.
    private func events(of job: Job?) throws -> Response {
        let service = service
        let stream = service.hub.listen(to: job?.id) {
            if let job {
                // As it is now that nothing is missed any more.
                let current = ((try? service.store.job(job.id)) ?? nil) ?? job
                return [("video", service.json(current))]
            }
            let live = (try? service.store.jobs([.queued, .inProgress])) ?? []
            return [("queue", service.queueState)] + live.map { ("video", service.json($0)) }
        }
        let body = ResponseBody { writer in
            for await event in stream {
                let text = event == .comment ? ":\n\n" : event.text
                try await writer.write(ByteBuffer(string: text))
                // Of one that is over there is nothing more to come.
                if let job, event.name == "video", let now = try service.store.job(job.id),
                    now.status.isOver
                {
                    break
                }
            }
            try await writer.finish(nil)
        }
        return Response(
            status: .ok,
            headers: [
                .contentType: "text/event-stream", .cacheControl: "no-store",
                HTTPField.Name("x-accel-buffering")!: "no",
            ], body: body)
    }
}

/// One range of bytes as a client asks for it; several at once are answered with all.
struct ByteRange {
    /// nil where it lies outside of the file.
    let range: ClosedRange<Int>?

    /// nil for what is to be ignored.
    init?(_ header: String, size: Int) {
        guard header.hasPrefix("bytes="), !header.contains(",") else { return nil }
        let sides = header.dropFirst("bytes=".count).split(
            separator: "-", omittingEmptySubsequences: false)
        guard sides.count == 2 else { return nil }
        switch (Int(sides[0]), Int(sides[1])) {
        case (let first?, nil) where sides[1].isEmpty:
            range = first < size ? first...(size - 1) : nil
        case (let first?, let last?) where first <= last:
            range = first < size ? first...min(last, size - 1) : nil
        case (nil, let count?) where sides[0].isEmpty:
            range = count > 0 && size > 0 ? max(0, size - count)...(size - 1) : nil
        default: return nil
        }
    }
}

/// A file that is part of the program.
struct Resource {
    let contentType: String
    let bytes: [UInt8]

    init?(_ name: String) {
        var index: Int32 = 0
        while let entry = service_resource(index) {
            defer { index += 1 }
            guard String(cString: entry.pointee.name) == name else { continue }
            contentType = String(cString: entry.pointee.type)
            bytes = Array(
                UnsafeRawBufferPointer(start: entry.pointee.bytes, count: Int(entry.pointee.count)))
            return
        }
        return nil
    }
}
