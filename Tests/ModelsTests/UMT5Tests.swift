/// The text encoder against the original.

import CPU
import Checkpoints
import Models
import Tensors
import Testing

@Suite struct UMT5Tests {
    static let cases = Golden.cases("umt5", "umt5_encode", "umt5_encode_text")

    @Test("embeds prompts as the original does", arguments: cases)
    func embeds(golden: Golden) throws {
        for (activations, output) in [
            (DType.f32, "out.embed_fp32"), (.bf16, "out.embed_bf16"),
        ] {
            let device = CPUBackend()
            let encoder = try UMT5(
                Weights(golden.checkpoints(), on: device, activations: activations))
            let tensors = try golden.tensors()
            let counts = golden.config.lens ?? [golden.config.n!]
            for (entry, count) in counts.enumerated() {
                let ids = try tensors.need("in.ids")[entry]
                let tokens = ids.withElements(Int32.self) { Array($0.prefix(count)) }
                let text = encoder(tokens, on: device)
                #expect(text.rows.shape == [512, encoder.config.dim])
                let expected = try tensors.need(output)
                let kept = expected.shape[1]
                // One case keeps every fifth row.
                let step = count == 512 && kept == 103 ? 5 : 1
                let rows = (0..<kept).map { Int32($0 * step) }
                try golden.expect(
                    device.read(text.rows).gatheredRows(rows), equals: output, entry: entry)
            }
        }
    }
}
