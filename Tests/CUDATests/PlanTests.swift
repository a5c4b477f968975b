// How the memory-bound kernels spread their work: pure functions of the shape.

import Dispatch
import Synchronization
import Tensors
import Testing

@testable import CUDA

@Suite struct SharedWeightTests {
    /// The matrices of blocks of 14B, in int8, and what each of a group's devices owns of them.
    @Test(arguments: 2...8)
    func sharesDifferByOneWeightAtMost(devices: Int) {
        let block = [26, 26, 26, 26, 26, 26, 71, 71]
        var owners = WeightOwners(devices: devices)
        for _ in 0..<40 {
            for weight in block { _ = owners.next(of: weight) }
            #expect(owners.owned.max()! - owners.owned.min()! <= 71)
        }
        #expect(owners.owned.reduce(0, +) == 40 * block.reduce(0, +))
    }

    @Test func whatNobodyHoldsComesFromTheHost() throws {
        let meeting = Meeting(count: 2)
        let found = Mutex<[Int: Int]>([:])
        DispatchQueue.concurrentPerform(iterations: 2) { index in
            let sharing = WeightSharing(Membership(index: index, in: meeting), readable: [0, 1])
            let places = sharing?.exchange(owners: [0, 1, 0], [nil, nil, nil], isOpen: true)
            found.withLock { $0[index] = places?.filter { $0 == nil }.count }
        }
        #expect(found.withLock(\.self) == [0: 3, 1: 3])
        meeting.breakOff()
        let sharing = try #require(WeightSharing(Membership(index: 0, in: meeting), readable: [1]))
        #expect(sharing.exchange(owners: [0], [nil], isOpen: true) == nil)
        #expect(WeightSharing(.alone, readable: []) == nil)
    }
}

@Suite struct RowPlanTests {
    @Test(arguments: [1, 8, 64, 100, 256, 384, 1536, 2048, 4096, 5120, 8192])
    func everyElementHasAThread(columns: Int) {
        for dtype in [DType.bf16, .f32] {
            for aligned in [true, false] where !aligned || columns % 8 == 0 {
                let plan = RowPlan(columns: columns, dtype: dtype, aligned: aligned)
                #expect(plan.vector * plan.count * plan.threads >= columns)
                #expect(plan.threads % 32 == 0 && plan.threads <= RowPlan.mostThreads)
                let rows = RowPlan.blockRows(dtype) + RowPlan.warpRows(dtype)
                #expect(rows.contains(plan.row))
                // No warp without work, but for the last access of each thread.
                #expect(plan.vector * plan.count * (plan.threads - 32) < columns)
            }
        }
    }

    @Test func thePublishedModelsUseWholeAccesses() {
        func row(_ columns: Int, _ dtype: DType, warps: Bool) -> String {
            RowPlan(columns: columns, dtype: dtype, aligned: true, warps: warps).row
        }
        #expect(row(1536, .bf16, warps: false) == "BlockRow<bf16, 8, 1>")
        #expect(row(5120, .bf16, warps: false) == "BlockRow<bf16, 8, 4>")
        #expect(row(1536, .bf16, warps: true) == "WarpRow<1, 6>")
        #expect(row(5120, .bf16, warps: true) == "WarpRow<4, 5>")
        #expect(row(1536, .f32, warps: true) == "BlockRow<float, 4, 2>")
    }

    /// A warp has no test for the row's end: its accesses are the whole row.
    @Test(arguments: RowPlan.warpColumns)
    func warpsHoldWholeRows(columns: Int) {
        let plan = RowPlan(columns: columns, dtype: .bf16, aligned: true)
        #expect(plan.inWarp && plan.vector * plan.count * plan.threads == columns)
        #expect(plan.shape(9).grid.x == 3 && plan.shape(9).block.x == 128)
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
