// What we use of cuBLASLt (libcublasLt.so.12 and .13), as a table that `cublaslt_load` fills.
// Values and signatures: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
#ifndef CUBLASLT_H
#define CUBLASLT_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

typedef int32_t cublasStatus_t;
typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct cublasLtMatmulDescOpaque_t *cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayoutOpaque_t *cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreferenceOpaque_t *cublasLtMatmulPreference_t;
struct CUstream_st;

enum { CUBLAS_STATUS_SUCCESS = 0 };

/// cudaDataType_t
enum {
    CUDA_R_32F = 0,
    CUDA_R_16F = 2,
    CUDA_R_8I = 3,
    CUDA_R_32I = 10,
    CUDA_R_16BF = 14,
    CUDA_R_8F_E4M3 = 28,
};
/// cublasComputeType_t
enum { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32I = 72, CUBLAS_COMPUTE_32F_FAST_TF32 = 77 };
/// cublasOperation_t
enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
/// cublasLtMatmulDescAttributes_t
enum {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_A_SCALE_POINTER = 17,
    CUBLASLT_MATMUL_DESC_B_SCALE_POINTER = 18,
    CUBLASLT_MATMUL_DESC_FAST_ACCUM = 25,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26,
};
/// cublasLtEpilogue_t; GELU is the tanh approximation.
enum {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_GELU = 32,
    CUBLASLT_EPILOGUE_GELU_BIAS = 36,
};
/// cublasLtMatmulPreferenceAttributes_t
enum { CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1 };

typedef struct {
    uint64_t data[8];
} cublasLtMatmulAlgo_t;

typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;
_Static_assert(sizeof(cublasLtMatmulHeuristicResult_t) == 96, "ABI");

// F(name, parameters); every function returns a cublasStatus_t.
#define CUBLASLT_FUNCTIONS(F)                                                                       \
    F(cublasLtCreate, (cublasLtHandle_t _Nullable * _Nonnull handle))                               \
    F(cublasLtDestroy, (cublasLtHandle_t handle))                                                   \
    F(cublasLtMatmulDescCreate,                                                                     \
      (cublasLtMatmulDesc_t _Nullable * _Nonnull description, int32_t computeType,                  \
       int32_t scaleType))                                                                          \
    F(cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t description))                                \
    F(cublasLtMatmulDescSetAttribute,                                                               \
      (cublasLtMatmulDesc_t description, int32_t attribute, const void *value, size_t bytes))       \
    F(cublasLtMatrixLayoutCreate,                                                                   \
      (cublasLtMatrixLayout_t _Nullable * _Nonnull layout, int32_t type, uint64_t rows,             \
       uint64_t columns, int64_t leading))                                                          \
    F(cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t layout))                                 \
    F(cublasLtMatmulPreferenceCreate,                                                               \
      (cublasLtMatmulPreference_t _Nullable * _Nonnull preference))                                 \
    F(cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference))                     \
    F(cublasLtMatmulPreferenceSetAttribute,                                                         \
      (cublasLtMatmulPreference_t preference, int32_t attribute, const void *value, size_t bytes))  \
    F(cublasLtMatmulAlgoGetHeuristic,                                                               \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,         \
       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,                \
       cublasLtMatmulPreference_t preference, int requested,                                        \
       cublasLtMatmulHeuristicResult_t *results, int *returned))                                    \
    F(cublasLtMatmul,                                                                               \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha,                \
       const void *a, cublasLtMatrixLayout_t aLayout, const void *b,                                \
       cublasLtMatrixLayout_t bLayout, const void *beta, const void *c,                             \
       cublasLtMatrixLayout_t cLayout, void *d, cublasLtMatrixLayout_t dLayout,                     \
       const cublasLtMatmulAlgo_t *algorithm, void *_Nullable workspace, size_t workspaceBytes,     \
       struct CUstream_st *_Nullable stream))

struct cublaslt {
    size_t (*cublasLtGetVersion)(void);
    const char *_Nonnull (*_Nonnull cublasLtGetStatusString)(cublasStatus_t status);
#define CUBLASLT_FIELD(name, parameters) cublasStatus_t(*name) parameters;
    CUBLASLT_FUNCTIONS(CUBLASLT_FIELD)
#undef CUBLASLT_FIELD
};

/// Fills `cublaslt` from a library opened with dlopen. NULL, or the first missing symbol's name.
const char *_Nullable cublaslt_load(void *library, struct cublaslt *cublaslt);

#pragma clang assume_nonnull end
#endif
