/// Linear layers on awkward sizes, and the rules of dtypes and 8-bit formats.

import CPU
import Tensors
import Testing

@Suite struct LinearTests {
    let device = CPUBackend(threads: 2, engine: .definition)

    /// x W^T + bias in f64.
    private func product(_ x: Tensor, _ weight: Tensor, _ bias: Tensor?) -> [Float] {
        let (a, b) = (x.floats(), weight.floats())
        let inputs = weight.shape[1]
        let bias = bias?.floats()
        return (0..<x.shape.rows).flatMap { row in
            (0..<weight.shape[0]).map { column in
                var sum = Double(bias?[column] ?? 0)
                for i in 0..<inputs {
                    sum += Double(a[row * inputs + i]) * Double(b[column * inputs + i])
                }
                return Float(sum)
            }
        }
    }

    @Test(arguments: [
        (1, 1, 1), (3, 17, 5), (130, 129, 65), (5, 1025, 16), (257, 40, 128), (64, 512, 200),
    ]) func agreesWithTheTextbook(m: Int, k: Int, n: Int) {
        var random = Random(UInt64(m * k + n))
        let (x, weight) = (random.tensor([m, k]), random.tensor([n, k]))
        let bias = random.tensor([n])
        let y = device.linear(x, .dense(weight), bias: bias)
        #expect(y.shape == [m, n] && y.dtype == .f32)
        #expect(relativeDifference(y.floats(), product(x, weight, bias)) < 1e-6)

        let half = x.converted(to: .bf16)
        let rounded = device.linear(half, .dense(weight.converted(to: .bf16)), bias: bias)
        let expected = product(half, weight.converted(to: .bf16), bias)
        #expect(rounded.dtype == .bf16)
        #expect(relativeDifference(rounded.floats(), expected) < 3e-3)
        let wide = device.linear(
            half, .dense(weight.converted(to: .bf16)), bias: bias, activation: .none,
            format: .plain, dtype: .f32)
        #expect(wide.dtype == .f32)
        #expect(relativeDifference(wide.floats(), expected) < 1e-6)
    }

    @Test func keepsTheOuterAxes() {
        var random = Random(2)
        let x = random.tensor([2, 3, 4, 24])
        let y = device.linear(x, .dense(random.tensor([7, 24])), bias: nil)
        #expect(y.shape == [2, 3, 4, 7])
    }

    @Test(arguments: [DType.f32, .bf16]) func linearAddIsItsComposition(_ dtype: DType) {
        var random = Random(3)
        let x = random.tensor([19, 48], dtype)
        let weight = LinearWeight.dense(random.tensor([30, 48], dtype))
        let bias = random.tensor([30])
        let residual = random.tensor([19, 30], dtype)
        for gate in [random.tensor([30]), nil] {
            let y = device.linear(x, weight, bias: bias)
            let expected = device.gatedAdd(residual, y, gate: gate)
            let found = device.linearAdd(x, weight, bias: bias, to: residual, gate: gate)
            #expect(bits(found) == bits(expected))
        }
    }

    @Test func theLargestMagnitudeSaturatesAbove() {
        let x = device.quantize(tensor([2, -2, 1, -0.0078125 * 3, 0], [1, 5]), to: .int8Blocks)
        #expect(x.floats() == [127, -128, 64, -2, 0])
        #expect(Tensor([1], .f32, storage: x.scales!).floats() == [2 / 128])
    }

    @Test func zerosQuantizeToZeros() {
        for format in [LinearFormat.int8Blocks, .fp8Rows] {
            let x = device.quantize(
                Tensor([Float](repeating: 0, count: 300), [2, 150]), to: format)
            #expect(x.floats().allSatisfy { $0 == 0 })
        }
    }

    @Test(arguments: [LinearFormat.int8Blocks, .fp8Rows], [DType.f32, .bf16])
    func eightBitLayersStayNearTheirDenseOnes(_ format: LinearFormat, _ dtype: DType) {
        var random = Random(4)
        let x = random.tensor([200, 384], dtype)
        let dense = random.tensor([136, 384], dtype)
        let bias = random.tensor([136])
        let weight = device.place(dense, quantizedTo: format, in: nil)
        #expect(weight.inputFormat == format)
        let y = device.linear(x, weight, bias: bias)
        #expect(y.dtype == dtype)
        let limit = format == .int8Blocks ? 0.02 : 0.05
        #expect(relativeDifference(y, device.linear(x, .dense(dense), bias: bias)) < limit)
        // Quantising first, or letting the layer do it, is the same.
        let quantized = device.quantize(x, to: format)
        let same = device.linear(
            quantized, weight, bias: bias, activation: .none, format: .plain, dtype: dtype)
        #expect(bits(same) == bits(y))
    }

    /// The formats are written by devices (activations) and by the host (checkpoints): by one rule.
    @Test func devicesAndFilesQuantizeAlike() {
        var random = Random(6)
        var values = random.tensor([140, 260]).floats()
        for column in 0..<260 {
            values[2 * 260 + column] = 0
            // Around the least magnitude that counts.
            values[3 * 260 + column] *= 1e-10
            values[4 * 260 + column] *= 3e-9
        }
        for x in [Tensor(values, [140, 260]), .zeros([2, 5], .f32)] {
            let (rows, scale) = FP8Rows.quantize(x)
            let found = device.quantize(x, to: .fp8Rows)
            #expect(bits(found) == bits(rows))
            #expect(bits(Tensor(scale.shape, .f32, storage: found.scales!)) == bits(scale))
            let (blocks, scales) = Int8Blocks.quantize(x)
            let codes = device.quantize(x, to: .int8Blocks)
            #expect(bits(codes) == bits(blocks))
            #expect(bits(Tensor(scales.shape, .f32, storage: codes.scales!)) == bits(scales))
        }
    }

    @Test func aResultCanBeQuantizedAtOnce() {
        var random = Random(5)
        let x = random.tensor([70, 130], .bf16)
        let weight = LinearWeight.dense(random.tensor([260, 130], .bf16))
        let y = device.linear(x, weight, bias: nil, activation: .geluTanh, format: .int8Blocks)
        let expected = device.quantize(
            device.linear(x, weight, bias: nil, activation: .geluTanh), to: .int8Blocks)
        #expect(y.dtype == .i8 && bits(y) == bits(expected))
    }

    @Test func aFormatThatTheWeightDoesNotTakeIsRefused() async {
        await #expect(processExitsWith: .failure) {
            let device = CPUBackend(threads: 1, engine: .definition)
            let x = device.quantize(tensor([1, 2], [1, 2]), to: .fp8Rows)
            _ = device.linear(x, .dense(tensor([1, 2], [1, 2])), bias: nil)
        }
    }

    @Test func aWrongWidthIsRefused() async {
        await #expect(processExitsWith: .failure) {
            let device = CPUBackend(threads: 1, engine: .definition)
            _ = device.linear(
                tensor([1, 2], [1, 2]), .dense(tensor([1, 2, 3], [1, 3])), bias: nil)
        }
    }
}
