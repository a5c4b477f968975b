// Embeds every file of Kernels/. A new kernel file is added twice: its text, and its row in `sources`
// (a test compares the rows with the folder).
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

#define SOURCE(name, text) {name, text, sizeof text - 1}

static const struct cuda_source sources[] = {
    SOURCE("numeric.cuh", numeric_cuh),
    SOURCE("ptx.cuh", ptx_cuh),
    SOURCE("ptx_sm90.cuh", ptx_sm90_cuh),
    SOURCE("tile.cuh", tile_cuh),
    SOURCE("wgmma.cuh", wgmma_cuh),
};

int cuda_source_count(void) { return sizeof sources / sizeof sources[0]; }

struct cuda_source cuda_source_at(int index) { return sources[index]; }
