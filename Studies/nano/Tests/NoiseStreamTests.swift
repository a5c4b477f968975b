// Noise streams against PyTorch.

import Testing

@testable import NanoStudy

@Suite struct NoiseStreamTests {
    /// torch.randn(…, generator=torch.Generator().manual_seed(seed)), the first numbers.
    @Test(
        arguments: zip(
            [UInt32(0), 1, 2],
            [
                [Float(-1.1258398), -1.1523602, -0.25057858, -0.4338788, 0.84871036, 0.69200915],
                [-1.5255959, -0.7502318, -0.6539809, -1.6094848, -0.10016718, -0.6091889],
                [-1.0408012, 0.91660416, -1.3041904, -1.1096784, -1.2187781, 1.1675924],
            ]))
    func equalsPyTorch(seed: UInt32, expected: [Float]) {
        var stream = NoiseStream(seed: seed)
        let noise = stream.normal(4 * 16 * 9 * 18 * 32)
        for (x, y) in zip(noise, expected) { #expect(abs(x - y) < 2e-6) }
    }

    @Test("one draw, or two of half the size")
    func goesOn() {
        var (once, twice) = (NoiseStream(seed: 7), NoiseStream(seed: 7))
        let whole = once.normal(3200)
        #expect(whole == twice.normal(1600) + twice.normal(1600))
    }
}
