// GPUs of several processes, each with one, that sum and share tensors by NCCL.

internal import CDrivers
import Ground
public import Tensors

/// What NCCL refused.
public struct NCCLError: Error, Hashable, Sendable, CustomStringConvertible {
    public let description: String
}

/// The library libnccl.so.2.
private final class NCCL: Sendable {
    let functions: nccl
    let path: String

    init() throws {
        let library = try SharedLibrary.open(["libnccl.so.2"], in: libraryFolders(nil))
        let table = UnsafeMutablePointer<nccl>.allocate(capacity: 1)
        defer { table.deallocate() }
        if let symbol = nccl_load(library.handle, table) {
            throw NCCLError(description: "\(library.path) has no \(String(cString: symbol))")
        }
        functions = table.pointee
        path = library.path
    }

    func check(_ result: ncclResult, _ call: String) throws(NCCLError) {
        guard result != 0 else { return }
        let reason = String(cString: functions.ncclGetErrorString(result))
        throw NCCLError(description: "\(call): \(reason) (\(result)); NCCL_DEBUG=INFO tells more")
    }
}

/// This process's GPU among those of all processes. To be used on the backend's thread.
public final class CardGroup {
    private let library: NCCL
    private let backend: CUDABackend
    private let communicator: ncclComm
    private let rank: Int
    /// Bytes by which the processes find each other.
    private static let idSize = MemoryLayout<ncclUniqueId>.size

    /// - Parameters:
    ///   - share: gives all processes the bytes of the first one; the others pass none.
    /// - Throws: where there is no NCCL, or it fails.
    public init(
        _ backend: CUDABackend, rank: Int, count: Int, share: ([UInt8]) throws -> [UInt8]
    ) throws {
        let library = try NCCL()
        self.library = library
        self.backend = backend
        self.rank = rank
        var id = ncclUniqueId()
        if rank == 0 {
            try library.check(library.functions.ncclGetUniqueId(&id), "ncclGetUniqueId")
        }
        let bytes = try share(rank == 0 ? withUnsafeBytes(of: &id) { Array($0) } : [])
        guard bytes.count == Self.idSize else {
            throw NCCLError(description: "process 0 sent no identity of a group")
        }
        withUnsafeMutableBytes(of: &id) { $0.copyBytes(from: bytes) }
        var communicator: ncclComm?
        try library.check(
            library.functions.ncclCommInitRank(&communicator, Int32(count), id, Int32(rank)),
            "ncclCommInitRank")
        self.communicator = communicator!
    }

    // ncclCommDestroy waits for what the others no longer do where one has failed.
    deinit { _ = library.functions.ncclCommAbort(communicator) }

    /// Why NCCL cannot be used here; nil: it can. TURBODIFFUSION_NCCL=0 turns it off.
    public static var reasonAgainst: String? {
        if environment("TURBODIFFUSION_NCCL") == "0" { return "TURBODIFFUSION_NCCL is 0" }
        do { _ = try NCCL() } catch { return "\(error)" }
        return nil
    }

    /// "NCCL 2.27.3 (/usr/…/libnccl.so.2)"
    public var name: String {
        var version: Int32 = 0
        _ = library.functions.ncclGetVersion(&version)
        return "NCCL \(version / 10000).\(version / 100 % 100).\(version % 100) (\(library.path))"
    }

    private func address(_ place: DevicePointer) -> UnsafeMutableRawPointer {
        UnsafeMutableRawPointer(bitPattern: UInt(place.address))!
    }

    /// Queues calls that belong together.
    private func together(_ body: () throws -> Void) throws {
        try library.check(library.functions.ncclGroupStart(), "ncclGroupStart")
        try body()
        try library.check(library.functions.ncclGroupEnd(), "ncclGroupEnd")
        var error: ncclResult = 0
        try library.check(
            library.functions.ncclCommGetAsyncError(communicator, &error), "ncclCommGetAsyncError")
        try library.check(error, "NCCL")
    }

    /// Sums f32 tensors over all processes. → the sum at its owner, nil elsewhere
    public func sums(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor?] {
        let placed = tensors.map { backend.place($0.tensor, as: .f32) }
        let results = tensors.map { $0.owner == rank ? backend.tensor($0.tensor.shape, .f32) : nil }
        try together {
            for (index, (tensor, owner)) in tensors.enumerated() where tensor.shape.count > 0 {
                try library.check(
                    library.functions.ncclReduce(
                        address(placed[index].pointer),
                        results[index].map { address($0.pointer) }, tensor.shape.count,
                        Int32(NCCL_FLOAT32), Int32(NCCL_SUM), Int32(owner), communicator,
                        backend.context.stream.handle), "ncclReduce")
            }
        }
        withExtendedLifetime(placed) {}
        return results
    }

    /// Gives tensors of their owners to all. → on the device
    public func spread(_ tensors: [(tensor: Tensor, owner: Int)]) throws -> [Tensor] {
        let results = tensors.map { tensor, owner in
            owner == rank
                ? backend.place(tensor, as: tensor.dtype)
                : backend.tensor(tensor.shape, tensor.dtype)
        }
        try together {
            for (result, (_, owner)) in zip(results, tensors) where result.shape.count > 0 {
                let type =
                    switch result.dtype {
                    case .f32: NCCL_FLOAT32
                    case .bf16: NCCL_BFLOAT16
                    case .i8, .f8e4m3: NCCL_UINT8
                    default:
                        throw NCCLError(description: "\(result) cannot be given to other processes")
                    }
                try library.check(
                    library.functions.ncclBroadcast(
                        address(result.pointer), address(result.pointer), result.shape.count,
                        Int32(type), Int32(owner), communicator, backend.context.stream.handle),
                    "ncclBroadcast")
            }
        }
        return results
    }

    /// A collective of processes of neighbouring ranks, whose first member is process `first`: what goes to others and
    /// does not lie in one piece is packed before and unpacked behind. → on the device
    public func carryOut(_ o: any Collective, first: Int) throws -> Tensor {
        let type = o.results[0]
        let (stream, x) = (backend.context.stream, o.x.pointer)
        let result = backend.tensor(type.shape, type.dtype)
        func copy(_ transfer: Transfer, _ from: DevicePointer, _ to: DevicePointer) {
            backend.copy(transfer, from, to, in: stream, .kernel)
        }
        if let own = o.transfer(from: o.member, to: o.member) { copy(own, x, result.pointer) }
        struct Piece {
            let member: Int
            let transfer: Transfer
            /// Where its bytes are in one piece.
            let place: DevicePointer
            /// nil: in the tensor itself.
            let scratch: DeviceStorage?
        }
        func piece(
            _ member: Int, _ transfer: Transfer, _ part: Transfer.Place, in tensor: DevicePointer
        ) -> Piece {
            if transfer.isOnePiece(at: part) {
                return Piece(
                    member: member, transfer: transfer, place: tensor + part.offset, scratch: nil)
            }
            let scratch = backend.storage(byteCount: transfer.byteCount)
            return Piece(
                member: member, transfer: transfer, place: scratch.location, scratch: scratch)
        }
        let sent = o.others.compactMap { other in
            other.given.map { piece(other.member, $0, $0.source, in: x) }
        }
        let taken = o.others.compactMap { other in
            other.taken.map { piece(other.member, $0, $0.target, in: result.pointer) }
        }
        for piece in sent where piece.scratch != nil {
            copy(piece.transfer.packing, x, piece.place)
        }
        try together {
            for piece in sent {
                try library.check(
                    library.functions.ncclSend(
                        address(piece.place), piece.transfer.byteCount, Int32(NCCL_UINT8),
                        Int32(first + piece.member), communicator, stream.handle), "ncclSend")
            }
            for piece in taken {
                try library.check(
                    library.functions.ncclRecv(
                        address(piece.place), piece.transfer.byteCount, Int32(NCCL_UINT8),
                        Int32(first + piece.member), communicator, stream.handle), "ncclRecv")
            }
        }
        for piece in taken where piece.scratch != nil {
            copy(piece.transfer.unpacking, piece.place, result.pointer)
        }
        return withExtendedLifetime((sent, taken)) { result }
    }
}
