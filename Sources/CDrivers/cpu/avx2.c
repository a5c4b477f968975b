// The kernels once more, for processors with AVX2 alone.
#define CPU_AVX2

#include "attention.c"
#include "channel_norm.c"
#include "convolution.c"
#include "linear.c"
#include "linear_branch.c"
#include "peak.c"
#include "quantize.c"
#include "sage.c"
#include "sage_codes.c"
#include "tile.c"
