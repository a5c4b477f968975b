// What `kernels tune` keeps, and how it chooses, without a GPU.

import Testing

@testable import CUDA

struct TuningTests {
    private func rows(
        _ tuning: Tuning = Tuning(), _ element: LinearProblem.Element = .i8, rows: Int,
        outputs: Int, multiprocessors: Int
    ) -> LinearPlan {
        LinearPlan.choose(
            LinearProblem(
                element: element, output: .bf16, rows: rows, outputs: outputs, inputs: 1024),
            .ada, multiprocessors: multiprocessors, tuning)
    }

    @Test func `a measurement moves the border between tiles of one element`() {
        // 128 multiprocessors: 96 tiles of 256 rows in one wave, or 160 of 128 rows in two. Then 32 or 64 in one.
        #expect(rows(rows: 640, outputs: 4096, multiprocessors: 128) == .mma(rows: 256))
        #expect(rows(rows: 256, outputs: 4096, multiprocessors: 128) == .mma(rows: 128))
        var tuning = Tuning()
        tuning.setAdvantageOfTallTiles(.i8, 2.5)
        #expect(rows(tuning, rows: 256, outputs: 4096, multiprocessors: 128) == .mma(rows: 256))
        #expect(
            rows(tuning, .bf16, rows: 256, outputs: 4096, multiprocessors: 128) == .mma(rows: 128))
        tuning.setAdvantageOfTallTiles(.i8, 0.9)
        #expect(rows(tuning, rows: 640, outputs: 4096, multiprocessors: 128) == .mma(rows: 128))
    }

    @Test func `without a measurement the border is where it was`() {
        for multiprocessors in [46, 82, 128, 170] {
            for rows in stride(from: 128, through: 8192, by: 384) {
                func cost(_ tall: Int) -> Int {
                    (((rows + tall - 1) / tall * 12) + multiprocessors - 1) / multiprocessors
                        * tall
                }
                let expected = cost(256) * 5 <= cost(128) * 6 ? 256 : 128
                #expect(
                    self.rows(rows: rows, outputs: 1536, multiprocessors: multiprocessors)
                        == .mma(rows: expected))
            }
        }
    }

    @Test func `what cannot be true is not believed`() {
        var tuning = Tuning()
        for value in [0, -1, 0.1, 40, .nan, .infinity] {
            tuning.setAdvantageOfTallTiles(.bf16, value)
        }
        #expect(tuning == Tuning())
    }

    @Test func `candidates are measured in turn, and medians survive an outlier`() throws {
        var order: [Int] = []
        let medians = Tuning.medians(of: 2, rounds: 5, limit: 10, now: { 0 }) { candidate in
            order.append(candidate)
            return order.count == 3 ? 100 : Double(candidate + 1)
        }
        #expect(medians == [1, 2])
        #expect(order == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    }

    @Test func `measuring ends at its limit`() {
        var clock = 0.0
        var count = 0
        func medians(_ limit: Double) -> [Double]? {
            (clock, count) = (0, 0)
            return Tuning.medians(of: 2, rounds: 100, limit: limit, now: { clock }) { _ in
                clock += 1
                count += 1
                return 1
            }
        }
        #expect(medians(9) == [1, 1])
        #expect(count == 9)
        // Two of one and three of the other are not enough.
        #expect(medians(5) == nil)
        #expect(medians(0) == nil && count == 0)
    }

    @Test func `only the card, driver and kernels that were measured find it`() throws {
        let subject = Tuning.Subject(
            card: "NVIDIA GeForce RTX 4090 128", driver: "580.95 (CUDA 13.0)", kernels: "abc")
        var tuning = Tuning()
        tuning.setAdvantageOfTallTiles(.i8, 1.31)
        tuning.setAdvantageOfTallTiles(.e4m3, 0.875)
        let text = tuning.text(of: subject)
        #expect(Tuning(text: text, of: subject) == tuning)
        for change in [\Tuning.Subject.card, \.driver, \.kernels] {
            var other = subject
            other[keyPath: change] += "x"
            #expect(Tuning(text: text, of: other) == nil)
        }
        for damaged in ["", text + "i8\n", text + "i8 x\n", text + "f64 1.2\n"] {
            #expect(Tuning(text: damaged, of: subject) == nil)
        }
        #expect(subject.fileName == "NVIDIA-GeForce-RTX-4090-128.tuning")
        #expect(tuning.lines.count == 2)
    }
}
