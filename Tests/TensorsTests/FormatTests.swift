/// Number formats, shapes and tensors.

import Tensors
import Testing

@Suite struct FormatTests {
    @Test func bfloat16RoundsToNearestEven() {
        #expect(BFloat16(1.0 + 0x1p-8).float == 1.0)
        #expect(BFloat16(1.0 + 0x1p-8 + 0x1p-16).float == 1.0 + 0x1p-7)
        #expect(BFloat16(1.0 + 3 * 0x1p-8).float == 1.0 + 0x1p-6)
        #expect(BFloat16(.nan).float.isNaN)
        #expect(BFloat16(-.infinity).float == -.infinity)
        #expect(BFloat16(.greatestFiniteMagnitude).float == .infinity)
    }

    @Test func everyFloat8CodeSurvivesARoundTrip() {
        for code in UInt8.min...UInt8.max where code & 0x7F != 0x7F {
            #expect(Float8E4M3.encode(Float8E4M3.decode(code)) == code)
        }
        #expect(Float8E4M3.encode(1e9) == 0x7E)
        #expect(Float8E4M3.encode(464) == 0x7E)
        #expect(Float8E4M3.decode(0x01) == 0x1p-9)
        #expect(Float8E4M3.encode(0x1p-10) == 0)
        #expect(Float8E4M3.encode(0x1.8p-9) == 2)
        #expect(Float8E4M3.encode(0x1.fp-7) == 8)
    }

    @Test func finiteIsWhatF32CanHold() {
        for type in [DType.f64, .f32, .f16, .bf16, .f8e4m3] {
            #expect(Tensor([1, -2, 0, -448] as [Float], [4]).converted(to: type).allFinite)
            #expect(!Tensor([1, .nan] as [Float], [2]).converted(to: type).allFinite)
            if type == .f8e4m3 { continue }
            #expect(!Tensor([1, -.infinity] as [Float], [2]).converted(to: type).allFinite)
        }
        func isFinite(_ value: Double) -> Bool {
            let tensor = Tensor.host([1], .f64)
            tensor.withMutable(Double.self) { $0[0] = value }
            #expect(tensor.allFinite == Float(value).isFinite)
            return tensor.allFinite
        }
        let limit = 0x1p128 - 0x1p103
        #expect(isFinite(limit.nextDown) && isFinite(-limit.nextDown))
        #expect(!isFinite(limit) && !isFinite(-1e300) && !isFinite(.nan))
    }

    @Test func slicesLookAtTheSameBytes() {
        let x = Tensor((0..<24).map(Float.init), [4, 3, 2])
        #expect(x.slice(1..<3).floats() == (6..<18).map(Float.init))
        #expect(x[3].shape == [3, 2])
        #expect(x[3].floats().first == 18)
        #expect(x.slice(1..<3).storage === x.storage)
    }

    @Test func selectedBlocksAreTruncatedAndNeverZero() {
        let spec = SparseAttention(topK: 0.1, arithmetic: .bf16)
        #expect(spec.selected(of: 512) == 51)
        #expect(spec.selected(of: 5) == 1)
        #expect(SparseAttention(topK: 1, arithmetic: .sage(.sm90)).selected(of: 7) == 7)
    }
}
