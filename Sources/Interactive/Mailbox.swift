/// Messages from other threads to one that waits for them, or for a line.

import Glibc
import Synchronization

/// Keeps messages in the order in which they come; a descriptor becomes readable when there are some.
final class Mailbox<Message: Sendable>: Sendable {
    private let messages = Mutex<[Message]>([])
    /// To read from, and to write to.
    private let ends: (Int32, Int32)

    init() {
        var pair: [Int32] = [-1, -1]
        if pipe(&pair) == 0 {
            for end in pair {
                _ = fcntl(end, F_SETFD, FD_CLOEXEC)
                _ = fcntl(end, F_SETFL, O_NONBLOCK)
            }
        }
        ends = (pair[0], pair[1])
    }

    deinit {
        close(ends.0)
        close(ends.1)
    }

    /// For `poll`.
    var descriptor: Int32 { ends.0 }

    func post(_ message: Message) {
        messages.withLock { $0.append(message) }
        var byte: UInt8 = 0
        // A full pipe wakes as well.
        _ = write(ends.1, &byte, 1)
    }

    func take() -> [Message] {
        var bytes = [UInt8](repeating: 0, count: 256)
        while read(ends.0, &bytes, bytes.count) > 0 {}
        return messages.withLock { messages in
            defer { messages = [] }
            return messages
        }
    }

    /// Waits until there is a message, or input.
    /// - Parameter input: another descriptor; nil for none.
    /// - Returns: whether there is input, or its end.
    func wait(orInput input: Int32? = nil) -> Bool {
        var descriptors = [pollfd(fd: ends.0, events: Int16(POLLIN), revents: 0)]
        if let input { descriptors.append(pollfd(fd: input, events: Int16(POLLIN), revents: 0)) }
        while poll(&descriptors, nfds_t(descriptors.count), -1) < 0, errno == EINTR {}
        return descriptors.count > 1 && descriptors[1].revents != 0
    }
}
