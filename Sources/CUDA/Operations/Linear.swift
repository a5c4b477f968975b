// Linear layers on the tensor cores, and the choice of their kernel.

import Ground
import Tensors

/// A linear layer without its tensors: everything needed to choose a kernel.
struct LinearProblem: Hashable {
    /// The names are those of `Element` and `Output` in gemm_epilogue.cuh.
    enum Element: String { case i8, e4m3, bf16 }
    enum Output: String { case i8, f32, bf16 }

    var element: Element
    var output: Output
    var activation = Activation.none
    /// Whether a residual, perhaps with a gate, is added.
    var adds = false
    var rows, outputs, inputs: Int

    /// Bytes of one row of x, and of one row of the weight.
    var rowBytes: Int { inputs * (element == .bf16 ? 2 : 1) }
    /// Whether Hopper's kernel loads the residual through the ring of the operands. Measured: 12 % faster at an inner
    /// size of 1536 in int8, 6 % in bf16; 1 % slower from 8960 on.
    var stagesResidual: Bool { adds && rowBytes <= 5120 }
    /// Bytes of one row of the result.
    var outputRowBytes: Int { outputs * (output == .bf16 ? 2 : output == .f32 ? 4 : 1) }
}

/// A kernel for a problem, and the shape of its tiles.
enum LinearPlan: Hashable {
    /// linear_sm90.cu: tiles of 128 * `height` rows and `width` columns; `cluster` blocks share their operands.
    case hopper(height: Int, width: Int, cluster: Int)
    /// linear_mma.cu: tiles of `rows` x 128.
    case mma(rows: Int)

    /// The tiles that linear_sm90.cu is compiled for.
    static func tiles(of element: LinearProblem.Element) -> [(
        height: Int, width: Int, cluster: Int
    )] {
        element == .bf16 ? [(1, 256, 2), (1, 128, 1), (1, 64, 1)] : [(2, 128, 2)]
    }

    static func choose(
        _ problem: LinearProblem, _ architecture: Architecture, multiprocessors: Int,
        _ tuning: Tuning = Tuning()
    ) -> LinearPlan {
        // No model has int8 layers with f32 results, so linear_sm90.cu is not compiled for them. The copy engine needs
        // rows in multiples of 16 bytes.
        let mma = LinearPlan.mma(rows: mmaRows(problem, tuning, multiprocessors: multiprocessors))
        if problem.element == .i8 && problem.output == .f32 { return mma }
        guard architecture == .hopper, problem.activation != .silu, problem.rowBytes % 16 == 0,
            problem.outputRowBytes % 16 == 0, problem.outputs % 8 == 0
        else { return mma }
        // An incomplete last wave of tiles costs as much as a full one; narrow tiles read more per product.
        func cost(_ height: Int, _ width: Int, _ cluster: Int) -> Double {
            let (rows, columns) =
                cluster == 1 ? (128 * height, width) : height == 1 ? (256, width) : (256, 256)
            let tiles = ceilDivide(problem.rows, rows) * ceilDivide(problem.outputs, columns)
            let waves = ceilDivide(tiles, multiprocessors / cluster)
            return Double(waves * height * width) * (width == 256 ? 1 : width == 128 ? 1.15 : 1.5)
        }
        let best = tiles(of: problem.element).min {
            cost($0.height, $0.width, $0.cluster) < cost($1.height, $1.width, $1.cluster)
        }!
        return .hopper(height: best.height, width: best.width, cluster: best.cluster)
    }

    /// Rows per tile of linear_mma.cu: tiles of 256 rows read a quarter less per product, those of 128 fill a card
    /// sooner.
    private static func mmaRows(
        _ problem: LinearProblem, _ tuning: Tuning, multiprocessors: Int
    ) -> Int {
        func cost(_ rows: Int) -> Int {
            let tiles = ceilDivide(problem.rows, rows) * ceilDivide(problem.outputs, 128)
            return ceilDivide(tiles, multiprocessors) * rows
        }
        let advantage = tuning.advantageOfTallTiles(problem.element)
        // Equal costs at the edge of rounding count as equal.
        return Double(cost(256)) <= Double(cost(128)) * advantage * (1 + 1e-9) ? 256 : 128
    }
}

/// `LinearArguments` of gemm_epilogue.cuh.
struct LinearArguments: BitwiseCopyable {
    var x, w, out: DevicePointer
    var xScales = DevicePointer.null
    var wScales = DevicePointer.null
    var bias = DevicePointer.null
    var gate = DevicePointer.null
    var residual = DevicePointer.null
    var outScales = DevicePointer.null
    var rows, outputs, inputs: Int32
}

enum Linear {
    private struct Group: Hashable {
        var element: LinearProblem.Element
        var output: LinearProblem.Output
    }
    private static let groups: [Group] = [
        Group(element: .i8, output: .bf16), Group(element: .i8, output: .f32),
        Group(element: .i8, output: .i8), Group(element: .e4m3, output: .bf16),
        Group(element: .e4m3, output: .f32), Group(element: .bf16, output: .bf16),
        Group(element: .bf16, output: .f32),
    ]
    private static let hopper = units(
        for: groups.filter { $0.element != .i8 || $0.output != .f32 }
    ) { group in
        KernelUnit(
            "linear_sm90.cu", for: .hopper,
            kernels: epilogues(group, [.none, .geluTanh]).flatMap { types in
                (types.hasSuffix("true") ? [true, false] : [false]).flatMap { stages in
                    LinearPlan.tiles(of: group.element).map {
                        "linear_sm90<\(types), \(stages), \($0.height), \($0.width), \($0.cluster)>"
                    }
                }
            })
    }
    private static let mma = units(for: groups) { group in
        KernelUnit(
            "linear_mma.cu", for: group.element == .e4m3 ? .fp8 : .any,
            kernels: epilogues(group, [.none, .geluTanh, .silu]).flatMap { types in
                mmaRows.map { "linear_mma<\(types), \($0)>" }
            })
    }
    /// The unit by which measurements of linear_mma.cu are known to be of these kernels.
    static var tunedUnit: KernelUnit { mma[Group(element: .i8, output: .bf16)]! }
    static var units: [KernelUnit] {
        groups.flatMap { [hopper[$0], mma[$0]].compactMap(\.self) }
    }

    private static func units(
        for groups: [Group], _ make: (Group) -> KernelUnit
    ) -> [Group: KernelUnit] {
        Dictionary(uniqueKeysWithValues: groups.map { ($0, make($0)) })
    }

    private static func epilogues(_ group: Group, _ activations: [Activation]) -> [String] {
        activations.map { arguments(group, $0, adds: false) }
            + (group.output == .i8 || group.element == .e4m3
                ? [] : [arguments(group, .none, adds: true)])
    }

    private static func arguments(_ group: Group, _ activation: Activation, adds: Bool) -> String {
        let name = activation == .none ? "none" : activation == .silu ? "silu" : "gelu"
        return "Element::\(group.element), Output::\(group.output), Activation::\(name), \(adds)"
    }

    /// Bytes of dynamic shared memory; see gemm_sm90.cuh and linear_mma.cu (three stages of 128x128, or two of
    /// 256x128).
    static let hopperSharedBytes = 1024 + 192 * 1024 + 2 * 16 * 1024 + 512
    static let mmaSharedBytes = 96 * 1024
    /// The numbers of rows per tile that linear_mma.cu is compiled for.
    static let mmaRows = [256, 128]

    /// Launches the product. All pointers are to device memory, with the shapes given in gemm_epilogue.cuh.
    /// - Parameter plan: nil for the one that is chosen.
    static func launch(
        _ problem: LinearProblem, _ arguments: LinearArguments, _ context: Context,
        plan: LinearPlan? = nil
    ) {
        let multiprocessors = context.properties.multiprocessors
        let plan =
            plan
            ?? LinearPlan.choose(
                problem, context.kernelArchitecture, multiprocessors: multiprocessors,
                context.tuning)
        let group = Group(element: problem.element, output: problem.output)
        let types = Self.arguments(group, problem.activation, adds: problem.adds)
        switch plan {
        case .mma(let rows):
            let kernel: Kernel<LinearArguments> = context.kernel(
                "linear_mma<\(types), \(rows)>", of: mma[group]!)
            let tiles = ceilDivide(problem.rows, rows) * ceilDivide(problem.outputs, 128)
            kernel(
                LaunchShape(grid: Extents(tiles), block: 256, sharedBytes: mmaSharedBytes),
                arguments)
        case .hopper(let height, let width, let cluster):
            let kernel: Kernel<TensorMap, TensorMap, TensorMap, TensorMap, LinearArguments> =
                context.kernel(
                    "linear_sm90<\(types), \(problem.stagesResidual), \(height), \(width), \(cluster)>",
                    of: hopper[group]!)
            let tall = 128 * height > width
            // Each block of a pair loads half of the operand that both share.
            let xBox = 128 * height / (cluster == 2 && tall ? 2 : 1)
            let wBox = width / (cluster == 2 && !tall ? 2 : 1)
            let element: TensorMap.Element = problem.element == .bf16 ? .bf16 : .uint8
            let slice = 128 / element.byteCount
            let x = context.tensorMap(
                element, at: arguments.x, extents: [problem.inputs, problem.rows],
                box: [slice, xBox])
            let w = context.tensorMap(
                element, at: arguments.w, extents: [problem.inputs, problem.outputs],
                box: [slice, wBox])
            let result: TensorMap.Element =
                problem.output == .bf16 ? .bf16 : problem.output == .f32 ? .f32 : .uint8
            func results(_ place: DevicePointer) -> TensorMap {
                context.tensorMap(
                    result, at: place, extents: [problem.outputs, problem.rows],
                    box: [128 / result.byteCount, 64])
            }
            let out = results(arguments.out)
            let residual = problem.adds ? results(arguments.residual) : out
            let tiles =
                ceilDivide(problem.rows, 128 * height * (cluster == 2 && !tall ? 2 : 1))
                * ceilDivide(problem.outputs, width * (cluster == 2 && tall ? 2 : 1))
            let blocks = min(tiles, multiprocessors / cluster) * cluster
            kernel(
                LaunchShape(
                    grid: Extents(blocks), block: 384, sharedBytes: hopperSharedBytes,
                    cluster: Extents(cluster)),
                x, w, out, residual, arguments)
        }
    }
}

// MARK: - The backend's operations

extension CUDABackend {
    func linear(_ o: Operation.Linear) -> Tensor {
        let (weight, bias, activation, format) = (o.weight, o.bias, o.activation, o.format)
        let result = o.resultType
        if case .dense(let matrix) = weight, !usesTensorCores(o.x, matrix, result) {
            let y = fullPrecisionLinear(
                o.x, matrix, bias: bias, activation: activation, dtype: result)
            return quantize(y, to: format)
        }
        let x = o.x.format == .plain ? quantize(o.x, to: weight.inputFormat) : o.x
        var problem = LinearProblem(
            element: weight.element, output: result == .f32 ? .f32 : .bf16, activation: activation,
            rows: x.shape.rows, outputs: weight.outputs, inputs: weight.inputs)
        let shape = x.shape.replacingLast(weight.outputs)
        let addend = bias.map { converted($0, to: .f32) }
        // A tile of an int8 product is exactly one block with one scale of an int8 result.
        let fused =
            format == .int8Blocks && problem.element == .i8 && problem.output == .bf16
            && problem.outputs % 128 == 0 && activation != .silu
        var arguments: LinearArguments
        let out: Tensor
        if fused {
            problem.output = .i8
            let scales = storage(
                byteCount: ceilDivide(problem.rows, 128) * (problem.outputs / 128) * 4)
            out = tensor(shape, .i8, scales: scales)
            arguments = linearArguments(problem, x, weight, addend, out)
            arguments.outScales = scales.location
        } else {
            out = tensor(shape, result)
            arguments = linearArguments(problem, x, weight, addend, out)
        }
        withExtendedLifetime(addend) { Linear.launch(problem, arguments, context) }
        return fused ? out : quantize(out, to: format)
    }

    func linearAdd(_ o: Operation.LinearAdd) -> Tensor {
        let (weight, residual) = (o.weight, o.residual)
        ensure(
            o.gate?.dtype ?? .f32 == .f32, "linearAdd: an f32 gate expected, \(o.gate!.dtype)")
        // The epilogue for e4m3 has no registers left for a residual.
        let fused =
            switch weight {
            case .dense(let matrix): usesTensorCores(o.x, matrix, residual.dtype)
            case .int8Blocks: true
            case .fp8Rows: false
            }
        if !fused { return o.composed(on: self) }
        let x = o.x.format == .plain ? quantize(o.x, to: weight.inputFormat) : o.x
        let problem = LinearProblem(
            element: weight.element, output: residual.dtype == .f32 ? .f32 : .bf16, adds: true,
            rows: x.shape.rows, outputs: weight.outputs, inputs: weight.inputs)
        let out = tensor(residual.shape, residual.dtype)
        let addend = o.bias.map { converted($0, to: .f32) }
        var arguments = linearArguments(problem, x, weight, addend, out)
        arguments.residual = residual.pointer
        arguments.gate = o.gate?.pointer ?? .null
        withExtendedLifetime(addend) { Linear.launch(problem, arguments, context) }
        return out
    }

    /// Whether the bf16 kernels can compute a dense layer: both operands are bf16, with rows in multiples of 16 bytes
    /// and an even number of outputs.
    private func usesTensorCores(_ x: Tensor, _ matrix: Tensor, _ result: DType) -> Bool {
        x.dtype == .bf16 && matrix.dtype == .bf16 && x.hasAlignedRows && matrix.hasAlignedRows
            && matrix.shape[0] % 2 == 0 && (result == .bf16 || result == .f32)
    }

    /// bias: f32; the caller must keep it until the launch is queued.
    private func linearArguments(
        _ problem: LinearProblem, _ x: Tensor, _ weight: LinearWeight, _ bias: Tensor?,
        _ out: Tensor
    ) -> LinearArguments {
        ensure(
            problem.rowBytes % 16 == 0 && problem.outputs % 2 == 0,
            "linear: weight \(weight.shape) in 8 bits needs inputs in multiples of 16 and an even "
                + "number of outputs")
        var arguments = LinearArguments(
            x: x.pointer, w: weight.matrix.pointer, out: out.pointer, rows: Int32(problem.rows),
            outputs: Int32(problem.outputs), inputs: Int32(problem.inputs))
        switch weight {
        case .dense: break
        case .int8Blocks(_, let scale), .fp8Rows(_, let scale):
            arguments.xScales = x.scalesPointer
            arguments.wScales = scale.pointer
        }
        arguments.bias = bias?.pointer ?? .null
        return arguments
    }
}

extension LinearWeight {
    fileprivate var element: LinearProblem.Element {
        switch self {
        case .dense: .bf16
        case .int8Blocks: .i8
        case .fp8Rows: .e4m3
        }
    }
}
