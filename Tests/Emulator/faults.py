"""The emulated GPU sees what a card would not forgive: small kernels with one fault each, and one without.

    python3 Tests/Emulator/faults.py FOLDER-OF-THE-LIBRARIES"""
import ctypes
import os
import subprocess
import sys

HEAD = """
using u8 = unsigned char; using u32 = unsigned;
__device__ inline u32 address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
"""
# name: (kernel, threads, bytes of shared memory, what is told; None where the result is out[i] = 2 i)
KERNELS = {
    "sound": ("""
extern "C" __global__ void kernel(int* out) {
    extern __shared__ __align__(16) u8 shared[];
    int* numbers = reinterpret_cast<int*>(shared);
    numbers[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = numbers[threadIdx.x ^ 1] + (threadIdx.x & 1 ? 1 : -1) + __shfl_sync(~0u, int(threadIdx.x), threadIdx.x);
}""", 128, 512, None),
    "a barrier that is missing": ("""
extern "C" __global__ void kernel(int* out) {
    extern __shared__ __align__(16) u8 shared[];
    int* numbers = reinterpret_cast<int*>(shared);
    numbers[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = 2 * numbers[127 - threadIdx.x];
}""", 128, 512, "wrong"),
    "a copy that is not waited for": ("""
extern "C" __global__ void kernel(int* out) {
    extern __shared__ __align__(16) u8 shared[];
    int* numbers = reinterpret_cast<int*>(shared);
    if (threadIdx.x < 32) {
        for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = 2 * (4 * threadIdx.x + i);
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address(numbers + 4 * threadIdx.x)), "l"(out + 4 * threadIdx.x), "r"(16));
        asm volatile("cp.async.commit_group;");
        for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = numbers[4 * threadIdx.x + i];
    }
}""", 128, 512, "wrong"),
    "shared memory that nobody has": ("""
extern "C" __global__ void kernel(int* out) {
    extern __shared__ __align__(16) u8 shared[];
    u32 r[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address(shared) + 16 * threadIdx.x));
    out[threadIdx.x] = r[0];
}""", 32, 128, "16 bytes at shared address 128 of 128"),
    "half a warp": ("""
extern "C" __global__ void kernel(int* out) {
    if (threadIdx.x % 2) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
    else __syncwarp();
}""", 32, 0, "threads meet at syncwarp and shfl"),
    "half a warp, and the other half elsewhere": ("""
extern "C" __global__ void kernel(int* out) {
    if (threadIdx.x % 2) out[threadIdx.x] = __shfl_sync(~0u, int(threadIdx.x), 1) * 2;
    else out[threadIdx.x] = __shfl_sync(~0u, int(threadIdx.x), 0) + 5;
}""", 32, 0, "threads meet at two places of shfl"),
    "a barrier for too many": ("""
extern "C" __global__ void kernel(int* out) {
    if (threadIdx.x < 64) asm volatile("bar.sync %0, %1;" ::"r"(1), "r"(128));
    else asm volatile("bar.sync %0, %1;" ::"r"(2), "r"(128));
    out[threadIdx.x] = 0;
}""", 128, 0, "128 threads wait for ever: 0 1 2"),
    "an arrival too many": ("""
extern "C" __global__ void kernel(int* out) {
    extern __shared__ __align__(16) u8 shared[];
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(shared)), "r"(0));
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(shared)));
    }
    out[threadIdx.x] = 0;
}""", 32, 64, "an arrival too many at mbarrier 0"),
}


class Config(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")] + [
        ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint)]


def launch(folder, name):
    source, threads, shared, _ = KERNELS[name]
    cuda = ctypes.CDLL(os.path.join(folder, "libcuda.so.1"))
    nvrtc = ctypes.CDLL(os.path.join(folder, "libnvrtc.so.13"))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    program, lowered, size = pointer(), text(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), (HEAD + source).encode(), b"k", 0, None, None) == 0
    assert nvrtc.nvrtcAddNameExpression(program, b"kernel") == 0
    options = (text * 1)(b"--gpu-architecture=sm_90a")
    if nvrtc.nvrtcCompileProgram(program, 1, options) != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise SystemExit(log.value.decode())
    nvrtc.nvrtcGetLoweredName(program, b"kernel", ctypes.byref(lowered))
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    code = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, code)
    module, function, memory = pointer(), pointer(), ctypes.c_uint64()
    assert cuda.cuModuleLoadData(ctypes.byref(module), code) == 0
    assert cuda.cuModuleGetFunction(ctypes.byref(function), module, lowered) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(4 * threads)) == 0
    arguments = (pointer * 1)(ctypes.cast(ctypes.pointer(memory), pointer))
    config = Config(1, 1, 1, threads, 1, 1, shared, None, None, 0)
    assert cuda.cuLaunchKernelEx(ctypes.byref(config), function, arguments, None) == 0
    out = (ctypes.c_int * threads).from_address(memory.value)
    print("right" if list(out) == [2 * i for i in range(threads)] else "wrong")


def main():
    if len(sys.argv) == 3:
        return launch(sys.argv[1], sys.argv[2])
    failures = 0
    for name, (_, _, _, expected) in KERNELS.items():
        run = subprocess.run([sys.executable, __file__, sys.argv[1], name], capture_output=True, text=True)
        found = (run.stdout + run.stderr).strip()
        is_right = found == "right" if expected is None else expected in found
        failures += not is_right
        print(f"{'ok  ' if is_right else 'FAIL'} {name}: {found.splitlines()[-1] if found else 'nothing'}")
    sys.exit(failures != 0)


main()
