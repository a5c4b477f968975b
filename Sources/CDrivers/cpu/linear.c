// Linear layers.
#include "tile.h"

/// The most blocks of 128 products, or segments, of a row: enough for rows of 65,536.
enum { RUNS_AT_ONCE = 512 };

TARGET void VARIANT(cpu_linear)(const struct cpu_linear_job *job, size_t first_row, size_t last_row,
                       size_t first_panel, size_t last_panel) {
    const enum cpu_kind kind = job->kind;
    const size_t words = word_count(kind, job->inner), stride = words * 4;
    const size_t blocks = (job->inner + SCALE_BLOCK - 1) / SCALE_BLOCK;
    struct run runs[RUNS_AT_ONCE];
    float c[MAX_TILE * LANES], more[MAX_TILE * LANES];
    for (size_t index = first_panel; index < last_panel; index++) {
        const struct panel p = cpu_panel(kind, job->columns, job->inner, index);
        const char *b = (const char *)job->packed + p.offset;
        const size_t height = tile_rows(p.vectors);
        const size_t count = last_row - first_row, tiles = (count + height - 1) / height;
        for (size_t t = 0; t < tiles; t++) {
            const size_t row = first_row + t * count / tiles;
            const size_t rows = first_row + (t + 1) * count / tiles - row;
            const char *a = (const char *)job->x + row * stride;
            const tile_function tile = cpu_tiles[kind][p.vectors - 1][rows - 1];
            if (kind == CPU_INT8) {
                const float *x_scales = job->x_scales + row / SCALE_BLOCK * blocks;
                const float *w_scales = job->w_scales + p.first_column / SCALE_BLOCK * blocks;
                for (size_t r = 0; r < blocks; r++)
                    runs[r] = (struct run){a + r * SCALE_BLOCK,
                                           b + r * (SCALE_BLOCK / 4 + 1) * p.vectors * LANES * 4,
                                           x_scales[r] * w_scales[r]};
                tile(runs, blocks, SCALE_BLOCK / 4, stride, c);
            } else {
                const size_t segments = (words + SEGMENT - 1) / SEGMENT;
                for (size_t r = 0; r < segments; r++)
                    runs[r] = (struct run){a + r * SEGMENT * 4,
                                           b + r * SEGMENT * p.vectors * LANES * 4, 0};
                const size_t whole = words / SEGMENT, rest = words % SEGMENT;
                const size_t results = rows * p.vectors * LANES;
                if (whole > 0) sum_tile(tile, runs, whole, SEGMENT, stride, results, c);
                if (rest > 0) {
                    float *last = whole > 0 ? more : c;
                    tile(runs + whole, 1, rest, stride, last);
                    if (whole > 0) add_tile(c, more, results);
                }
            }
            if (kind == CPU_F32 && job->x_scales)
                for (size_t j = 0; j < p.vectors; j++) {
                    const size_t column = p.first_column + j * LANES;
                    const v16 w = v_load_first(first_lanes(job->columns - column),
                                               job->w_scales + column);
                    for (size_t i = 0; i < rows; i++) {
                        float *at = c + (i * p.vectors + j) * LANES;
                        v_store(at, v_mul(v_load(at), v_mul(v_set(job->x_scales[row + i]), w)));
                    }
                }
            finish_tile(&job->epilogue, c, rows, p.vectors, p.first_column, job->columns,
                        job->epilogue.residual, job->y, row * job->columns, job->columns);
        }
    }
}
