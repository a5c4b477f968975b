// Fills the tables of functions from open libraries.
#include "CDrivers.h"

#include <dlfcn.h>

// The result of dlsym is assigned through void **, because ISO C cannot convert data pointers to function pointers.
#define LOAD(table, field, symbol)                                                                  \
    do {                                                                                            \
        void *address = dlsym(library, symbol);                                                     \
        if (!address) return symbol;                                                                \
        *(void **)&(table)->field = address;                                                        \
    } while (0);

const char *cuda_driver_load(void *library, struct cuda_driver *driver) {
#define LOAD_DRIVER(field, symbol, parameters) LOAD(driver, field, symbol)
    CUDA_DRIVER_FUNCTIONS(LOAD_DRIVER)
    return NULL;
}

const char *nvrtc_load(void *library, struct nvrtc *nvrtc) {
    LOAD(nvrtc, nvrtcGetErrorString, "nvrtcGetErrorString")
#define LOAD_NVRTC(field, parameters) LOAD(nvrtc, field, #field)
    NVRTC_FUNCTIONS(LOAD_NVRTC)
    return NULL;
}

const char *nccl_load(void *library, struct nccl *nccl) {
    LOAD(nccl, ncclGetErrorString, "ncclGetErrorString")
#define LOAD_NCCL(field, parameters) LOAD(nccl, field, #field)
    NCCL_FUNCTIONS(LOAD_NCCL)
    return NULL;
}
