/// The figures of a measurement as records: lines of JSON, rows of CSV.

import Families
public import Ground
public import Runs
import SystemPackage
import Tensors
public import Training

/// All figures, with the settings of the run that they belong to.
public struct BenchTable {
    /// What was measured, and where.
    public struct Settings: Encodable, Sendable {
        let record = "machine"
        public let program: String
        public let machine: Machine
        public let model: String
        public let width, height, frames: Int
        /// nil for iterations of training.
        public let steps: Int?
        public let attention, linears, precision: String
        /// nil if attention is dense.
        public let topK: Double?
        /// The time to open the device, kernels included.
        public let openingMilliseconds: Double
        public let devices: Int
        /// The recipe whose iterations were measured; nil for a run that makes a video.
        public let training: String?
        /// Samples of an iteration.
        public let batch: Int?

        private enum CodingKeys: String, CodingKey {
            case record, program, machine, devices, training, batch, model, width, height, frames,
                steps, attention,
                linears
            case precision, topK, openingMilliseconds
        }

        /// - Parameters:
        ///   - program: its name and version.
        ///   - machine: the machine that was measured.
        ///   - model: the model's name.
        ///   - request: what was made.
        ///   - openingSeconds: the time to open the device.
        ///   - devices: that computed together.
        ///   - training: the settings of the training run whose iterations were measured.
        public init(
            program: String, _ machine: Machine, _ model: String, _ request: Request,
            openingSeconds: Double, devices: Int = 1, training: TrainingSettings? = nil
        ) {
            self.devices = devices
            self.training = training?.recipe.rawValue
            batch = training?.batch
            let arithmetic = request.arithmetic
            self.program = program
            self.machine = machine
            self.model = model
            (width, height, frames) = (request.width, request.height, request.frames)
            steps = training == nil ? request.sampling.steps : nil
            linears = arithmetic.linears.rawValue
            precision = arithmetic.precision.rawValue
            if let training {
                attention = (training.topK == nil ? AttentionChoice.original : .sla).rawValue
                topK = training.topK
            } else {
                attention = arithmetic.attention.rawValue
                topK = arithmetic.attention == .original ? nil : arithmetic.topK
            }
            openingMilliseconds = openingSeconds * 1000
        }
    }

    /// One line of JSON and one row of CSV.
    public struct Record: Encodable, Sendable {
        public var record: String
        public var stage: String?
        public var operation, shapes, arithmetic: String?
        public var calls: Int?
        /// Of a stage, the median and best of warm runs, and the first run; of an operation, all its calls in one run.
        public var milliseconds, bestMilliseconds, coldMilliseconds: Double?
        /// An operation's share of its stage's time.
        public var shareOfStage: Double?
        /// Of a stage, the arithmetic of one run: 10^12 operations.
        public var work: Double?
        public var teraflops, gigabytesPerSecond: Double?
        public var shareOfCeiling: Double?
        public var peakBytes, plannedBytes: Int?
        public var digest: String?
    }

    public let settings: Settings
    public private(set) var records: [Record] = []

    public init(_ settings: Settings) { self.settings = settings }

    /// Adds a record for each measured rate.
    public mutating func add(_ ceilings: Ceilings) {
        records.append(
            Record(
                record: "ceiling", operation: "copy", gigabytesPerSecond: ceilings.copy / 1e9))
        for kind in ArithmeticKind.allCases {
            guard let rate = ceilings.arithmetic[kind] else { continue }
            records.append(
                Record(record: "ceiling", operation: kind.rawValue, teraflops: rate / 1e12))
        }
    }

    /// Adds the figures of a stage, or of its operations.
    /// - Parameter ceilings: nil if single operations were not measured.
    public mutating func add(_ event: BenchEvent, against ceilings: Ceilings?) {
        switch event {
        case .stage(let figures):
            records.append(
                Record(
                    record: "stage", stage: figures.name, milliseconds: figures.seconds * 1000,
                    bestMilliseconds: figures.warm.min().map { $0 * 1000 },
                    coldMilliseconds: figures.cold.map { $0 * 1000 },
                    work: figures.cost.map { Double($0.flops) / 1e12 },
                    teraflops: figures.cost.map { $0.teraflops(in: figures.seconds) },
                    gigabytesPerSecond: figures.cost.map { $0.gigabytes(in: figures.seconds) },
                    shareOfCeiling: figures.floor.map { $0 / figures.seconds },
                    peakBytes: figures.peakBytes, plannedBytes: figures.plannedBytes,
                    digest: figures.digest))
        case .operations(let operations, let stage):
            let total = operations.reduce(0) { $0 + $1.seconds }
            for entry in operations {
                let cost = entry.cost
                records.append(
                    Record(
                        record: "operation", stage: stage, operation: entry.key.operation,
                        shapes: entry.key.shapes, arithmetic: entry.key.arithmetic.rawValue,
                        calls: entry.calls, milliseconds: entry.seconds * 1000,
                        shareOfStage: entry.seconds / total,
                        teraflops: cost.flops > 0 ? cost.teraflops(in: entry.seconds) : nil,
                        gigabytesPerSecond: cost.gigabytes(in: entry.seconds),
                        shareOfCeiling: ceilings?.floor(cost, entry.key.arithmetic).map {
                            $0 / entry.seconds
                        }))
            }
        }
    }
}

extension Operation.Cost {
    /// Floating-point operations per second, in units of 10^12.
    fileprivate func teraflops(in seconds: Double) -> Double { Double(flops) / seconds / 1e12 }
    fileprivate func gigabytes(in seconds: Double) -> Double { Double(bytes) / seconds / 1e9 }
}

// MARK: - CSV

extension BenchTable {
    /// One row for each record, with the run's settings.
    public var csv: String {
        let run = [
            settings.machine.device, settings.model, "\(settings.width)x\(settings.height)",
            "\(settings.frames)", settings.attention, settings.linears, settings.precision,
        ]
        let header =
            "device,model,size,frames,attention,linears,precision,record,stage,operation,shapes,"
            + "arithmetic,calls,milliseconds,best_ms,cold_ms,share_of_stage,tflops,gb_per_s,"
            + "share_of_ceiling,peak_bytes"
        func number(_ value: Double?, _ digits: Int) -> String {
            value.map { fixed($0, digits) } ?? ""
        }
        let lines = records.map { record in
            let fields =
                run + [
                    record.record, record.stage ?? "", record.operation ?? "", record.shapes ?? "",
                    record.arithmetic ?? "", record.calls.map(String.init) ?? "",
                    number(record.milliseconds, 4), number(record.bestMilliseconds, 4),
                    number(record.coldMilliseconds, 4), number(record.shareOfStage, 4),
                    number(record.teraflops, 4), number(record.gigabytesPerSecond, 2),
                    number(record.shareOfCeiling, 4), record.peakBytes.map(String.init) ?? "",
                ]
            return fields.map(csvField).joined(separator: ",")
        }
        return ([header] + lines).joined(separator: "\n") + "\n"
    }

    /// Writes the table as CSV.
    public func write(to path: String, overwrite: Bool) throws(FileError) {
        try PendingFile.write(Array(csv.utf8), to: FilePath(path), overwrite: overwrite)
    }

    /// Throws if the file could not be written; to be called before anything is measured.
    public static func checkWritable(_ path: String, overwrite: Bool) throws(FileError) {
        _ = try PendingFile(FilePath(path), overwrite: overwrite)
    }
}
