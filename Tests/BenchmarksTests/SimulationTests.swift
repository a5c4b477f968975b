/// What several devices are reckoned to take, against what two and four were measured to take.

import Benchmarks
import Catalog
import Families
import Runs
import Testing

@Suite struct SimulationTests {
    private func simulate(
        _ model: String, width: Int, height: Int, link: Double = 300e9,
        counts: [Int] = [1, 2, 4, 8], card: String = "H100"
    ) throws -> [Simulation] {
        let models = BenchModel(random: try #require(Catalog.published.entry(named: model)))
        var request = Request("bench", for: models.family)
        (request.width, request.height) = (width, height)
        request.sampling = .distilled(models.family.defaults.distilled)
        request.arithmetic.linears = .int8
        return try Simulation.run(
            models, request, counts: counts, card: try #require(Card.named(card)), link: link)
    }

    /// `Benchmarks/h100-groups.csv`.
    @Test(
        "Two H100s are as many times as fast as one as was measured, within a tenth",
        arguments: [
            ("Wan2.1-1.3B", 832, 480, 594.9 / 332.6, 494.6 / 293.3),
            ("Wan2.1-14B", 1280, 720, 10645.6 / 5618.3, 1121.5 / 618.3),
        ])
    func measured(
        model: String, width: Int, height: Int, transformer: Double, decoder: Double
    ) throws {
        let found = try simulate(model, width: width, height: height, counts: [2])
        #expect(found.map(\.stage) == ["transformer", "VAE decode"])
        #expect(abs(found[0].speedup / transformer - 1) < 0.1, "\(found[0].speedup)")
        #expect(abs(found[1].speedup / decoder - 1) < 0.1, "\(found[1].speedup)")
    }

    /// `Benchmarks/h200-groups.csv`. Of 1.3B one step is compared: four of them took four devices 4.6 times as
    /// long as one, for the host's work between steps is not reckoned.
    @Test(
        "Four H200s are as many times as fast as one as was measured, within a tenth; 1.3B a step",
        arguments: [
            ("Wan2.1-1.3B", 832, 480, 142.59 / 45.10, 482.7 / 177.8),
            ("Wan2.1-14B", 832, 480, 3950.3 / 1101.8, 482.7 / 177.8),
            ("Wan2.1-14B", 1280, 720, 10395.8 / 2832.6, 1110.3 / 337.8),
        ])
    func four(
        model: String, width: Int, height: Int, transformer: Double, decoder: Double
    ) throws {
        let found = try simulate(model, width: width, height: height, counts: [4], card: "H200")
        #expect(abs(found[0].speedup / transformer - 1) < 0.1, "\(found[0].speedup)")
        #expect(abs(found[1].speedup / decoder - 1) < 0.1, "\(found[1].speedup)")
    }

    @Test("More devices are faster, never more than as many times, and a slow link shows")
    func scaling() throws {
        let found = try simulate("Wan2.1-1.3B", width: 832, height: 480)
        for stage in ["transformer", "VAE decode"] {
            let rows = found.filter { $0.stage == stage }
            #expect(rows.map(\.devices) == [1, 2, 4, 8])
            #expect(rows[0].speedup == 1 && rows[0].sentBytes == 0)
            for (one, next) in zip(rows, rows.dropFirst()) {
                #expect(next.seconds < one.seconds)
                #expect(next.speedup <= Double(next.devices))
                #expect(next.sentBytes > 0)
            }
        }
        let slow = try simulate("Wan2.1-1.3B", width: 832, height: 480, link: 10e9, counts: [2])
        #expect(slow[0].seconds > found[1].seconds)
        #expect(slow[0].waitingSeconds > found[1].waitingSeconds)
    }
}
