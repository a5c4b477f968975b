/// Latents, tokens, frames, samplers and noise.

import CPU
import Tensors
import Testing

@Suite struct TokenTests {
    let device = CPUBackend(threads: 2, engine: .definition)

    @Test(arguments: [[3], [4, 1, 2]]) func patchesHaveTheirChannelsOutermost(_ channels: [Int]) {
        var random = Random(13)
        let (t, h, w) = (3, 4, 6)
        let parts = channels.map { random.tensor([$0, t, h, w]) }
        let all = parts.flatMap { $0.floats() }
        let total = channels.reduce(0, +)
        let tokens = device.patchify(parts, dtype: .f32)
        #expect(tokens.shape == [t * 2 * 3, total * 4])
        let values = tokens.floats()
        for index in values.indices {
            let (token, feature) = (index / (total * 4), index % (total * 4))
            let (frame, line, column) = (token / 6, token % 6 / 3, token % 3)
            let (channel, kh, kw) = (feature / 4, feature % 4 / 2, feature % 2)
            let source = ((channel * t + frame) * h + 2 * line + kh) * w + 2 * column + kw
            #expect(values[index] == all[source])
        }
    }

    @Test func headRowsHaveTheirChannelsInnermost() {
        var random = Random(14)
        let (t, h, w, channels) = (2, 4, 6, 3)
        let x = random.tensor([t * 6, 4 * channels], .bf16)
        let latents = device.unpatchify(x, size: Extent(t: t, h: h, w: w))
        #expect(latents.shape == [channels, t, h, w] && latents.dtype == .f32)
        let (rows, values) = (x.floats(), latents.floats())
        for index in values.indices {
            let (channel, frame) = (index / (t * h * w), index / (h * w) % t)
            let (line, column) = (index / w % h, index % w)
            let token = (frame * 2 + line / 2) * 3 + column / 2
            let feature = (line % 2 * 2 + column % 2) * channels + channel
            #expect(values[index] == rows[token * 4 * channels + feature])
        }
    }

    @Test func channelsGoLastAndComeBack() {
        var random = Random(15)
        let x = random.tensor([5, 2, 3, 4])
        let (scale, shift): ([Float], [Float]) = ([1, 2, 3, 4, 5], [0, 1, 0, 1, 0])
        let frames = device.channelsLast(x, scale: scale, shift: shift, dtype: .f32)
        #expect(frames.shape == [2, 3, 4, 5])
        #expect(frames.floats()[1] == x.floats()[24] * 2 + 1)
        let back = device.channelsFirst(
            frames, scale: scale.map { 1 / $0 }, shift: zip(scale, shift).map { -$1 / $0 })
        #expect(back.shape == x.shape && relativeDifference(back, x) < 1e-6)
    }

    @Test func timeInterleavesTheHalvesOfTheChannels() {
        let x = Tensor((0..<16).map(Float.init), [2, 1, 2, 4])
        let y = device.interleaveTime(x)
        #expect(y.shape == [4, 1, 2, 2])
        #expect(y.floats() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])
    }

    @Test func rowsAndPartsAreCopied() {
        let table = Tensor((0..<12).map(Float.init), [4, 3])
        #expect(
            device.embedding([3, 0, 3], hostTable: table, as: .f32).floats()
                == [9, 10, 11, 0, 1, 2, 9, 10, 11])
        let parts = [table.slice(1..<2), table, table.slice(0..<0)]
        #expect(device.concatenate(parts).floats() == [3, 4, 5] + table.floats())
    }

    @Test func rgbIsClampedAndRounded() {
        let x: [Float] = [-2, -1, 0, 1, 2, .infinity, .nan, 1 / 255, -1 + 0.99 / 255]
        let values = device.rgb8(Tensor(x, [1, 1, 3, 3]))
        #expect(values.dtype == .u8)
        #expect(values.floats() == [0, 0, 128, 255, 255, 255, 0, 128, 0])
    }

    @Test func samplerStepsAreInDoubles() {
        let x = tensor([1, 2], [2]).converted(to: .f64)
        let v = tensor([0.1, -0.5], [2])
        let noise = tensor([3, -1], [2])
        func doubles(_ x: Tensor) -> [Double] { x.withElements(Double.self) { Array($0) } }
        let vs = [Double(Float(0.1)), -0.5]
        #expect(
            doubles(device.rcmStep(x, velocity: v, noise: nil, t: 0.9, next: 0.7))
                == [1 - (0.9 - 0.7) * vs[0], 2 - (0.9 - 0.7) * vs[1]])
        #expect(
            doubles(device.rcmStep(x, velocity: v, noise: noise, t: 0.9, next: 0.7))
                == [
                    (1 - 0.7) * (1 - 0.9 * vs[0]) + 0.7 * 3,
                    (1 - 0.7) * (2 - 0.9 * vs[1]) + 0.7 * -1,
                ])
        let mixed = device.combine([x, v], [2, 1e-9], as: .f64)
        #expect(doubles(mixed) == [2 + 1e-9 * vs[0], 4 - 1e-9 * 0.5])
        #expect(device.combine([x, v], [2, 0], as: .bf16).floats() == [2, 4])
    }

    @Test func noiseIsTheGeneratorsOwn() {
        var (a, b) = (
            PhiloxNoise(seed: 42, residentBlocks: 3), PhiloxNoise(seed: 42, residentBlocks: 3)
        )
        for shape in [Shape([5]), [16, 3, 100], [1]] {
            #expect(bits(device.noise(shape, generator: &a)) == bits(b.normal(shape)))
        }
        #expect(a == b)
    }

    @Test func gatesAndProductsAreRoundedToHalves() {
        let x = tensor([1, 256], [1, 2]).converted(to: .bf16)
        let y = tensor([1.0078125, 3], [1, 2]).converted(to: .bf16)
        let gate = tensor([1.0039, 0.3333], [2])
        let expected = [0, 1].map { i -> Float in
            let product = y.floats()[i] * gate.floats()[i].roundedToBFloat16
            return (x.floats()[i] + product.roundedToBFloat16).roundedToBFloat16
        }
        #expect(device.gatedAdd(x, y, gate: gate).floats() == expected)
        #expect(device.add(x, y).floats() == [2, 260])
    }

    @Test func placingSharesWhatNeedsNoChange() {
        let x = tensor([1, 2.001, 3], [3])
        #expect(device.place(x, as: .f32).storage === x.storage)
        #expect(device.place(x, as: .bf16).floats() == [1, 2, 3])
        let ids = Tensor([Int32(7)], [1])
        #expect(device.place(ids, as: .bf16).dtype == .i32)
    }

    @Test func memoryIsCountedAndReused() {
        let device = CPUBackend(threads: 1, engine: .definition)
        let x = Tensor([Float](repeating: 1, count: 4096), [4, 1024])
        do {
            let y = device.add(x, x)
            #expect(device.memory == MemoryUse(current: 16_384, peak: 16_384))
            let z = device.add(y, y)
            #expect(device.memory.current == 32_768)
            #expect(z.floats()[0] == 4)
        }
        #expect(device.memory == MemoryUse(current: 0, peak: 32_768))
        device.resetPeak()
        #expect(device.memory == MemoryUse(current: 0, peak: 0))
    }
}
