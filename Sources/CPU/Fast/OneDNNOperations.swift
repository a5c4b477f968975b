/// Linear layers and convolutions with oneDNN, for processors without AVX-512 BF16.

internal import CDrivers
import Tensors

/// Each call computes 64 rows on one thread, so that results do not depend on the number of threads.
final class OneDNNOperations: FastOperations {
    let name: String
    let definitions: Definitions

    init(_ library: OneDNN, _ definitions: Definitions) {
        name = "oneDNN \(library.version)"
        self.definitions = definitions
    }

    /// One weight in the library's layout: one product, or one for each block of 128 inputs.
    private final class Products {
        let list: [OneDNNProduct]
        init(_ list: [OneDNNProduct]) { self.list = list }
    }

    private static let rows = OneDNNProduct.rows

    func run(_ operation: Operation) -> [Tensor]? {
        let result: Tensor? =
            switch operation {
            case .linear(let o): linear(o)
            case .convolution(let o): convolution(o)
            default: nil
            }
        return result.map { [$0] }
    }

    // MARK: Linear layers

    private func linear(_ o: Operation.Linear) -> Tensor? {
        let result: Tensor? =
            switch o.weight {
            case .dense(let matrix): dense(o.x, matrix, o.bias, o.activation, o.resultType)
            case .int8Blocks(let matrix, let scale):
                int8(
                    o.x.format == .plain ? definitions.quantize(o.x, to: .int8Blocks) : o.x,
                    matrix, scale, o.bias, o.activation, o.resultType)
            case .fp8Rows: nil
            }
        return result.map { definitions.quantize($0, to: o.format) }
    }

    private func dense(
        _ x: Tensor, _ matrix: Tensor, _ bias: Tensor?, _ activation: Activation, _ dtype: DType
    ) -> Tensor? {
        guard let product = self.product(matrix, x.dtype == .bf16 ? .bf16 : .f32) else {
            return nil
        }
        let x = definitions.converted(x, to: product.dtype)
        let result = definitions.memory.tensor(x.shape.replacingLast(product.columns), dtype)
        let output = Rows(result)
        let bias = bias.map { definitions.vector($0) }
        eachChunk(x.shape.rows, product) { rows, memory in
            product.run(
                memory.filled(x.hostAddress, rows, product.inner * x.dtype.byteCount),
                into: memory.sums, scratch: memory.library)
            for (index, row) in rows.enumerated() {
                let line = memory.sums + index * product.columns
                if let bias { Vector.add(line, bias, product.columns) }
                if activation != .none {
                    round(line, product.columns, to: dtype)
                    Vector.apply(activation, line, product.columns)
                }
                output.store(row, product.columns, line)
            }
        }
        return withExtendedLifetime(x) { result }
    }

    /// x: int8 codes. The products of each block of 128 inputs are scaled and added in order. They are computed in f32,
    /// where they are exact (at most 128 * 128 * 128 = 2^21): the library's own int8 products saturate in 16 bits on
    /// processors without VNNI.
    private func int8(
        _ x: Tensor, _ matrix: Tensor, _ scale: Tensor, _ bias: Tensor?, _ activation: Activation,
        _ dtype: DType
    ) -> Tensor? {
        let (columns, inner) = (matrix.shape[0], matrix.shape[1])
        guard inner % 128 == 0, let scales = x.scales?.hostPointer else { return nil }
        let blocks = inner / 128
        let products = matrix.kept(as: "oneDNN blocks of codes") {
            let block = definitions.memory.tensor([columns, 128], .f32)
            let codes = matrix.hostAddress.assumingMemoryBound(to: Int8.self)
            let numbers = block.hostAddress.assumingMemoryBound(to: Float.self)
            return Products(
                (0..<blocks).compactMap { index in
                    for column in 0..<columns {
                        let first = column * inner + index * 128
                        for i in 0..<128 { numbers[column * 128 + i] = Float(codes[first + i]) }
                    }
                    return OneDNNProduct(block, definitions.memory)
                })
        }
        guard products.list.count == blocks else { return nil }
        let result = definitions.memory.tensor(x.shape.replacingLast(columns), dtype)
        let output = Rows(result)
        let bias = bias.map { definitions.vector($0, roundedTo: dtype) }
        let xScales = scales.assumingMemoryBound(to: Float.self)
        let wScales = scale.hostAddress.assumingMemoryBound(to: Float.self)
        eachChunk(x.shape.rows, products.list[0]) { rows, memory in
            scratch(Self.rows * columns) { totals in
                totals.update(repeating: 0, count: rows.count * columns)
                let codes = x.hostAddress.assumingMemoryBound(to: Int8.self)
                let input = memory.input.assumingMemoryBound(to: Float.self)
                for block in 0..<blocks {
                    for (index, row) in rows.enumerated() {
                        let first = row * inner + block * 128
                        for i in 0..<128 { input[index * 128 + i] = Float(codes[first + i]) }
                    }
                    products.list[block].run(
                        memory.input, into: memory.sums, scratch: memory.library)
                    let xScale = xScales[rows.lowerBound / 128 * blocks + block]
                    for index in 0..<rows.count {
                        for column in 0..<columns {
                            let scale = xScale * wScales[column / 128 * blocks + block]
                            let at = index * columns + column
                            totals[at].addProduct(memory.sums[at], scale)
                        }
                    }
                }
                for (index, row) in rows.enumerated() {
                    let line = totals + index * columns
                    round(line, columns, to: dtype)
                    if let bias { Vector.add(line, bias, columns) }
                    if activation != .none {
                        round(line, columns, to: dtype)
                        Vector.apply(activation, line, columns)
                    }
                    output.store(row, columns, line)
                }
            }
        }
        return withExtendedLifetime((x, scale)) { result }
    }

    // MARK: Convolutions

    private func convolution(_ o: Operation.Convolution) -> Tensor? {
        let (x, weight, geometry) = (o.x, o.weight, o.geometry)
        guard let product = self.product(weight.tensor, .f32) else { return nil }
        let shape = geometry.output
        let (outputs, depth) = (weight.outputs, product.inner)
        let result = definitions.memory.tensor(shape, x.dtype)
        let out = Rows(result)
        let added = o.residual.map { Rows($0) }
        let bias = weight.bias.map { definitions.vector($0) }
        let frames = (Rows(x), o.history.map { Rows($0) })
        eachChunk(out.count, product) { pixels, memory in
            let patches = memory.input.assumingMemoryBound(to: Float.self)
            for (index, pixel) in pixels.enumerated() {
                definitions.gather(
                    frames.0, frames.1, geometry, frame: pixel / (shape[1] * shape[2]),
                    line: pixel / shape[2] % shape[1], column: pixel % shape[2],
                    into: patches + index * depth)
            }
            product.run(memory.input, into: memory.sums, scratch: memory.library)
            scratch(outputs) { line in
                for (index, pixel) in pixels.enumerated() {
                    let y = memory.sums + index * outputs
                    if let bias { Vector.add(y, bias, outputs) }
                    if let added {
                        round(y, outputs, to: x.dtype)
                        added.load(pixel, outputs, into: line)
                        Vector.add(y, line, outputs)
                    }
                    out.store(pixel, outputs, y)
                }
            }
        }
        return result
    }

    // MARK: Products

    /// The library's product with a weight: in bf16 if that is requested, the weight is stored so and the library
    /// supports it, otherwise in f32. weight: [columns, inner...]
    private func product(_ weight: Tensor, _ dtype: DType) -> OneDNNProduct? {
        let columns = weight.shape[0]
        guard weight.shape.count > 0 else { return nil }
        func make(_ dtype: DType) -> OneDNNProduct? {
            let products = weight.kept(as: "oneDNN \(dtype)") {
                let elements = definitions.converted(weight, to: dtype)
                let matrix = elements.reshaped([columns, weight.shape.count / columns])
                return Products([OneDNNProduct(matrix, definitions.memory)].compactMap { $0 })
            }
            return products.list.first
        }
        if dtype == .bf16 && weight.dtype == .bf16, let product = make(.bf16) { return product }
        return make(.f32)
    }

    /// Working memory of one chunk.
    private struct ChunkMemory {
        /// Space for 64 rows of x. Zeroed if the chunk has fewer rows.
        let input: UnsafeMutableRawPointer
        let sums: UnsafeMutablePointer<Float>
        let library: UnsafeMutableRawPointer

        /// The address of 64 rows beginning with `rows` of x: in x itself, or in `input` if there are fewer.
        func filled(_ x: UnsafeMutableRawPointer, _ rows: Range<Int>, _ byteCount: Int)
            -> UnsafeRawPointer
        {
            let start = x + rows.lowerBound * byteCount
            if rows.count == OneDNNProduct.rows { return UnsafeRawPointer(start) }
            input.copyMemory(from: start, byteCount: rows.count * byteCount)
            return UnsafeRawPointer(input)
        }
    }

    private func eachChunk(
        _ count: Int, _ product: OneDNNProduct, _ body: (Range<Int>, ChunkMemory) -> Void
    ) {
        let input = Self.rows * product.inner
        let sums = Self.rows * product.columns
        definitions.threads.parallel(count, grain: Self.rows) { range in
            scratch(input + sums + 32 + product.scratchBytes / 4 + 16) { memory in
                if range.count < Self.rows { memory.update(repeating: 0, count: input) }
                let library = UnsafeMutableRawPointer(memory + (input + sums + 31) / 16 * 16)
                body(range, ChunkMemory(input: memory, sums: memory + input, library: library))
            }
        }
    }
}
