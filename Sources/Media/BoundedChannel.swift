// BoundedChannel: a queue of byte blocks between one sender and one receiver, with back-pressure.

import Ground

/// Holds at most `limit` bytes (or one block, however large): a sender that is ahead waits, so that
/// memory stays bounded however slow the other end is.
///
/// One task sends, one receives; either may close. Closing is final, the first close wins.
actor BoundedChannel {
    private let limit: Int
    private var blocks: [[UInt8]] = []
    private var bytes = 0
    private var closed = false
    private var failure: (any Error)?
    private var waitingSender: CheckedContinuation<Void, Never>?
    private var waitingReceiver: CheckedContinuation<Void, Never>?

    init(limit: Int) { self.limit = limit }

    /// Waits until `block` fits and queues it.
    /// - Throws: the error that the channel was closed with, or ``BoundedChannelClosed``.
    func send(_ block: [UInt8]) async throws {
        while !closed && bytes > 0 && bytes + block.count > limit {
            ensure(waitingSender == nil, "BoundedChannel.send: one sender at a time")
            await withCheckedContinuation { waitingSender = $0 }
        }
        if closed { throw failure ?? BoundedChannelClosed() }
        blocks.append(block)
        bytes += block.count
        resume(&waitingReceiver)
    }

    /// The next block in order; `nil` after the last one, if the channel was closed without an error.
    func receive() async throws -> [UInt8]? {
        while blocks.isEmpty && !closed {
            ensure(waitingReceiver == nil, "BoundedChannel.receive: one receiver at a time")
            await withCheckedContinuation { waitingReceiver = $0 }
        }
        guard !blocks.isEmpty else {
            if let failure { throw failure }
            return nil
        }
        let block = blocks.removeFirst()
        bytes -= block.count
        resume(&waitingSender)
        return block
    }

    /// Accepts no more blocks. With an error, queued blocks are dropped and both ends throw it.
    func close(throwing error: (any Error)? = nil) {
        guard !closed else { return }
        closed = true
        failure = error
        if error != nil {
            blocks = []
            bytes = 0
        }
        resume(&waitingSender)
        resume(&waitingReceiver)
    }

    private func resume(_ continuation: inout CheckedContinuation<Void, Never>?) {
        continuation?.resume()
        continuation = nil
    }
}

/// Thrown by a send into a channel that was closed without an error.
struct BoundedChannelClosed: Error {}
