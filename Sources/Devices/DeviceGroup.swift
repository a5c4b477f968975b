/// Machines that compute one thing together, by name.

import CPU
import CUDA
import Dispatch
import Ground
public import Tensors

/// What a user asks for: `0,1`, `cuda:all`, `GPU-5a1b…,GPU-77c0…`, `cpu,cpu`.
public struct DeviceGroup: Sendable, Hashable, LosslessStringConvertible {
    public enum Member: Sendable, Hashable {
        case cpu
        /// GPUs are numbered from 0, as CUDA_VISIBLE_DEVICES shows them.
        case gpu(Int)
        /// A GPU by the beginning of its UUID, as `nvidia-smi -L` prints it.
        case uuid(String)
    }
    /// Empty for all GPUs.
    public let members: [Member]

    /// More would have nothing to share.
    static let most = 64

    /// nil for what is no list of devices.
    public init?(_ text: String) {
        if text == "cuda:all" {
            members = []
            return
        }
        var found: [Member] = []
        for name in text.split(separator: ",", omittingEmptySubsequences: false) {
            if name == "cpu" {
                found.append(.cpu)
            } else if name.hasPrefix("GPU-"), name.utf8.count > 4 {
                found.append(.uuid(String(name)))
            } else {
                let digits = name.hasPrefix("cuda:") ? name.dropFirst(5) : name
                guard !digits.isEmpty, digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
                    let ordinal = Int(digits)
                else { return nil }
                found.append(.gpu(ordinal))
            }
        }
        guard found.count <= Self.most else { return nil }
        members = found
    }

    public var description: String {
        members.isEmpty
            ? "cuda:all"
            : members.map {
                switch $0 {
                case .cpu: "cpu"
                case .gpu(let ordinal): "\(ordinal)"
                case .uuid(let uuid): uuid
                }
            }.joined(separator: ",")
    }
}

/// Why devices cannot be a group.
public enum DeviceGroupError: Error, Sendable, Hashable, CustomStringConvertible {
    case mixed
    case twice(String)
    case noGPU(uuid: String, found: [String])
    /// Their kernels round in different ways, so that the video would depend on who made which part.
    case unlike(String, String)

    public var description: String {
        switch self {
        case .mixed: "a group is of GPUs or of CPUs, not of both"
        case .twice(let name): "\(name) is named twice"
        case .noGPU(let uuid, let found):
            found.isEmpty
                ? "no GPU is \(uuid): the driver tells no UUIDs; give numbers"
                : "no GPU is \(uuid), or more than one; there are \(found.joined(separator: ", "))"
        case .unlike(let a, let b):
            "\(a) and \(b) are not alike: a group needs cards of one compute capability"
        }
    }
}

extension DeviceGroup {
    public var isGPU: Bool { members.first != .cpu }

    /// - Throws: where all GPUs are meant and there is none.
    public var count: Int {
        get throws { members.isEmpty ? try Driver().deviceCount : members.count }
    }

    private var choices: [DeviceChoice] {
        guard isGPU, let driver = try? Driver() else { return [] }
        return ((try? gpus(driver)) ?? []).map { .cuda(ordinal: $0) }
    }

    /// The GPU with the least device memory that other programs have left, and the bytes of it.
    public var leastFree: (device: DeviceChoice, bytes: Int)? {
        choices.compactMap { device in device.freeMemory.map { (device, $0) } }
            .min { $0.1 < $1.1 }
    }

    /// Whether each GPU can read the memory of every other one, so that they copy weights from each other.
    public var sharesWeights: Bool {
        guard isGPU, let driver = try? Driver(), let ordinals = try? gpus(driver) else {
            return false
        }
        return ordinals.count > 1
            && ordinals.allSatisfy { from in
                ordinals.allSatisfy { $0 == from || driver.canAccess(from: from, to: $0) }
            }
    }

    /// Begins to open all GPUs, each on a thread of its own.
    public func openAhead() {
        guard isGPU else { return }
        DispatchQueue.global().async { for choice in choices { choice.openAhead() } }
    }

    /// As the driver calls the first card.
    public var cardName: String? { choices.first?.cardName }

    /// What opens each device, on the thread that is to have it, and its place in the group.
    /// - Parameter note: told from any thread.
    /// - Throws: ``DeviceGroupError`` or ``CUDAUnavailable``, before anything is opened.
    public func openers(
        _ options: DeviceOptions = DeviceOptions(),
        note: @escaping @Sendable (DeviceNote) -> Void = { _ in }
    ) throws -> [@Sendable () throws -> any Backend] {
        let cpus = members.filter { $0 == .cpu }.count
        if cpus > 0 {
            guard cpus == members.count else { throw DeviceGroupError.mixed }
            return cpuOpeners(options)
        }
        let ordinals = try gpus(try Driver(libraries: options.cuda.libraries))
        let meeting = ordinals.count > 1 ? Meeting(count: ordinals.count) : nil
        return ordinals.indices.map { index in
            {
                let backend = try CUDABackend(
                    ordinal: ordinals[index], options.cuda,
                    membership: meeting.map { Membership(index: index, in: $0) } ?? .alone,
                    group: ordinals
                ) { note(.kernels(file: $0.file, seconds: $0.seconds)) }
                for other in backend.unreachablePeers {
                    note(.noPeerAccess(from: ordinals[index], to: other))
                }
                return backend
            }
        }
    }

    private func cpuOpeners(_ options: DeviceOptions) -> [@Sendable () throws -> any Backend] {
        let count = members.count
        let threads = options.threads ?? max(1, CPUBackend.processors / count)
        let meeting = count > 1 ? Meeting(count: count) : nil
        return (0..<count).map { index in
            {
                CPUBackend(
                    threads: threads,
                    membership: meeting.map { Membership(index: index, in: $0) } ?? .alone)
            }
        }
    }

    /// The numbers of the GPUs, which are alike and each there once.
    private func gpus(_ driver: Driver) throws -> [Int] {
        var ordinals: [Int] = []
        for member in members {
            switch member {
            case .cpu: throw DeviceGroupError.mixed
            case .gpu(let ordinal):
                guard ordinal < driver.deviceCount else {
                    throw CUDAUnavailable.noSuchDevice(
                        ordinal: ordinal, count: driver.deviceCount)
                }
                ordinals.append(ordinal)
            case .uuid(let prefix):
                let all = (0..<driver.deviceCount).map { driver.uuid(of: $0) ?? "" }
                let fitting = all.indices.filter { all[$0].hasPrefix(prefix) }
                guard fitting.count == 1 else {
                    throw DeviceGroupError.noGPU(
                        uuid: prefix, found: all.filter { !$0.isEmpty })
                }
                ordinals.append(fitting[0])
            }
        }
        if members.isEmpty { ordinals = Array(0..<driver.deviceCount) }
        var seen: Set<Int> = []
        for ordinal in ordinals where !seen.insert(ordinal).inserted {
            throw DeviceGroupError.twice("GPU \(ordinal)")
        }
        let properties = ordinals.map { driver.properties(of: $0) }
        for (index, one) in properties.enumerated().dropFirst()
        where one.architecture != properties[0].architecture {
            func name(_ index: Int) -> String {
                "GPU \(ordinals[index]) (\(properties[index].name), "
                    + "\(properties[index].architecture.capability))"
            }
            throw DeviceGroupError.unlike(name(0), name(index))
        }
        return ordinals
    }
}
