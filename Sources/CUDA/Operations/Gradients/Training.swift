// The operations that only training asks for, and those of them that go element by element or only sum.

internal import Glibc
internal import Ground
internal import Tensors

enum TrainingKernels {
    private static let types = ["float", "bf16"]
    private static let pairs = types.flatMap { a in types.map { "\(a), \($0)" } }

    static let unit = KernelUnit(
        "training.cu",
        kernels: types.flatMap { type in
            [8, 1].flatMap { ["activate<\(type), \($0)>", "scale_columns<\(type), \($0)>"] }
                + ["rotate", "patchify_gradient", "unpatchify_gradient", "adam_w"].map {
                    "\($0)<\(type)>"
                }
        }
            + ["float, float", "bf16, bf16", "bf16, float"].map { "transpose<\($0)>" }
            + ["i8", "e4m3"].flatMap { code in types.map { "dequantize<\(code), \($0)>" } }
            + pairs.flatMap { ["column_parts<\($0)>", "norm_parts<\($0)>"] } + ["join_parts"]
            + (types + ["double"]).map { "dot_parts<\($0)>" }
            + ["u16", "u32", "uint4"].map { "swap_rows<\($0)>" }
            + ["dot_join", "adam_w_list", "square_parts"])

    static let units = [unit]
}

/// Sums over rows: first over chunks of rows, then over the chunks.
struct RowSumPlan: Hashable {
    /// Rows of a chunk.
    let chunk: Int
    let chunks: Int
    let columns: Int

    /// The chunks depend on the number of rows alone; a grid has at most 65,535 of them.
    init(rows: Int, columns: Int) {
        var chunk = 256
        while ceilDivide(rows, chunk) > 32_768 { chunk *= 2 }
        self.chunk = chunk
        chunks = max(1, ceilDivide(rows, chunk))
        self.columns = columns
    }

    var shape: LaunchShape {
        LaunchShape(grid: Extents(ceilDivide(columns, 32), chunks), block: 256)
    }
    /// Bytes of the partial sums.
    var byteCount: Int { chunks * columns * 4 }
}

/// Blocks of threads that take parts of a dot product; their number depends on the count alone.
func dotParts(_ count: Int) -> Int { max(1, min(1024, ceilDivide(count, 2048))) }

/// `AdamSettings` of training.cu.
private struct AdamSettings: BitwiseCopyable {
    var rate, beta1, beta2, epsilon, decay, gradientScale: Float
    var correction1, correction2: Float

    init(_ s: Operation.AdamW.Settings) {
        rate = s.learningRate
        beta1 = s.beta1
        beta2 = s.beta2
        epsilon = s.epsilon
        decay = s.decay
        gradientScale = s.gradientScale
        // The powers in f64 of the betas in f32.
        correction1 = Float(1 - pow(Double(s.beta1), Double(s.step)))
        correction2 = Float(1 - pow(Double(s.beta2), Double(s.step)))
    }
}

/// `ParameterList` of training.cu.
private struct ParameterList: BitwiseCopyable {
    static let length = 36
    typealias Pointers = InlineArray<36, DevicePointer>
    var newMaster = Pointers(repeating: .null)
    var newMean = Pointers(repeating: .null)
    var newSquare = Pointers(repeating: .null)
    var seen = Pointers(repeating: .null)
    var newAverage = Pointers(repeating: .null)
    var master = Pointers(repeating: .null)
    var mean = Pointers(repeating: .null)
    var square = Pointers(repeating: .null)
    var gradient = Pointers(repeating: .null)
    var average = Pointers(repeating: .null)
    var count = InlineArray<36, Int64>(repeating: 0)
}

/// `SquareList` of training.cu.
private struct SquareList: BitwiseCopyable {
    static let length = 128
    var x = InlineArray<128, DevicePointer>(repeating: .null)
    var count = InlineArray<128, Int64>(repeating: 0)
}

extension CUDABackend {
    func training(_ operation: Operation.Training) -> [Tensor] {
        switch operation {
        case .inputGradient(let o): [inputGradient(o)]
        case .weightGradient(let o): [weightGradient(o)]
        case .normGradient(let o): normGradient(o)
        case .normTangent(let o): [normTangent(o)]
        case .rotate(let o): [rotate(o)]
        case .activate(let o): [activate(o)]
        case .scaleColumns(let o): [scaleColumns(o)]
        case .columnSum(let o): [columnSums(o.x, times: o.other)]
        case .attentionGradient(let o): attentionGradient(o)
        case .attentionTangent(let o): [attentionTangent(o)]
        case .sparseAttentionGradient(let o): sparseAttentionGradient(o)
        case .sparseAttentionTangent(let o): [sparseAttentionTangent(o)]
        case .patchifyGradient(let o): [patchifyGradient(o)]
        case .unpatchifyGradient(let o): [unpatchifyGradient(o)]
        case .cast(let o): [converted(o.x, to: o.dtype)]
        case .dot(let o): [dot(o)]
        case .swapRows(let o): [swapRows(o)]
        case .padRows(let o): [padRows(o)]
        case .adamW(let o): adamW(o)
        case .adamWList(let o): adamWList(o)
        case .squareSum(let o): [squareSum(o)]
        }
    }

    /// x where its elements are f32 or bf16, else x as f32.
    func activations(_ x: Tensor) -> Tensor {
        x.dtype == .bf16 || x.dtype == .f32 ? x : converted(x, to: .f32)
    }

    // MARK: Element by element

    private func activate(_ o: Operation.Activate) -> Tensor {
        requireActivations(o.x, "activate")
        let out = tensor(o.x.shape, o.x.dtype)
        let count = out.shape.count
        let vector = Elementwise.vector(o.x.pointer, o.factor?.pointer ?? .null)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int64> =
            context.kernel(
                "activate<\(Self.typeName(o.x.dtype)), \(vector)>", of: TrainingKernels.unit)
        let activation: Int32 =
            switch o.activation {
            case .none: 0
            case .geluTanh: 1
            case .silu: 2
            }
        kernel(
            .elements(count, perThread: vector), out.pointer, o.x.pointer,
            o.factor?.pointer ?? .null, activation, Int64(count))
        return out
    }

    private func scaleColumns(_ o: Operation.ScaleColumns) -> Tensor {
        requireActivations(o.x, "scaleColumns")
        let out = tensor(o.x.shape, o.x.dtype)
        let (count, columns) = (out.shape.count, out.shape.columns)
        let vector =
            columns % 8 == 0
            ? Elementwise.vector(o.x.pointer, o.factor.pointer, o.shift?.pointer ?? .null) : 1
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Float, Int64, Int32
            > = context.kernel(
                "scale_columns<\(Self.typeName(o.x.dtype)), \(vector)>",
                of: TrainingKernels.unit)
        kernel(
            .elements(count, perThread: vector), out.pointer, o.x.pointer, o.factor.pointer,
            o.shift?.pointer ?? .null, o.isOffset ? 1 : 0, Int64(count), Int32(columns))
        return out
    }

    private func rotate(_ o: Operation.Rotate) -> Tensor {
        requireActivations(o.x, "rotate")
        let (cosine, sine) = (converted(o.rope.cosine, to: .f32), converted(o.rope.sine, to: .f32))
        let out = tensor(o.x.shape, o.x.dtype)
        let pairs = out.shape.count / 2
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, Float, Int64, Int32,
                Int32
            > = context.kernel("rotate<\(Self.typeName(o.x.dtype))>", of: TrainingKernels.unit)
        kernel(
            .elements(pairs), out.pointer, o.x.pointer, cosine.pointer, sine.pointer,
            o.isBackwards ? -1 : 1, Int64(pairs), Int32(o.x.shape[1]), Int32(o.x.shape[2] / 2))
        return out
    }

    // MARK: Latents

    private func patchifyGradient(_ o: Operation.PatchifyGradient) -> Tensor {
        let tokens = activations(o.cotangent)
        let (size, p) = (o.size, o.patch)
        let channels = tokens.shape[1] / (p * p)
        let out = tensor([channels, size.t, size.h, size.w], .f32)
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32, Int32, Int32> =
            context.kernel(
                "patchify_gradient<\(Self.typeName(tokens.dtype))>", of: TrainingKernels.unit)
        kernel(
            .elements(out.shape.count), out.pointer, tokens.pointer, Int32(channels),
            Int32(size.t), Int32(size.h), Int32(size.w), Int32(p))
        return out
    }

    private func unpatchifyGradient(_ o: Operation.UnpatchifyGradient) -> Tensor {
        let latents = converted(o.cotangent, to: .f32)
        let (shape, p) = (latents.shape, o.patch)
        let tokens = shape[1] * (shape[2] / p) * (shape[3] / p)
        ensure(
            o.dtype == .bf16 || o.dtype == .f32, "unpatchifyGradient: no kernel for \(o.dtype)")
        let out = tensor([tokens, p * p * shape[0]], o.dtype)
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32, Int32, Int32> =
            context.kernel(
                "unpatchify_gradient<\(Self.typeName(o.dtype))>", of: TrainingKernels.unit)
        kernel(
            .elements(out.shape.count), out.pointer, latents.pointer, Int32(shape[0]),
            Int32(shape[1]), Int32(shape[2]), Int32(shape[3]), Int32(p))
        return out
    }

    private func swapRows(_ o: Operation.SwapRows) -> Tensor {
        let (a, b) = (o.x.shape[0], o.x.shape[1])
        let out = tensor(o.results[0].shape, o.x.dtype)
        guard a * b > 0 else { return out }
        let size = o.x.byteCount / (a * b)
        let isAligned = o.x.byteOffset % 16 == 0 && size % 16 == 0
        let (type, width) =
            isAligned
            ? ("uint4", 16)
            : size % 4 == 0 && o.x.byteOffset % 4 == 0
                ? ("u32", 4)
                : ("u16", 2)
        ensure(size % width == 0, "swapRows: no kernel for rows of \(size) bytes")
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int32, Int32> = context.kernel(
            "swap_rows<\(type)>", of: TrainingKernels.unit)
        kernel(
            LaunchShape(
                grid: Extents(ceilDivide(size / width, 256), min(a * b, 65_535)), block: 256),
            out.pointer, o.x.pointer, Int32(a), Int32(b), Int32(size / width))
        return out
    }

    private func padRows(_ o: Operation.PadRows) -> Tensor {
        let out = tensor(o.results[0].shape, o.x.dtype)
        let row = o.x.shape[0] > 0 ? o.x.byteCount / o.x.shape[0] : 0
        let (start, end) = (o.before * row, o.before * row + o.x.byteCount)
        context.stream.fill(out.pointer, with: 0, byteCount: start)
        context.stream.copy(o.x.pointer, to: out.pointer + start, byteCount: o.x.byteCount)
        context.stream.fill(out.pointer + end, with: 0, byteCount: out.byteCount - end)
        return out
    }

    // MARK: Sums

    /// The sum over the rows of x, or of x * other. x, other: [..., n] → f32 [n]
    func columnSums(_ x: Tensor, times other: Tensor? = nil) -> Tensor {
        let x = activations(x)
        let other = other.map(activations)
        let plan = RowSumPlan(rows: x.shape.rows, columns: x.shape.columns)
        let parts = storage(byteCount: plan.byteCount)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int32, Int32, Int32> =
            context.kernel(
                "column_parts<\(Self.typeName(x.dtype)), "
                    + "\(Self.typeName(other?.dtype ?? .f32))>", of: TrainingKernels.unit)
        kernel(
            plan.shape, parts.location, x.pointer, other?.pointer ?? .null, Int32(x.shape.rows),
            Int32(plan.columns), Int32(plan.chunk))
        return joined(parts, plan)
    }

    /// Adds up the parts of a sum over rows. → f32 [columns]
    func joined(_ parts: DeviceStorage, _ plan: RowSumPlan) -> Tensor {
        let out = tensor([plan.columns], .f32)
        join(Tensor([plan.chunks, plan.columns], .f32, storage: parts), into: out)
        return out
    }

    /// Adds up the rows. parts: f32 [count, size], whole: f32, `size` elements
    func join(_ parts: Tensor, into whole: Tensor) {
        let (count, size) = (parts.shape[0], parts.shape[1])
        let kernel: Kernel<DevicePointer, DevicePointer, Int32, Int64> = context.kernel(
            "join_parts", of: TrainingKernels.unit)
        kernel(.elements(size), whole.pointer, parts.pointer, Int32(count), Int64(size))
    }

    private func dot(_ o: Operation.Dot) -> Tensor {
        // One kernel for each type; of two types both become f32, which holds bf16 exactly.
        let isOne = o.a.dtype == o.b.dtype && [.f32, .bf16, .f64].contains(o.a.dtype)
        let (a, b) = isOne ? (o.a, o.b) : (converted(o.a, to: .f32), converted(o.b, to: .f32))
        let count = a.shape.count
        let blocks = dotParts(count)
        let parts = storage(byteCount: blocks * 8)
        let out = tensor([1], .f64)
        let kernel: Kernel<DevicePointer, DevicePointer, DevicePointer, Int64> = context.kernel(
            "dot_parts<\(Self.typeName(a.dtype))>", of: TrainingKernels.unit)
        kernel(
            LaunchShape(grid: Extents(blocks), block: 256), parts.location, a.pointer, b.pointer,
            Int64(count))
        let join: Kernel<DevicePointer, DevicePointer, Int32> = context.kernel(
            "dot_join", of: TrainingKernels.unit)
        join(
            LaunchShape(grid: 1, block: 256), out.pointer, parts.location, Int32(blocks))
        return out
    }

    // MARK: Parameters

    private func adamW(_ o: Operation.AdamW) -> [Tensor] {
        let gradient = activations(o.gradient)
        let new = [o.master, o.mean, o.square].map { tensor($0.shape, .f32) }
        let count = o.master.shape.count
        let kernel:
            Kernel<
                DevicePointer, DevicePointer, DevicePointer, DevicePointer, DevicePointer,
                DevicePointer, DevicePointer, AdamSettings, Int64
            > = context.kernel(
                "adam_w<\(Self.typeName(gradient.dtype))>", of: TrainingKernels.unit)
        kernel(
            .elements(count), new[0].pointer, new[1].pointer, new[2].pointer, o.master.pointer,
            o.mean.pointer, o.square.pointer, gradient.pointer, AdamSettings(o.settings),
            Int64(count))
        return new
    }
    private func adamWList(_ o: Operation.AdamWList) -> [Tensor] {
        let gradients = o.gradients.map { converted($0, to: .f32) }
        let counts = o.masters.map(\.shape.count)
        func all(_ dtype: DType) -> [Tensor] { o.masters.map { tensor($0.shape, dtype) } }
        let (masters, means, squares) = (all(.f32), all(.f32), all(.f32))
        let seen = o.dtype == .f32 ? [] : all(o.dtype)
        let averages = o.averages.isEmpty ? [] : all(.f32)
        let kernel: Kernel<ParameterList, AdamSettings, Double> = context.kernel(
            "adam_w_list", of: TrainingKernels.unit)
        for start in stride(from: 0, to: counts.count, by: ParameterList.length) {
            let range = start..<min(start + ParameterList.length, counts.count)
            var list = ParameterList()
            for (place, index) in range.enumerated() {
                list.newMaster[place] = masters[index].pointer
                list.newMean[place] = means[index].pointer
                list.newSquare[place] = squares[index].pointer
                if !seen.isEmpty { list.seen[place] = seen[index].pointer }
                if !averages.isEmpty {
                    list.newAverage[place] = averages[index].pointer
                    list.average[place] = o.averages[index].pointer
                }
                list.master[place] = o.masters[index].pointer
                list.mean[place] = o.means[index].pointer
                list.square[place] = o.squares[index].pointer
                list.gradient[place] = gradients[index].pointer
                list.count[place] = Int64(counts[index])
            }
            kernel(
                LaunchShape(
                    grid: Extents(min(512, ceilDivide(counts[range].max()!, 256)), range.count),
                    block: 256), list, AdamSettings(o.settings), o.averageWeight)
        }
        return masters + means + squares + seen + averages
    }

    private func squareSum(_ o: Operation.SquareSum) -> Tensor {
        let terms = o.terms.map { converted($0, to: .f32) }
        let blocks = 64
        let parts = storage(byteCount: terms.count * blocks * 8)
        let kernel: Kernel<DevicePointer, SquareList> = context.kernel(
            "square_parts", of: TrainingKernels.unit)
        for start in stride(from: 0, to: terms.count, by: SquareList.length) {
            let range = start..<min(start + SquareList.length, terms.count)
            var list = SquareList()
            for (place, index) in range.enumerated() {
                list.x[place] = terms[index].pointer
                list.count[place] = Int64(terms[index].shape.count)
            }
            kernel(
                LaunchShape(grid: Extents(blocks, range.count), block: 256),
                parts.location + start * blocks * 8, list)
        }
        let out = tensor([1], .f64)
        let join: Kernel<DevicePointer, DevicePointer, Int32> = context.kernel(
            "dot_join", of: TrainingKernels.unit)
        join(
            LaunchShape(grid: 1, block: 256), out.pointer, parts.location,
            Int32(terms.count * blocks))
        return out
    }
}
