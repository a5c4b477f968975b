/// The service on its port.

import Hummingbird
import Logging
import NIOCore
import ServiceLifecycle
import Synchronization

/// A service that listens.
public final class Server: Sendable {
    private let service: VideoService
    private let group: Mutex<ServiceGroup?> = Mutex(nil)

    /// Opens folder and queue.
    /// - Throws: ``ServiceError``, `DatabaseError`.
    public init(_ options: ServiceOptions) throws { service = try VideoService(options) }

    /// Listens and works until ``stop()``.
    /// - Parameter listening: told the port when requests are taken.
    /// - Throws: where the port is taken or a device cannot be used.
    public func run(listening: @escaping @Sendable (Int) -> Void = { _ in }) async throws {
        let routes = Routes(service)
        var logger = Logger(label: "turbodiffusion")
        logger.logLevel = .critical
        let application = Application(
            responder: CallbackResponder<BasicRequestContext> { request, context in
                await routes.respond(to: request, context: context)
            },
            server: .http1(configuration: .init(idleTimeout: .seconds(75))),
            configuration: ApplicationConfiguration(
                address: .hostname(service.options.host, port: service.options.port),
                serverName: "turbodiffusion"),
            onServerRunning: { channel in listening(channel.localAddress?.port ?? 0) },
            logger: logger)
        let group = ServiceGroup(configuration: .init(services: [application], logger: logger))
        self.group.withLock { $0 = group }
        let service = service
        let (host, port) = (service.options.host, service.options.port)
        try await withThrowingTaskGroup { tasks in
            tasks.addTask {
                do { try await group.run() } catch {
                    throw ServiceError("\(host):\(port) cannot be listened on: \(error)")
                }
            }
            tasks.addTask {
                try await service.run()
                // Answers that are on their way arrive.
                await group.triggerGracefulShutdown()
            }
            do { while try await tasks.next() != nil {} } catch {
                service.stop()
                await group.triggerGracefulShutdown()
                throw error
            }
        }
    }

    /// No more requests; ends as the options' drain says.
    public func stop() { service.stop() }
}
