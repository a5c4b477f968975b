/// Whether this machine's memory is enough for a run on its CPU, before anything is loaded.

import Devices
import Ground
import Runs

extension Generation {
    /// - Parameter tell: told where it may not be enough.
    func checkHost(_ plan: Plan, tell: (String) -> Void) throws {
        if options.execution.device.isGPU { return }
        let computed = plan.stages.map(\.activationBytes).max() ?? 0
        if let note = try HostMemory.current.check(computed: computed, whole: plan.peakBytes) {
            tell(note)
        }
    }
}
