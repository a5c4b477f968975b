/// A rectified-flow net in the angles of TrigFlow (arXiv 2410.11081): x_t = cos t x0 + sin t noise.

import Checkpoints
import Glibc
import Tensors

/// The coefficients at an angle: the net gets x / S and the timestep 1000 sin t / S, S = cos t + sin t.
package struct TrigScaling {
    package let sine, cosine: Double
    package var sum: Double { cosine + sine }
    package var timestep: Double { 1000 * sine / sum }
    /// Of 1 / S, sin t / S by t.
    package var inputSlope: Double { -(cosine - sine) / (sum * sum) }
    package var timestepSlope: Double { 1000 / (sum * sum) }

    package init(_ t: Double) {
        sine = sin(t)
        cosine = cos(t)
    }

    /// (x - sin t v) / S
    func clean(_ x: LatentValues, _ velocity: LatentValues) -> LatentValues {
        1 / sum * (x - sine * velocity)
    }

    /// F = (cos t x - x0) / sin t = ((cos t - sin t) x + v) / S, which is defined at t = 0 too.
    func field(_ x: LatentValues, _ velocity: LatentValues) -> LatentValues {
        1 / sum * ((cosine - sine) * x + velocity)
    }
}

/// A net's answers at (x, t) in TrigFlow, of the samples of one pass.
extension Net {
    typealias Answer = (clean: LatentValues, field: LatentValues)

    private func inputs(_ xs: [LatentValues], _ scalings: [TrigScaling]) -> [Tensor] {
        eachSample(xs.count) { (1 / scalings[$0].sum * xs[$0]).tensor }
    }

    /// x0 and F at an angle.
    func denoised(_ xs: [LatentValues], at ts: [Double], _ texts: [Text])
        throws(CheckpointError) -> [Answer]
    {
        let scalings = ts.map { TrigScaling($0) }
        let found = try velocities(inputs(xs, scalings), at: scalings.map(\.timestep), texts)
        return eachSample(xs.count) {
            let v = LatentValues(found[$0])
            return (scalings[$0].clean(xs[$0], v), scalings[$0].field(xs[$0], v))
        }
    }

    /// The same with guidance g: uncond + g (cond - uncond); one pass where g = 1.
    func guided(
        _ xs: [LatentValues], at ts: [Double], _ samples: [Sample], guidance: Double
    ) throws(CheckpointError) -> [Answer] {
        let positive = try denoised(xs, at: ts, samples.map(\.text))
        let negatives = samples.compactMap(\.negative)
        guard guidance > 1, negatives.count == samples.count else { return positive }
        let other = try denoised(xs, at: ts, negatives)
        return eachSample(xs.count) {
            (
                other[$0].clean + guidance * (positive[$0].clean - other[$0].clean),
                other[$0].field + guidance * (positive[$0].field - other[$0].field)
            )
        }
    }

    /// F and its derivative along (direction, speed); both outside of the net in f64.
    func movingField(
        _ xs: [LatentValues], along directions: [LatentValues], at ts: [Double],
        along speeds: [Double], _ texts: [Text]
    ) throws(CheckpointError) -> [(field: LatentValues, tangent: LatentValues)] {
        let scalings = ts.map { TrigScaling($0) }
        let inward = eachSample(xs.count) {
            (1 / scalings[$0].sum * directions[$0] + scalings[$0].inputSlope * speeds[$0] * xs[$0])
                .tensor
        }
        let found = try moving(
            inputs(xs, scalings), along: inward, at: scalings.map(\.timestep),
            along: zip(scalings, speeds).map { $0.timestepSlope * $1 }, texts)
        return eachSample(xs.count) {
            let (s, x, speed) = (scalings[$0], xs[$0], speeds[$0])
            let (v, tv) = (LatentValues(found[$0].velocity), LatentValues(found[$0].tangent))
            let difference = s.cosine - s.sine
            let tangent =
                1 / s.sum * (difference * directions[$0] + tv)
                - speed / (s.sum * s.sum) * (2 * x + difference * v)
            return (s.field(x, v), tangent)
        }
    }

    /// A recorded pass at an angle.
    func recordedTrig(_ xs: [LatentValues], at ts: [Double], _ texts: [Text])
        throws(CheckpointError) -> RecordedTrig
    {
        let scalings = ts.map { TrigScaling($0) }
        let pass = try recorded(inputs(xs, scalings), at: scalings.map(\.timestep), texts)
        let answers = eachSample(xs.count) {
            let v = LatentValues(pass.velocities[$0])
            return (scalings[$0].clean(xs[$0], v), scalings[$0].field(xs[$0], v))
        }
        return RecordedTrig(answers: answers, pass: pass, scalings: scalings)
    }
}

/// x0 and F of the samples of a pass, with the way back to the parameters.
struct RecordedTrig {
    let answers: [Net.Answer]
    fileprivate let pass: Net.RecordedBatch
    fileprivate let scalings: [TrigScaling]

    /// cotangents: d loss / d F
    func gradients(fields cotangents: [LatentValues]) -> [String: Tensor] {
        pass.gradients(
            eachSample(cotangents.count) { (1 / scalings[$0].sum * cotangents[$0]).tensor })
    }

    /// cotangents: d loss / d x0
    func gradients(cleans cotangents: [LatentValues]) -> [String: Tensor] {
        pass.gradients(
            eachSample(cotangents.count) {
                (-scalings[$0].sine / scalings[$0].sum * cotangents[$0]).tensor
            })
    }
}
