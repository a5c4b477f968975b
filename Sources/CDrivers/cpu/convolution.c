// Convolutions of frames with channels last, as products of tiles. A row of the kernel is contiguous both in a frame
// and in the packed weight, so a tile of pixels needs no copy of its input.
#include "tile.h"

/// The number of taps of the largest kernel.
enum { MAX_RUNS = 128 };

/// What is constant during one call.
struct context {
    const struct cpu_convolution_job *job;
    const void *const *frames;
    const void *residual;
    void *y;
    struct panel panel;
    /// Bytes and words of a pixel.
    size_t pixel, words;
    /// The size of the input, doubled if `upsample` is set.
    long height, width;
};

static long maximum(long a, long b) { return a > b ? a : b; }
static long minimum(long a, long b) { return a < b ? a : b; }

/// Computes `count` pixels of the result from (y, x) on, in steps of (y_step, x_step). For all of them the same taps of
/// the kernel must lie inside the frame. With `upsample` the steps are even, so that all pixels have the same phase.
TARGET static void strip(const struct context *ctx, long y, long y_step, long x, long x_step,
                         long count) {
    const struct cpu_convolution_job *job = ctx->job;
    const int up = job->upsample ? 1 : 0;
    const long s = (long)job->stride, row = (long)job->width;
    const long kh = (long)job->kernel_height, kw = (long)job->kernel_width;
    const long top = y * s - job->padding_top, left = x * s - job->padding_left;
    const long h0 = maximum(0, -top), h1 = minimum(kh, ctx->height - top);
    const long w0 = maximum(0, -left), w1 = minimum(kw, ctx->width - left);
    // With `upsample`, neighbouring taps may read the same pixel, so each is a run of its own.
    const long taps = up ? 1 : maximum(0, w1 - w0);
    const size_t tap_bytes = ctx->words * ctx->panel.vectors * LANES * 4;
    const char *weights = (const char *)job->packed + ctx->panel.offset;

    struct run runs[MAX_RUNS];
    size_t run_count = 0;
    for (long t = 0; t < (long)job->kernel_time; t++) {
        if (!ctx->frames[t]) continue;
        for (long h = h0; h < h1; h++)
            for (long w = w0; w < w1; w += taps) {
                const long pixel = ((top + h) >> up) * row + ((left + w) >> up);
                runs[run_count++] =
                    (struct run){(const char *)ctx->frames[t] + pixel * (long)ctx->pixel,
                                 weights + (size_t)((t * kh + h) * kw + w) * tap_bytes, 0};
            }
    }
    const size_t stride = (size_t)(((y_step * s) >> up) * row + ((x_step * s) >> up)) * ctx->pixel;
    const size_t out = job->outputs,
                 out_step = (size_t)(y_step * (long)job->out_width + x_step) * out;
    const size_t first = (size_t)(y * (long)job->out_width + x) * out;
    const size_t height = tile_rows(ctx->panel.vectors), n = (size_t)count;
    const size_t tiles = (n + height - 1) / height;
    float c[MAX_TILE * LANES];
    for (size_t i = 0; i < tiles; i++) {
        const size_t begin = i * n / tiles, rows = (i + 1) * n / tiles - begin;
        if (i > 0) {
            const size_t moved = begin - (i - 1) * n / tiles;
            for (size_t r = 0; r < run_count; r++) runs[r].a += moved * stride;
        }
        sum_tile(tile_for(job->kind, ctx->panel.vectors, out - ctx->panel.first_column, rows), runs,
                 run_count, ctx->words * (size_t)taps, stride, rows * ctx->panel.vectors * LANES, c);
        finish_tile(&job->epilogue, c, rows, ctx->panel.vectors, ctx->panel.first_column, out,
                    ctx->residual, ctx->y, first + begin * out_step, out_step);
    }
}

TARGET void VARIANT(cpu_convolution)(const struct cpu_convolution_job *job, const void *const *frames,
                            const void *residual, void *y, size_t first_row, size_t last_row,
                            size_t first_panel, size_t last_panel) {
    const size_t inner = job->kernel_time * job->kernel_height * job->kernel_width * job->inputs;
    const long up = job->upsample ? 2 : 1, s = (long)job->stride;
    const long pad_top = job->padding_top, pad_left = job->padding_left;
    struct context ctx = {
        .job = job,
        .frames = frames,
        .residual = residual,
        .y = y,
        .pixel = job->inputs * (job->kind == CPU_F32 ? 4 : 2),
        .words = word_count(job->kind, job->inputs),
        .height = (long)job->height * up,
        .width = (long)job->width * up,
    };
    // The rows and columns of the result whose kernels lie entirely inside the frame.
    const long columns = (long)job->out_width, begin = (long)first_row, end = (long)last_row;
    const long inner_left = minimum((pad_left + s - 1) / s, columns);
    const long room_x = ctx.width + pad_left - (long)job->kernel_width;
    const long inner_right = maximum(inner_left, minimum(room_x < 0 ? 0 : room_x / s + 1, columns));
    const long room_y = ctx.height + pad_top - (long)job->kernel_height;
    const long inner_top = minimum(maximum((pad_top + s - 1) / s, begin), end);
    const long inner_bottom = maximum(inner_top, minimum(room_y < 0 ? 0 : room_y / s + 1, end));

    for (size_t index = first_panel; index < last_panel; index++) {
        ctx.panel = cpu_panel(job->kind, job->outputs, inner, index);
        for (long row = begin; row < end; row++)
            for (long phase = 0; phase < up; phase++) {
                const long left = inner_left + phase;
                if (left < inner_right)
                    strip(&ctx, row, 0, left, up, (inner_right - left + up - 1) / up);
            }
        for (long x = 0; x < columns; x++) {
            if (x == inner_left) x = inner_right;
            if (x >= columns) break;
            for (long row = begin; row < inner_top; row++) strip(&ctx, row, 0, x, up, 1);
            for (long phase = 0; phase < up; phase++) {
                const long top = inner_top + phase;
                if (top < inner_bottom)
                    strip(&ctx, top, up, x, 0, (inner_bottom - top + up - 1) / up);
            }
            for (long row = inner_bottom; row < end; row++) strip(&ctx, row, 0, x, up, 1);
        }
    }
}
