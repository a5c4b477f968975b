/// How work is shared out, and what devices give to each other.

import Dispatch
import Testing

@testable import Tensors

@Suite struct SharesTests {
    @Test("Shares are whole units in order, as even as these allow, and empty ones come last")
    func shares() {
        for count in [0, 1, 100, 128, 255, 256, 1000, 32760, 75600] {
            for unit in [1, 2, 128] {
                for devices in 1...8 {
                    let shares = Shares(of: count, unit: unit, among: devices)
                    #expect(shares.ranges.count == devices && shares.total == count)
                    #expect(shares.ranges.first?.lowerBound == 0)
                    for (one, next) in zip(shares.ranges, shares.ranges.dropFirst()) {
                        #expect(one.upperBound == next.lowerBound)
                        #expect(!one.isEmpty || next.isEmpty)
                        #expect(next.isEmpty || next.lowerBound % unit == 0)
                        #expect(one.count + unit > next.count)
                    }
                    let smallest = shares.ranges.map(\.count).filter { $0 > 0 }.min() ?? 0
                    #expect(smallest >= min(unit, count))
                    #expect(
                        shares.ranges[0].count <= count / devices + 2 * unit)
                }
            }
        }
    }
}

@Suite struct CollectiveTests {
    /// Every byte of a device's result comes once, from a place inside the giver's tensor.
    private func check(_ members: [any Collective], scales: Bool = false) {
        for (taker, o) in members.enumerated() {
            let size = scales ? o.results[0].scaleBytes! : o.results[0].byteCount
            var counts = [Int](repeating: 0, count: size)
            for (giver, other) in members.enumerated() {
                let transfer =
                    scales
                    ? o.scaleTransfer(from: giver, to: taker) : o.transfer(from: giver, to: taker)
                let said =
                    scales
                    ? other.scaleTransfer(from: giver, to: taker)
                    : other.transfer(from: giver, to: taker)
                #expect(transfer == said)
                guard let transfer else { continue }
                #expect(transfer.byteCount > 0)
                let available = scales ? other.x.scales!.byteCount : other.x.byteCount
                checkPacked(transfer, available, size)
                for row in 0..<transfer.rows {
                    let from = transfer.source.offset + row * transfer.source.pitch
                    #expect(from >= 0 && from + transfer.width <= available)
                    let to = transfer.target.offset + row * transfer.target.pitch
                    for byte in to..<to + transfer.width { counts[byte] += 1 }
                }
            }
            let once = counts.allSatisfy { $0 == 1 }
            #expect(once)
        }
    }

    /// What goes in one piece arrives as what goes run by run; from and to: bytes of both sides' memory.
    private func checkPacked(_ transfer: Transfer, _ from: Int, _ to: Int) {
        func copied(_ transfer: Transfer, _ bytes: [UInt8], _ size: Int) -> [UInt8] {
            var result = [UInt8](repeating: 0, count: size)
            bytes.withUnsafeBytes { bytes in
                result.withUnsafeMutableBytes {
                    transfer.copy(from: bytes.baseAddress!, to: $0.baseAddress!)
                }
            }
            return result
        }
        let bytes = (0..<from).map { UInt8(truncatingIfNeeded: ($0 &* 40_503) >> 7) }
        let piece = copied(transfer.packing, bytes, transfer.byteCount)
        let result = copied(transfer, bytes, to)
        #expect(copied(transfer.unpacking, piece, to) == result)
        // What is not packed is read, or written, where it lies.
        for (place, memory) in [(transfer.source, bytes), (transfer.target, result)]
        where transfer.isOnePiece(at: place) {
            let isThere = memory[place.offset...].prefix(piece.count).elementsEqual(piece)
            #expect(isThere)
        }
    }

    private func tensor(_ shape: Shape, _ dtype: DType = .bf16, scaleBytes: Int? = nil) -> Tensor {
        Tensor(
            shape, dtype, storage: Storage(byteCount: shape.count * dtype.byteCount),
            scales: scaleBytes.map(Storage.init))
    }

    @Test(
        "Rows and heads are exchanged whole, there and back, plain and as codes", arguments: 1...5)
    func exchange(count: Int) {
        for (rows, heads, dim) in [(300, 2, 64), (700, 3, 8), (128, 12, 2), (1000, 40, 4)] {
            let memberships = (0..<count).map { Membership(index: $0, of: count) }
            for direction in [Operation.Exchange.Direction.toHeads, .toRows] {
                check(
                    memberships.map { member in
                        let (own, part) = (
                            member.sequence(rows)[member.index], member.heads(heads)[member.index]
                        )
                        return Operation.Exchange(
                            x: tensor(
                                direction == .toHeads
                                    ? [own.count, heads, dim] : [rows, part.count, dim]),
                            direction: direction, rows: member.sequence(rows),
                            heads: member.heads(heads), headDim: dim, member: member.index)
                    })
            }
            let codes = memberships.map { member in
                let part = member.heads(heads)[member.index].count
                return Operation.Exchange(
                    x: tensor(
                        [rows, part * 128], .i8, scaleBytes: (rows + 127) / 128 * part * 4),
                    direction: .toRows, rows: member.sequence(rows), heads: member.heads(heads),
                    headDim: 128, member: member.index)
            }
            check(codes)
            check(codes, scales: true)
            for code in codes { #expect(code.fits) }
        }
    }

    @Test(
        "Shares of any axis are gathered, and windows reach into the neighbours'", arguments: 1...4)
    func gatherAndHalo(count: Int) {
        for axis in 0...2 {
            let shares = Shares(of: 13, unit: 2, among: count)
            check(
                (0..<count).map { member in
                    var extents = [3, 5, 4]
                    extents[axis] = shares[member].count
                    return Operation.Gather(
                        x: tensor(Shape(extents)), axis: axis, shares: shares, member: member)
                })
        }
        for (above, below) in [(1, 1), (0, 1), (2, 1)] {
            let shares = Shares(of: 9, unit: 2, among: count)
            let members = (0..<count).map { member in
                Operation.Halo(
                    x: tensor([2, shares[member].count, 5, 3]), shares: shares, above: above,
                    below: below, member: member)
            }
            for member in members { #expect(member.fits) }
            check(members)
            for member in members where member.results[0].shape.count > 0 {
                let rows = member.rows(of: member.member)
                let margin = Margin(
                    tensor(member.results[0].shape), above: rows.above, below: rows.below)
                let join = Operation.JoinRows(x: member.x, margin: margin)
                #expect(join.fits)
                let size = join.results[0].byteCount
                #expect(join.parts.reduce(0) { $0 + $1.transfer.byteCount } == size)
                #expect(join.results[0].shape[1] == rows.above + member.x.shape[1] + rows.below)
            }
            #expect(members[0].rows(of: 0).above == 0)
            #expect(members[count - 1].rows(of: count - 1).below == 0)
        }
    }
}

@Suite struct MeetingTests {
    @Test("Threads hand over values in rounds, and go on at once when a meeting is broken off")
    func rounds() async {
        let meeting = Meeting(count: 3)
        let sums = await withTaskGroup(of: Int.self) { group in
            for index in 0..<3 {
                group.addTask {
                    await onThread {
                        (0..<50).reduce(0) { sum, round in
                            let values = meeting.exchange(Box(round * 10 + index), of: index)
                            return sum + (values as? [Box]).map { $0.reduce(0) { $0 + $1.value } }!
                        }
                    }
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        #expect(sums == Array(repeating: (0..<50).reduce(0) { $0 + 30 * $1 + 3 }, count: 3))

        async let waiting = onThread { meeting.exchange(Box(1), of: 0) == nil }
        meeting.breakOff()
        #expect(await waiting)
        #expect(meeting.isBroken)
        meeting.reset()
        #expect(!meeting.isBroken)
    }
}

private final class Box: Sendable {
    let value: Int
    init(_ value: Int) { self.value = value }
}

/// On a thread of its own: what waits must not hold one of the shared pool.
private func onThread<Result: Sendable>(_ body: @escaping @Sendable () -> Result) async -> Result {
    await withCheckedContinuation { continuation in
        DispatchQueue(label: "member").async { continuation.resume(returning: body()) }
    }
}
