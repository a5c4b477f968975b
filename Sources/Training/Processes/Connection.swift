/// Sockets between the processes of a run.

import Glibc
import Ground

/// A connection to another process.
final class Connection {
    let descriptor: Int32
    /// What messages call the other end.
    var peer: String

    /// - Parameter descriptor: a connected socket, which is closed with this object.
    init(_ descriptor: Int32, peer: String) {
        self.descriptor = descriptor
        self.peer = peer
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
        var on: Int32 = 1
        let size = socklen_t(MemoryLayout<Int32>.size)
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &on, size)
        setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, size)
    }

    deinit { close(descriptor) }

    /// What is to go through one connection, piece after piece.
    private struct Queue<Bytes> {
        let connection: Connection
        /// The next one last.
        var pieces: [Bytes]

        static func all(_ pieces: [(Connection, Bytes)]) -> [Queue] {
            var queues: [Queue] = []
            var places: [ObjectIdentifier: Int] = [:]
            for (connection, bytes) in pieces.reversed() {
                if let place = places[ObjectIdentifier(connection)] {
                    queues[place].pieces.append(bytes)
                } else {
                    places[ObjectIdentifier(connection)] = queues.count
                    queues.append(Queue(connection: connection, pieces: [bytes]))
                }
            }
            return queues
        }
    }

    /// Sends and receives all of it at once, whatever comes first, so that two ends that send much to each other do not
    /// wait for each other. Pieces for one connection go in their order.
    /// - Parameter patience: seconds without a byte after which it gives up; nil: none.
    static func transfer(
        sending outgoing: [(to: Connection, bytes: UnsafeRawBufferPointer)] = [],
        receiving incoming: [(from: Connection, bytes: UnsafeMutableRawBufferPointer)] = [],
        patience: Int? = nil
    ) throws(ProcessError) {
        var outgoing = Queue.all(outgoing.filter { !$0.bytes.isEmpty }.map { ($0.to, $0.bytes) })
        var incoming = Queue.all(incoming.filter { !$0.bytes.isEmpty }.map { ($0.from, $0.bytes) })
        func failed(_ peer: String, _ code: Int32) -> ProcessError {
            ProcessError("the connection to \(peer) broke: \(String(cString: strerror(code)))")
        }
        func waiting(_ connection: Connection, _ event: Int32) -> pollfd {
            pollfd(fd: connection.descriptor, events: Int16(event), revents: 0)
        }
        while !outgoing.isEmpty || !incoming.isEmpty {
            var polled =
                outgoing.map { waiting($0.connection, POLLOUT) }
                + incoming.map { waiting($0.connection, POLLIN) }
            let ready = poll(&polled, nfds_t(polled.count), patience.map { Int32($0) * 1000 } ?? -1)
            if ready == 0 {
                let peer = (outgoing.first?.connection ?? incoming[0].connection).peer
                throw ProcessError("\(peer) has not answered for \(patience ?? 0) s")
            }
            if ready < 0 {
                if errno == EINTR { continue }
                throw failed("the others", errno)
            }
            for index in outgoing.indices where polled[index].revents != 0 {
                let connection = outgoing[index].connection
                let bytes = outgoing[index].pieces.removeLast()
                let done = Glibc.send(
                    connection.descriptor, bytes.baseAddress, bytes.count,
                    Int32(truncatingIfNeeded: MSG_NOSIGNAL))
                if done < 0, errno != EAGAIN, errno != EINTR {
                    throw failed(connection.peer, errno)
                }
                let rest = bytes[max(0, done)...]
                if !rest.isEmpty {
                    outgoing[index].pieces.append(UnsafeRawBufferPointer(rebasing: rest))
                }
            }
            for index in incoming.indices where polled[outgoing.count + index].revents != 0 {
                let connection = incoming[index].connection
                let bytes = incoming[index].pieces.removeLast()
                let done = recv(connection.descriptor, bytes.baseAddress, bytes.count, 0)
                if done == 0 { throw ProcessError("\(connection.peer) has ended") }
                if done < 0, errno != EAGAIN, errno != EINTR {
                    throw failed(connection.peer, errno)
                }
                let rest = bytes[max(0, done)...]
                if !rest.isEmpty {
                    incoming[index].pieces.append(UnsafeMutableRawBufferPointer(rebasing: rest))
                }
            }
            outgoing.removeAll { $0.pieces.isEmpty }
            incoming.removeAll { $0.pieces.isEmpty }
        }
    }

    func send(_ bytes: [UInt8], patience: Int? = nil) throws(ProcessError) {
        try bytes.withUnsafeBufferPointer { bytes throws(ProcessError) in
            try Self.transfer(
                sending: [(self, UnsafeRawBufferPointer(bytes))], patience: patience)
        }
    }

    func receive(_ count: Int, patience: Int? = nil) throws(ProcessError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try bytes.withUnsafeMutableBufferPointer { bytes throws(ProcessError) in
            try Self.transfer(
                receiving: [(self, UnsafeMutableRawBufferPointer(bytes))], patience: patience)
        }
        return bytes
    }

    // MARK: Addresses

    /// The numeric address of one end of a socket, and its port.
    static func address(of descriptor: Int32, isPeer: Bool = false) -> (host: String, port: Int)? {
        var storage = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return withUnsafeMutablePointer(to: &storage) { storage in
            storage.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                let result =
                    isPeer
                    ? getpeername(descriptor, address, &size)
                    : getsockname(descriptor, address, &size)
                return result == 0 ? numbers(address, size) : nil
            }
        }
    }

    private static func numbers(_ address: UnsafePointer<sockaddr>, _ size: socklen_t) -> (
        host: String, port: Int
    )? {
        var host = [CChar](repeating: 0, count: 128)
        var port = [CChar](repeating: 0, count: 16)
        let flags = NI_NUMERICHOST | NI_NUMERICSERV
        guard
            getnameinfo(
                address, size, &host, socklen_t(host.count), &port, socklen_t(port.count), flags)
                == 0
        else { return nil }
        func text(_ characters: [CChar]) -> String {
            String(
                decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self
            )
        }
        return Int(text(port)).map { (text(host), $0) }
    }

    /// Calls `body` with each address of a host until it gives a result.
    /// - Parameter isPatient: whether a name that is not known yet gives nil instead of an error.
    private static func resolve(
        _ host: String, _ port: Int, isPatient: Bool = false,
        _ body: (Int32, UnsafeMutablePointer<sockaddr>, socklen_t) -> Bool
    ) throws(ProcessError) -> Int32? {
        var hints = addrinfo()
        hints.ai_family = AF_UNSPEC
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, "\(port)", &hints, &found)
        if isPatient, result == EAI_AGAIN || result == EAI_NONAME {
            errno = EHOSTUNREACH
            return nil
        }
        guard result == 0 else {
            throw ProcessError(
                "the address '\(host.printable)' is not known: \(String(cString: gai_strerror(result)))"
            )
        }
        defer { freeaddrinfo(found) }
        var next = found
        while let entry = next {
            next = entry.pointee.ai_next
            let descriptor = socket(
                entry.pointee.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard descriptor >= 0 else { continue }
            if body(descriptor, entry.pointee.ai_addr, entry.pointee.ai_addrlen) {
                return descriptor
            }
            let code = errno
            close(descriptor)
            errno = code
        }
        return nil
    }

    /// Connects, trying again for so many seconds: the other process may start later.
    static func open(_ host: String, _ port: Int, peer: String, patience: Int) throws(ProcessError)
        -> Connection
    {
        let end = time(nil) + patience
        while true {
            // Names of machines that start together come late, too.
            let descriptor = try resolve(host, port, isPatient: time(nil) < end) {
                connect($0, $1, $2) == 0
            }
            if let descriptor { return Connection(descriptor, peer: peer) }
            let reason = String(cString: strerror(errno))
            guard time(nil) < end else {
                throw ProcessError(
                    "no connection to \(peer) at \(host.printable), port \(port), within "
                        + "\(patience) s: \(reason)")
            }
            usleep(100_000)
        }
    }
}

/// Where a process waits for others to connect.
final class Listener {
    private let descriptor: Int32
    let port: Int

    /// - Parameter port: 0: any that is free.
    init(_ host: String, port: Int) throws(ProcessError) {
        let found = try Connection.listening(host, port)
        guard let found, let address = Connection.address(of: found) else {
            throw ProcessError(
                "cannot wait for the other processes at \(host.printable), port \(port): "
                    + "\(String(cString: strerror(errno))) (TURBODIFFUSION_MASTER_PORT names another)"
            )
        }
        descriptor = found
        self.port = address.port
    }

    deinit { close(descriptor) }

    /// The next connection; nil where none came within so many seconds.
    func next(patience: Int) -> Connection? {
        var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&waiting, 1, Int32(patience) * 1000) > 0 else { return nil }
        let taken = accept(descriptor, nil, nil)
        _ = fcntl(taken, F_SETFD, FD_CLOEXEC)
        return taken < 0 ? nil : Connection(taken, peer: "a process")
    }
}

extension Connection {
    fileprivate static func listening(_ host: String, _ port: Int) throws(ProcessError) -> Int32? {
        try resolve(host, port) { descriptor, address, size in
            var on: Int32 = 1
            setsockopt(
                descriptor, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
            return bind(descriptor, address, size) == 0 && listen(descriptor, 4096) == 0
        }
    }
}
