/// Small pictures of latents, without the autoencoder.

/// A linear map from the channels of a normalised latent to colour: `factors` and `bias` give red, green and blue in -1...1.
/// It shows shapes and colours at a pixel for each latent, and costs nothing.
public struct LatentPreview: Sendable, Hashable, Codable {
    /// [channels][3]
    public var factors: [[Float]]
    /// [3]
    public var bias: [Float]

    public init(factors: [[Float]], bias: [Float]) {
        self.factors = factors
        self.bias = bias
    }

    /// 8-bit RGB of one latent frame.
    /// - Parameter values: [channels, height, width]
    /// - Returns: [height, width, 3]; nil where the map is for another number of channels.
    public func pixels(of values: [Float], width: Int, height: Int) -> [UInt8]? {
        let count = width * height
        guard count > 0, values.count == factors.count * count, bias.count == 3,
            factors.allSatisfy({ $0.count == 3 })
        else { return nil }
        var sums = [Float](repeating: 0, count: 3 * count)
        for pixel in 0..<count {
            for color in 0..<3 { sums[3 * pixel + color] = bias[color] }
        }
        for (channel, weights) in factors.enumerated() {
            for pixel in 0..<count {
                let value = values[channel * count + pixel]
                for color in 0..<3 { sums[3 * pixel + color] += weights[color] * value }
            }
        }
        return sums.map { sum in
            // A number that is not finite is no colour.
            let level = (sum + 1) / 2 * 255
            return level.isFinite ? UInt8(min(max(level, 0), 255).rounded()) : 0
        }
    }
}

extension LatentPreview {
    /// For Wan2.1's autoencoder. Source: `latent_rgb_factors` of `Wan21` in
    /// https://github.com/Comfy-Org/ComfyUI/blob/9a9a69fd745de98e89b0f1a629cd3bc43d513a42/comfy/latent_formats.py
    public static let wan = LatentPreview(
        factors: [
            [-0.1299, -0.1692, 0.2932], [0.0671, 0.0406, 0.0442], [0.3568, 0.2548, 0.1747],
            [0.0372, 0.2344, 0.1420], [0.0313, 0.0189, -0.0328], [0.0296, -0.0956, -0.0665],
            [-0.3477, -0.4059, -0.2925], [0.0166, 0.1902, 0.1975], [-0.0412, 0.0267, -0.1364],
            [-0.1293, 0.0740, 0.1636], [0.0680, 0.3019, 0.1128], [0.0032, 0.0581, 0.0639],
            [-0.1251, 0.0927, 0.1699], [0.0060, -0.0633, 0.0005], [0.3477, 0.2275, 0.2950],
            [0.1984, 0.0913, 0.1861],
        ], bias: [-0.1835, -0.0868, -0.3360])
}
