/// Times every operation of a model, and counts its work.

import CUDA
public import Tensors

/// Moments on the timeline of a device. Times are known once the host has waited for the device.
protocol Stopwatch: AnyObject {
    /// Marks the moment when the device has finished all work queued so far.
    /// - Returns: the number of the mark.
    func mark() -> Int
    func seconds(from start: Int, to end: Int) -> Double
    func reset()
}

/// For devices that have finished an operation when the call returns.
final class HostStopwatch: Stopwatch {
    private var marks: [ContinuousClock.Instant] = []

    func mark() -> Int {
        marks.append(.now)
        return marks.count - 1
    }
    func seconds(from start: Int, to end: Int) -> Double {
        (marks[end] - marks[start]) / .seconds(1)
    }
    func reset() { marks = [] }
}

/// Events in the stream of a GPU. The host does not wait for them, so the work runs as usual.
final class EventStopwatch: Stopwatch {
    private let context: Context
    private var events: [Event] = []
    private var used = 0

    init(_ context: Context) { self.context = context }

    func mark() -> Int {
        if used == events.count {
            do {
                events.append(try Event(context.device, timing: true))
            } catch {
                // The next synchronisation reports this, after which no times are asked for.
                context.device.fail(error)
                return 0
            }
        }
        events[used].record(in: context.stream)
        used += 1
        return used - 1
    }
    func seconds(from start: Int, to end: Int) -> Double {
        Double(events[start].milliseconds(to: events[end])) / 1000
    }
    func reset() { used = 0 }
}

/// The kinds of arithmetic, which have different rates.
public enum ArithmeticKind: String, Sendable, CaseIterable, Codable {
    case f32, bf16, int8, fp8

    /// The arithmetic of operations on elements of this type.
    init(_ dtype: DType) {
        switch dtype {
        case .bf16, .f16: self = .bf16
        case .i8: self = .int8
        case .f8e4m3, .f8e5m2: self = .fp8
        default: self = .f32
        }
    }
}

/// All calls of an operation with the same shapes.
public struct TimedOperation: Sendable {
    public struct Key: Sendable, Hashable {
        public let operation, shapes: String
        public let arithmetic: ArithmeticKind
    }

    public let key: Key
    public var calls = 0
    public var seconds = 0.0
    public var cost = Operation.Cost()
}

/// Passes operations on, with a mark of the stopwatch before and after each.
final class OperationTimer: ForwardingBackend {
    private let stopwatch: any Stopwatch
    /// Whether operations are timed as they pass.
    var isTiming = true
    private var calls: [(key: TimedOperation.Key, start: Int, end: Int, cost: Operation.Cost)] = []

    init(_ base: any Backend, _ stopwatch: any Stopwatch) {
        self.stopwatch = stopwatch
        super.init(base)
    }

    override func run(_ operation: Operation) -> [Tensor] {
        if operation.isView || !isTiming { return super.run(operation) }
        let start = stopwatch.mark()
        let results = super.run(operation)
        let end = stopwatch.mark()
        let key = TimedOperation.Key(
            operation: operation.name,
            shapes: Self.describe(Self.inputs(operation), results) + Self.detail(operation).text,
            arithmetic: Self.arithmetic(of: operation))
        calls.append((key, start, end, operation.cost))
        return results
    }

    /// The operations since the last call, the slowest first. Waits for the device.
    func takeOperations() throws -> [TimedOperation] {
        try synchronize()
        var found: [TimedOperation.Key: TimedOperation] = [:]
        for call in calls {
            var entry = found[call.key] ?? TimedOperation(key: call.key)
            entry.calls += 1
            entry.seconds += stopwatch.seconds(from: call.start, to: call.end)
            entry.cost += call.cost
            found[call.key] = entry
        }
        calls = []
        stopwatch.reset()
        return found.values.sorted {
            ($0.seconds, $1.key.shapes) > ($1.seconds, $0.key.shapes)
        }
    }

    /// The inputs whose shapes tell calls apart: of a convolution not its history, of an embedding its table.
    private static func inputs(_ operation: Operation) -> [Tensor] {
        switch operation {
        case .convolution(let o): [o.x]
        case .embedding(let o): [o.table]
        default: operation.activations
        }
    }

    /// The kind of arithmetic that limits an operation.
    static func arithmetic(of operation: Operation) -> ArithmeticKind {
        detail(operation).arithmetic ?? ArithmeticKind(inputs(operation).first?.dtype ?? .f32)
    }

    /// Inputs, each shape once, and the result if it differs: `32760x1536 i8 → 32760x8960 bf16`.
    private static func describe(_ inputs: [Tensor], _ results: [Tensor]) -> String {
        func text(_ tensor: Tensor) -> String {
            tensor.shape.dimensions.map(String.init).joined(separator: "x") + " \(tensor.dtype)"
        }
        var parts: [String] = []
        for input in inputs.map(text) where !parts.contains(input) { parts.append(input) }
        let list = parts.joined(separator: ", ")
        guard results.count == 1, let result = results.first.map(text), result != list else {
            return list
        }
        return list.isEmpty ? result : list + " → " + result
    }

    /// Details that shapes do not show.
    private static func detail(_ operation: Operation) -> (
        text: String, arithmetic: ArithmeticKind?
    ) {
        switch operation {
        case .linear(let o): return detail(o.x, o.weight)
        case .linearAdd(let o): return detail(o.x, o.weight)
        case .convolution(let o):
            let kernel = "\(o.weight.time)x\(o.weight.height)x\(o.weight.width)"
            return (" kernel \(kernel)" + (o.upsample ? " upsampling" : ""), nil)
        case .sparseLinearAttention(let o):
            return switch o.spec.arithmetic {
            case .sage(let card): (" top \(o.spec.topK) sage \(card.rawValue)", .int8)
            case .bf16: (" top \(o.spec.topK)", .bf16)
            case .exact: (" top \(o.spec.topK)", nil)
            }
        default: return ("", nil)
        }
    }

    /// With a quantised weight, plain activations are quantised within the operation.
    private static func detail(_ x: Tensor, _ weight: LinearWeight) -> (String, ArithmeticKind?) {
        let isPlain = x.format == .plain
        return switch weight.inputFormat {
        case .plain: ("", nil)
        case .int8Blocks: (isPlain ? " int8 weight" : "", .int8)
        case .fp8Rows: (isPlain ? " fp8 weight" : "", .fp8)
        }
    }
}
