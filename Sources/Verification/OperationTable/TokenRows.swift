/// Rows of the table: tokens, latents, samplers, frames as bytes.

import Tensors

/// A byte whose number lies halfway may be rounded either way.
private let bytes = Tolerance(maximum: 1, mismatches: 1e-3)

extension OperationTable.Rows {
    mutating func addTokens() {
        for dtype in [DType.f32, .bf16] {
            add("embedding", "\(dtype)", .exact, right: [[37, 300, 40]]) { o, size in
                let ids = o.integers(size[0], below: size[1])
                let table = o.host([size[1], size[2]], dtype)
                return { o.device.embedding(ids, hostTable: table, as: dtype) }
            }
            add(
                "patchify", "\(dtype)", .exact, right: [[3, 6, 10]], fast: [[21, 90, 160]]
            ) { o, size in
                let parts = [o.normal([16] + size), o.normal([20] + size)]
                return { o.device.patchify(parts, dtype: dtype) }
            }
            add("concatenate", "\(dtype)", .exact, right: [[3, 1, 4]]) { o, size in
                let parts = size.map { o.normal([$0, 5, 7], dtype) }
                return { o.device.concatenate(parts) }
            }
            for (name, shapes) in [
                ("rgb8", [[2, 9, 11, 3], [2, 16, 48, 3]]),
                ("nv12", [[2, 10, 14, 3], [3, 6, 24, 3], [2, 16, 48, 3]]),
            ] {
                add(name, "\(dtype)", bytes, right: shapes, fast: [[4, 720, 1280, 3]]) { o, size in
                    let frames = o.normal(size, dtype, scale: 0.7)
                    return { name == "rgb8" ? o.device.rgb8(frames) : o.device.nv12(frames) }
                }
            }
            add(
                "interleaveTime", "\(dtype)", .exact, right: [[3, 5, 7, 24]],
                fast: [[1, 60, 104, 768]]
            ) { o, size in
                let frames = o.normal(size, dtype)
                return { o.device.interleaveTime(frames) }
            }
        }
        // [T, H, W] of latents
        add("unpatchify", "f32", .exact, right: [[3, 6, 10]], fast: [[21, 90, 160]]) { o, size in
            let rows = o.normal([size[0] * size[1] * size[2] / 4, 64])
            return { o.device.unpatchify(rows, size: Extent(t: size[0], h: size[1], w: size[2])) }
        }
    }

    /// Sizes: [samples, channels, T, H, W]; for operations that normalise channels, without samples.
    mutating func addLatents() {
        let (small, real) = ([[2, 16, 3, 6, 10]], [[1, 16, 21, 90, 160]])
        for sde in [true, false] {
            add(
                "rcmStep", sde ? "sde" : "ode", Tolerance(relativeL2: 1e-14), right: small,
                fast: real
            ) { o, size in
                let (x, velocity) = (o.normal(size, .f64), o.normal(size))
                let noise = sde ? o.normal(size) : nil
                return {
                    o.device.rcmStep(x, velocity: velocity, noise: noise, t: 0.9, next: 0.7)
                }
            }
        }
        for dtype in [DType.f32, .f64] {
            add(
                "combine", "\(dtype)", Tolerance(relativeL2: dtype == .f32 ? 1e-7 : 1e-14),
                right: small, fast: real
            ) { o, size in
                let terms = [o.normal(size), o.normal(size)]
                return { o.device.combine(terms, [-2.5, 3.5], as: dtype) }
            }
        }
        // The second draw continues the first.
        for count in [1, 2] {
            add(
                "noise", count == 1 ? "" : "continued", Tolerance(maximum: 5e-6),
                right: [[17], [16, 3, 8, 8], [2, 16, 9, 40, 70]],
                fast: count == 1 ? real : []
            ) { o, size in
                {
                    var generator = PhiloxNoise(seed: 42)
                    for _ in 1..<count {
                        _ = o.device.noise(Shape(size), generator: &generator)
                    }
                    return o.device.noise(Shape(size), generator: &generator)
                }
            }
        }
        for dtype in [DType.f32, .bf16] {
            let (small, real) = ([[16, 3, 6, 10]], [[16, 21, 90, 160]])
            add("channelsLast", "\(dtype)", tolerance(dtype), right: small, fast: real) { o, size in
                let (latents, scale, shift) = (o.normal(size), o.numbers(16), o.numbers(16))
                return {
                    o.device.channelsLast(latents, scale: scale, shift: shift, dtype: dtype)
                }
            }
            add("channelsFirst", "\(dtype)", single, right: small, fast: real) { o, size in
                let x = o.normal(Array(size[1...]) + [size[0]], dtype)
                let (scale, shift) = (o.numbers(16), o.numbers(16))
                return { o.device.channelsFirst(x, scale: scale, shift: shift) }
            }
        }
    }
}

extension Operands {
    /// Numbers for arguments that stay on the host.
    fileprivate func numbers(_ count: Int) -> [Float] {
        integers(count, below: 4096).map { Float($0 - 2048) / 1024 }
    }
}
