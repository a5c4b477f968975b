// Copies into memory that the processor does not read again.
#include "copy.h"

#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>

void copy_streaming(void *to, const void *from, size_t count) {
    char *target = to;
    const char *source = from;
    // Streaming stores need aligned addresses.
    size_t head = -(uintptr_t)target % 16;
    if (head > count) head = count;
    memcpy(target, source, head);
    size_t i = head;
    for (; i + 64 <= count; i += 64) {
        _mm_prefetch(source + i + 1024, _MM_HINT_NTA);
        __m128i words[4];
        for (int j = 0; j < 4; j++) words[j] = _mm_loadu_si128((const __m128i *)(source + i) + j);
        for (int j = 0; j < 4; j++) _mm_stream_si128((__m128i *)(target + i) + j, words[j]);
    }
    memcpy(target + i, source + i, count - i);
    // Before anyone is told that the copy is done.
    _mm_sfence();
}

#else

void copy_streaming(void *to, const void *from, size_t count) { memcpy(to, from, count); }

#endif
