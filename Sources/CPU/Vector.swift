/// Arithmetic on rows of `Float`, eight lanes at a time and always in the same order.

import Tensors

typealias Lanes = SIMD8<Float>

extension UnsafePointer<Float> {
    @inline(__always)
    func lanes(_ index: Int) -> Lanes {
        UnsafeRawPointer(self + index).loadUnaligned(as: Lanes.self)
    }
}

extension UnsafeMutablePointer<Float> {
    @inline(__always)
    func lanes(_ index: Int) -> Lanes {
        UnsafeRawPointer(self + index).loadUnaligned(as: Lanes.self)
    }

    @inline(__always)
    func setLanes(_ index: Int, _ value: Lanes) {
        UnsafeMutableRawPointer(self + index).storeBytes(of: value, as: Lanes.self)
    }
}

/// Operations on rows of any length n. The last elements are computed one by one, with the same formulas.
enum Vector {
    /// The sum of term(x) over a row.
    @inline(__always)
    private static func reduce(
        _ x: UnsafePointer<Float>, _ n: Int, _ term: (Lanes) -> Lanes
    ) -> Float {
        var a = Lanes.zero, b = Lanes.zero, c = Lanes.zero, d = Lanes.zero
        var i = 0
        while i + 32 <= n {
            a += term(x.lanes(i))
            b += term(x.lanes(i + 8))
            c += term(x.lanes(i + 16))
            d += term(x.lanes(i + 24))
            i += 32
        }
        while i + 8 <= n {
            a += term(x.lanes(i))
            i += 8
        }
        var tail: Float = 0
        while i < n {
            tail += term(Lanes(repeating: x[i]))[0]
            i += 1
        }
        return ((a + b) + (c + d)).sum() + tail
    }

    static func sum(_ x: UnsafePointer<Float>, _ n: Int) -> Float { reduce(x, n) { $0 } }

    static func sumOfSquares(_ x: UnsafePointer<Float>, _ n: Int) -> Float {
        reduce(x, n) { $0 * $0 }
    }

    /// sum (x - center)^2
    static func squaredDistance(_ x: UnsafePointer<Float>, _ n: Int, from center: Float) -> Float {
        let center = Lanes(repeating: center)
        return reduce(x, n) {
            let d = $0 - center
            return d * d
        }
    }

    static func dot(_ x: UnsafePointer<Float>, _ y: UnsafePointer<Float>, _ n: Int) -> Float {
        var a = Lanes.zero, b = Lanes.zero
        var i = 0
        while i + 16 <= n {
            a.addProduct(x.lanes(i), y.lanes(i))
            b.addProduct(x.lanes(i + 8), y.lanes(i + 8))
            i += 16
        }
        var tail: Float = 0
        while i < n {
            tail += x[i] * y[i]
            i += 1
        }
        return (a + b).sum() + tail
    }

    static func maximum(_ x: UnsafePointer<Float>, _ n: Int) -> Float {
        var i = 0
        var best = -Float.infinity
        if n >= 8 {
            var lanes = x.lanes(0)
            i = 8
            while i + 8 <= n {
                let y = x.lanes(i)
                lanes.replace(with: y, where: y .> lanes)
                i += 8
            }
            best = lanes.max()
        }
        while i < n {
            if x[i] > best { best = x[i] }
            i += 1
        }
        return best
    }

    /// max |x|
    static func maximumMagnitude(_ x: UnsafePointer<Float>, _ n: Int) -> Float {
        var i = 0
        var lanes = Lanes.zero
        while i + 8 <= n {
            let y = magnitude(x.lanes(i))
            lanes.replace(with: y, where: y .> lanes)
            i += 8
        }
        var best = lanes.max()
        while i < n {
            if x[i].magnitude > best { best = x[i].magnitude }
            i += 1
        }
        return best
    }

    @inline(__always)
    static func magnitude(_ x: Lanes) -> Lanes {
        unsafeBitCast(
            unsafeBitCast(x, to: SIMD8<UInt32>.self) & SIMD8(repeating: 0x7FFF_FFFF),
            to: Lanes.self)
    }

    /// x <- f(x)
    @inline(__always)
    static func map(_ x: UnsafeMutablePointer<Float>, _ n: Int, _ f: (Lanes) -> Lanes) {
        var i = 0
        while i + 8 <= n {
            x.setLanes(i, f(x.lanes(i)))
            i += 8
        }
        while i < n {
            x[i] = f(Lanes(repeating: x[i]))[0]
            i += 1
        }
    }

    /// x <- f(x, y)
    @inline(__always)
    static func map(
        _ x: UnsafeMutablePointer<Float>, _ y: UnsafePointer<Float>, _ n: Int,
        _ f: (Lanes, Lanes) -> Lanes
    ) {
        var i = 0
        while i + 8 <= n {
            x.setLanes(i, f(x.lanes(i), y.lanes(i)))
            i += 8
        }
        while i < n {
            x[i] = f(Lanes(repeating: x[i]), Lanes(repeating: y[i]))[0]
            i += 1
        }
    }

    static func scale(_ x: UnsafeMutablePointer<Float>, _ n: Int, by factor: Float) {
        map(x, n) { $0 * factor }
    }

    static func add(_ x: UnsafeMutablePointer<Float>, _ y: UnsafePointer<Float>, _ n: Int) {
        map(x, y, n) { $0 + $1 }
    }

    static func multiply(_ x: UnsafeMutablePointer<Float>, _ y: UnsafePointer<Float>, _ n: Int) {
        map(x, y, n) { $0 * $1 }
    }

    /// Each row of x <- f(row, y). x: [rows, n]; y: [n]
    @inline(__always)
    static func mapRows(
        _ x: UnsafeMutablePointer<Float>, rows: Int, _ y: UnsafePointer<Float>, _ n: Int,
        _ f: (Lanes, Lanes) -> Lanes
    ) {
        for row in 0..<rows { map(x + row * n, y, n, f) }
    }

    /// Softmax of a row, in place and in f32.
    static func softmax(_ x: UnsafeMutablePointer<Float>, _ n: Int) {
        let top = maximum(x, n)
        map(x, n) { exp($0 - top) }
        scale(x, n, by: 1 / sum(x, n))
    }

    static func apply(_ activation: Activation, _ x: UnsafeMutablePointer<Float>, _ n: Int) {
        switch activation {
        case .none: break
        case .geluTanh: map(x, n, geluTanh)
        case .silu: map(x, n, silu)
        }
    }
}

// MARK: - Functions

/// 2^x, accurate to two units in the last place; 0 for x below -126, NaN for NaN.
@inline(__always)
func exp2(_ x: Lanes) -> Lanes {
    // Adding 1.5 * 2^23 puts round(x) into the low bits of the sum.
    let magic = Lanes(repeating: 12_582_912)
    let shifted = x + magic
    let f = x - (shifted - magic)
    // 2^f on [-1/2, 1/2] is the Taylor series of exp(f ln 2); the first dropped term is below 6e-9.
    var p = Lanes(repeating: 1.525_273_3e-5)
    p = Lanes(repeating: 1.540_353e-4).addingProduct(p, f)
    p = Lanes(repeating: 1.333_355_8e-3).addingProduct(p, f)
    p = Lanes(repeating: 9.618_129e-3).addingProduct(p, f)
    p = Lanes(repeating: 5.550_410_9e-2).addingProduct(p, f)
    p = Lanes(repeating: 2.402_265_1e-1).addingProduct(p, f)
    p = Lanes(repeating: 6.931_472e-1).addingProduct(p, f)
    p = Lanes(repeating: 1).addingProduct(p, f)
    return scaled(p, by: shifted, x, from: -126, to: 128)
}

/// e^x, accurate to two units in the last place; 0 if the result would be below 2^-126, NaN for NaN.
@inline(__always)
func exp(_ x: Lanes) -> Lanes {
    let magic = Lanes(repeating: 12_582_912)
    let shifted = magic.addingProduct(x, Lanes(repeating: 1.442_695))
    let n = shifted - magic
    // Subtracting n ln 2 in two parts keeps the remainder exact (Cody and Waite).
    var r = x.addingProduct(n, Lanes(repeating: -0.693_145_75))
    r = r.addingProduct(n, Lanes(repeating: -1.428_606_8e-6))
    var p = Lanes(repeating: 1.984_127e-4)
    p = Lanes(repeating: 1.388_888_9e-3).addingProduct(p, r)
    p = Lanes(repeating: 8.333_334e-3).addingProduct(p, r)
    p = Lanes(repeating: 4.166_666_8e-2).addingProduct(p, r)
    p = Lanes(repeating: 1.666_666_7e-1).addingProduct(p, r)
    p = Lanes(repeating: 0.5).addingProduct(p, r)
    p = Lanes(repeating: 1).addingProduct(p, r)
    p = Lanes(repeating: 1).addingProduct(p, r)
    return scaled(p, by: shifted, x, from: -87.336_54, to: 88.722_83)
}

/// p times 2 to the power of the integer in the low bits of `shifted`; 0 if x < low, infinity if x > high.
@inline(__always)
private func scaled(
    _ p: Lanes, by shifted: Lanes, _ x: Lanes, from low: Float, to high: Float
) -> Lanes {
    let exponent = unsafeBitCast(shifted, to: SIMD8<Int32>.self) &<< 23
    var y = unsafeBitCast(
        unsafeBitCast(p, to: SIMD8<Int32>.self) &+ exponent, to: Lanes.self)
    y.replace(with: 0, where: x .< low)
    y.replace(with: .infinity, where: x .> high)
    y.replace(with: x, where: x .!= x)
    return y
}

/// x / (1 + e^-x)
@inline(__always)
func silu(_ x: Lanes) -> Lanes { x / (1 + exp(-x)) }

/// 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), computed as x / (1 + e^(-2u)).
@inline(__always)
func geluTanh(_ x: Lanes) -> Lanes {
    let u = (x * x * x * 0.044715 + x) * Float(0.797_884_560_802_865_4)
    return x / (1 + exp(u * -2))
}
