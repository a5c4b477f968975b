// Packing matrices.
#include "tile.h"

#include <string.h>

/// Vectors of columns that are divided into panels independently, because a panel of CPU_INT8 must not cross a scale
/// block.
static size_t group_vectors(enum cpu_kind kind) {
    return kind == CPU_INT8 ? SCALE_BLOCK / LANES : ~(size_t)0;
}

/// Vectors in the next panel if `vectors` remain: panels have four, or three until the rest can be divided by four.
static size_t next_panel(size_t vectors) {
    if (vectors <= MAX_VECTORS) return vectors;
    return vectors % 4 == 0 ? 4 : 3;
}

struct panel cpu_panel(enum cpu_kind kind, size_t columns, size_t inner, size_t index) {
    const size_t vectors = (columns + LANES - 1) / LANES, group = group_vectors(kind);
    size_t first = 0;
    for (;;) {
        const size_t left = vectors - first, in_group = group - first % group;
        const size_t width = next_panel(left < in_group ? left : in_group);
        if (index-- == 0)
            return (struct panel){first * LANES, width,
                                  first * cpu_panel_vector_bytes(kind, inner)};
        first += width;
    }
}

size_t cpu_panel_count(enum cpu_kind kind, size_t columns) {
    const size_t vectors = (columns + LANES - 1) / LANES, group = group_vectors(kind);
    size_t count = 0;
    for (size_t first = 0; first < vectors; count++) {
        const size_t left = vectors - first, in_group = group - first % group;
        first += next_panel(left < in_group ? left : in_group);
    }
    return count;
}

size_t cpu_panel_vector_bytes(enum cpu_kind kind, size_t inner) {
    // CPU_INT8 has a vector of corrections before each block.
    const size_t corrections = kind == CPU_INT8 ? (inner + SCALE_BLOCK - 1) / SCALE_BLOCK : 0;
    return (word_count(kind, inner) + corrections) * LANES * 4;
}

size_t cpu_packed_bytes(enum cpu_kind kind, size_t columns, size_t inner) {
    return (columns + LANES - 1) / LANES * cpu_panel_vector_bytes(kind, inner);
}

void cpu_pack(enum cpu_kind kind, const void *matrix, size_t stride, size_t columns, size_t inner,
              size_t first_panel, size_t last_panel, void *packed) {
    const size_t size = 4 / word_elements(kind), bytes = inner * size;
    const size_t words = word_count(kind, inner);
    for (size_t index = first_panel; index < last_panel; index++) {
        const struct panel p = cpu_panel(kind, columns, inner, index);
        const size_t width = p.vectors * LANES;
        for (size_t j = 0; j < width; j++) {
            const char *column = (const char *)matrix + (p.first_column + j) * stride;
            const int beyond = p.first_column + j >= columns;
            uint32_t *out = (uint32_t *)((char *)packed + p.offset) + j;
            for (size_t k = 0; k < words; k++) {
                if (kind == CPU_INT8 && k % (SCALE_BLOCK / 4) == 0) {
                    int32_t sum = 0;
                    for (size_t i = 4 * k; i < inner && i < 4 * k + SCALE_BLOCK && !beyond; i++)
                        sum += (int8_t)column[i];
                    *out = (uint32_t)(-128 * sum);
                    out += width;
                }
                uint32_t word = 0;
                if (!beyond) memcpy(&word, column + 4 * k, bytes - 4 * k < 4 ? bytes - 4 * k : 4);
                *out = word;
                out += width;
            }
        }
    }
}

void cpu_pack_rows(enum cpu_kind kind, const void *matrix, size_t stride, size_t rows,
                   size_t columns, size_t inner, void *packed) {
    const size_t words = word_count(kind, inner), panels = cpu_panel_count(kind, columns);
    for (size_t index = 0; index < panels; index++) {
        const struct panel p = cpu_panel(kind, columns, inner, index);
        const size_t width = p.vectors * LANES;
        const size_t full = columns - p.first_column < width ? columns - p.first_column : width;
        uint32_t *out = (uint32_t *)((char *)packed + p.offset);
        for (size_t k = 0; k < words; k++, out += width) {
            if (k * word_elements(kind) >= rows) {
                memset(out, 0, 4 * width);
                continue;
            }
            if (kind == CPU_F32) {
                memcpy(out, (const float *)((const char *)matrix + k * stride) + p.first_column,
                       4 * full);
            } else {
                const uint16_t *low =
                    (const uint16_t *)((const char *)matrix + 2 * k * stride) + p.first_column;
                const uint16_t *high = (const uint16_t *)((const char *)low + stride);
                const int pair = 2 * k + 1 < rows;
                for (size_t j = 0; j < full; j++)
                    out[j] = low[j] | (pair ? (uint32_t)high[j] << 16 : 0);
            }
            for (size_t j = full; j < width; j++) out[j] = 0;
        }
    }
}
