// The list of all translation units, which `kernels build`, `kernels check` and a first run compile.

/// All units; a test compares them with the files in Kernels/.
public enum KernelCatalog {
    public static let units: [KernelUnit] =
        Normalization.units + Elementwise.units + Frames.units + Layout.units + ChannelNorm.units
        + FullPrecisionLinear.units + Linear.units + Quantize.units + Attention.units
        + BlockMaps.units
        + SparseLinearAttention.units + Sage.units + Convolution.units + TrainingKernels.units
        + NormGradients.units + WeightGradients.units + AttentionGradients.units
        + BranchGradients.units
}
