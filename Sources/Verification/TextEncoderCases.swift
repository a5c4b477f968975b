/// Cases of the text encoder.

import Checkpoints
import Models
import Tensors
import Tokenizers

/// Keeps the last result before each new weight group: the output of each block.
private final class BlockRecorder: ForwardingBackend {
    private(set) var outputs: [Tensor] = []
    private var last: Tensor?

    override func run(_ operation: Operation) -> [Tensor] {
        let results = super.run(operation)
        if case .linearAdd = operation { last = results[0] }
        return results
    }

    override func require(_ group: WeightGroup) {
        super.require(group)
        if let last { outputs.append(last) }
        last = nil
    }
}

/// in.ids, in.mask: [B, 512]; config.text is tokenized too, if the case has it.
func checkTextEncoder(_ fixture: Fixture, _ device: any Backend, _ checks: Checks) throws {
    let ids = try fixture.tensor("in.ids")
    let mask = try fixture.tensor("in.mask").doubles()
    let length = ids.shape[1]
    if let text = fixture.config["text"]?.string, let folder = fixture.config["tokenizer"]?.string {
        let tokenizer = try Tokenizer(path: fixture.folder.absolute(folder) + "/tokenizer.json")
        let tokens = tokenizer.encode(prompt: text, length: length)
        checks.compare("ids", tokens.ids.map { Double($0) }, ids.doubles(), .exact)
    }
    for (suffix, dtype) in [("fp32", DType.f32), ("bf16", .bf16)]
    where fixture.has("out.embed_\(suffix)") {
        let encoder = try UMT5(
            Weights(try fixture.weights.open(), on: device, activations: dtype))
        var embedded: [Double] = []
        var firstBlock: [Double] = []
        for sample in 0..<ids.shape[0] {
            let count = mask[sample * length..<(sample + 1) * length].count { $0 != 0 }
            let tokens = ids[sample].doubles().prefix(count).map { Int32($0) }
            let recorder = BlockRecorder(device)
            let text = encoder(tokens, textLength: length, on: recorder)
            embedded += try keptRows(text.rows, "out.embed_\(suffix)")
            if fixture.has("mid.block0_out_\(suffix)"), let first = recorder.outputs.first {
                // The reference also computes rows past the prompt, and clears them later.
                let output = device.read(first).doubles()
                firstBlock += output.prefix(count * encoder.config.dim)
            }
        }
        try checks.compare("out.embed_\(suffix)", embedded, in: fixture)
        if !firstBlock.isEmpty {
            let name = "mid.block0_out_\(suffix)"
            let expected = try promptRows(name)
            checks.compare(
                name, firstBlock, expected, fixture.tolerance(for: name) ?? Tolerance())
        }
    }
    for name in fixture.expectedNames where name.contains("pos_bias") {
        checks.skip(name, "the bias is never stored; position buckets have their own case")
    }

    /// The rows of `embedding` that the case keeps: the first ones, or every n-th.
    func keptRows(_ embedding: Tensor, _ name: String) throws -> [Double] {
        let rows = try fixture.tensor(name).shape[1]
        let dim = embedding.shape[1]
        let values = device.read(embedding).doubles()
        let step = stride(ofRowsIn: fixture.config["rows_kept"]?.string ?? "", name)
        return (0..<rows).flatMap { values[$0 * step * dim..<($0 * step + 1) * dim] }
    }

    /// The kept rows of an intermediate result that belong to the prompts.
    func promptRows(_ name: String) throws -> [Double] {
        let tensor = try fixture.tensor(name)
        return (0..<tensor.shape[0]).flatMap { sample in
            let count = mask[sample * length..<(sample + 1) * length].count { $0 != 0 }
            return tensor[sample].doubles().prefix(count * tensor.shape[2])
        }
    }
}

/// "::5 of 512 (fp32), first 8 (bf16)" keeps every fifth row of the f32 result.
private func stride(ofRowsIn description: String, _ name: String) -> Int {
    let precision = name.hasSuffix("fp32") ? "fp32" : "bf16"
    let parts = description.split(separator: ",").map(String.init)
    let part = parts.first { $0.contains("(\(precision))") } ?? parts.first ?? ""
    guard let colons = part.firstRange(of: "::") else { return 1 }
    return Int(part[colons.upperBound...].prefix { $0.isNumber }) ?? 1
}
