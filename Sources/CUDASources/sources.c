// Embeds every file of Kernels/. A new kernel file is added in two places: its text, and its row in `sources` (a test
// compares the rows with the folder).
#include "cuda_sources.h"

static const char numeric_cuh[] = {
#embed "Kernels/numeric.cuh"
    , 0};
static const char ptx_cuh[] = {
#embed "Kernels/ptx.cuh"
    , 0};
static const char ptx_sm90_cuh[] = {
#embed "Kernels/ptx_sm90.cuh"
    , 0};
static const char tile_cuh[] = {
#embed "Kernels/tile.cuh"
    , 0};
static const char wgmma_cuh[] = {
#embed "Kernels/wgmma.cuh"
    , 0};
static const char rows_cuh[] = {
#embed "Kernels/rows.cuh"
    , 0};
static const char normalization_cu[] = {
#embed "Kernels/normalization.cu"
    , 0};
static const char elementwise_cu[] = {
#embed "Kernels/elementwise.cu"
    , 0};
static const char frames_cu[] = {
#embed "Kernels/frames.cu"
    , 0};
static const char layout_cu[] = {
#embed "Kernels/layout.cu"
    , 0};
static const char channel_norm_cu[] = {
#embed "Kernels/channel_norm.cu"
    , 0};
static const char full_precision_linear_cu[] = {
#embed "Kernels/full_precision_linear.cu"
    , 0};
static const char gemm_epilogue_cuh[] = {
#embed "Kernels/gemm_epilogue.cuh"
    , 0};
static const char gemm_mma_cuh[] = {
#embed "Kernels/gemm_mma.cuh"
    , 0};
static const char gemm_sm90_cuh[] = {
#embed "Kernels/gemm_sm90.cuh"
    , 0};
static const char linear_mma_cu[] = {
#embed "Kernels/linear_mma.cu"
    , 0};
static const char linear_sm90_cu[] = {
#embed "Kernels/linear_sm90.cu"
    , 0};
static const char quantize_cu[] = {
#embed "Kernels/quantize.cu"
    , 0};
static const char conv_cuh[] = {
#embed "Kernels/conv.cuh"
    , 0};
static const char conv_sm90_cuh[] = {
#embed "Kernels/conv_sm90.cuh"
    , 0};
static const char conv_mma_cu[] = {
#embed "Kernels/conv_mma.cu"
    , 0};
static const char conv_sm90_cu[] = {
#embed "Kernels/conv_sm90.cu"
    , 0};
static const char conv_taps_sm90_cu[] = {
#embed "Kernels/conv_taps_sm90.cu"
    , 0};
static const char conv_simt_cu[] = {
#embed "Kernels/conv_simt.cu"
    , 0};
static const char attention_cuh[] = {
#embed "Kernels/attention.cuh"
    , 0};
static const char store_cuh[] = {
#embed "Kernels/store.cuh"
    , 0};
static const char softmax_cuh[] = {
#embed "Kernels/softmax.cuh"
    , 0};
static const char attention_tile_cuh[] = {
#embed "Kernels/attention_tile.cuh"
    , 0};
static const char attention_simt_cu[] = {
#embed "Kernels/attention_simt.cu"
    , 0};
static const char attention_mma_cu[] = {
#embed "Kernels/attention_mma.cu"
    , 0};
static const char block_map_cu[] = {
#embed "Kernels/block_map.cu"
    , 0};
static const char block_list_cu[] = {
#embed "Kernels/block_list.cu"
    , 0};
static const char attention_wide_sm90_cu[] = {
#embed "Kernels/attention_wide_sm90.cu"
    , 0};
static const char linear_branch_cuh[] = {
#embed "Kernels/linear_branch.cuh"
    , 0};
static const char linear_branch_cu[] = {
#embed "Kernels/linear_branch.cu"
    , 0};
static const char linear_branch_sm90_cu[] = {
#embed "Kernels/linear_branch_sm90.cu"
    , 0};
static const char linear_branch_exact_cu[] = {
#embed "Kernels/linear_branch_exact.cu"
    , 0};
static const char sage_cuh[] = {
#embed "Kernels/sage.cuh"
    , 0};
static const char sage_prepare_cu[] = {
#embed "Kernels/sage_prepare.cu"
    , 0};
static const char sage_sm90_cu[] = {
#embed "Kernels/sage_sm90.cu"
    , 0};
static const char attention_sm90_cu[] = {
#embed "Kernels/attention_sm90.cu"
    , 0};
static const char sage_mma_cu[] = {
#embed "Kernels/sage_mma.cu"
    , 0};
static const char attention_wide_cu[] = {
#embed "Kernels/attention_wide.cu"
    , 0};
static const char training_cu[] = {
#embed "Kernels/training.cu"
    , 0};
static const char norm_gradient_cu[] = {
#embed "Kernels/norm_gradient.cu"
    , 0};
static const char attention_gradient_cu[] = {
#embed "Kernels/attention_gradient.cu"
    , 0};
static const char branch_gradient_cu[] = {
#embed "Kernels/branch_gradient.cu"
    , 0};
static const char attention_gradient_cuh[] = {
#embed "Kernels/attention_gradient.cuh"
    , 0};
static const char attention_gradient_mma_cu[] = {
#embed "Kernels/attention_gradient_mma.cu"
    , 0};
static const char attention_gradient_sm90_cu[] = {
#embed "Kernels/attention_gradient_sm90.cu"
    , 0};
static const char weight_gradient_sm90_cu[] = {
#embed "Kernels/weight_gradient_sm90.cu"
    , 0};

#define SOURCE(name, text) {name, text, sizeof text - 1}

static const struct cuda_source sources[] = {
    SOURCE("numeric.cuh", numeric_cuh),
    SOURCE("ptx.cuh", ptx_cuh),
    SOURCE("ptx_sm90.cuh", ptx_sm90_cuh),
    SOURCE("tile.cuh", tile_cuh),
    SOURCE("wgmma.cuh", wgmma_cuh),
    SOURCE("rows.cuh", rows_cuh),
    SOURCE("normalization.cu", normalization_cu),
    SOURCE("elementwise.cu", elementwise_cu),
    SOURCE("frames.cu", frames_cu),
    SOURCE("layout.cu", layout_cu),
    SOURCE("channel_norm.cu", channel_norm_cu),
    SOURCE("full_precision_linear.cu", full_precision_linear_cu),
    SOURCE("gemm_epilogue.cuh", gemm_epilogue_cuh),
    SOURCE("gemm_mma.cuh", gemm_mma_cuh),
    SOURCE("gemm_sm90.cuh", gemm_sm90_cuh),
    SOURCE("linear_mma.cu", linear_mma_cu),
    SOURCE("linear_sm90.cu", linear_sm90_cu),
    SOURCE("quantize.cu", quantize_cu),
    SOURCE("conv.cuh", conv_cuh),
    SOURCE("conv_sm90.cuh", conv_sm90_cuh),
    SOURCE("conv_mma.cu", conv_mma_cu),
    SOURCE("conv_simt.cu", conv_simt_cu),
    SOURCE("conv_taps_sm90.cu", conv_taps_sm90_cu),
    SOURCE("conv_sm90.cu", conv_sm90_cu),
    SOURCE("attention.cuh", attention_cuh),
    SOURCE("store.cuh", store_cuh),
    SOURCE("softmax.cuh", softmax_cuh),
    SOURCE("attention_tile.cuh", attention_tile_cuh),
    SOURCE("attention_simt.cu", attention_simt_cu),
    SOURCE("attention_mma.cu", attention_mma_cu),
    SOURCE("block_map.cu", block_map_cu),
    SOURCE("block_list.cu", block_list_cu),
    SOURCE("linear_branch.cuh", linear_branch_cuh),
    SOURCE("linear_branch.cu", linear_branch_cu),
    SOURCE("linear_branch_sm90.cu", linear_branch_sm90_cu),
    SOURCE("linear_branch_exact.cu", linear_branch_exact_cu),
    SOURCE("sage.cuh", sage_cuh),
    SOURCE("sage_prepare.cu", sage_prepare_cu),
    SOURCE("sage_sm90.cu", sage_sm90_cu),
    SOURCE("attention_sm90.cu", attention_sm90_cu),
    SOURCE("sage_mma.cu", sage_mma_cu),
    SOURCE("attention_wide.cu", attention_wide_cu),
    SOURCE("attention_wide_sm90.cu", attention_wide_sm90_cu),
    SOURCE("training.cu", training_cu),
    SOURCE("norm_gradient.cu", norm_gradient_cu),
    SOURCE("attention_gradient.cu", attention_gradient_cu),
    SOURCE("branch_gradient.cu", branch_gradient_cu),
    SOURCE("attention_gradient.cuh", attention_gradient_cuh),
    SOURCE("attention_gradient_mma.cu", attention_gradient_mma_cu),
    SOURCE("attention_gradient_sm90.cu", attention_gradient_sm90_cu),
    SOURCE("weight_gradient_sm90.cu", weight_gradient_sm90_cu),
};

int cuda_source_count(void) { return sizeof sources / sizeof sources[0]; }

struct cuda_source cuda_source_at(int index) { return sources[index]; }
