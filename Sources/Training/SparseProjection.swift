/// The parameters that sparse-linear attention adds to a dense net.

public import Tensors

public enum SparseProjection {
    /// Names and shapes of `proj_l` in every block; zero at the start of a tuning.
    public static func parameters(layers: Int, headDim: Int) -> [(name: String, shape: Shape)] {
        (0..<layers).flatMap { layer -> [(name: String, shape: Shape)] in
            let place = "blocks.\(layer).self_attn.attn_op.local_attn.proj_l"
            return [("\(place).weight", [headDim, headDim]), ("\(place).bias", [headDim])]
        }
    }
}
