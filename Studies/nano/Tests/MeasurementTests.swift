// Measuring from end to end: nano at a tiny size on the CPU, judged by the classifier with random weights.

import CPU
import Catalog
import Families
import Quality
import Runs
import Tensors
import Testing

@testable import NanoStudy

@Suite struct MeasurementTests {
    private static let captions = [
        "a red ball", "a green cube", "a blue cone", "a white ball", "a cyan cube", "a purple cone",
        "an orange ball",
    ].map { Caption(prompt: $0, answers: Attribute.allCases.map { _ in 0 }) }

    private static func measurement(lanes: Int, comparesFrames: Bool = true) throws -> Measurement {
        var set = try Catalog.modelSet(folder: projectFolder + "/Models/nano")
        (set.family.defaults.width, set.family.defaults.height) = (64, 64)
        set.family.defaults.frames = 9
        return try Measurement(
            models: StudyModels(student: set, teacher: set.transformer, shipped: set.transformer),
            classifier: projectFolder + "/Tests/Golden/quality/classifier.safetensors",
            captions: captions, lanes: lanes, comparesFrames: comparesFrames
        ) { OpenedDevice(CPUBackend(threads: 1), sageArchitecture: .sm90) }
    }

    private static let configurations = [
        Configuration.reference(steps: 2),
        Configuration(.student, steps: 2, attention: .sla, linears: .int8, topK: 0.5),
        Configuration(.student, steps: 1, attention: .sla, linears: .int8, topK: 0.5),
    ]

    /// Runs and gives the rows without what differs from run to run.
    private static func rows(
        _ configurations: [Configuration], lanes: Int, besides known: [Row] = [],
        comparesFrames: Bool = true
    ) async throws -> [Row] {
        let table = Table(path: "/nowhere.csv", known)
        var rows: [Row] = []
        try await measurement(lanes: lanes, comparesFrames: comparesFrames).run(
            configurations, besides: table
        ) { _ in
        } finished: { row in
            #expect(row.seconds > 0)
            var row = row
            row.seconds = 0
            rows.append(row)
        }
        return rows
    }

    @Test(
        "several makers give the same as one, and a run in two parts the same as one run"
    )
    func lanesAndParts() async throws {
        let all = try await Self.rows(Self.configurations, lanes: 1)
        #expect(all.map(\.configuration) == Self.configurations)
        #expect(all[0].psnr == nil && all[0].similarity == nil)
        #expect(all[1].psnr != nil && all[2].psnr != nil)
        #expect(all.allSatisfy { $0.captions == 7 && $0.accuracy.count == 8 })
        #expect(try await Self.rows(Self.configurations, lanes: 3) == all)
        // The reference has its row, and is made again for the others.
        let rest = try await Self.rows(Self.configurations, lanes: 2, besides: [all[0]])
        #expect(rest == Array(all[1...]))
    }

    @Test("scores alone are the same, and tell how each caption did")
    func scoresOnly() async throws {
        let int8 = [
            Configuration(.student, steps: 1, attention: .sla, linears: .int8, topK: 0.5),
            Configuration(.student, steps: 1, attention: .sla, linears: .shipped, topK: 0.5),
        ]
        let alone = try await Self.rows(int8, lanes: 2, comparesFrames: false)
        var compared = try await Self.rows([int8[0]], lanes: 2)[0]
        #expect(compared.psnr != nil && compared.similarity != nil)
        (compared.psnr, compared.similarity) = (nil, nil)
        #expect(alone[0] == compared)
        #expect(alone[0].right.count == 7)
        let right = alone[0].right.reduce(0, +)
        #expect(abs(alone[0].score - 100 * Double(right) / 56) < 1e-9)
        // The file of both is int8 already, so that they are the same run.
        #expect(alone[1].right == alone[0].right && alone[0].differenceError(alone[1]) == 0)
    }

    @Test func theTeacherIsGuided() async throws {
        var teacher = Configuration.teacher
        teacher.steps = 2
        let rows = try await Self.rows([teacher], lanes: 2)
        #expect(rows.count == 1 && rows[0].psnr != nil)
    }
}
