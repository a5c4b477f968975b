// Stands in for the CUDA driver: one GPU whose memory is this machine's, and whose streams have finished whatever they
// were given. EMULATOR_ARCHITECTURE is its compute capability (90), EMULATOR_MEMORY its memory in MiB (4096).
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "machine.h"

#define _Nullable
#define _Nonnull
#include "../../Sources/CDrivers/include/cuda_driver.h"

namespace {

int number(const char* name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
int architecture() { return number("EMULATOR_ARCHITECTURE", 90); }
size_t total() { return size_t(number("EMULATOR_MEMORY", 4096)) << 20; }

std::mutex lock;
size_t used = 0;
std::map<CUdeviceptr, size_t> allocations;
std::map<CUmemGenericAllocationHandle, size_t> handles;

/// Shared memory of one block and of a multiprocessor.
std::pair<int, int> shared_memory() {
    switch (architecture()) {
        case 80: return {166912, 167936};
        case 90: return {232448, 233472};
        default: return {101376, 102400};
    }
}

struct Event {
    std::chrono::steady_clock::time_point time;
};
/// Memory that nobody has written holds no numbers.
void spoil(void* bytes, size_t count) { memset(bytes, 0xff, count); }

}  // namespace

struct CUmod_st {
    void* library;
};
struct CUfunc_st {
    void (*call)(void**);
    std::string name;
    uint32_t shared = 48 * 1024;
};

extern "C" {

CUresult cuInit(unsigned) { return 0; }
CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
CUresult cuGetErrorName(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "invalid argument";
    return 0;
}
CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return 0;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = ordinal;
    return 0;
}
CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    snprintf(name, size_t(length), "emulated GPU sm_%d", architecture());
    return 0;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1'000'000; break;
        // Few, so that kernels whose blocks take turns do.
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 4; break;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 32 << 20; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = architecture() / 10; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = architecture() % 10; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = shared_memory().second; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = shared_memory().first; break;
        case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: *value = 1; break;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
    return 0;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    *bytes = total();
    return 0;
}
CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice) {
    memset(uuid, 7, sizeof *uuid);
    return 0;
}
CUresult cuDeviceCanAccessPeer(int* can, CUdevice, CUdevice) {
    *can = 0;
    return 0;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
    static int only;
    *context = reinterpret_cast<CUcontext>(&only);
    return 0;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return 0; }
CUresult cuCtxSetCurrent(CUcontext) { return 0; }

CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned, int) {
    *stream = reinterpret_cast<CUstream>(new char);
    return 0;
}
CUresult cuStreamDestroy_v2(CUstream stream) {
    delete reinterpret_cast<char*>(stream);
    return 0;
}
CUresult cuStreamSynchronize(CUstream) { return 0; }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return 0; }
CUresult cuEventCreate(CUevent* event, unsigned) {
    *event = reinterpret_cast<CUevent>(new Event{std::chrono::steady_clock::now()});
    return 0;
}
CUresult cuEventDestroy_v2(CUevent event) {
    delete reinterpret_cast<Event*>(event);
    return 0;
}
CUresult cuEventRecord(CUevent event, CUstream) {
    reinterpret_cast<Event*>(event)->time = std::chrono::steady_clock::now();
    return 0;
}
CUresult cuEventQuery(CUevent) { return 0; }
CUresult cuEventSynchronize(CUevent) { return 0; }
CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    const auto time = reinterpret_cast<Event*>(end)->time - reinterpret_cast<Event*>(start)->time;
    *milliseconds = std::chrono::duration<float, std::milli>(time).count();
    return 0;
}

// ---- memory -----------------------------------------------------------------------------------

CUresult cuMemGetInfo_v2(size_t* free, size_t* all) {
    std::lock_guard guard(lock);
    *all = total();
    *free = total() - used;
    return 0;
}
CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    std::lock_guard guard(lock);
    if (bytes == 0 || used + bytes > total()) return bytes ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    void* memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!memory) return CUDA_ERROR_OUT_OF_MEMORY;
    spoil(memory, bytes);
    used += bytes;
    *address = reinterpret_cast<CUdeviceptr>(memory);
    allocations[*address] = bytes;
    return 0;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    std::lock_guard guard(lock);
    if (!allocations.contains(address)) return CUDA_ERROR_INVALID_VALUE;
    used -= allocations[address];
    allocations.erase(address);
    free(reinterpret_cast<void*>(address));
    return 0;
}
CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *address ? 0 : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void* address) {
    free(address);
    return 0;
}
CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = reinterpret_cast<CUdeviceptr>(memory);
    return 0;
}
CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    munmap(reinterpret_cast<void*>(address), bytes);
    return 0;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                     unsigned long long) {
    std::lock_guard guard(lock);
    if (used + bytes > total()) return CUDA_ERROR_OUT_OF_MEMORY;
    const int file = memfd_create("gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, off_t(bytes)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    used += bytes;
    *handle = CUmemGenericAllocationHandle(file);
    handles[*handle] = bytes;
    return 0;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    std::lock_guard guard(lock);
    used -= handles[handle];
    handles.erase(handle);
    close(int(handle));
    return 0;
}
CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
    void* at = reinterpret_cast<void*>(address);
    void* memory = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, int(handle), off_t(offset));
    if (memory == MAP_FAILED) return CUDA_ERROR_INVALID_VALUE;
    spoil(memory, bytes);
    return 0;
}
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    mmap(reinterpret_cast<void*>(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    return 0;
}
CUresult cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) { return 0; }

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
    memcpy(reinterpret_cast<void*>(to), from, bytes);
    return 0;
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream) {
    memcpy(to, reinterpret_cast<void*>(from), bytes);
    return 0;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return 0;
}
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* copy, CUstream) {
    const bool from_host = copy->srcMemoryType == CU_MEMORYTYPE_HOST, to_host = copy->dstMemoryType == CU_MEMORYTYPE_HOST;
    const char* from = from_host ? static_cast<const char*>(copy->srcHost) : reinterpret_cast<const char*>(copy->srcDevice);
    char* to = to_host ? static_cast<char*>(copy->dstHost) : reinterpret_cast<char*>(copy->dstDevice);
    from += copy->srcY * copy->srcPitch + copy->srcXInBytes;
    to += copy->dstY * copy->dstPitch + copy->dstXInBytes;
    for (size_t row = 0; row < copy->Height; row++) {
        memcpy(to + row * copy->dstPitch, from + row * copy->srcPitch, copy->WidthInBytes);
    }
    return 0;
}
CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t count, CUstream) {
    memset(reinterpret_cast<void*>(address), value, count);
    return 0;
}
CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, CUstream) {
    for (size_t i = 0; i < count; i++) reinterpret_cast<unsigned*>(address)[i] = value;
    return 0;
}

// ---- code -------------------------------------------------------------------------------------

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    const auto& header = *static_cast<const Elf64_Ehdr*>(image);
    const size_t bytes = header.e_shoff + size_t(header.e_shentsize) * header.e_shnum;
    const int file = memfd_create("kernels", MFD_CLOEXEC);
    if (file < 0 || write(file, image, bytes) != ssize_t(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
    // The descriptor stays: the loader takes files of one name and number for one library.
    if (!library) {
        fprintf(stderr, "emulated GPU: %s\n", dlerror());
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    *module = new CUmod_st{library};
    return 0;
}
CUresult cuModuleUnload(CUmodule module) {
    delete module;
    return 0;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    void* symbol = dlsym(module->library, name);
    if (!symbol) return CUDA_ERROR_INVALID_VALUE;
    const auto* title = static_cast<const char* const*>(dlsym(module->library, (std::string(name) + "_name").c_str()));
    *function = new CUfunc_st{reinterpret_cast<void (*)(void**)>(symbol), title ? *title : name};
    return 0;
}
CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > shared_memory().first) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    function->shared = uint32_t(value);
    return 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void**) {
    const uint64_t threads = uint64_t(config->blockDimX) * config->blockDimY * config->blockDimZ;
    if (config->sharedMemBytes > function->shared || threads > 1024 || config->blockDimZ > 64 ||
        config->gridDimX > 0x7fffffff || config->gridDimY > 65535 || config->gridDimZ > 65535) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    machine::Launch launch{};
    launch.name = function->name.c_str();
    launch.kernel = function->call;
    launch.arguments = parameters;
    launch.grid = {config->gridDimX, config->gridDimY, config->gridDimZ};
    launch.block = {config->blockDimX, config->blockDimY, config->blockDimZ};
    launch.shared = config->sharedMemBytes;
    for (uint32_t i = 0; i < config->numAttrs; i++) {
        const CUlaunchAttribute& one = config->attrs[i];
        if (one.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) launch.cluster = {one.x, one.y, one.z};
    }
    machine::run(launch);
    return 0;
}
CUresult cuTensorMapEncodeTiled(void* target, int type, uint32_t rank, void* base, const uint64_t* extents,
                                const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int, int swizzle,
                                int, int) {
    machine::TensorMap map{};
    map.base = static_cast<uint8_t*>(base);
    map.rank = uint8_t(rank);
    map.swizzle = uint8_t(swizzle);
    // uint8; uint16, float16, bfloat16; the others that are used have four bytes.
    map.element = type == 0 ? 1 : type == 1 || type == 6 || type == 9 ? 2 : 4;
    if (reinterpret_cast<uintptr_t>(base) % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
    for (uint32_t i = 0; i < rank; i++) {
        if (extents[i] == 0 || box[i] == 0 || box[i] > 256 || steps[i] == 0 || steps[i] > 8 ||
            (i > 0 && strides[i - 1] % 16 != 0)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        map.extents[i] = uint32_t(extents[i]);
        map.box[i] = uint16_t(box[i]);
        map.steps[i] = uint8_t(steps[i]);
        if (i > 0) map.strides[i - 1] = strides[i - 1];
    }
    const uint32_t row = box[0] * map.element, widest[] = {~0u, 32, 64, 128};
    if (row % 16 != 0 || row > widest[swizzle]) return CUDA_ERROR_INVALID_VALUE;
    memcpy(target, &map, sizeof map);
    return 0;
}

}  // extern "C"
