/// Who listens to what happens, and what they are told.

import Synchronization

/// One event of a stream.
struct ServerEvent: Sendable, Hashable {
    /// Rises from event to event.
    var number: Int
    var name: String
    var data: String

    /// As it travels.
    var text: String { "id: \(number)\nevent: \(name)\ndata: \(data)\n\n" }
    /// Of which nobody takes notice, but a connection that is gone shows.
    static let comment = ServerEvent(number: 0, name: "", data: "")
}

/// Hands events to all who listen. A listener that is too slow loses the oldest ones.
final class EventHub: Sendable {
    private struct Listener {
        /// nil for all videos.
        var video: String?
        var continuation: AsyncStream<ServerEvent>.Continuation
    }
    private struct State {
        var number = 0
        var nextID = 0
        var listeners: [Int: Listener] = [:]
        var isClosed = false
    }
    private let state = Mutex(State())
    private static let bufferSize = 2048

    /// - Parameters:
    ///   - video: the one that is listened to; nil: all.
    ///   - first: what the stream begins with. Nobody tells anything meanwhile, so that nothing is missed or comes before
    ///     it; it must not use the hub.
    func listen(
        to video: String?, first: () -> [(name: String, data: JSON)]
    ) -> AsyncStream<ServerEvent> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: ServerEvent.self, bufferingPolicy: .bufferingNewest(Self.bufferSize))
        let id = state.withLock { state -> Int? in
            guard !state.isClosed else { return nil }
            state.nextID += 1
            state.listeners[state.nextID] = Listener(video: video, continuation: continuation)
            for (name, data) in first() {
                state.number += 1
                continuation.yield(
                    ServerEvent(number: state.number, name: name, data: data.text))
            }
            return state.nextID
        }
        guard let id else {
            continuation.finish()
            return stream
        }
        let heartbeat = Task { [weak self] in
            while !Task.isCancelled {
                try? await Task.sleep(for: .seconds(15))
                guard let self, self.state.withLock({ $0.listeners[id] }) != nil else { return }
                continuation.yield(.comment)
            }
        }
        continuation.onTermination = { [weak self] _ in
            heartbeat.cancel()
            self?.state.withLock { _ = $0.listeners.removeValue(forKey: id) }
        }
        return stream
    }

    /// - Parameters:
    ///   - video: which it is about; nil: only for those who listen to all.
    ///   - isLast: nothing more will come of this video.
    ///   - data: is not called where nobody listens.
    func tell(_ name: String, of video: String?, isLast: Bool = false, _ data: () -> JSON) {
        let ids = state.withLock { state in
            state.listeners.filter { $0.value.video == nil || $0.value.video == video }.map(\.key)
        }
        guard !ids.isEmpty else { return }
        let text = data().text
        // Numbered and handed out at once: for each listener numbers rise, whoever else tells something.
        let listeners = state.withLock { state in
            state.number += 1
            let event = ServerEvent(number: state.number, name: name, data: text)
            let listeners = ids.compactMap { state.listeners[$0] }
            for listener in listeners { listener.continuation.yield(event) }
            return listeners
        }
        // The end of a stream removes its listener, which takes the lock.
        if isLast {
            for listener in listeners where listener.video != nil { listener.continuation.finish() }
        }
    }

    /// Ends all streams.
    func close() {
        let listeners = state.withLock { state in
            state.isClosed = true
            return state.listeners.values.map(\.continuation)
        }
        for listener in listeners { listener.finish() }
    }
}
