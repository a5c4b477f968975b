// The part of NCCL that we use (libnccl.so.2, 2.10 or later), as a table that `nccl_load` fills.
// Signatures: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html
#ifndef NCCL_H
#define NCCL_H

#include <stddef.h>
#include <stdint.h>

#include "cuda_driver.h"

#pragma clang assume_nonnull begin

typedef int32_t ncclResult;
typedef struct ncclComm *ncclComm;
typedef struct {
    char internal[128];
} ncclUniqueId;

enum { NCCL_UINT8 = 1, NCCL_FLOAT16 = 6, NCCL_FLOAT32 = 7, NCCL_BFLOAT16 = 9, NCCL_SUM = 0 };

// F(name, parameters); every function returns an ncclResult.
#define NCCL_FUNCTIONS(F)                                                                           \
    F(ncclGetVersion, (int *version))                                                               \
    F(ncclGetUniqueId, (ncclUniqueId *id))                                                          \
    F(ncclCommInitRank,                                                                             \
      (ncclComm _Nullable * _Nonnull comm, int count, ncclUniqueId id, int rank))                   \
    F(ncclCommAbort, (ncclComm comm))                                                               \
    F(ncclCommGetAsyncError, (ncclComm comm, ncclResult *error))                                    \
    F(ncclGroupStart, (void))                                                                       \
    F(ncclGroupEnd, (void))                                                                         \
    F(ncclReduce,                                                                                   \
      (const void *source, void *_Nullable target, size_t count, int type, int operation, int root, \
       ncclComm comm, CUstream stream))                                                             \
    F(ncclBroadcast,                                                                                \
      (const void *source, void *target, size_t count, int type, int root, ncclComm comm,           \
       CUstream stream))                                                                            \
    F(ncclSend,                                                                                     \
      (const void *source, size_t count, int type, int peer, ncclComm comm, CUstream stream))       \
    F(ncclRecv, (void *target, size_t count, int type, int peer, ncclComm comm, CUstream stream))

struct nccl {
    const char *_Nonnull (*_Nonnull ncclGetErrorString)(ncclResult result);
#define NCCL_FIELD(name, parameters) ncclResult(*name) parameters;
    NCCL_FUNCTIONS(NCCL_FIELD)
#undef NCCL_FIELD
};

/// Fills `nccl` from a library opened with dlopen. Returns NULL, or the name of the first missing symbol.
const char *_Nullable nccl_load(void *library, struct nccl *nccl);

#pragma clang assume_nonnull end
#endif
