/// How long a run may take on a machine where it was not tried: its plan's work at rates that were measured elsewhere.

import CPU
public import Families
public import Runs

/// Seconds from the loaded models to the last frame, as a range: what is known does not allow one number.
public struct Estimate: Sendable, Hashable, Codable {
    public enum Fit: String, Sendable, Hashable, Codable {
        case whole
        /// With what `Plan.fitted` does.
        case fitted
        case tooSmall = "too-small"
    }

    public let machine: String
    public let fit: Fit
    /// Of device memory that the run takes there, or needs at least.
    public let memoryBytes: Int
    /// nil where the run does not fit.
    public let seconds: ClosedRange<Double>?
}

/// Which share of its rate a machine reaches in each kind of work.
///
/// On an H200 (`Benchmarks/h200.csv`): steps with int8 linear layers 713-892 of 1,979 TOP/s, decoding 540 and encoding 403
/// of 989 TFLOP/s, text 305. The kernels of other cards, on an H100 (`SPEED.md`): products 0.29-0.36 of its int8 rate, where
/// mma.sync reaches two thirds of it; convolutions 0.31. What they reach on their own cards was not measured.
private struct Shares {
    var step, autoencoder, text, bandwidth: ClosedRange<Double>

    static let hopper = Shares(
        step: 0.33...0.46, autoencoder: 0.38...0.56, text: 0.2...0.35, bandwidth: 0.5...0.9)
    static let other = Shares(
        step: 0.18...0.45, autoencoder: 0.25...0.55, text: 0.15...0.4, bandwidth: 0.5...0.9)
    /// nano in bf16 on two cores: 0.65 of the bf16 rate. Large models were not measured.
    static let cpu = Shares(
        step: 0.15...0.7, autoencoder: 0.3...0.75, text: 0.1...0.5, bandwidth: 0.3...0.9)
}

extension Estimate {
    /// - Parameters:
    ///   - plan: without a limit.
    ///   - linears: of the run.
    public init(_ plan: Plan, linears: LinearChoice, on card: Card) {
        machine = card.name
        let fitted: Plan
        do throws(RunError) {
            fitted = try plan.fitted(to: card.usableMemory)
        } catch {
            fit = .tooSmall
            seconds = nil
            memoryBytes = if case .memory(let needed, _) = error { needed } else { plan.peakBytes }
            return
        }
        fit = fitted == plan ? .whole : .fitted
        memoryBytes = fitted.peakBytes
        let rate = linears == .int8 || linears == .fp8 ? card.int8 : card.bf16
        seconds = Self.seconds(
            plan, card.isHopper ? .hopper : .other, step: rate, bf16: card.bf16,
            bandwidth: card.bandwidth, streamed: Double(fitted.streamedBytes))
    }

    /// On this machine's processor, whose rates are measured: takes about a second.
    public init(_ plan: Plan, onCPUWith threads: Int?) {
        let rates = CPUCeilings.measure(threads: threads)
        machine = CPUBackend(threads: threads).name
        (fit, memoryBytes) = (.whole, plan.peakBytes)
        seconds = Self.seconds(
            plan, .cpu, step: rates.bf16, bf16: rates.bf16, bandwidth: rates.copy, streamed: 0)
    }

    /// - Parameters:
    ///   - step: rate of a step's arithmetic; bf16: of the rest.
    ///   - streamed: bytes of weights that come anew for each step over PCIe, at 10 to 25 GB/s.
    private static func seconds(
        _ plan: Plan, _ shares: Shares, step: Double, bf16: Double, bandwidth: Double,
        streamed: Double
    ) -> ClosedRange<Double> {
        var (least, most) = (0.0, 0.0)
        for work in plan.work {
            let (rate, share): (Double, ClosedRange<Double>)
            var carried = 0.0
            switch work.stage {
            case .step:
                (rate, share) = (step, shares.step)
                carried = streamed
            case .encodeText, .projectText: (rate, share) = (bf16, shares.text)
            default: (rate, share) = (bf16, shares.autoencoder)
            }
            let traffic = work.traffic / bandwidth
            let fast = max(
                work.operations / (rate * share.upperBound), traffic / shares.bandwidth.upperBound)
            let slow =
                work.operations / (rate * share.lowerBound)
                + traffic / shares.bandwidth.lowerBound
            least += max(fast, carried / 25e9)
            most += slow + carried / 10e9
        }
        return least...max(least, most)
    }
}

extension Estimate {
    /// Seconds of an iteration of training in bf16, as a range.
    ///
    /// On an H200 SLA tuning of the 1.3B model reached 0.40 of the card's rate, adapters of the 14B model 0.39 and 0.46; rCM
    /// of the 1.3B model 0.30 on an H100. nano's 0.08 to 0.2 s are launches (`docs/speed-training.md`). Other cards were
    /// not measured.
    public static func training(flops: Int, on card: Card) -> ClosedRange<Double> {
        let share = card.isHopper ? 0.27...0.5 : 0.1...0.5
        let ideal = Double(flops) / card.bf16
        return ideal / share.upperBound...0.2 + ideal / share.lowerBound
    }
}
