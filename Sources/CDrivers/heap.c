// The allocator's heap.
#include <malloc.h>

#include "heap.h"

void heap_trim(void) { malloc_trim(0); }
