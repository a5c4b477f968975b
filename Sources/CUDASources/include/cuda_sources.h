// The CUDA C++ sources of the kernels, embedded in the binary.
#ifndef CUDA_SOURCES_H
#define CUDA_SOURCES_H

/// One file of Kernels/: its name without a folder, and its text, which ends with NUL. `byte_count` excludes the NUL.
struct cuda_source {
    const char *_Nonnull name;
    const char *_Nonnull text;
    unsigned long byte_count;
};

/// The number of files.
int cuda_source_count(void);
/// The file with this index in 0 ..< cuda_source_count().
struct cuda_source cuda_source_at(int index);

#endif
