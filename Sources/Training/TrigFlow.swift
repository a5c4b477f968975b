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

/// A net's answers at (x, t) in TrigFlow.
extension Net {
    /// x0 and F at an angle.
    func denoised(_ x: LatentValues, at t: Double, _ text: Text) throws(CheckpointError) -> (
        clean: LatentValues, field: LatentValues
    ) {
        let scaling = TrigScaling(t)
        let v = LatentValues(
            try velocity((1 / scaling.sum * x).tensor, at: scaling.timestep, text))
        return (scaling.clean(x, v), scaling.field(x, v))
    }

    /// The same with guidance g: uncond + g (cond - uncond); one pass where g = 1.
    func guided(
        _ x: LatentValues, at t: Double, _ text: Text, negative: Text?, guidance: Double
    ) throws(CheckpointError) -> (clean: LatentValues, field: LatentValues) {
        let positive = try denoised(x, at: t, text)
        guard guidance > 1, let negative else { return positive }
        let other = try denoised(x, at: t, negative)
        return (
            other.clean + guidance * (positive.clean - other.clean),
            other.field + guidance * (positive.field - other.field)
        )
    }

    /// F and its derivative along (direction, speed); both outside of the net in f64.
    func movingField(
        _ x: LatentValues, along direction: LatentValues, at t: Double, along speed: Double,
        _ text: Text
    ) throws(CheckpointError) -> (field: LatentValues, tangent: LatentValues) {
        let s = TrigScaling(t)
        let inward = 1 / s.sum * direction + s.inputSlope * speed * x
        let found = try moving(
            (1 / s.sum * x).tensor, along: inward.tensor, at: s.timestep,
            along: s.timestepSlope * speed, text)
        let (v, tv) = (LatentValues(found.velocity), LatentValues(found.tangent))
        let difference = s.cosine - s.sine
        let tangent =
            1 / s.sum * (difference * direction + tv)
            - speed / (s.sum * s.sum) * (2 * x + difference * v)
        return (s.field(x, v), tangent)
    }

    /// A recorded pass at an angle.
    func recordedTrig(_ x: LatentValues, at t: Double, _ text: Text) throws(CheckpointError)
        -> RecordedTrig
    {
        let scaling = TrigScaling(t)
        let pass = try recorded((1 / scaling.sum * x).tensor, at: scaling.timestep, text)
        let v = LatentValues(pass.velocity)
        return RecordedTrig(
            clean: scaling.clean(x, v), field: scaling.field(x, v), pass: pass, scaling: scaling)
    }
}

/// x0 and F with the way back to the parameters.
struct RecordedTrig {
    let clean, field: LatentValues
    fileprivate let pass: Net.Recorded
    fileprivate let scaling: TrigScaling

    /// cotangent: d loss / d F
    func gradients(field cotangent: LatentValues) -> [String: Tensor] {
        pass.gradients((1 / scaling.sum * cotangent).tensor).parameters
    }

    /// cotangent: d loss / d x0
    func gradients(clean cotangent: LatentValues) -> [String: Tensor] {
        pass.gradients((-scaling.sine / scaling.sum * cotangent).tensor).parameters
    }
}
