// How the GPUs of a group share out the copying of weights from the host, and the holding of weights for which no GPU has
// room.
//
// Every weight of a block has one owner, who copies it from the host, converts it and keeps it if it can. The others copy
// it from the owner's memory: once if they have room for it too, else for each use. Where it was held nowhere, or where its
// owner cannot be read, everybody copies from the host.

import Tensors

/// Who owns which weight. All devices place the same weights in the same order, so all come to the same.
struct WeightOwners {
    /// Bytes of each device.
    private(set) var owned: [Int]

    init(devices: Int) { owned = Array(repeating: 0, count: devices) }

    /// The owner of the next weight: whoever owns least, so that shares differ by one weight at most.
    mutating func next(of byteCount: Int) -> Int {
        let owner = owned.indices.min { owned[$0] < owned[$1] } ?? 0
        owned[owner] += byteCount
        return owner
    }
}

/// Where a weight is in its owner's memory, when `there` has passed.
struct Held {
    let location: DevicePointer
    /// Of a weight that was quantised on the device; else null.
    let scales: DevicePointer
    let there: Event
}

/// What one GPU tells the others of the weights of a group that are its own. What it names stays as long as the model,
/// which leaves all GPUs of a group together.
private final class Announcement: @unchecked Sendable {
    /// In the order of placing; nil for what it does not hold.
    let held: [Held?]
    /// Whether other GPUs can read its memory.
    let isOpen: Bool

    init(_ held: [Held?], isOpen: Bool) { (self.held, self.isOpen) = (held, isOpen) }
}

/// A GPU's way to the weights of the others of its group.
struct WeightSharing {
    private let membership: Membership
    private let meeting: Meeting
    /// GPUs whose memory this one can read, by index in the group.
    private let readable: Set<Int>

    /// nil for a GPU that is in no group.
    init?(_ membership: Membership, readable: Set<Int>) {
        guard let meeting = membership.meeting else { return nil }
        (self.membership, self.meeting, self.readable) = (membership, meeting, readable)
    }

    /// Tells the others what this GPU holds of its own weights, and learns what they hold of theirs. All of them come here
    /// with the same group.
    /// - Parameters:
    ///   - owners: of all weights of the group.
    ///   - own: where this GPU's own are.
    /// - Returns: where each weight can be read; nil where the meeting was broken off.
    func exchange(owners: [Int], _ own: [Held?], isOpen: Bool) -> [Held?]? {
        let told = meeting.exchange(Announcement(own, isOpen: isOpen), of: membership.index)
        guard let told = told as? [Announcement] else { return nil }
        return owners.enumerated().map { weight, owner in
            owner != membership.index && told[owner].isOpen && readable.contains(owner)
                ? told[owner].held[weight] : nil
        }
    }
}
