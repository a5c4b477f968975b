// Matrix products, convolutions and attention for x86-64 processors with AVX-512 BF16 and VNNI.
//
// One thread each; the caller cuts the work. Every element of a result is summed in an order that
// depends on the shapes alone, so it does not matter how the work is cut.
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

/// 1 where the processor and the system can run these kernels.
int cpu_kernels_available(void);

/// What is multiplied; sums are f32 (int32 within a block of 128 for CPU_INT8).
enum cpu_kind { CPU_F32 = 0, CPU_BF16 = 1, CPU_INT8 = 2 };

// Packed matrices: the columns in panels of 16 to 64, in each panel one 32-bit word (1 f32, 2 bf16
// or 4 int8 of the inner dimension) of every column after the other. Ends are zero.

/// Bytes of a packed matrix with `columns` results of `inner` products each.
size_t cpu_packed_bytes(enum cpu_kind kind, size_t columns, size_t inner);
/// Panels of a packed matrix: the finest division of its columns.
size_t cpu_panel_count(enum cpu_kind kind, size_t columns);
/// matrix: [columns, inner], `stride` bytes from column to column. Fills panels [first_panel,
/// last_panel).
void cpu_pack(enum cpu_kind kind, const void *matrix, size_t stride, size_t columns, size_t inner,
              size_t first_panel, size_t last_panel, void *packed);
/// matrix: [rows, columns], `stride` bytes from row to row, zeros from `rows` to `inner`; f32 or
/// bf16
void cpu_pack_rows(enum cpu_kind kind, const void *matrix, size_t stride, size_t rows,
                   size_t columns, size_t inner, void *packed);

/// Quantises rows [0, rows), at most 128, of one block of at most 128 columns: q = rne(x *
/// 128/amax) within -128...127. Returns the scale, amax/128 with amax at least 1e-8. x: f32 or
/// bf16; `stride`: elements from row to row of both.
float cpu_quantize_block(const void *x, int bf16, size_t stride, size_t rows, size_t columns,
                         int8_t *codes);

enum cpu_activation { CPU_NONE = 0, CPU_GELU_TANH = 1, CPU_SILU = 2 };

/// What happens to a sum on its way to memory:
/// residual + gate * act(sum + bias), rounded to the type of the result after the bias, the
/// activation, the gate and the residual.
struct cpu_epilogue {
    /// f32 [columns]
    const float *_Nullable bias;
    /// The sum is rounded before the bias is added too.
    int round_first;
    enum cpu_activation activation;
    /// f32 [columns], already rounded to the type of the result
    const float *_Nullable gate;
    /// Shape and type of the result.
    const void *_Nullable residual;
    /// The result is bf16, not f32.
    int bf16;
};

/// y = epilogue(x W^T)
struct cpu_linear_job {
    enum cpu_kind kind;
    size_t columns, inner;
    /// x: [rows, inner], f32, bf16 or int8
    const void *x;
    const void *packed;
    /// CPU_INT8: f32 [ceil(rows/128), ceil(inner/128)] and [ceil(columns/128), ceil(inner/128)]
    const float *_Nullable x_scales, *_Nullable w_scales;
    struct cpu_epilogue epilogue;
    /// y: [rows, columns]
    void *y;
};

/// Rows [first_row, last_row) and panels [first_panel, last_panel) of the result.
/// For CPU_INT8 the rows must lie in one block of 128.
void cpu_linear(const struct cpu_linear_job *job, size_t first_row, size_t last_row,
                size_t first_panel, size_t last_panel);

/// Channels-last convolution. frames: [height, width, inputs] each; weight packed from
/// [outputs, kernel_time * kernel_height * kernel_width * inputs].
struct cpu_convolution_job {
    enum cpu_kind kind;
    size_t height, width, inputs, outputs;
    size_t kernel_time, kernel_height, kernel_width;
    /// 1 or 2, in height and width
    size_t stride;
    /// Zeros above and left of the frame; those below and right follow from the size of the result. Fewer than none: the
    /// result's first row reads from a later one on.
    long padding_top, padding_left;
    /// Doubles height and width (nearest) first; needs stride 1.
    int upsample;
    size_t out_height, out_width;
    const void *packed;
    struct cpu_epilogue epilogue;
};

/// Rows [first_row, last_row) and panels [first_panel, last_panel) of one frame of the result.
/// frames: `kernel_time` input frames, NULL for one of zeros; residual, y: [out_height, out_width,
/// outputs]
void cpu_convolution(const struct cpu_convolution_job *job,
                     const void *_Nullable const *_Nonnull frames, const void *_Nullable residual,
                     void *y, size_t first_row, size_t last_row, size_t first_panel,
                     size_t last_panel);

/// softmax(q k^T scale + bias) v for one head. Blocks of 64 keys; f32 or bf16 (P rounded to bf16).
struct cpu_attention_job {
    enum cpu_kind kind;
    /// A multiple of 2 for CPU_BF16.
    size_t head_dim;
    size_t keys;
    /// Bytes from row to row of q and of the result.
    size_t stride;
    /// Blocks of 64 keys, one after the other, each packed by `cpu_pack` with columns = keys of the
    /// block, inner = head_dim; the room of a whole block for the last one.
    const void *packed_keys;
    /// The same for values, by `cpu_pack_rows` with columns = head_dim, inner = 64.
    const void *packed_values;
    float scale;
    /// The last two keys count so often.
    float last_key_counts[2];
    /// Added to the scaled logit of query i and key j: bias[j - i]; NULL for none.
    const float *_Nullable bias;
};

/// Floats of working memory for `cpu_attention`.
size_t cpu_attention_scratch(size_t head_dim, size_t rows);

/// Queries [first_row, last_row) over the 64-key blocks in `blocks`, ascending; q and out point at
/// row 0. The result has the type of q, or f32 where `f32_out` is set.
void cpu_attention(const struct cpu_attention_job *job, const void *q, void *out, size_t out_stride,
                   int f32_out, size_t first_row, size_t last_row, const int32_t *blocks,
                   size_t block_count, float *scratch);

/// The linear branch of sparse-linear attention for one head; every value is rounded to the type of
/// `kind`, f32 or bf16, where the definition rounds it.
struct cpu_linear_branch_job {
    enum cpu_kind kind;
    size_t head_dim;
    /// Rows of q, k and v, and bytes from row to row of q, k and the sparse branch.
    size_t tokens, stride;
    /// As in `cpu_attention_job`.
    const void *packed_values;
    /// The softmax of each key over its width, transposed: [head_dim, tokens up to a multiple of
    /// 64]
    void *features;
    /// Sums of the features of each block of 64 keys: f32 [blocks, head_dim]
    float *block_sums;
    /// features times v: [head_dim, head_dim] in the type of `kind`
    void *state;
    /// `state` packed by `cpu_pack_rows`; projection packed by `cpu_pack`
    const void *packed_state, *packed_projection;
    /// The sum of all features, f32 [head_dim]
    float *feature_sum;
    const float *_Nullable bias;
};

/// Fills `features` and `block_sums` for 64 keys.
void cpu_key_features(const struct cpu_linear_branch_job *job, const void *k, size_t block);
/// Fills rows [first_row, last_row) of `state`, and of `feature_sum`.
void cpu_key_state(const struct cpu_linear_branch_job *job, size_t first_row, size_t last_row);
/// out = sparse + (softmax(q) state / (1e-5 + softmax(q) . feature_sum)) projection + bias, for
/// some rows. q, sparse: in the type of `kind`; `out_stride`: bytes from row to row of out
void cpu_linear_branch(const struct cpu_linear_branch_job *job, const void *q, const void *sparse,
                       void *out, size_t out_stride, int bf16_out, size_t first_row,
                       size_t last_row);

/// The widest head that `cpu_linear_branch` takes.
enum { CPU_LARGEST_LINEAR_HEAD = 256 };

/// x / max(||x||, 1e-12) * factors over the channels, then SiLU if asked. x, y: [rows, channels]
void cpu_channel_norm(const void *x, int bf16, size_t rows, size_t channels, const float *factors,
                      int silu, void *y);

/// Multiplies and adds in registers alone, `steps` times on as many independent sums as hide the
/// latency: what no kernel can exceed.
void cpu_peak(enum cpu_kind kind, size_t steps);
/// The operations of one such call, two for each product.
double cpu_peak_operations(enum cpu_kind kind, size_t steps);

#pragma clang assume_nonnull end

#endif
