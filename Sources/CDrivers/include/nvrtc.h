// The part of NVRTC that we use (libnvrtc.so.12 and .13), as a table that `nvrtc_load` fills.
// Signatures: https://docs.nvidia.com/cuda/nvrtc
#ifndef NVRTC_H
#define NVRTC_H

#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

typedef int32_t nvrtcResult;
typedef struct _nvrtcProgram *nvrtcProgram;

enum { NVRTC_SUCCESS = 0, NVRTC_ERROR_COMPILATION = 6 };

// F(name, parameters); every function returns an nvrtcResult.
#define NVRTC_FUNCTIONS(F)                                                                          \
    F(nvrtcVersion, (int *major, int *minor))                                                       \
    F(nvrtcCreateProgram,                                                                           \
      (nvrtcProgram _Nullable * _Nonnull program, const char *source, const char *name,             \
       int headerCount, const char *_Nullable const *_Nullable headers,                             \
       const char *_Nullable const *_Nullable includeNames))                                        \
    F(nvrtcDestroyProgram, (nvrtcProgram _Nullable * _Nonnull program))                             \
    F(nvrtcAddNameExpression, (nvrtcProgram program, const char *expression))                       \
    F(nvrtcCompileProgram,                                                                          \
      (nvrtcProgram program, int optionCount, const char *_Nullable const *_Nullable options))      \
    F(nvrtcGetLoweredName,                                                                          \
      (nvrtcProgram program, const char *expression, const char *_Nullable *_Nonnull lowered))      \
    F(nvrtcGetProgramLogSize, (nvrtcProgram program, size_t *bytes))                                \
    F(nvrtcGetProgramLog, (nvrtcProgram program, char *log))                                        \
    F(nvrtcGetCUBINSize, (nvrtcProgram program, size_t *bytes))                                     \
    F(nvrtcGetCUBIN, (nvrtcProgram program, char *cubin))

struct nvrtc {
    const char *_Nonnull (*_Nonnull nvrtcGetErrorString)(nvrtcResult result);
#define NVRTC_FIELD(name, parameters) nvrtcResult(*name) parameters;
    NVRTC_FUNCTIONS(NVRTC_FIELD)
#undef NVRTC_FIELD
};

/// Fills `nvrtc` from a library opened with dlopen. Returns NULL, or the name of the first missing symbol.
const char *_Nullable nvrtc_load(void *library, struct nvrtc *nvrtc);

#pragma clang assume_nonnull end
#endif
