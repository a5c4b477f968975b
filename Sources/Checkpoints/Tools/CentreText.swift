/// Moving the origin of the embedded text to its padding, so that int8 blocks lose less.

import Glibc
import Tensors

/// The same transformer with another origin of the embedded text: the row that padding gives, a constant of the model,
/// becomes zero, and the biases of the keys and values of cross attention make up for it.
///
/// Cross attention attends to all rows of the text. Padding shares the first block of 128 rows with the prompt, and
/// that block's scale is the prompt's: small numbers of the padding, which most of the keys are, become a few codes. At
/// the new origin they are zero, which int8 holds exactly; their keys and values then are the biases. In real
/// arithmetic nothing changes; here each changed bias is rounded to its type.
/// - Parameter base: a plain checkpoint with the original's names.
/// - Throws: `.missing` if a tensor is missing, `.shape` or `.dtype` if one does not fit, `.incompatible` if a bias would
///   not be finite.
func centredText(_ base: any Checkpoint) throws(CheckpointError) -> DerivedCheckpoint {
    let (first, last) = ("text_embedding.0", "text_embedding.2")
    // What is moved is rounded to its own type again, which for codes would mean nothing.
    for info in base.infos
    where info.name == last + ".bias" || readerOfText(info.name) != nil {
        guard info.dtype.isFloatingPoint, info.dtype.byteCount > 1 else {
            throw .dtype(
                info.name, in: base.path, expected: "f64, f32, f16 or bf16",
                found: "\(info.dtype)")
        }
    }
    // Zero rows of text: gelu(bias), then the second layer.
    let inner = try base.require(first + ".bias").floats().map(geluTanh)
    let padding = try affine(last, inner, in: base)
    let info = try base.require(last + ".bias")
    let bias = info.floats()
    let moved = Tensor(zip(bias, padding).map(-), info.shape).converted(to: info.dtype)
    // What was really added, after rounding.
    let shift = zip(moved.floats(), bias).map(-)

    var entries: [DerivedCheckpoint.Entry] = []
    for info in base.infos {
        guard let layer = readerOfText(info.name) else {
            entries.append(
                info.name == last + ".bias"
                    ? .init(info: info) { () throws(CheckpointError) in
                        moved
                    } forget: {
                    } : .from(base, info))
            continue
        }
        entries.append(
            .init(info: info) { () throws(CheckpointError) in
                // bias - W shift
                let sums = try affine(layer, shift.map { -$0 }, in: base)
                base.forget(layer + ".weight")
                let result = Tensor(sums, Shape(info.shape)).converted(to: info.dtype)
                guard result.allFinite else {
                    throw .incompatible(
                        path: base.path,
                        reason: "'\(info.name)' would hold numbers that are not finite")
                }
                return result
            } forget: {
                base.forget(info.name)
            })
    }
    return try DerivedCheckpoint(path: base.path, metadata: base.metadata, entries)
}

/// The layer whose bias this is, if it reads the embedded text: keys and values of cross attention.
private func readerOfText(_ name: String) -> String? {
    guard name.hasPrefix("blocks."),
        name.hasSuffix(".cross_attn.k.bias") || name.hasSuffix(".cross_attn.v.bias")
    else { return nil }
    return String(name.dropLast(".bias".count))
}

/// weight x + bias of a layer, summed in f64 and rounded to f32. x: [in] → [out]
private func affine(
    _ layer: String, _ x: [Float], in base: any Checkpoint
) throws(CheckpointError) -> [Float] {
    let weight = try base.require(layer + ".weight")
    let bias = try base.require(layer + ".bias").floats()
    guard weight.shape.dimensions == [bias.count, x.count] else {
        throw .shape(
            layer + ".weight", in: base.path, expected: [bias.count, x.count],
            found: weight.shape.dimensions)
    }
    let flat = weight.reshaped([weight.shape.count])
    return computed([bias.count], .f32) { rows in
        rows.map { row in
            let line = flat.slice(row * x.count..<(row + 1) * x.count).floats()
            return Float(
                zip(line, x).reduce(Double(bias[row])) { $0 + Double($1.0) * Double($1.1) })
        }
    }.floats()
}

/// The activation of the text embedding: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
private func geluTanh(_ x: Float) -> Float {
    let x = Double(x)
    return Float(0.5 * x * (1 + tanh((2 / Double.pi).squareRoot() * (x + 0.044715 * x * x * x))))
}
