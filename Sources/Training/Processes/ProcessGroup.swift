/// Processes that train one model together: what they sum, share out and collect.

import Glibc
import Ground
public import Tensors

/// Sums and copies between the devices of processes that do not pass by the host.
public protocol CardCollectives: AnyObject {
    /// Sums f32 tensors of all processes. → at a tensor's owner its sum, nil at the others
    func sums(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor?]
    /// Gives tensors of their owners to all; the others' only tell shape and dtype. → on the device
    func spread(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor]
    /// A collective of processes of neighbouring ranks, whose first member is process `first`. → on the device
    func carryOut(_ operation: any Collective, first: Int) throws -> Tensor
}

/// This process among those of a run, each connected to each by TCP.
///
/// Sums are made in the order of ranks, so all processes get the same bits, and each run of as many processes gets them
/// again. To be used on one thread.
public final class ProcessGroup {
    public let place: ProcessPlace
    /// By rank; nil for this process.
    let connections: [Connection?]
    /// Takes over what concerns tensors, where the devices can reach each other.
    public var cards: (any CardCollectives)?
    /// Bytes that are in flight at once.
    private static let most = 256 << 20

    private init(_ place: ProcessPlace, _ connections: [Connection?]) {
        self.place = place
        self.connections = connections
    }

    private var others: [(rank: Int, connection: Connection)] {
        connections.enumerated().compactMap { rank, it in it.map { (rank, $0) } }
    }

    // MARK: Meeting

    private static let greeting: [UInt8] = Array("TURBODIF".utf8)

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// What a process says first: greeting, rank, count, its own port, what it is about to do.
    private struct Hello {
        static let size = 40
        var rank, count, port: Int
        var purpose: UInt64

        var bytes: [UInt8] {
            greeting + littleEndian(UInt64(rank)) + littleEndian(UInt64(count))
                + littleEndian(UInt64(port))
                + littleEndian(purpose)
        }

        init(rank: Int, count: Int, port: Int, purpose: UInt64) {
            (self.rank, self.count, self.port, self.purpose) = (rank, count, port, purpose)
        }

        /// nil for what is no greeting.
        init?(_ bytes: [UInt8]) {
            guard bytes.prefix(8).elementsEqual(greeting) else { return nil }
            let numbers = (1...4).map { number(bytes[8 * $0..<8 * $0 + 8]) }
            guard numbers[0] < UInt64(ProcessPlace.most), numbers[1] <= UInt64(ProcessPlace.most),
                numbers[2] <= 65535
            else { return nil }
            self.init(
                rank: Int(numbers[0]), count: Int(numbers[1]), port: Int(numbers[2]),
                purpose: numbers[3])
        }
    }

    /// Waits for all processes and connects each with each. The first one waits at the place's address; nothing is
    /// encrypted or proven there, so it belongs into a network that one trusts.
    /// - Parameters:
    ///   - purpose: what the run is, in words that must be equal in all processes.
    ///   - patience: seconds until all must be there.
    public static func join(_ place: ProcessPlace, purpose: String, patience: Int = 600)
        throws(ProcessError) -> ProcessGroup
    {
        let purpose = FNV1a.hash(purpose)
        return place.isFirst
            ? try receive(place, purpose, patience) : try visit(place, purpose, patience)
    }

    /// The first process: takes the others' greetings, then tells everybody where everybody waits.
    private static func receive(_ place: ProcessPlace, _ purpose: UInt64, _ patience: Int)
        throws(ProcessError) -> ProcessGroup
    {
        let listener: Listener
        if ["localhost", "127.", "::1"].contains(where: { place.host.hasPrefix($0) }) {
            listener = try Listener(place.host, port: place.port)
        } else if let all = try? Listener("::", port: place.port) {
            // Its name may mean another address to itself than to others.
            listener = all
        } else {
            listener = try Listener("0.0.0.0", port: place.port)
        }
        var connections = [Connection?](repeating: nil, count: place.count)
        var addresses = [String](repeating: "", count: place.count)
        let end = time(nil) + patience
        while let missing = connections.indices.dropFirst().first(where: { connections[$0] == nil })
        {
            let left = end - time(nil)
            guard left > 0 else {
                throw ProcessError("process \(missing) has not come within \(patience) s")
            }
            guard let connection = listener.next(patience: min(left, 60)),
                let bytes = try? connection.receive(Hello.size, patience: 10),
                let hello = Hello(bytes),
                let address = Connection.address(of: connection.descriptor, isPeer: true)
            else { continue }
            var fault: String?
            if hello.count != place.count || !(1..<place.count).contains(hello.rank) {
                fault =
                    "process \(hello.rank) of \(hello.count) came to a run of \(place.count) processes"
            } else if connections[hello.rank] != nil {
                fault = "two processes say that they are number \(hello.rank)"
            } else if hello.purpose != purpose {
                fault =
                    "process \(hello.rank) has other settings than process 0: all processes of a run "
                    + "need the same options and files"
            }
            if let fault {
                for told in connections.compactMap(\.self) + [connection] {
                    try? told.send(reply("!" + fault), patience: 10)
                }
                throw ProcessError(fault)
            }
            connection.peer = "process \(hello.rank)"
            connections[hello.rank] = connection
            addresses[hello.rank] = "\(address.host) \(hello.port)"
        }
        let table = reply(addresses.joined(separator: "\n"))
        for connection in connections.compactMap(\.self) { try connection.send(table) }
        return ProcessGroup(place, connections)
    }

    private static func reply(_ text: String) -> [UInt8] {
        let bytes = Array(text.utf8)
        return littleEndian(UInt64(bytes.count)) + bytes
    }

    /// Another process: greets the first one, then connects to those of lower rank and waits for the others.
    private static func visit(_ place: ProcessPlace, _ purpose: UInt64, _ patience: Int)
        throws(ProcessError) -> ProcessGroup
    {
        let end = time(nil) + patience
        let first = try Connection.open(
            place.host, place.port, peer: "process 0", patience: patience)
        guard let own = Connection.address(of: first.descriptor) else {
            throw ProcessError("the connection to process 0 broke")
        }
        let listener = try Listener(own.host, port: 0)
        func hello(_ port: Int) -> [UInt8] {
            Hello(rank: place.rank, count: place.count, port: port, purpose: purpose).bytes
        }
        try first.send(hello(listener.port))
        let size = number(try first.receive(8, patience: max(1, end - time(nil)))[...])
        guard size < 1 << 20 else { throw ProcessError("process 0 answers something else") }
        let text = String(decoding: try first.receive(Int(size), patience: 60), as: UTF8.self)
        if text.hasPrefix("!") { throw ProcessError(String(text.dropFirst())) }
        let addresses = text.split(separator: "\n", omittingEmptySubsequences: false)
        guard addresses.count == place.count else {
            throw ProcessError("process 0 answers something else")
        }
        var connections = [Connection?](repeating: nil, count: place.count)
        connections[0] = first
        for rank in 1..<max(1, place.rank) {
            let parts = addresses[rank].split(separator: " ")
            guard parts.count == 2, let port = Int(parts[1]) else {
                throw ProcessError("process 0 answers something else")
            }
            let connection = try Connection.open(
                String(parts[0]), port, peer: "process \(rank)", patience: 60)
            try connection.send(hello(0))
            connections[rank] = connection
        }
        while let missing = connections.indices.first(where: {
            $0 != place.rank && connections[$0] == nil
        }) {
            let left = end - time(nil)
            guard left > 0 else {
                throw ProcessError("process \(missing) has not come within \(patience) s")
            }
            guard let connection = listener.next(patience: min(left, 60)),
                let bytes = try? connection.receive(Hello.size, patience: 10),
                let hello = Hello(bytes), hello.purpose == purpose,
                connections.indices.contains(hello.rank), hello.rank > place.rank,
                connections[hello.rank] == nil
            else { continue }
            connection.peer = "process \(hello.rank)"
            connections[hello.rank] = connection
        }
        return ProcessGroup(place, connections)
    }

    // MARK: Numbers

    /// The sums of all processes' numbers, in the order of ranks: the same bits everywhere.
    public func sum(_ values: [Double]) throws(ProcessError) -> [Double] {
        var own = values
        let size = values.count * MemoryLayout<Double>.stride
        let memory = UnsafeMutableRawBufferPointer.allocate(
            byteCount: size * place.count, alignment: 16)
        defer { memory.deallocate() }
        func part(_ rank: Int) -> UnsafeMutableRawBufferPointer {
            UnsafeMutableRawBufferPointer(rebasing: memory[rank * size..<(rank + 1) * size])
        }
        own.withUnsafeMutableBytes { part(place.rank).copyMemory(from: UnsafeRawBufferPointer($0)) }
        try Connection.transfer(
            sending: others.map { ($0.connection, UnsafeRawBufferPointer(part(place.rank))) },
            receiving: others.map { ($0.connection, part($0.rank)) })
        let all = memory.bindMemory(to: Double.self)
        return values.indices.map { index in
            (0..<place.count).reduce(0.0) { $0 + all[$1 * values.count + index] }
        }
    }

    /// The largest of all processes' numbers.
    func largest(_ value: Int) throws(ProcessError) -> Int {
        let own = (0..<place.count).map { $0 == place.rank ? Double(value) : 0 }
        return Int(try sum(own).max() ?? 0)
    }

    /// Some bytes of the first process, in all.
    public func fromFirst(_ bytes: [UInt8]) throws(ProcessError) -> [UInt8] {
        guard place.isFirst else {
            let size = Self.number(try connections[0]!.receive(8)[...])
            guard size <= 1 << 16 else { throw ProcessError("process 0 sends something else") }
            return try connections[0]!.receive(Int(size))
        }
        for (_, connection) in others {
            try connection.send(littleEndian(UInt64(bytes.count)) + bytes)
        }
        return bytes
    }

    // MARK: Tensors

    /// A tensor with the process that keeps what belongs to it.
    struct Owned {
        let name: String
        let tensor: Tensor
        let owner: Int
    }

    /// Parts of a list that are sent at once.
    private func rounds(_ tensors: [Owned]) -> [[Owned]] {
        var (rounds, bytes): ([[Owned]], Int) = ([], Self.most)
        for owned in tensors {
            if bytes >= Self.most { (rounds, bytes) = (rounds + [[]], 0) }
            rounds[rounds.count - 1].append(owned)
            bytes += owned.tensor.byteCount
        }
        return rounds
    }

    /// The sums of f32 tensors over all processes. tensors: equal names, shapes and order in all processes
    /// → those whose owner this process is, f32 on the device
    func sums(_ tensors: [Owned], on device: any Backend) throws -> [String: Tensor] {
        var sums: [String: Tensor] = [:]
        if let cards {
            for (owned, sum) in zip(
                tensors, try cards.sums(tensors.map { ($0.tensor, $0.owner) }))
            {
                sums[owned.name] = sum
            }
            return sums
        }
        for round in rounds(tensors) {
            let host = round.map { device.read($0.tensor) }
            var outgoing: [(to: Connection, bytes: UnsafeRawBufferPointer)] = []
            var incoming: [(from: Connection, bytes: UnsafeMutableRawBufferPointer)] = []
            /// For each own tensor of the round the others' values, by rank.
            var received: [Int: [Int: Tensor]] = [:]
            for (index, owned) in round.enumerated() {
                guard owned.owner == place.rank else {
                    outgoing.append((connections[owned.owner]!, host[index].rawBytes))
                    continue
                }
                for (rank, connection) in others {
                    let values = Tensor.host(owned.tensor.shape, .f32)
                    received[index, default: [:]][rank] = values
                    incoming.append((connection, values.mutableBytes))
                }
            }
            try Connection.transfer(sending: outgoing, receiving: incoming)
            for (index, parts) in received {
                let sum = Tensor.host(round[index].tensor.shape, .f32)
                sum.withMutable(Float.self) { sum in
                    for rank in 0..<place.count {
                        let part = rank == place.rank ? host[index] : parts[rank]!
                        part.withElements(Float.self) { part in
                            if rank == 0 { return _ = sum.update(fromContentsOf: part) }
                            for element in sum.indices { sum[element] += part[element] }
                        }
                    }
                }
                sums[round[index].name] = device.place(sum, as: .f32)
            }
            withExtendedLifetime(host) {}
        }
        return sums
    }

    /// Gives tensors of their owners to all. tensors: equal names, shapes, types and order in all processes; values only
    /// count at the owner → those of the others, by name
    func spread(_ tensors: [Owned], on device: any Backend) throws -> [String: Tensor] {
        var found: [String: Tensor] = [:]
        if let cards {
            for (owned, tensor) in zip(
                tensors, try cards.spread(tensors.map { ($0.tensor, $0.owner) }))
            where owned.owner != place.rank {
                found[owned.name] = tensor
            }
            return found
        }
        return try give(tensors, on: device) { _ in true }
    }

    /// Collects tensors of their owners at the first process. tensors: as for `spread` → there, all of them on the host
    func collected(_ tensors: [Owned], on device: any Backend) throws -> [String: Tensor] {
        var found = try give(tensors, on: device) { $0 == 0 }
        if place.isFirst {
            for owned in tensors where owned.owner == place.rank {
                found[owned.name] = device.read(owned.tensor)
            }
        }
        return found
    }

    /// Sends tensors of their owners to some processes. tensors: as for `spread` → those of others, on the host; none where
    /// this process is not one of them
    private func give(
        _ tensors: [Owned], on device: any Backend, to isTaker: (_ rank: Int) -> Bool
    ) throws -> [String: Tensor] {
        let takers = others.filter { isTaker($0.rank) }
        var found: [String: Tensor] = [:]
        for round in rounds(tensors) {
            var outgoing: [(to: Connection, bytes: UnsafeRawBufferPointer)] = []
            var incoming: [(from: Connection, bytes: UnsafeMutableRawBufferPointer)] = []
            var own: [Tensor] = []
            for owned in round {
                if owned.owner != place.rank, isTaker(place.rank) {
                    let values = Tensor.host(owned.tensor.shape, owned.tensor.dtype)
                    found[owned.name] = values
                    incoming.append((connections[owned.owner]!, values.mutableBytes))
                } else if owned.owner == place.rank, !takers.isEmpty {
                    let host = device.read(owned.tensor)
                    own.append(host)
                    for (_, connection) in takers { outgoing.append((connection, host.rawBytes)) }
                }
            }
            try Connection.transfer(sending: outgoing, receiving: incoming)
            withExtendedLifetime(own) {}
        }
        return found
    }
}

extension Tensor {
    /// The elements of a host tensor; valid as long as its storage.
    var rawBytes: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: hostAddress, count: byteCount)
    }
    var mutableBytes: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: hostAddress, count: byteCount)
    }
}
