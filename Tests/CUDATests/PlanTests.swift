// How the memory-bound kernels spread their work: pure functions of the shape.

import Tensors
import Testing

@testable import CUDA

@Suite struct RowPlanTests {
    @Test(arguments: [1, 8, 64, 100, 256, 384, 1536, 2048, 4096, 5120, 8192])
    func everyElementHasAThread(columns: Int) {
        for dtype in [DType.bf16, .f32] {
            for aligned in [true, false] where !aligned || columns % 8 == 0 {
                let plan = RowPlan(columns: columns, dtype: dtype, aligned: aligned)
                #expect(plan.vector * plan.count * plan.threads >= columns)
                #expect(plan.threads % 32 == 0 && plan.threads <= RowPlan.mostThreads)
                #expect(RowPlan.instances(dtype).contains(plan.arguments))
                // No warp without work, but for the last access of each thread.
                #expect(plan.vector * plan.count * (plan.threads - 32) < columns)
            }
        }
    }

    @Test func thePublishedModelsUseWholeAccesses() {
        #expect(RowPlan(columns: 1536, dtype: .bf16, aligned: true).arguments == "8, 1")
        #expect(RowPlan(columns: 5120, dtype: .bf16, aligned: true).arguments == "8, 4")
    }

    @Test func surplusLanesAreThoseUpToTheNextPowerOfTwo() {
        #expect(Normalization.padding(1536, .reference) == 512)
        #expect(Normalization.padding(5120, .reference) == 3072)
        #expect(Normalization.padding(2048, .reference) == 0)
        #expect(Normalization.padding(1536, .exact) == 0)
    }
}

@Suite struct ChannelPlanTests {
    @Test(arguments: [3, 16, 24, 48, 96, 192, 384, 1536, 2048])
    func everyChannelHasALane(channels: Int) {
        for dtype in [DType.bf16, .f32] {
            let aligned = channels * dtype.byteCount % 16 == 0
            let plan = ChannelPlan(channels: channels, dtype: dtype, aligned: aligned)
            #expect(plan.vector * plan.lanes * plan.count >= channels)
            #expect(ChannelPlan.instances(dtype).contains(plan.arguments))
        }
    }
}

@Suite struct LayoutUnitTests {
    @Test func unitsDivideRowsAndAddresses() {
        let aligned = DevicePointer(address: 4096)
        #expect(Layout.unit(192, aligned).size == 16)
        #expect(Layout.unit(20, aligned).size == 4)
        #expect(Layout.unit(6, aligned).size == 2)
        #expect(Layout.unit(3, aligned).size == 1)
        #expect(Layout.unit(192, aligned + 4).size == 4)
    }
}
