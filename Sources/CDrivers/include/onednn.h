// The part of oneDNN 2 that we use (libdnnl.so.2), as a table that `onednn_load` fills. Version 3 has another layout of
// descriptors and is not supported.
// Values and signatures: https://oneapi-src.github.io/oneDNN/v2.6/
#ifndef ONEDNN_H
#define ONEDNN_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

typedef int32_t dnnl_status_t;
typedef struct dnnl_engine *dnnl_engine_t;
typedef struct dnnl_stream *dnnl_stream_t;
typedef struct dnnl_memory *dnnl_memory_t;
typedef struct dnnl_primitive *dnnl_primitive_t;
typedef struct dnnl_primitive_desc *dnnl_primitive_desc_t;
typedef struct dnnl_primitive_attr *dnnl_primitive_attr_t;

enum { DNNL_SUCCESS = 0 };
enum { DNNL_CPU = 1 };
enum { DNNL_STREAM_DEFAULT = 1 };
enum { DNNL_SCRATCHPAD_USER = 1 };
/// dnnl_data_type_t
enum { DNNL_BF16 = 2, DNNL_F32 = 3, DNNL_S32 = 4, DNNL_S8 = 5 };
/// dnnl_format_tag_t: chosen by the library; row-major; column-major.
enum { DNNL_ANY = 1, DNNL_AB = 3, DNNL_BA = 22 };
/// dnnl_query_t
enum { DNNL_QUERY_WEIGHTS = 131, DNNL_QUERY_SCRATCHPAD = 136 };
/// Arguments of primitives.
enum {
    DNNL_ARG_SRC = 1,
    DNNL_ARG_DST = 17,
    DNNL_ARG_WEIGHTS = 33,
    DNNL_ARG_SCRATCHPAD = 80,
    DNNL_ARG_FROM = 1,
    DNNL_ARG_TO = 17,
};

typedef struct {
    uint64_t data[87];
} dnnl_memory_desc_t;
typedef struct {
    uint64_t data[350];
} dnnl_matmul_desc_t;
typedef struct {
    int32_t arg;
    dnnl_memory_t memory;
} dnnl_exec_arg_t;
_Static_assert(sizeof(dnnl_memory_desc_t) == 696, "ABI");
_Static_assert(sizeof(dnnl_matmul_desc_t) == 2800, "ABI");
_Static_assert(sizeof(dnnl_exec_arg_t) == 16, "ABI");

typedef struct {
    int32_t major, minor, patch;
} dnnl_version_t;

// F(result, name, parameters)
#define ONEDNN_FUNCTIONS(F)                                                                        \
    F(const dnnl_version_t *_Nonnull, dnnl_version, (void))                                        \
    F(dnnl_status_t, dnnl_engine_create,                                                           \
      (dnnl_engine_t _Nullable * _Nonnull engine, int32_t kind, size_t index))                     \
    F(dnnl_status_t, dnnl_stream_create,                                                           \
      (dnnl_stream_t _Nullable * _Nonnull stream, dnnl_engine_t engine, uint32_t flags))           \
    F(dnnl_status_t, dnnl_stream_destroy, (dnnl_stream_t stream))                                  \
    F(dnnl_status_t, dnnl_memory_desc_init_by_tag,                                                 \
      (dnnl_memory_desc_t * description, int32_t rank, const int64_t *extents, int32_t type,       \
       int32_t tag))                                                                               \
    F(size_t, dnnl_memory_desc_get_size, (const dnnl_memory_desc_t *description))                  \
    F(dnnl_status_t, dnnl_memory_create,                                                           \
      (dnnl_memory_t _Nullable * _Nonnull memory, const dnnl_memory_desc_t *description,           \
       dnnl_engine_t engine, void *data))                                                          \
    F(dnnl_status_t, dnnl_memory_destroy, (dnnl_memory_t memory))                                  \
    F(dnnl_status_t, dnnl_matmul_desc_init,                                                        \
      (dnnl_matmul_desc_t * description, const dnnl_memory_desc_t *source,                         \
       const dnnl_memory_desc_t *weights, const dnnl_memory_desc_t *_Nullable bias,                \
       const dnnl_memory_desc_t *destination))                                                     \
    F(dnnl_status_t, dnnl_primitive_attr_create,                                                   \
      (dnnl_primitive_attr_t _Nullable * _Nonnull attributes))                                     \
    F(dnnl_status_t, dnnl_primitive_attr_destroy, (dnnl_primitive_attr_t attributes))              \
    F(dnnl_status_t, dnnl_primitive_attr_set_scratchpad_mode,                                      \
      (dnnl_primitive_attr_t attributes, int32_t mode))                                            \
    F(dnnl_status_t, dnnl_primitive_desc_create,                                                   \
      (dnnl_primitive_desc_t _Nullable * _Nonnull description, const void *operation,              \
       dnnl_primitive_attr_t _Nullable attributes, dnnl_engine_t engine,                           \
       dnnl_primitive_desc_t _Nullable hint))                                                      \
    F(dnnl_status_t, dnnl_primitive_desc_destroy, (dnnl_primitive_desc_t description))             \
    F(const dnnl_memory_desc_t *_Nullable, dnnl_primitive_desc_query_md,                           \
      (dnnl_primitive_desc_t description, int32_t what, int32_t index))                            \
    F(dnnl_status_t, dnnl_reorder_primitive_desc_create,                                           \
      (dnnl_primitive_desc_t _Nullable * _Nonnull description, const dnnl_memory_desc_t *source,   \
       dnnl_engine_t source_engine, const dnnl_memory_desc_t *destination,                         \
       dnnl_engine_t destination_engine, dnnl_primitive_attr_t _Nullable attributes))              \
    F(dnnl_status_t, dnnl_primitive_create,                                                        \
      (dnnl_primitive_t _Nullable * _Nonnull primitive, dnnl_primitive_desc_t description))        \
    F(dnnl_status_t, dnnl_primitive_destroy, (dnnl_primitive_t primitive))                         \
    F(dnnl_status_t, dnnl_primitive_execute,                                                       \
      (dnnl_primitive_t primitive, dnnl_stream_t stream, int32_t count,                            \
       const dnnl_exec_arg_t *arguments))

struct onednn {
#define ONEDNN_FIELD(result, name, parameters) result(*_Nonnull name) parameters;
    ONEDNN_FUNCTIONS(ONEDNN_FIELD)
#undef ONEDNN_FIELD
    /// A function of the OpenMP runtime that the library is linked with; NULL if there is none.
    void (*_Nullable omp_set_num_threads)(int32_t count);
};

/// Fills `onednn` from a library opened with dlopen. Returns NULL, or the name of the first missing symbol.
const char *_Nullable onednn_load(void *library, struct onednn *onednn);

#pragma clang assume_nonnull end

#endif
