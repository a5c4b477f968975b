/// What `bench` counts, makes and prints.

import CPU
import Checkpoints
import Models
import Pipelines
import Tensors
import Testing

@testable import turbodiffusion

@Suite struct OperationTimerTests {
    @Test("calls of equal shapes are one entry, with their arithmetic and traffic")
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

    @Test("the kernel and the 8-bit arithmetic are told where shapes do not tell them")
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

@Suite struct RandomWeightsTests {
    private func net(_ linears: LinearChoice, seed: UInt64, on device: any Backend) throws
        -> (model: WanTransformer, request: VideoRequest)
    {
        let model = try BenchModel("nano")
        var request = VideoRequest(prompt: "bench", width: 64, height: 48, frames: 5)
        request.attention = .sla
        request.linears = linears
        return (
            try model.transformer(
                request, sage: .sm90, on: RandomWeights(device, seed: seed)), request
        )
    }

    /// The velocity of one step.
    private func velocity(_ linears: LinearChoice, seed: UInt64) throws -> [Float] {
        let device = CPUBackend()
        let (net, request) = try net(linears, seed: seed, on: device)
        var generator = PhiloxNoise(seed: 5)
        let size = request.latentSize
        let text = TextEmbedding(
            rows: device.combine(
                [device.noise([512, 256], generator: &generator)], [1], as: .bf16), count: 9)
        let context = net.prepare(text, size: size, on: device)
        let x = device.noise([16, size.t, size.h, size.w], generator: &generator)
        return device.read(net([x], timestep: 900, context, on: device)).floats()
    }

    @Test(
        "a model of random weights computes finite numbers of ordinary size",
        arguments: [LinearChoice.stored, .int8, .fp8])
    func ordinary(linears: LinearChoice) throws {
        let v = try velocity(linears, seed: 1)
        let power = v.reduce(0) { $0 + $1 * $1 } / Float(v.count)
        #expect(power > 0.1 && power < 10)
    }

    @Test("the seed decides the weights")
    func seeds() throws {
        let first = try velocity(.int8, seed: 1)
        #expect(try velocity(.int8, seed: 1) == first)
        #expect(try velocity(.int8, seed: 2) != first)
    }

    @Test("matrices, biases and norms have sizes of their kinds, convolutions their channels last")
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
        // What exists already stays as it is.
        let real = Tensor([1, 2, 3] as [Float], [3])
        #expect(made.read(made.place(real, as: .f32, in: nil)).floats() == [1, 2, 3])
    }
}

@Suite struct BenchRunTests {
    @Test(
        "the stages of every named model, on the machine that computes nothing",
        arguments: BenchModel.published)
    func stages(name: String) throws {
        let model = try BenchModel(name)
        var request = VideoRequest(
            prompt: "bench", width: model.defaults.width, height: model.defaults.height,
            frames: model.defaults.frames)
        request.attention = .sagesla
        request.linears = .int8
        let device = NullBackend()
        let report = BenchReport(
            Machine(device, threads: nil), model.name, request, openingSeconds: 0, style: .silent)
        let ceilings = Ceilings(
            copy: 1e12, arithmetic: [.f32: 1e13, .bf16: 1e14, .int8: 1e14], method: "")
        try BenchRun(
            model, request, on: device, seed: 0, repeats: 2, tokens: nil, ceilings: ceilings,
            report: report
        ).measure(.all)

        let stages = report.records.filter { $0.record == "stage" }
        let names = stages.compactMap(\.stage)
        #expect(names.filter { $0.hasPrefix("make ") }.count == 4)
        for start in ["text", "VAE encode", "transformer, 1", "transformer, 4", "VAE decode"] {
            #expect(names.contains { $0.hasPrefix(start) }, "\(names)")
        }
        #expect(names.last == "whole (sum)")
        // One step of the transformer is what its operations are.
        let step = try #require(stages.first { $0.stage == "transformer, 1 step" })
        let operations = report.records.filter {
            $0.record == "operation" && $0.stage == step.stage
        }
        let found = operations.reduce(0) { $0 + ($1.teraflops ?? 0) * $1.milliseconds! / 1000 }
        #expect(abs(found / (step.teraflops! * step.milliseconds! / 1000) - 1) < 1e-6)
        let tera = ["Wan2.1-1.3B": 108.0, "Wan2.1-14B": 903, "Wan2.2-A14B": 903][name]
        if let tera { #expect(abs(found / tera - 1) < 0.03) }
    }
}

@Suite struct BenchReportTests {
    @Test("models are named without regard to case, and unknown ones refused with the known")
    func names() throws {
        #expect(try BenchModel("wan2.1-14b").name == "Wan2.1-14B")
        let error = #expect(throws: RequestError.self) { try BenchModel("no/such/folder") }
        #expect(error?.description.contains("Wan2.2-A14B") == true)
    }

    @Test("a model larger than the machine's memory is refused before it is made")
    func memory() throws {
        let model = try BenchModel("Wan2.1-14B")
        var request = VideoRequest(prompt: "bench", width: 832, height: 480, frames: 81)
        request.linears = .int8
        try model.checkMemory(request, .all, present: 24 << 30)
        try model.checkMemory(request, .decode, present: 1 << 30)
        #expect(throws: RequestError.self) {
            try model.checkMemory(request, .transformer, present: 12 << 30)
        }
        request.linears = .stored
        #expect(throws: RequestError.self) {
            try model.checkMemory(request, .all, present: 24 << 30)
        }
    }
}
