// Matrix products, convolutions and attention for x86-64 processors with AVX-512 BF16 and VNNI, or with AVX2.
//
// Each call uses one thread; the caller divides the work. The order in which an element of a result is summed depends
// only on the shapes, so results do not depend on how the work is divided. First come the operands, then `cpu_kernels`.
#ifndef CPU_KERNELS_H
#define CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

/// The type of the operands. Sums are f32 (for CPU_INT8, int32 within a block of 128).
enum cpu_kind { CPU_F32 = 0, CPU_BF16 = 1, CPU_INT8 = 2 };

// Packed matrices: the columns are divided into panels of 16 to 64. A panel contains one 32-bit word (1 f32, 2 bf16 or
// 4 int8 of the inner dimension) of each of its columns, then the next word of each, and so on. Padding is zero.

/// Bytes of a packed matrix with `columns` results of `inner` products each.
size_t cpu_packed_bytes(enum cpu_kind kind, size_t columns, size_t inner);
/// Number of panels of a packed matrix, which is the finest division of its columns.
size_t cpu_panel_count(enum cpu_kind kind, size_t columns);
/// Packs the panels [first_panel, last_panel). matrix: [columns, inner], `stride` bytes from column to column
void cpu_pack(enum cpu_kind kind, const void *matrix, size_t stride, size_t columns, size_t inner,
              size_t first_panel, size_t last_panel, void *packed);
/// Packs a matrix whose rows are along the inner dimension. matrix: f32 or bf16 [rows, columns], `stride` bytes from
/// row to row, padded with zeros from `rows` to `inner`
void cpu_pack_rows(enum cpu_kind kind, const void *matrix, size_t stride, size_t rows,
                   size_t columns, size_t inner, void *packed);

enum cpu_activation { CPU_NONE = 0, CPU_GELU_TANH = 1, CPU_SILU = 2 };

/// Turns a sum into a result: residual + gate * activation(sum + bias), rounded to the type of the result after the
/// bias, the activation, the gate and the residual.
struct cpu_epilogue {
    /// f32 [columns]
    const float *_Nullable bias;
    /// Whether the sum is also rounded before the bias is added.
    int round_first;
    enum cpu_activation activation;
    /// f32 [columns], already rounded to the type of the result; NULL for 1
    const float *_Nullable gate;
    /// Has the shape and type of the result; NULL for 0
    const void *_Nullable residual;
    /// Whether the result is bf16 instead of f32.
    int bf16;
};

/// y = epilogue(x W^T)
struct cpu_linear_job {
    enum cpu_kind kind;
    size_t columns, inner;
    /// x: [rows, inner], f32, bf16 or int8
    const void *x;
    const void *packed;
    /// CPU_INT8: f32 [ceil(rows/128), ceil(inner/128)] and [ceil(columns/128), ceil(inner/128)]. CPU_F32: f32 [rows] and
    /// [columns], by whose product a sum is multiplied; NULL for 1
    const float *_Nullable x_scales, *_Nullable w_scales;
    struct cpu_epilogue epilogue;
    /// y: [rows, columns]
    void *y;
};

/// A convolution with channels last. Each input frame: [height, width, inputs]; the weight is packed from
/// [outputs, kernel_time * kernel_height * kernel_width * inputs].
struct cpu_convolution_job {
    enum cpu_kind kind;
    size_t height, width, inputs, outputs;
    size_t kernel_time, kernel_height, kernel_width;
    /// 1 or 2, in height and width
    size_t stride;
    /// Rows of zeros above and columns to the left of the frame; those below and to the right follow from the size of
    /// the result. Fewer than none: the
    /// result's first row reads from a later one on.
    long padding_top, padding_left;
    /// Whether height and width are doubled first, by repeating each pixel; needs stride 1.
    int upsample;
    size_t out_height, out_width;
    const void *packed;
    struct cpu_epilogue epilogue;
};

/// softmax(q k^T scale + bias) v for one head, with blocks of 64 keys, in f32 or bf16 (P is rounded to bf16).
struct cpu_attention_job {
    enum cpu_kind kind;
    /// A multiple of 2 for CPU_BF16.
    size_t head_dim;
    size_t keys;
    /// Bytes from row to row of q and of the result.
    size_t stride;
    /// Blocks of 64 keys, one after the other, each packed by `cpu_pack` with columns = keys of the block and inner =
    /// head_dim; the last one takes the space of a whole block.
    const void *packed_keys;
    /// The same for values, packed by `cpu_pack_rows` with columns = head_dim and inner = 64.
    const void *packed_values;
    float scale;
    /// How many times each of the last two keys counts.
    float last_key_counts[2];
    /// Added to the scaled logit of query i and key j: bias[j - i]; NULL for none.
    const float *_Nullable bias;
};

/// The linear branch of sparse-linear attention for one head. Values are rounded to the type of `kind`, f32 or bf16,
/// where the definition rounds them.
struct cpu_linear_branch_job {
    enum cpu_kind kind;
    size_t head_dim;
    /// Number of rows of q, k and v, and bytes from row to row of q, k and the sparse branch.
    size_t tokens, stride;
    /// As in `cpu_attention_job`.
    const void *packed_values;
    /// The softmax of each key over the width of the head, transposed: [head_dim, tokens rounded up to a multiple of
    /// 64]
    void *features;
    /// Sums of the features of each block of 64 keys: f32 [blocks, head_dim]
    float *block_sums;
    /// features times v: [head_dim, head_dim], in the type of `kind`
    void *state;
    /// `state`, packed by `cpu_pack_rows`, and the projection, packed by `cpu_pack`
    const void *packed_state, *packed_projection;
    /// The sum of all features, f32 [head_dim]
    float *feature_sum;
    const float *_Nullable bias;
};

/// The largest head_dim that `linear_branch` and `sage` support.
enum { CPU_LARGEST_LINEAR_HEAD = 256 };

/// One head of SageSLA's attention to selected blocks of keys: 8-bit q k, and a P that is rounded to 8 or 16 bits before
/// it is multiplied by v. Every step rounds and sums as the definition does, so that results are the same bits.
struct cpu_sage_job {
    /// A multiple of 32, above 128 of 128; at most CPU_LARGEST_LINEAR_HEAD.
    size_t head_dim;
    /// Number of keys, and how many of them share a scale.
    size_t keys, key_block;
    /// Bytes from row to row of the codes of q, and of the result.
    size_t q_stride, out_stride;
    /// Blocks of keys, one after the other, each packed by `cpu_pack` as CPU_INT8 with columns = keys of the block and
    /// inner = head_dim; the last one takes the space of a whole block. Their scales: f32 [blocks]
    const void *packed_keys;
    const float *key_scales;
    /// The same for values, packed by `cpu_pack_rows` as CPU_F32 with columns = head_dim and inner = key_block. Factors of
    /// the result: f32 [head_dim]; NULL for 1
    const void *packed_values;
    const float *_Nullable value_scales;
    /// Factor of q k in the exponent of 2, and what is added to the exponent.
    float logit_scale, exponent_offset;
    /// What the running maximum and the running denominator begin with.
    float first_top, first_total;
    /// Whether P is rounded to f16 before it is summed and multiplied; otherwise to e4m3, after it was summed.
    int f16;
    /// Number of keys after which a block's sum is rounded to f16; 0 for never.
    size_t half_step;
};

/// The kernels for one kind of processor.
struct cpu_kernels {
    /// Quantises a block of at most 128 rows and 128 columns: q = rne(x * 128/amax), clamped to -128...127. Returns the
    /// scale amax/128, where amax is at least 1e-8. x: f32 or bf16; `stride`: elements from row to row of x and of codes
    float (*quantize_block)(const void *x, int bf16, size_t stride, size_t rows, size_t columns,
                            int8_t *codes);

    /// Computes rows [first_row, last_row) and panels [first_panel, last_panel) of the result.
    /// For CPU_INT8 the rows must lie in one block of 128.
    void (*linear)(const struct cpu_linear_job *job, size_t first_row, size_t last_row,
                   size_t first_panel, size_t last_panel);

    /// Computes rows [first_row, last_row) and panels [first_panel, last_panel) of one frame of the result.
    /// frames: `kernel_time` input frames, NULL for a frame of zeros; residual, y: [out_height, out_width, outputs]
    void (*convolution)(const struct cpu_convolution_job *job,
                        const void *_Nullable const *_Nonnull frames,
                        const void *_Nullable residual, void *y, size_t first_row, size_t last_row,
                        size_t first_panel, size_t last_panel);

    /// Floats of working memory for `attention`.
    size_t (*attention_scratch)(size_t head_dim, size_t rows);
    /// Computes the queries [first_row, last_row) with the blocks of 64 keys listed in `blocks`, in ascending order. q and
    /// out point to row 0. The result has the type of q, or f32 if `f32_out` is set.
    void (*attention)(const struct cpu_attention_job *job, const void *q, void *out,
                      size_t out_stride, int f32_out, size_t first_row, size_t last_row,
                      const int32_t *blocks, size_t block_count, float *scratch);

    /// Computes `features` and `block_sums` for one block of 64 keys.
    void (*key_features)(const struct cpu_linear_branch_job *job, const void *k, size_t block);
    /// Computes rows [first_row, last_row) of `state` and of `feature_sum`.
    void (*key_state)(const struct cpu_linear_branch_job *job, size_t first_row, size_t last_row);
    /// Computes rows [first_row, last_row) of out = sparse + (softmax(q) state / (1e-5 + softmax(q) . feature_sum))
    /// projection + bias. q, sparse: in the type of `kind`; `out_stride`: bytes from row to row of out
    void (*linear_branch)(const struct cpu_linear_branch_job *job, const void *q,
                          const void *sparse, void *out, size_t out_stride, int bf16_out,
                          size_t first_row, size_t last_row);

    /// The largest magnitudes in columns of x: bf16 [rows, columns], `stride` elements from row to row. largest: f32
    /// [columns], which it adds to
    void (*column_maxima)(const void *x, size_t stride, size_t rows, size_t columns,
                          float *largest);
    /// Codes of a block of SageAttention's q or k: (x - center) / step to the nearest integer, halves away from zero.
    /// Returns step = max|x - center| / 127 + 1e-7. x: bf16 [rows, columns]; center: f32 [columns], NULL for zeros;
    /// `stride`, `code_stride`: elements from row to row
    float (*sage_codes)(const void *x, size_t stride, size_t rows, size_t columns,
                        const float *_Nullable center, int8_t *codes, size_t code_stride);
    /// SageAttention's values: x * factors rounded to e4m3, or x rounded to f16 if factors is NULL. x: bf16 [rows,
    /// columns], `stride` elements from row to row; y: f32 [rows, columns]
    void (*sage_values)(const void *x, size_t stride, size_t rows, size_t columns,
                        const float *_Nullable factors, float *y);
    /// Floats of working memory for `sage`.
    size_t (*sage_scratch)(size_t head_dim, size_t key_block, size_t rows);
    /// Computes the queries [first_row, last_row), which share `q_scale`, with the listed blocks of keys, in ascending
    /// order. q: codes; q and out point to row 0; the result is bf16
    void (*sage)(const struct cpu_sage_job *job, const int8_t *q, float q_scale, void *out,
                 size_t first_row, size_t last_row, const int32_t *blocks, size_t block_count,
                 float *scratch);

    /// y = x / max(||x||, 1e-12) * factors over the channels, then SiLU if `silu`. x, y: [rows, channels]
    void (*channel_norm)(const void *x, int bf16, size_t rows, size_t channels,
                         const float *factors, int silu, void *y);

    /// Multiplies and adds only in registers, `steps` times on enough independent sums to hide the latency. No kernel can
    /// be faster.
    void (*peak)(enum cpu_kind kind, size_t steps);
    /// The number of operations of such a call, two for each product.
    double (*peak_operations)(enum cpu_kind kind, size_t steps);
};

/// Kinds of processors, each of which runs the kernels of those before it.
enum cpu_variant { CPU_AVX_2, CPU_AVX_512 };
/// The last kind whose kernels processor and system can run.
enum cpu_variant cpu_variant_found(void);
const struct cpu_kernels *cpu_kernels_of(enum cpu_variant variant);

#pragma clang assume_nonnull end

#endif
