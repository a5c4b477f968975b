// The part of the CUDA driver API that we use (libcuda.so.1, CUDA 12.0 and later): types, constants, and a table of
// functions that `cuda_driver_load` fills from an open library.
// Values and signatures: https://docs.nvidia.com/cuda/cuda-driver-api
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

typedef int32_t CUresult;
typedef int32_t CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef unsigned long long CUmemGenericAllocationHandle;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_NOT_READY = 600,
};

enum {
    CU_DEVICE_ATTRIBUTE_CLOCK_RATE = 13,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE = 38,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
};

enum {
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
};

enum {
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_DISABLE_TIMING = 2,
};

// ---- copies of runs ----------------------------------------------------------------------------

enum {
    CU_MEMORYTYPE_HOST = 1,
    CU_MEMORYTYPE_UNIFIED = 4,
    CU_MEMHOSTALLOC_PORTABLE = 1,
};

typedef struct {
    size_t srcXInBytes, srcY;
    int32_t srcMemoryType;
    const void *_Nullable srcHost;
    CUdeviceptr srcDevice;
    void *_Nullable srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    int32_t dstMemoryType;
    void *_Nullable dstHost;
    CUdeviceptr dstDevice;
    void *_Nullable dstArray;
    size_t dstPitch;
    size_t WidthInBytes, Height;
} CUDA_MEMCPY2D;
_Static_assert(sizeof(CUDA_MEMCPY2D) == 128, "ABI");

typedef struct {
    unsigned char bytes[16];
} CUuuid;

// ---- virtual memory ---------------------------------------------------------------------------

enum {
    CU_MEM_ALLOCATION_TYPE_PINNED = 1,
    CU_MEM_LOCATION_TYPE_DEVICE = 1,
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 3,
};

typedef struct {
    int32_t type;
    int32_t id;
} CUmemLocation;

typedef struct {
    int32_t type;
    int32_t requestedHandleTypes;
    CUmemLocation location;
    void *_Nullable win32HandleMetaData;
    struct {
        unsigned char compressionType;
        unsigned char gpuDirectRDMACapable;
        unsigned short usage;
        unsigned char reserved[4];
    } allocFlags;
} CUmemAllocationProp;
_Static_assert(sizeof(CUmemAllocationProp) == 32, "ABI");

typedef struct {
    CUmemLocation location;
    int32_t flags;
} CUmemAccessDesc;

// ---- launches ---------------------------------------------------------------------------------

enum {
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
};

/// The value is a union of 64 bytes, of which we use the first three words (cluster x, y, z, or a flag).
typedef struct {
    int32_t id;
    char pad[4];
    uint32_t x, y, z;
    char rest[52];
} CUlaunchAttribute;
_Static_assert(sizeof(CUlaunchAttribute) == 72, "ABI");

typedef struct {
    uint32_t gridDimX, gridDimY, gridDimZ;
    uint32_t blockDimX, blockDimY, blockDimZ;
    uint32_t sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *_Nullable attrs;
    uint32_t numAttrs;
} CUlaunchConfig;
_Static_assert(sizeof(CUlaunchConfig) == 56, "ABI");

// ---- tensor maps ------------------------------------------------------------------------------

// A CUtensorMap is 128 bytes at an address that is a multiple of 64. It is passed as void * because Swift does not
// import C structs with an alignment above 16 bytes.

// ---- functions --------------------------------------------------------------------------------

// F(field, exported symbol, parameters); every function returns a CUresult.
#define CUDA_DRIVER_FUNCTIONS(F)                                                                    \
    F(cuInit, "cuInit", (unsigned flags))                                                           \
    F(cuDriverGetVersion, "cuDriverGetVersion", (int *version))                                     \
    F(cuGetErrorName, "cuGetErrorName", (CUresult error, const char *_Nullable *_Nonnull text))     \
    F(cuGetErrorString, "cuGetErrorString", (CUresult error, const char *_Nullable *_Nonnull text)) \
    F(cuDeviceGetCount, "cuDeviceGetCount", (int *count))                                           \
    F(cuDeviceGet, "cuDeviceGet", (CUdevice * device, int ordinal))                                 \
    F(cuDeviceGetName, "cuDeviceGetName", (char *name, int length, CUdevice device))                \
    F(cuDeviceGetAttribute, "cuDeviceGetAttribute", (int *value, int attribute, CUdevice device))   \
    F(cuDeviceTotalMem, "cuDeviceTotalMem_v2", (size_t * bytes, CUdevice device))                   \
    F(cuDeviceGetUuid, "cuDeviceGetUuid_v2", (CUuuid * uuid, CUdevice device))                      \
    F(cuDeviceCanAccessPeer, "cuDeviceCanAccessPeer",                                               \
      (int *can, CUdevice device, CUdevice peer))                                                   \
    F(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain",                                         \
      (CUcontext _Nullable * _Nonnull context, CUdevice device))                                    \
    F(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (CUdevice device))                 \
    F(cuCtxSetCurrent, "cuCtxSetCurrent", (CUcontext context))                                      \
    F(cuStreamCreateWithPriority, "cuStreamCreateWithPriority",                                     \
      (CUstream _Nullable * _Nonnull stream, unsigned flags, int priority))                         \
    F(cuStreamDestroy, "cuStreamDestroy_v2", (CUstream stream))                                     \
    F(cuStreamSynchronize, "cuStreamSynchronize", (CUstream stream))                                \
    F(cuStreamWaitEvent, "cuStreamWaitEvent", (CUstream stream, CUevent event, unsigned flags))     \
    F(cuEventCreate, "cuEventCreate", (CUevent _Nullable * _Nonnull event, unsigned flags))         \
    F(cuEventDestroy, "cuEventDestroy_v2", (CUevent event))                                         \
    F(cuEventRecord, "cuEventRecord", (CUevent event, CUstream stream))                             \
    F(cuEventQuery, "cuEventQuery", (CUevent event))                                                \
    F(cuEventSynchronize, "cuEventSynchronize", (CUevent event))                                    \
    F(cuEventElapsedTime, "cuEventElapsedTime",                                                     \
      (float *milliseconds, CUevent start, CUevent end))                                            \
    F(cuMemGetInfo, "cuMemGetInfo_v2", (size_t * free, size_t * total))                             \
    F(cuMemAlloc, "cuMemAlloc_v2", (CUdeviceptr * address, size_t bytes))                           \
    F(cuMemFree, "cuMemFree_v2", (CUdeviceptr address))                                             \
    F(cuMemHostAlloc, "cuMemHostAlloc",                                                             \
      (void *_Nullable *_Nonnull address, size_t bytes, unsigned flags))                            \
    F(cuMemFreeHost, "cuMemFreeHost", (void *address))                                              \
    F(cuMemAddressReserve, "cuMemAddressReserve",                                                   \
      (CUdeviceptr * address, size_t bytes, size_t alignment, CUdeviceptr wish,                     \
       unsigned long long flags))                                                                   \
    F(cuMemAddressFree, "cuMemAddressFree", (CUdeviceptr address, size_t bytes))                    \
    F(cuMemCreate, "cuMemCreate",                                                                   \
      (CUmemGenericAllocationHandle * handle, size_t bytes, const CUmemAllocationProp *property,    \
       unsigned long long flags))                                                                   \
    F(cuMemRelease, "cuMemRelease", (CUmemGenericAllocationHandle handle))                          \
    F(cuMemMap, "cuMemMap",                                                                         \
      (CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,       \
       unsigned long long flags))                                                                   \
    F(cuMemUnmap, "cuMemUnmap", (CUdeviceptr address, size_t bytes))                                \
    F(cuMemSetAccess, "cuMemSetAccess",                                                             \
      (CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count))             \
    F(cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2",                                                    \
      (CUdeviceptr destination, const void *source, size_t bytes, CUstream stream))                 \
    F(cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2",                                                    \
      (void *destination, CUdeviceptr source, size_t bytes, CUstream stream))                       \
    F(cuMemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2",                                                    \
      (CUdeviceptr destination, CUdeviceptr source, size_t bytes, CUstream stream))                 \
    F(cuMemcpy2DAsync, "cuMemcpy2DAsync_v2", (const CUDA_MEMCPY2D *copy, CUstream stream))          \
    F(cuMemsetD8Async, "cuMemsetD8Async",                                                           \
      (CUdeviceptr destination, unsigned char value, size_t count, CUstream stream))                \
    F(cuMemsetD32Async, "cuMemsetD32Async",                                                         \
      (CUdeviceptr destination, unsigned value, size_t count, CUstream stream))                     \
    F(cuModuleLoadData, "cuModuleLoadData",                                                         \
      (CUmodule _Nullable * _Nonnull module, const void *image))                                    \
    F(cuModuleUnload, "cuModuleUnload", (CUmodule module))                                          \
    F(cuModuleGetFunction, "cuModuleGetFunction",                                                   \
      (CUfunction _Nullable * _Nonnull function, CUmodule module, const char *name))                \
    F(cuFuncSetAttribute, "cuFuncSetAttribute", (CUfunction function, int attribute, int value))    \
    F(cuLaunchKernelEx, "cuLaunchKernelEx",                                                         \
      (const CUlaunchConfig *config, CUfunction function,                                           \
       void *_Nullable *_Nullable parameters, void *_Nullable *_Nullable extra))                    \
    F(cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled",                                             \
      (void *tensorMap, int dataType, uint32_t rank, void *globalAddress,                           \
       const uint64_t *globalDim, const uint64_t *globalStrides, const uint32_t *boxDim,            \
       const uint32_t *elementStrides, int interleave, int swizzle, int l2Promotion, int oobFill))

struct cuda_driver {
#define CUDA_DRIVER_FIELD(field, symbol, parameters) CUresult(*field) parameters;
    CUDA_DRIVER_FUNCTIONS(CUDA_DRIVER_FIELD)
#undef CUDA_DRIVER_FIELD
};

/// Fills `driver` from a library opened with dlopen. Returns NULL, or the name of the first missing symbol.
const char *_Nullable cuda_driver_load(void *library, struct cuda_driver *driver);

#pragma clang assume_nonnull end
#endif
