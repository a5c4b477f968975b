// Which kernel computes which layer: pure functions, tested without a GPU.

import Tensors
import Testing

@testable import CUDA

struct MatmulPlanTests {
    private func plan(
        _ element: LinearProblem.Element, _ rows: Int, _ outputs: Int, _ inputs: Int,
        _ activation: Activation = .none, to output: LinearProblem.Output = .bf16,
        on architecture: Architecture = .hopper
    ) -> LinearPlan {
        .choose(
            LinearProblem(
                element: element, output: output, activation: activation, rows: rows,
                outputs: outputs, inputs: inputs), architecture, multiprocessors: 132)
    }

    @Test func `large layers take Hopper's large tiles`() {
        #expect(plan(.i8, 32760, 1536, 1536) == .hopper(height: 2, width: 128, cluster: 2))
        #expect(plan(.bf16, 75600, 5120, 13824) == .hopper(height: 1, width: 256, cluster: 2))
        #expect(plan(.e4m3, 75600, 13824, 5120) == .hopper(height: 2, width: 128, cluster: 2))
    }

    @Test func `short layers take narrow tiles, so that all multiprocessors work`() {
        // 4 x 32 tiles of 128x128 on 132 multiprocessors.
        #expect(plan(.bf16, 512, 4096, 4096) == .hopper(height: 1, width: 128, cluster: 1))
        #expect(plan(.bf16, 64, 4096, 4096) == .hopper(height: 1, width: 64, cluster: 1))
    }

    @Test func `residuals come through the ring where that hides them`() {
        func stages(_ element: LinearProblem.Element, _ inputs: Int, adds: Bool = true) -> Bool {
            LinearProblem(
                element: element, output: .bf16, adds: adds, rows: 32760, outputs: 1536,
                inputs: inputs
            ).stagesResidual
        }
        #expect(stages(.i8, 1536) && stages(.i8, 5120) && !stages(.i8, 8960))
        #expect(stages(.bf16, 1536) && !stages(.bf16, 5120))
        #expect(!stages(.i8, 1536, adds: false))
    }

    @Test func `what the copy engine cannot address goes to mma`() {
        #expect(plan(.bf16, 512, 4097 * 2, 4096) == .mma(rows: 256))
        #expect(plan(.bf16, 512, 4096, 4100) == .mma(rows: 128))
        #expect(plan(.i8, 512, 1536, 1536, to: .f32) == .mma(rows: 128))
        #expect(plan(.bf16, 512, 1536, 1536, .silu) == .mma(rows: 128))
        #expect(plan(.bf16, 32760, 1536, 1536, on: .ada) == .mma(rows: 256))
        #expect(plan(.i8, 32760, 1536, 1536, on: .blackwell) == .mma(rows: 256))
    }

    private func plans(
        _ x: Shape, _ kernel: Shape, upsample: Bool = false, dtype: DType = .bf16,
        on architecture: Architecture = .hopper
    ) -> [ConvolutionPlan] {
        let weight = ConvolutionWeight(
            Tensor(kernel, dtype, storage: Storage(byteCount: kernel.count * dtype.byteCount)),
            bias: nil)
        let arguments = ConvolutionArguments(
            ConvolutionGeometry(
                x, history: nil, leadingZeros: 2, weight, timeStride: 1, spatialStride: 1,
                padding: .same, upsample: upsample))
        return ConvolutionPlan.all(arguments, dtype, architecture)
    }

    @Test func `tiles of a convolution cover the frame with the fewest rectangles`() {
        // 64 x 4 pixels cover 832 x 480 exactly.
        #expect(
            plans([4, 480, 832, 96], [96, 3, 3, 3, 96])
                == [
                    .taps(outputs: 96, slice: 96), .hopper(widthLog2: 6, outputs: 96, slice: 96),
                    .mma(outputs: 96), .simt,
                ])
        #expect(
            plans([1, 60, 104, 384], [384, 3, 3, 3, 384])[1]
                == .hopper(widthLog2: 3, outputs: 192, slice: 64))
        #expect(
            plans([4, 240, 416, 192], [96, 1, 3, 3, 192], upsample: true)[1]
                == .hopper(widthLog2: 5, outputs: 96, slice: 64))
    }

    @Test func `a kernel of one pixel has no use for a shared rectangle`() {
        #expect(
            plans([1, 60, 104, 384], [384, 3, 1, 1, 384]).prefix(2)
                == [
                    .hopper(widthLog2: 3, outputs: 192, slice: 64),
                    .taps(outputs: 192, slice: 64),
                ])
    }

    @Test func `convolutions fall back from kernel to kernel`() {
        #expect(plans([2, 9, 13, 3], [96, 3, 3, 3, 3]) == [.simt])
        #expect(plans([2, 9, 13, 96], [20, 3, 3, 3, 96]) == [.mma(outputs: 48), .simt])
        #expect(plans([2, 9, 13, 96], [96, 3, 3, 3, 96], on: .ada) == [.mma(outputs: 96), .simt])
        #expect(plans([2, 9, 13, 96], [96, 3, 3, 3, 96], dtype: .f32) == [.simt])
    }

    @Test func `tiles of other cards waste few outputs`() {
        let tiles = [3, 16, 33, 24, 48, 96, 144, 192, 240, 384].map(ConvolutionPlan.mmaOutputs)
        #expect(tiles == [16, 16, 16, 48, 48, 96, 96, 96, 96, 96])
    }

    @Test func `the geometry of a convolution follows its padding, strides and doubling`() {
        func output(
            _ x: Shape, _ kernel: Shape, zeros: Int, timeStride: Int = 1, stride: Int = 1,
            _ padding: SpatialPadding = .same, upsample: Bool = false
        ) -> Shape {
            let weight = ConvolutionWeight(
                Tensor(kernel, .bf16, storage: Storage(byteCount: kernel.count * 2)), bias: nil)
            return ConvolutionGeometry(
                x, history: nil, leadingZeros: zeros, weight, timeStride: timeStride,
                spatialStride: stride, padding: padding, upsample: upsample
            ).output
        }
        #expect(output([4, 10, 18, 8], [16, 3, 3, 3, 8], zeros: 2) == [4, 10, 18, 16])
        #expect(
            output([4, 10, 18, 8], [16, 1, 3, 3, 8], zeros: 0, stride: 2, .bottomRight)
                == [4, 5, 9, 16])
        #expect(
            output([5, 10, 18, 8], [8, 3, 1, 1, 8], zeros: 0, timeStride: 2) == [2, 10, 18, 8])
        #expect(
            output([1, 10, 18, 8], [4, 1, 3, 3, 8], zeros: 0, upsample: true) == [1, 20, 36, 4])
    }
}
