// The CUDA C++ sources of our kernels, embedded in the binary.
#ifndef CUDA_SOURCES_H
#define CUDA_SOURCES_H

/// One file of Kernels/: its name without folder, and its text, NUL-terminated.
struct cuda_source {
    const char *_Nonnull name;
    const char *_Nonnull text;
    unsigned long byte_count;
};

/// How many files there are.
int cuda_source_count(void);
/// File `index`, in 0 ..< cuda_source_count().
struct cuda_source cuda_source_at(int index);

#endif
