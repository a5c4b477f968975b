/// Options of `bench` as the request that is measured.

import ArgumentParser
import Benchmarks
import Catalog
import Families
import Runs
import Tensors
import Testing
import Training

@testable import turbodiffusion

@Suite struct BenchCommandTests {
    private func request(_ arguments: String...) throws -> Request {
        let command = try BenchCommand.parse(arguments)
        return try command.request(try command.benchModel())
    }

    @Test("without options: the model's own size of video, linear layers in int8")
    func defaults() throws {
        let nano = try request()
        #expect((nano.width, nano.height, nano.frames) == (256, 144, 33))
        #expect(nano.arithmetic.attention == .sla && nano.arithmetic.topK == 0.2)
        #expect(nano.arithmetic.linears == .int8)
        for name in Catalog.published.names.dropFirst() {
            let large = try request("--model", name)
            #expect((large.width, large.height, large.frames) == (832, 480, 81))
            #expect(large.arithmetic.attention == .sagesla && large.arithmetic.topK == 0.1)
        }
    }

    @Test("every option reaches the request")
    func options() throws {
        let found = try request(
            "--model", "wan2.1-14b", "--size", "720p", "--aspect-ratio", "9:16", "--num-frames",
            "21", "--num-steps", "2", "--attention-type", "original", "--sla-topk", "0.5",
            "--linear", "bf16", "--precision", "f32", "--norms", "reference", "--seed", "7")
        #expect((found.width, found.height, found.frames) == (720, 1280, 21))
        #expect(found.sampling.steps == 2 && found.seed == 7)
        #expect(
            found.arithmetic
                == Arithmetic(
                    precision: .f32, linears: .stored, attention: .original, topK: 0.5,
                    norms: .reference))
    }

    @Test("iterations of training are measured whole, on one device")
    func training() throws {
        let command = try BenchCommand.parse(["--train", "lora", "--batch-size", "2"])
        #expect(command.train == .lora && command.batchSize == 2)
        let refused: [(arguments: [String], words: String)] = [
            (["--train", "sla", "--stage", "text"], "on one device: leave out --stage"),
            (["--train", "sla", "--devices", "cpu,cpu"], "on one device: leave out --devices"),
            (["--train", "sla", "--simulate"], "--train measures iterations on one device"),
            (["--train", "sla", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
            (["--batch-size", "2"], "those of --train: leave out --batch-size"),
            (["--train", "rcm", "--num-steps", "4"], "leave out --num-steps"),
            (["--train", "lora", "--norms", "exact"], "leave out --norms"),
            (["--train", "lora", "--attention-type", "sla"], "leave out --attention-type"),
            (["--train", "rcm", "--sla-topk", "0.1"], "leave out --sla-topk"),
            (["--train", "sla", "--linear", "int8"], "leave out --linear"),
            (["--train", "rcm", "--linear", "fp8"], "leave out --linear"),
        ]
        for (arguments, words) in refused {
            #expect {
                try BenchCommand.parse(arguments)
            } throws: {
                BenchCommand.message(for: $0).contains(words)
            }
        }
        for arguments in [
            ["--train", "sla", "--sla-topk", "0.1"],
            ["--train", "lora", "--linear", "int8", "--sla-topk", "0.1", "--precision", "f32"],
        ] { _ = try BenchCommand.parse(arguments) }
    }

    @Test("an unknown model is refused with the known ones")
    func unknown() throws {
        let error = #expect(throws: CatalogError.self) { try request("--model", "no/such/folder") }
        #expect(error?.description.contains("Wan2.2-A14B") == true)
    }
}
