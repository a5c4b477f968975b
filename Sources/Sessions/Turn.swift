/// One after the other, in the order of coming.

import Synchronization

/// A lock for tasks: who comes while it is held waits, unless its task is cancelled.
final class Turn: Sendable {
    private struct State {
        var isHeld = false
        var nextID = 0
        var waiting: [(id: Int, continuation: CheckedContinuation<Void, any Error>)] = []
        /// Cancelled before they could wait.
        var gone: Set<Int> = []
    }
    private let state = Mutex(State())

    /// - Throws: `CancellationError` where the task is cancelled; nothing is held then.
    func take() async throws {
        try Task.checkCancellation()
        let id = state.withLock { state in
            state.nextID += 1
            return state.nextID
        }
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                let isMine: Bool? = state.withLock { state in
                    if state.gone.remove(id) != nil { return nil }
                    if state.isHeld {
                        state.waiting.append((id, continuation))
                        return false
                    }
                    state.isHeld = true
                    return true
                }
                switch isMine {
                case true?: continuation.resume()
                case false?: break
                case nil: continuation.resume(throwing: CancellationError())
                }
            }
        } onCancel: {
            let waiting = state.withLock { state -> CheckedContinuation<Void, any Error>? in
                guard let index = state.waiting.firstIndex(where: { $0.id == id }) else {
                    state.gone.insert(id)
                    return nil
                }
                return state.waiting.remove(at: index).continuation
            }
            waiting?.resume(throwing: CancellationError())
        }
        state.withLock { _ = $0.gone.remove(id) }
    }

    /// The next one's turn.
    func release() {
        let next = state.withLock { state -> CheckedContinuation<Void, any Error>? in
            if state.waiting.isEmpty {
                state.isHeld = false
                return nil
            }
            return state.waiting.removeFirst().continuation
        }
        next?.resume()
    }
}
