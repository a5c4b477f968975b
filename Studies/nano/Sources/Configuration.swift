/// What is measured: the ways of running the two models, and their order.

import Families
import Runs

/// The arithmetic of the transformer's linear layers, which also decides that of everything else.
enum Linears: String, CaseIterable, Sendable {
    /// Everything in f32, from the text encoder to the autoencoder.
    case f32
    /// Everything in bf16.
    case bf16
    /// Like bf16, with the linear layers of the blocks in int8 (128x128 blocks).
    case int8
    /// Like bf16, with the linear layers of the blocks in fp8 (one scale per row).
    case fp8
    /// Like bf16, with the transformer as it comes with the program: in int8 with centred text.
    case shipped

    var precision: Precision { self == .f32 ? .f32 : .bf16 }
    var choice: LinearChoice {
        switch self {
        case .f32, .bf16, .shipped: .stored
        case .int8: .int8
        case .fp8: .fp8
        }
    }
}

/// One row of the report.
struct Configuration: Hashable, Sendable {
    enum Model: String, CaseIterable, Sendable {
        /// The undistilled model: Euler with shift 3, guidance 3.5, dense attention.
        case teacher
        /// The distilled one.
        case student
    }

    var model: Model
    var steps: Int
    var attention: AttentionChoice
    var linears: Linears
    /// Share of the key blocks that are attended to exactly; nil for dense attention.
    var topK: Double?

    init(
        _ model: Model, steps: Int, attention: AttentionChoice, linears: Linears,
        topK: Double? = nil
    ) {
        self.model = model
        self.steps = steps
        self.attention = attention
        self.linears = linears
        self.topK = topK
    }

    static let teacher = Configuration(
        .teacher, steps: 50, attention: .original, linears: .bf16)

    /// What videos of `steps` steps are compared with: only the number of steps is reduced.
    static func reference(steps: Int) -> Configuration {
        Configuration(.student, steps: steps, attention: .original, linears: .f32)
    }

    /// The reference of this configuration; the teacher's videos are compared with the student's of four steps.
    var reference: Configuration {
        .reference(steps: model == .teacher ? Self.mostSteps : steps)
    }
    var isReference: Bool { self == reference }

    static let mostSteps = 4
    /// The top-k that the student was trained with, and a smaller one.
    static let usualTopK = 0.2
    static let smallTopK = 0.1

    /// "student, 4 steps, sla 0.2, int8"
    var title: String {
        let top = topK.map { " \(shortest($0))" } ?? ""
        return "\(model.rawValue), \(steps) step\(steps == 1 ? "" : "s"), "
            + "\(attention.rawValue)\(top), \(linears.rawValue)"
    }
}

extension Configuration {
    /// The request for a prompt. The noise does not come from its seed, but from ``NoiseStream``.
    func request(_ prompt: String, for family: Family) -> Request {
        var request = Request(prompt, for: family)
        if model == .teacher {
            request.sampling = .flow(.init(.euler, shift: 3, guidance: 3.5))
        }
        request.sampling.steps = steps
        request.arithmetic = Arithmetic(
            precision: linears.precision, linears: linears.choice, attention: attention,
            topK: topK ?? 1)
        return request
    }
}

/// Which configurations are measured.
struct Selection: Sendable, Equatable {
    var models = Configuration.Model.allCases
    var steps = [4, 3, 2, 1]
    var attention = AttentionChoice.allCases
    var linears = Linears.allCases
    var topK = [0.05, 0.1, 0.15, 0.2, 0.5, 1]

    /// Everything.
    init() {}

    /// What a CPU can do in about a minute for four captions: only the top-k that the student was trained with, without
    /// the arithmetic that a CPU only imitates.
    static var brief: Selection {
        var selection = Selection()
        selection.steps = [4]
        selection.attention = [.original, .sla]
        selection.linears = [.f32, .bf16, .int8, .shipped]
        selection.topK = [Configuration.usualTopK]
        return selection
    }

    /// All selected configurations, the most informative first: the teacher and what it is compared with, the other
    /// references, four steps (SLA, then SageSLA, for every top-k), fewer steps at top-k 0.2 and 0.1, the rest.
    var configurations: [Configuration] {
        var list: [Configuration] = []
        if models.contains(.teacher) { list.append(.teacher) }
        if models.contains(.student) {
            for steps in steps {
                for attention in attention {
                    for linears in linears {
                        for topK in attention == .original ? [nil] : topK.map(Optional.some) {
                            list.append(
                                Configuration(
                                    .student, steps: steps, attention: attention,
                                    linears: linears, topK: topK))
                        }
                    }
                }
            }
        }
        let unique = list.enumerated().filter { index, item in
            list.firstIndex(of: item) == index
        }.map(\.element)
        return unique.sorted { $0.rank.lexicographicallyPrecedes($1.rank) }
    }
}

extension Configuration {
    /// The place in the order of measuring, compared lexicographically.
    fileprivate var rank: [Double] {
        func place<T: Equatable>(_ value: T, _ order: [T]) -> Double {
            Double(order.firstIndex(of: value) ?? order.count)
        }
        let fewer = Double(Self.mostSteps - steps)
        let attention = place(attention, [.original, .sla, .sagesla])
        let top = topK.map { place($0, [Self.usualTopK, Self.smallTopK, 0.05, 0.15, 0.5, 1]) } ?? 0
        let linears = place(linears, [.bf16, .int8, .shipped, .fp8, .f32])
        if model == .teacher { return [0, 1] }
        if isReference { return steps == Self.mostSteps ? [0, 0] : [1, fewer] }
        if steps == Self.mostSteps { return [2, attention, top, topK ?? 0, linears] }
        let isUsual = topK.map { $0 == Self.usualTopK || $0 == Self.smallTopK } ?? true
        return [isUsual ? 3 : 4, fewer, attention, top, topK ?? 0, linears]
    }
}

/// A number with as few digits as possible: 0.2, 1, 0.05.
func shortest(_ value: Double) -> String {
    value == value.rounded() && value.magnitude < 1e9 ? "\(Int(value))" : "\(value)"
}
