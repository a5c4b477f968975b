/// Which of some processes this one is: what torchrun, Slurm and Ray say in variables.

import Ground

/// What went wrong between the processes of a run.
public struct ProcessError: Error, Sendable, Equatable, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

/// The place of a process among those that train one model: one process for each device.
public struct ProcessPlace: Sendable, Hashable {
    /// From 0; the first process writes the run's files.
    public var rank: Int
    public var count: Int
    /// Among the processes of the same machine: the number of its device.
    public var local: Int
    /// Processes of the same machine, where that is known.
    public var localCount: Int?
    /// Where the first process waits for the others.
    public var host: String
    public var port: Int

    public init(
        rank: Int, count: Int, local: Int = 0, localCount: Int? = nil, host: String, port: Int
    ) {
        (self.rank, self.count, self.local, self.localCount) = (rank, count, local, localCount)
        (self.host, self.port) = (host, port)
    }

    public var isFirst: Bool { rank == 0 }
    /// The most processes of a run.
    static let most = 4096

    /// Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun and Ray Train set
    /// them, or else SLURM_PROCID, SLURM_STEP_NUM_TASKS and SLURM_LOCALID, as srun does.
    ///
    /// torchrun's own agent listens at MASTER_PORT (TORCHELASTIC_USE_AGENT_STORE says so): the port after it is used
    /// then. TURBODIFFUSION_MASTER_PORT names another one.
    /// - Parameter variable: the value of an environment variable.
    /// - Returns: nil for a process that is alone.
    /// - Throws: ``ProcessError`` that names a variable that is missing or makes no sense.
    public static func read(_ variable: (String) -> String?) throws(ProcessError) -> ProcessPlace? {
        func number(_ name: String, _ range: ClosedRange<Int>) throws(ProcessError) -> Int? {
            guard let text = variable(name) else { return nil }
            guard let value = Int(text), range.contains(value) else {
                throw ProcessError(
                    "\(name) is '\(text.printable)', expected a number from \(range.lowerBound) to "
                        + "\(range.upperBound)")
            }
            return value
        }
        let isSlurm = variable("WORLD_SIZE") == nil && variable("SLURM_STEP_NUM_TASKS") != nil
        // Only srun's steps count. A job's script, which runs once, has SLURM_NTASKS and SLURM_PROCID, too.
        if isSlurm, variable("SLURM_PROCID") == nil { return nil }
        let (countName, rankName, localName) =
            isSlurm
            ? ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
            : ("WORLD_SIZE", "RANK", "LOCAL_RANK")
        guard let count = try number(countName, 1...most), count > 1 else { return nil }
        guard let rank = try number(rankName, 0...count - 1) else {
            throw ProcessError("\(countName) is \(count), but \(rankName) is not set")
        }
        guard let host = variable("MASTER_ADDR") ?? variable("SLURM_LAUNCH_NODE_IPADDR") else {
            throw ProcessError(
                "\(countName) is \(count), but MASTER_ADDR is not set: it names the machine of the "
                    + "first process")
        }
        var port = try number("TURBODIFFUSION_MASTER_PORT", 1...65535)
        let next = variable("TORCHELASTIC_USE_AGENT_STORE") == "True" ? 1 : 0
        if port == nil, let named = try number("MASTER_PORT", 1...65535 - next) {
            port = named + next
        }
        if port == nil, isSlurm, let job = try number("SLURM_JOB_ID", 0...Int.max) {
            port = 15000 + job % 20000
        }
        guard let port else {
            throw ProcessError("\(countName) is \(count), but MASTER_PORT is not set")
        }
        return ProcessPlace(
            rank: rank, count: count, local: try number(localName, 0...most) ?? 0,
            localCount: try number("LOCAL_WORLD_SIZE", 1...most), host: host, port: port)
    }
}
