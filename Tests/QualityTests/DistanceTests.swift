// Squared error, PSNR and structural similarity against their plain formulas.

import Glibc
import Media
import Testing

@testable import Quality

@Suite struct DistanceTests {
    private static func frame(_ count: Int, seed: UInt64, noise: Int) -> [UInt8] {
        var state = seed
        return (0..<count).map { index in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            let wave = 120 + 90 * sin(Double(index) / 37)
            return UInt8(clamping: Int(wave) + Int(state >> 33) % (2 * noise + 1) - noise)
        }
    }

    /// Straight from the definition, window by window.
    private static func similarity(_ a: [UInt8], _ b: [UInt8], _ width: Int, _ height: Int)
        -> Double
    {
        func luma(_ rgb: [UInt8], _ pixel: Int) -> Double {
            0.299 * Double(rgb[3 * pixel]) + 0.587 * Double(rgb[3 * pixel + 1])
                + 0.114 * Double(rgb[3 * pixel + 2])
        }
        let least = min(width, height)
        let taps = min(11, least % 2 == 1 ? least : least - 1)
        let bell = (0..<taps).map { exp(-pow(Double($0 - taps / 2), 2) / 4.5) }
        let norm = bell.reduce(0, +)
        var total = 0.0
        for top in 0...height - taps {
            for left in 0...width - taps {
                var (x, y, xx, yy, xy) = (0.0, 0.0, 0.0, 0.0, 0.0)
                for i in 0..<taps {
                    for j in 0..<taps {
                        let weight = bell[i] * bell[j] / norm / norm
                        let pixel = (top + i) * width + left + j
                        let (p, q) = (luma(a, pixel), luma(b, pixel))
                        x += weight * p
                        y += weight * q
                        xx += weight * p * p
                        yy += weight * q * q
                        xy += weight * p * q
                    }
                }
                let (c1, c2) = (pow(0.01 * 255, 2), pow(0.03 * 255, 2))
                total +=
                    (2 * x * y + c1) * (2 * (xy - x * y) + c2)
                    / (x * x + y * y + c1) / (xx - x * x + yy - y * y + c2)
            }
        }
        return total / Double((height - taps + 1) * (width - taps + 1))
    }

    @Test(arguments: [(37, 23), (16, 16), (64, 12), (9, 5), (2, 3)])
    func similarityEqualsItsDefinition(width: Int, height: Int) {
        let a = Self.frame(3 * width * height, seed: 1, noise: 5)
        let b = Self.frame(3 * width * height, seed: 2, noise: 40)
        let expected = Self.similarity(a, b, width, height)
        let actual = FrameDistance.similarity(a[...], b[...], width: width, height: height)
        #expect(abs(actual - expected) < 1e-9 * abs(expected))
        #expect(FrameDistance.similarity(a[...], a[...], width: width, height: height) > 1 - 1e-9)
    }

    @Test func squaredErrorIsExact() {
        let a = [UInt8](repeating: 0, count: 100_003)
        let b = [UInt8](repeating: 255, count: 100_003)
        #expect(FrameDistance.squaredError(a[...], b[...]) == 255 * 255 * 100_003)
        #expect(FrameDistance.squaredError(a[...], a[...]) == 0)
        #expect(FrameDistance.psnr(0) == nil)
        #expect(abs(FrameDistance.psnr(1)! - 48.1308) < 1e-4)
    }

    @Test func aVideoIsTheMeanOfItsFrames() {
        let (width, height) = (20, 14)
        let size = 3 * width * height
        let a = Self.frame(3 * size, seed: 3, noise: 9)
        let b = Self.frame(3 * size, seed: 4, noise: 9)
        let whole = FrameDistance.between(
            Video(width: width, height: height, pixels: a),
            Video(width: width, height: height, pixels: b))
        let frames = (0..<3).map { frame in
            let range = frame * size..<(frame + 1) * size
            return FrameDistance.similarity(a[range], b[range], width: width, height: height)
        }
        #expect(abs(whole.similarity - frames.reduce(0, +) / 3) < 1e-12)
        #expect(
            whole.meanSquaredError
                == FrameDistance.squaredError(a[...], b[...]) / Double(3 * size))
    }
}
