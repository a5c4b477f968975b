/// Sizes of transformers that no machine's kernels take are refused by their headers.

import Checkpoints
import Tensors
import Testing

@testable import Families

@Suite("Widths of a transformer")
struct WidthTests {
    private func error(
        dim: Int, heads: Int, feedForward: Int = 64, storage: LinearFormat = .plain,
        attention: AttentionChoice = .original, linears: LinearChoice = .stored
    ) -> FittingError? {
        let sizes = WanTransformerArchitecture(
            dim: dim, layers: 1, feedForward: feedForward, heads: heads, linears: storage)
        do throws(FittingError) {
            try ModelSet.checkWidths(sizes, "a.pth", attention, linears)
            return nil
        } catch { return error }
    }

    @Test("layers of 100 inputs are not quantised, whether the file or the request says so")
    func quantised() {
        #expect(error(dim: 100, heads: 1) == nil)
        for refused in [
            error(dim: 100, heads: 1, linears: .int8),
            error(dim: 100, heads: 1, storage: .int8Blocks),
        ] {
            #expect(
                refused.map { "\($0)" }
                    == "a.pth: the width of quantised layers must be a multiple of 16, not 100")
        }
        #expect(error(dim: 64, heads: 1, feedForward: 72, linears: .fp8) != nil)
        #expect(error(dim: 5120, heads: 40, feedForward: 13824, linears: .int8) == nil)
    }

    @Test("sparse attention has heads of 64 and 128, and smaller powers of two")
    func heads() {
        #expect(error(dim: 192, heads: 2) == nil)
        #expect(error(dim: 192, heads: 2, attention: .sla) != nil)
        #expect(error(dim: 256, heads: 1, attention: .sla) != nil)
        #expect(error(dim: 256, heads: 2, attention: .sagesla) == nil)
    }
}
