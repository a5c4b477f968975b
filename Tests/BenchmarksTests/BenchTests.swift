/// Measuring runs, and the random weights for that.

import CPU
import Catalog
import Checkpoints
import Families
import Ground
import Models
import Runs
import Tensors
import Testing
import Tokenizers

@testable import Benchmarks

@Suite struct OperationTimerTests {
    @Test("calls with equal shapes are one entry, with their arithmetic and traffic")
    func counting() throws {
        let device = CPUBackend(threads: 1)
        let timer = OperationTimer(device, HostStopwatch())
        let x = Tensor((0..<32).map { Float($0) / 32 }, [4, 8])
        let matrix = Tensor((0..<128).map { Float($0 % 7) - 3 }, [16, 8])
        let y = timer.linear(x, .dense(matrix), bias: nil)
        #expect(device.equalBits(y, device.linear(x, .dense(matrix), bias: nil)))
        _ = timer.linear(x, .dense(matrix), bias: nil)
        _ = timer.gatedAdd(y, y, gate: nil)

        let operations = try timer.takeOperations()
        #expect(operations.count == 2)
        let linear = try #require(operations.first { $0.key.operation == "linear" })
        #expect(linear.calls == 2)
        #expect(linear.key.shapes == "4x8 f32 → 4x16 f32")
        #expect(linear.key.arithmetic == .f32)
        #expect(linear.cost.flops == 2 * 2 * 4 * 8 * 16)
        #expect(linear.cost.bytes == 2 * 4 * (4 * 8 + 8 * 16 + 4 * 16))
        let add = try #require(operations.first { $0.key.operation == "gatedAdd" })
        #expect(add.calls == 1 && add.cost.flops == 0 && add.key.shapes == "4x16 f32")
        #expect(try timer.takeOperations().isEmpty)
    }

    @Test("the kernel and the 8-bit arithmetic are named if shapes do not show them")
    func details() throws {
        let timer = OperationTimer(CPUBackend(threads: 1), HostStopwatch())
        let x = Tensor.zeros([1, 4, 4, 2], .f32)
        let weight = ConvolutionWeight(.zeros([2, 3, 3, 3, 2], .f32), bias: nil)
        _ = timer.convolution(
            x, history: nil, leadingZeros: 2, weight, timeStride: 1, spatialStride: 1,
            padding: .same, upsample: false, residual: nil)
        let convolution = try #require(try timer.takeOperations().first)
        #expect(convolution.key.shapes == "1x4x4x2 f32 kernel 3x3x3")
        // Of three frames two are zeros.
        #expect(convolution.cost.flops == 2 * 16 * 2 * 2 * 9)

        let q = Tensor.zeros([256, 1, 64], .bf16)
        _ = timer.sparseLinearAttention(
            q, q, q, projection: .dense(.zeros([64, 64], .bf16)), bias: nil,
            SparseAttention(topK: 0.5, arithmetic: .sage(.sm90)))
        let sparse = try #require(try timer.takeOperations().first)
        #expect(sparse.key.arithmetic == .int8)
        #expect(sparse.key.shapes == "256x1x64 bf16 top 0.5 sage sm90")
    }

    @Test("a quantised weight decides the arithmetic, also of plain activations")
    func quantized() throws {
        let device = CPUBackend(threads: 1)
        let timer = OperationTimer(device, HostStopwatch())
        let weight = device.place(.zeros([128, 128], .bf16), quantizedTo: .int8Blocks, in: nil)
        let x = Tensor.zeros([128, 128], .bf16)
        _ = timer.linearAdd(x, weight, bias: nil, to: x, gate: nil)
        _ = timer.linear(timer.quantize(x, to: .int8Blocks), weight, bias: nil)
        let operations = try timer.takeOperations().filter { $0.key.operation != "quantize" }
        #expect(operations.allSatisfy { $0.key.arithmetic == .int8 })
        #expect(
            Set(operations.map(\.key.shapes)) == [
                "128x128 bf16 int8 weight", "128x128 i8 → 128x128 bf16",
            ])
    }

    @Test("the least time is the larger of arithmetic and traffic")
    func floors() {
        let ceilings = Ceilings(copy: 100, arithmetic: [.bf16: 1000], method: "")
        var cost = Operation.Cost()
        cost.bytes = 200
        #expect(ceilings.floor(cost, .fp8) == 2)
        cost.flops = 5000
        #expect(ceilings.floor(cost, .bf16) == 5)
        #expect(ceilings.floor(cost, .fp8) == nil)
    }
}

/// A published model with random weights.
private func random(_ name: String) throws -> BenchModel {
    BenchModel(random: try #require(Catalog.published.entry(named: name)))
}

@Suite struct RandomWeightsTests {
    /// The latents of one step of nano.
    private func latents(_ linears: LinearChoice, seed: UInt64) throws -> [Float] {
        let model = try random("nano")
        var request = Request(
            prompt: "bench", width: 64, height: 48, frames: 5, seed: 5,
            arithmetic: Arithmetic(linears: linears, attention: .sla))
        request.sampling.steps = 1
        let backend = RandomWeights(CPUBackend(), seed: seed)
        var walk = try Walk(
            try Run(request, model), on: OpenedDevice(backend, sageArchitecture: .sm90))
        walk.inputs = RunInputs(prompt: Tokens((1...9).map { Int32($0) }))
        while walk.upcoming != .load(.decoder) { _ = try walk.advance() }
        return backend.read(try #require(walk.currentLatents)).floats()
    }

    @Test(
        "a model with random weights computes finite numbers of normal size",
        arguments: [LinearChoice.stored, .int8, .fp8])
    func ordinary(linears: LinearChoice) throws {
        let found = try latents(linears, seed: 1)
        let power = found.reduce(0) { $0 + $1 * $1 } / Float(found.count)
        #expect(power > 0.1 && power < 10)
    }

    @Test("the seed decides the weights")
    func seeds() throws {
        let first = try latents(.int8, seed: 1)
        #expect(try latents(.int8, seed: 1) == first)
        #expect(try latents(.int8, seed: 2) != first)
    }

    @Test(
        "matrices, biases and norms have values of the right size, convolutions have channels last")
    func sizes() throws {
        let device = CPUBackend()
        let made = RandomWeights(device, seed: 3)
        func unmade(_ name: String, _ shape: Shape) -> Tensor {
            Tensor(shape, .f32, storage: UnmadeStorage(name, byteCount: shape.count * 4))
        }
        func spread(_ x: Tensor) -> (mean: Float, deviation: Float) {
            let values = device.read(x).floats()
            let mean = values.reduce(0, +) / Float(values.count)
            let power = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) }
            return (mean, (power / Float(values.count)).squareRoot())
        }
        let matrix = spread(made.place(unmade("a.weight", [256, 400]), as: .f32, in: nil))
        #expect(abs(matrix.mean) < 0.002 && abs(matrix.deviation * 20 - 1) < 0.02)
        let bias = spread(made.place(unmade("norm3.bias", [4096]), as: .f32, in: nil))
        #expect(abs(bias.mean) < 0.002 && abs(bias.deviation / 0.02 - 1) < 0.05)
        let norm = spread(made.place(unmade("norm3.weight", [4096]), as: .f32, in: nil))
        #expect(abs(norm.mean - 1) < 0.01 && abs(norm.deviation / 0.1 - 1) < 0.05)
        let kernel = made.place(
            convolution: unmade("c.weight", [8, 4, 3, 2, 1]), bias: unmade("c.bias", [8]),
            as: .bf16, in: nil)
        #expect(kernel.tensor.shape == [8, 3, 2, 1, 4] && kernel.bias?.shape == [8])
        // Tensors that exist already stay as they are.
        let real = Tensor([1, 2, 3] as [Float], [3])
        #expect(made.read(made.place(real, as: .f32, in: nil)).floats() == [1, 2, 3])
    }
}

@Suite struct BenchRunTests {
    private let ceilings = Ceilings(
        copy: 1e12, arithmetic: [.f32: 1e13, .bf16: 1e14, .int8: 1e14], method: "")

    private func table(
        _ model: BenchModel, _ request: Request, _ part: BenchStage = .all, repeats: Int = 2,
        on device: any Backend = NullBackend()
    ) throws -> BenchTable {
        var table = BenchTable(
            .init(program: "test", Machine(device), model.name, request, openingSeconds: 0))
        try Bench(
            model, request, part, on: OpenedDevice(device, sageArchitecture: .sm90),
            repeats: repeats
        ).measure(against: ceilings) { table.add($0, against: ceilings) }
        return table
    }

    private func request(_ model: BenchModel) -> Request {
        var request = Request("bench", for: model.family)
        request.arithmetic.attention = .sagesla
        request.arithmetic.linears = .int8
        return request
    }

    @Test(
        "the stages of every named model, on a backend that computes nothing",
        arguments: Catalog.published.names)
    func stages(name: String) throws {
        let model = try random(name)
        let records = try table(model, request(model)).records
        let stages = records.filter { $0.record == "stage" }
        let names = stages.compactMap(\.stage)
        let frames = model.family.defaults.frames
        #expect(
            names == [
                "make text encoder", "text encoder, 512 tokens", "make VAE encoder",
                "VAE encode, image and \(frames - 1) grey frames", "make transformer",
                "transformer, 1 step", "transformer, 4 steps", "make VAE decoder",
                "VAE decode, \(frames) frames to the host", "whole (sum)",
            ])
        // One step of the transformer is what its operations are.
        let step = try #require(stages.first { $0.stage == "transformer, 1 step" })
        let operations = records.filter { $0.record == "operation" && $0.stage == step.stage }
        let found = operations.reduce(0) { $0 + ($1.teraflops ?? 0) * $1.milliseconds! / 1000 }
        #expect(abs(found / (step.teraflops! * step.milliseconds! / 1000) - 1) < 1e-6)
        let tera = ["Wan2.1-1.3B": 108.0, "nano": nil] as [String: Double?]
        if let tera = tera[name, default: 903] { #expect(abs(found / tera - 1) < 0.03) }
    }

    @Test("a stage is measured alone", arguments: [BenchStage.text, .transformer, .decode, .load])
    func parts(part: BenchStage) throws {
        let model = try random("nano")
        let names = try table(model, request(model), part).records
            .filter { $0.record == "stage" }.compactMap(\.stage)
        let expected = [
            BenchStage.text: ["make text encoder", "text encoder, 512 tokens"],
            .transformer: ["make transformer", "transformer, 1 step", "transformer, 4 steps"],
            .decode: ["make VAE decoder", "VAE decode, 33 frames to the host"],
            .load: [
                "make text encoder", "make VAE encoder", "make transformer", "make VAE decoder",
            ],
        ]
        #expect(names == expected[part])
    }

    @Test("the timed operations are those of the run, and each step is counted")
    func device() throws {
        let model = try random("nano")
        var request = Request(
            prompt: "bench", width: 64, height: 48, frames: 5,
            arithmetic: Arithmetic(linears: .int8, attention: .sla, topK: 0.2))
        request.sampling.steps = 2
        let device = CPUBackend()
        let found = try table(model, request, repeats: 1, on: device).records
        let planned = try table(model, request, repeats: 1).records
        func operations(_ records: [BenchTable.Record]) -> Set<String> {
            Set(
                records.filter { $0.record == "operation" }.map {
                    "\($0.stage!): \($0.operation!) \($0.shapes!), \($0.calls!)"
                })
        }
        #expect(!operations(found).isEmpty)
        #expect(operations(found) == operations(planned))
        let stages = found.filter { $0.record == "stage" }
        #expect(stages.allSatisfy { $0.milliseconds! > 0 && $0.peakBytes! > 0 })
        // Two steps take longer than one, and less than the first one twice.
        let one = try #require(stages.first { $0.stage == "transformer, 1 step" })
        let two = try #require(stages.first { $0.stage == "transformer, 2 steps" })
        #expect(two.milliseconds! > one.milliseconds!)
        #expect(
            abs(two.teraflops! * two.milliseconds! / one.teraflops! / one.milliseconds! - 2) < 1e-6)
    }

    @Test("a model larger than the machine's memory is refused before it is made")
    func memory() throws {
        let model = try random("Wan2.1-14B")
        func check(_ linears: LinearChoice, _ part: BenchStage, present: Int) throws {
            var request = Request("bench", for: model.family)
            request.arithmetic.linears = linears
            try Bench(
                model, request, part,
                on: OpenedDevice(NullBackend(), sageArchitecture: .sm90)
            ).checkMemory(present: present)
        }
        try check(.int8, .all, present: 24 << 30)
        try check(.int8, .decode, present: 1 << 30)
        #expect(throws: BenchError.self) { try check(.int8, .transformer, present: 12 << 30) }
        #expect(throws: BenchError.self) { try check(.stored, .all, present: 24 << 30) }
    }

    @Test("more tokens than the model takes are refused")
    func tokens() throws {
        let model = try random("nano")
        #expect(throws: BenchError.tokens(513, most: 512)) {
            try Bench(
                model, request(model), on: OpenedDevice(NullBackend(), sageArchitecture: .sm90),
                tokens: 513)
        }
    }
}

@Suite struct BenchTableTests {
    @Test("a row of CSV for every record, with the run's settings, fields with commas quoted")
    func csv() throws {
        let model = try random("nano")
        var table = BenchTable(
            .init(
                program: "test", Machine(NullBackend()), "a, b",
                Request("bench", for: model.family), openingSeconds: 0))
        table.add(Ceilings(copy: 2e9, arithmetic: [.bf16: 3e12], method: ""))
        var figures = StageFigures(name: "say \"x\"")
        figures.cold = 0.5
        figures.warm = [0.25, 0.125, 0.5]
        table.add(.stage(figures), against: nil)
        let lines = table.csv.split(separator: "\n").map(String.init)
        #expect(lines.count == 4)
        #expect(lines[0].hasPrefix("device,model,size,frames,"))
        let device = NullBackend().name
        let run = "\(device),\"a, b\",256x144,33,sla,stored,bf16,"
        #expect(lines[1] == run + "ceiling,,copy,,,,,,,,,2.00,,")
        #expect(lines[2] == run + "ceiling,,bf16,,,,,,,,3.0000,,,")
        #expect(lines[3] == run + "stage,\"say \"\"x\"\"\",,,,,250.0000,125.0000,500.0000,,,,,0")
    }

    @Test(
        "medians",
        arguments: [([3], 3), ([4, 1, 3], 3), ([4, 1, 2, 3], 2.5)] as [([Double], Double)])
    func medians(values: [Double], expected: Double) { #expect(median(values) == expected) }
}
