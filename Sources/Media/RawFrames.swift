// RawFrames: frames as bare bytes, into a descriptor that this program was started with.

import Glibc

enum RawFrames {
    /// `-` and `/dev/stdout`: standard output; `/dev/fd/N`: N; nil for any other path.
    static func descriptor(named path: String) -> Int32? {
        if path == "-" || path == "/dev/stdout" { return STDOUT_FILENO }
        guard path.hasPrefix("/dev/fd/"), let number = Int32(path.dropFirst(8)), number >= 0
        else { return nil }
        return number
    }

    /// Refuses descriptors that are not open for writing, terminals, and this program's own.
    static func check(_ descriptor: Int32, path: String) throws(MediaError) {
        func refuse(_ reason: String) -> MediaError { .unwritable(path: path, reason: reason) }
        let flags = fcntl(descriptor, F_GETFL)
        // Those that this program has opened are not passed on to other programs.
        guard flags >= 0, fcntl(descriptor, F_GETFD) & FD_CLOEXEC == 0 else {
            throw refuse("this program was started without a descriptor \(descriptor)")
        }
        guard flags & O_ACCMODE != O_RDONLY, descriptor != STDIN_FILENO else {
            throw refuse("descriptor \(descriptor) is for reading")
        }
        guard descriptor != STDERR_FILENO else {
            throw refuse("messages go to standard error")
        }
        guard isatty(descriptor) == 0 else {
            throw refuse("raw frames are for another program or a file, not for a terminal")
        }
    }

    /// Writes what comes through `channel` until it is closed. Waits as long as the reader does.
    static func write(
        _ channel: BoundedChannel, to descriptor: Int32, path: String
    ) async throws {
        Child.ignoreBrokenPipes
        while let frames = try await channel.receive() {
            let code: Int32 = await withCheckedContinuation { done in
                let body = { @Sendable in done.resume(returning: put(frames, descriptor)) }
                // If no thread can be had, the caller's must do.
                if !onThread(body) { body() }
            }
            switch code {
            case 0: break
            case ENOSPC, EDQUOT, EFBIG: throw MediaError.noSpace(path: path)
            case EPIPE:
                throw MediaError.unwritable(path: path, reason: "its reader has stopped reading")
            default:
                throw MediaError.unwritable(path: path, reason: String(cString: strerror(code)))
            }
        }
    }

    /// - Returns: an `errno`, 0 where all bytes were taken.
    private static func put(_ bytes: [UInt8], _ descriptor: Int32) -> Int32 {
        bytes.withUnsafeBytes { bytes in
            var done = 0
            while done < bytes.count {
                let count = Glibc.write(
                    descriptor, bytes.baseAddress! + done, bytes.count - done)
                if count >= 0 {
                    done += count
                } else if errno == EAGAIN {
                    // Another program has made the pipe that we share non-blocking.
                    var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                    poll(&wait, 1, -1)
                } else if errno != EINTR {
                    return errno
                }
            }
            return 0
        }
    }
}
