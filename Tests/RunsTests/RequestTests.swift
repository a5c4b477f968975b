/// Requests that cannot be carried out, each with one line; values that are stored and read again; parts that do not
/// fit.

import Checkpoints
import Families
import FoundationEssentials
import Runs
import Tensors
import Testing

/// A folder that goes with the value.
final class TemporaryFolder: Sendable {
    let path: String

    init() throws {
        path =
            FileManager.default.temporaryDirectory.path
            + "/runs-\(UInt64.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true, attributes: nil)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

struct RequestTests {
    private func line(_ family: Family = .wan21, _ change: (inout Request) -> Void) -> String? {
        var request = tinyRequest()
        change(&request)
        do throws(RequestError) {
            try request.validate(for: family)
            return nil
        } catch {
            return error.description
        }
    }

    @Test("every mistake has one line that says what was expected and what was found")
    func mistakes() {
        #expect(line { _ in } == nil)
        #expect(line { $0.prompt = " \n" }?.contains("empty") == true)
        #expect(line { $0.width = 250 }?.contains("nearest: 256") == true)
        #expect(line { $0.height = 4096 }?.contains("at most 2048") == true)
        #expect(line { $0.frames = 10 }?.contains("9 or 13") == true)
        #expect(line { $0.frames = 0 }?.contains("nearest: 1") == true)
        #expect(line { $0.frames = 513 }?.contains("at most 509") == true)
        #expect(line { $0.frames = .min } != nil)
        #expect(line { $0.width = .max } != nil)
        #expect(line { $0.height = .min } != nil)
        #expect(line { $0.sampling = .distilled(.init(steps: 5)) }?.contains("1 to 4") == true)
        #expect(
            line { $0.sampling = .distilled(.init(sigmaMax: 3)) }
                == "sigmaMax must be above 14.1 (the second noise level), not 3.0")
        for extreme in [1e300, 1e-320] {
            #expect(
                line { $0.sampling = .distilled(.init(steps: 1, sigmaMax: extreme)) }
                    == "sigmaMax must be 0.001 to 1000000.0, not \(extreme)")
            #expect(
                line { $0.sampling = .flow(.init(sigmaMax: extreme)) }?.contains("sigmaMax") == true
            )
            #expect(
                line { $0.sampling = .flow(.init(shift: extreme)) }
                    == "shift must be 0.001 to 1000.0, not \(extreme)")
        }
        #expect(
            line { $0.sampling = .flow(.init(guidance: 1e300)) }
                == "guidance must be 0.0 to 1000.0, not 1e+300")
        #expect(line { $0.sampling = .flow(.init(guidance: .nan)) } != nil)
        #expect(line { $0.arithmetic.topK = 0 }?.contains("topK") == true)
        #expect(line { $0.arithmetic.topK = .nan } != nil)
        #expect(line { $0.samples = 0 }?.contains("1 to 64") == true)
        #expect(line { $0.sampling = euler(steps: 4, guidance: -1) } != nil)
        #expect(line { $0.sampling = euler(steps: 0) }?.contains("1 to 1000") == true)
        #expect(line { $0.framesPerSecond = 0 } != nil)
        #expect(line { $0.boundary = .nan }?.contains("boundary") == true)
        #expect(
            line { $0.sampling = .flow(.init(.wanUniPC, sigmaMax: 80)) }?.contains("wan-unipc")
                == true)
        #expect(
            line { $0.loras = [RequestedLoRA("a", strength: .nan)] }?.contains("strength") == true)
        #expect(line { $0.image = "a.png" }?.contains("text-to-video") == true)
        #expect(line(.wan22I2V) { _ in }?.contains("picture") == true)
        #expect(line(.wan22I2V) { $0.image = "a.png" } == nil)
    }

    @Test("callers can name the fields in messages")
    func naming() {
        let error = RequestError.unusable(.topK, found: "3", expected: "above 0 and at most 1")
        #expect(
            error.message { $0 == .topK ? "--sla_topk" : $0.rawValue }
                == "--sla_topk must be above 0 and at most 1, not 3")
    }

    @Test("sizes follow the family's geometry")
    func geometry() {
        var family = Family.wan21
        family.geometry = LatentGeometry(
            channels: 8, stride: Extent(t: 2, h: 4, w: 4), patch: 1)
        #expect(line(family) { ($0.width, $0.height, $0.frames) = (20, 12, 7) } == nil)
        #expect(line(family) { $0.width = 18 }?.contains("a multiple of 4") == true)
        #expect(line(family) { $0.frames = 6 }?.contains("5 or 7") == true)
        let latents = family.geometry.latents(of: Extent(t: 7, h: 12, w: 20))
        #expect(latents == Extent(t: 4, h: 3, w: 5))
        #expect(family.geometry.video(of: latents) == Extent(t: 7, h: 12, w: 20))
    }

    private func roundTrip<Value: Codable & Equatable>(_ value: Value) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        let data = try encoder.encode(value)
        #expect(try JSONDecoder().decode(Value.self, from: data) == value)
        return String(decoding: data, as: UTF8.self)
    }

    @Test("requests, families and models are stored and read again")
    func stored() throws {
        var request = tinyRequest()
        request.loras = [RequestedLoRA("style.safetensors", strength: 0.5, expert: .lowNoise)]
        let json = try roundTrip(request)
        #expect(json.contains(#""sampling":{"ode":false,"sigmaMax":80,"solver":"rcm","steps":4}"#))
        for solver in Sampling.Solver.allCases {
            request.sampling = .flow(.init(solver, steps: 7, shift: 3, guidance: 2))
            _ = try roundTrip(request)
        }
        for family in [Family.wan21, .wan22I2V, try nano().family] { _ = try roundTrip(family) }
        _ = try roundTrip(try nano())
    }

    @Test("events and errors have stable names, and are read as they were written")
    func events() throws {
        let stages: [(Stage, String)] = [
            (.load(.lowNoiseTransformer), #"{"id":"load","part":"low-noise-transformer"}"#),
            (.encodeText, #"{"id":"encode-text"}"#), (.encodeImage, #"{"id":"encode-image"}"#),
            (.projectText(.transformer), #"{"id":"project-text","part":"transformer"}"#),
            (.step(number: 2, of: 4, expert: nil), #"{"id":"step","number":2,"of":4}"#),
            (
                .step(number: 1, of: 4, expert: .transformer),
                #"{"id":"step","number":1,"of":4,"part":"transformer"}"#
            ),
            (.decode, #"{"id":"decode"}"#), (.deliver, #"{"id":"deliver"}"#),
        ]
        for (stage, json) in stages { #expect(try roundTrip(stage) == json) }
        #expect(
            try roundTrip(RunEvent.stageProgress(.decode, fraction: 0.5))
                == #"{"event":"stage.progress","fraction":0.5,"stage":{"id":"decode"}}"#)
        let report = StageReport(stage: .encodeText, seconds: 2, peakBytes: 7)
        #expect(
            try roundTrip(RunEvent.stageFinished(report))
                == #"{"event":"stage.finished","peakBytes":7,"seconds":2,"stage":{"id":"encode-text"}}"#
        )
        #expect(try roundTrip(RunEvent.stageStarted(.decode)).contains("stage.started"))
        for notice: Notice in [
            .promptCut(kept: 511, dropped: 3), .device("x"),
            .notSaved(path: "a", reason: "no space"),
            .unmatchedKeys(part: .transformer, names: ["a", "b", "c", "d"]),
        ] { #expect(try roundTrip(RunEvent.notice(notice)).contains(#""message":"#)) }
        _ = try roundTrip(RequestError.missing(.prompt, reason: "r"))
        _ = try roundTrip(RunError.notFinite(.decode, tensor: "w"))
        _ = try roundTrip(RunError.memory(neededBytes: 2 << 30, limitBytes: 1 << 30))
    }
}

struct WrongFileTests {
    @Test("parts of another kind are refused by their headers, by the plan as well")
    func kinds() throws {
        let request = tinyRequest()
        func refusal(_ change: (inout ModelSet) -> Void) throws -> String? {
            var models = try nano()
            change(&models)
            let run = try Run(request, models)
            do {
                _ = try Plan(run)
                return nil
            } catch {
                return "\(error)"
            }
        }
        #expect(try refusal { _ in } == nil)
        for (change, word) in [
            ({ $0.vae = $0.textEncoder }, "expected a Wan VAE"),
            ({ $0.textEncoder = $0.vae }, "expected an umT5 encoder"),
            ({ $0.transformer = $0.vae }, "expected a Wan transformer"),
            ({ $0.family.geometry.channels = 8 }, "16 input channels), expected 8"),
        ] as [((inout ModelSet) -> Void, String)] {
            let text = try refusal(change)
            #expect(text?.contains(word) == true, "\(text ?? "nothing was refused")")
        }
    }

    @Test("a number that is not finite is reported with its tensor before it is used")
    func damaged() async throws {
        let folder = try TemporaryFolder()
        let damaged = folder.path + "/vae.safetensors"
        var bytes = Array(FileManager.default.contents(atPath: try nano().vae) ?? Data())
        bytes.replaceSubrange(bytes.count - 2..<bytes.count, with: [0xC0, 0x7F])
        try Data(bytes).write(to: URL(filePath: damaged))
        var models = try nano()
        models.vae = damaged
        do {
            _ = try await frames(of: tinyRequest(), models)
            Issue.record("a NaN in the last weight went unnoticed")
        } catch let error as RunError {
            guard case .notFinite(.load(.decoder), let tensor) = error else { throw error }
            #expect(tensor != nil)
            #expect(error.description.contains("damaged"))
        }
    }

    @Test("a missing picture is reported by name")
    func picture() async throws {
        var models = try nano()
        models.family.conditioning = .firstFrame
        var request = tinyRequest()
        request.image = "/no/such/picture.png"
        let (run, engine) = (try Run(request, models), engine())
        await #expect(throws: FittingError.self) { try await engine.finish(run) { _ in } }
    }
}
