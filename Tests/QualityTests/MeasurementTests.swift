// Measuring from end to end: nano at a tiny size on the CPU, judged by the classifier with random weights.

import CPU
import Pipelines
import Synchronization
import Tensors
import Testing

@testable import Quality

@Suite struct MeasurementTests {
    private static let captions = [
        "a red ball", "a green cube", "a blue cone", "a white ball", "a cyan cube", "a purple cone",
        "an orange ball",
    ].map { Caption(prompt: $0, answers: Attribute.allCases.map { _ in 0 }) }

    private static func measurement(lanes: Int) throws -> QualityMeasurement {
        var set = try ModelSet(folder: goldenFolder + "/../../../Models/nano")
        (set.defaults.width, set.defaults.height, set.defaults.frames) = (64, 64, 9)
        return QualityMeasurement(
            models: QualityModels(student: set, teacher: set.transformer),
            classifier: try AttributeClassifier(path: goldenFolder + "/classifier.safetensors"),
            captions: captions, lanes: lanes
        ) { OpenedDevice(CPUBackend(threads: 1), sageArchitecture: .sm90) }
    }

    private static let configurations = [
        QualityConfiguration.reference(steps: 2),
        QualityConfiguration(.student, steps: 2, attention: .sla, linears: .int8, topK: 0.5),
        QualityConfiguration(.student, steps: 1, attention: .sla, linears: .int8, topK: 0.5),
    ]

    /// Runs and gives the rows without what differs from run to run.
    private static func rows(
        _ configurations: [QualityConfiguration], lanes: Int, besides known: [QualityRow] = []
    ) async throws -> [QualityRow] {
        let path = "/tmp/quality-\(UInt64.random(in: 0...UInt64.max)).csv"
        let table = QualityTable(path: path, known)
        var rows: [QualityRow] = []
        try await measurement(lanes: lanes).run(configurations, besides: table) { _ in
        } finished: { row in
            #expect(row.seconds > 0)
            var row = row
            row.seconds = 0
            rows.append(row)
        }
        return rows
    }

    @Test(
        "several makers side by side give what one gives, and a run in two parts what one run gives"
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

    @Test func theTeacherIsGuided() async throws {
        var teacher = QualityConfiguration.teacher
        teacher.steps = 2
        let rows = try await Self.rows([teacher], lanes: 2)
        #expect(rows.count == 1 && rows[0].psnr != nil)
    }
}
