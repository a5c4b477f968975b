// Stands in for NVRTC: compiles kernels for the emulated GPU with the compiler of this machine.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

struct Program {
    std::string source, log, code;
    std::vector<std::pair<std::string, std::string>> headers;
    std::vector<std::string> kernels, lowered;
};

std::string read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}
void write(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}
std::filesystem::path own_folder() {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(own_folder), &info);
    return std::filesystem::absolute(info.dli_fname).parent_path();
}

/// The macros that NVRTC defines for `sm_90a`.
std::string architecture(const std::string& name) {
    std::string number = name.substr(3), flags;
    const bool has_all = number.back() == 'a';
    if (has_all) number.pop_back();
    flags = " -D__CUDA_ARCH__=" + number + "0";
    if (has_all) flags += " -D__CUDA_ARCH_FEAT_SM" + number + "_ALL";
    return flags;
}

}  // namespace

extern "C" {

const char* nvrtcGetErrorString(int result) { return result == 0 ? "no error" : "the host's compiler failed"; }
int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return 0;
}
int nvrtcCreateProgram(Program** program, const char* source, const char*, int count, const char* const* headers,
                       const char* const* names) {
    *program = new Program{source, {}, {}, {}, {}, {}};
    for (int i = 0; i < count; i++) (*program)->headers.emplace_back(names[i], headers[i]);
    return 0;
}
int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return 0;
}
int nvrtcAddNameExpression(Program* program, const char* expression) {
    program->lowered.push_back("kernel_" + std::to_string(program->kernels.size()));
    program->kernels.push_back(expression);
    return 0;
}
int nvrtcGetLoweredName(Program* program, const char* expression, const char** lowered) {
    for (size_t i = 0; i < program->kernels.size(); i++) {
        if (program->kernels[i] != expression) continue;
        *lowered = program->lowered[i].c_str();
        return 0;
    }
    return 7;
}
int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    std::string flags;
    for (int i = 0; i < count; i++) {
        const std::string option = options[i], target = "--gpu-architecture=";
        if (option.starts_with(target)) flags += architecture(option.substr(target.size()));
        if (option.starts_with("-D")) flags += " '" + option + "'";
    }
    std::string pattern = (std::filesystem::temp_directory_path() / "kernel-XXXXXX").string();
    if (!mkdtemp(pattern.data())) return 1;
    const std::filesystem::path folder = pattern;
    for (const auto& [name, text] : program->headers) write(folder / name, text);
    write(folder / "unit.cu", program->source);
    std::string names;
    for (const std::string& name : program->kernels) names += name + "\n";
    write(folder / "names", names);
    const std::string compiler = getenv("CXX") ? getenv("CXX") : "clang++", sources = EMULATOR_SOURCES;
    const std::string command =
        "cd '" + folder.string() + "' && { " + compiler + " -E -x c++ -std=c++20 -nostdinc" + flags + " unit.cu"
        + " | python3 '" + sources + "/translate.py' names > unit.cpp && " + compiler
        + " -std=c++20 -O1 -march=x86-64-v3 -fno-strict-aliasing -fPIC -shared -w -I'" + sources + "'" + flags
        + " unit.cpp -o unit.so '" + (own_folder() / "libcuda.so.1").string() + "'; } 2> log";
    const int status = system(command.c_str());
    program->log = read(folder / "log");
    program->code = status == 0 ? read(folder / "unit.so") : "";
    if (!getenv("EMULATOR_KEEP")) std::filesystem::remove_all(folder);
    return status == 0 ? 0 : 6;
}
int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = program->log.size() + 1;
    return 0;
}
int nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return 0;
}
int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    *bytes = program->code.size();
    return 0;
}
int nvrtcGetCUBIN(Program* program, char* cubin) {
    memcpy(cubin, program->code.data(), program->code.size());
    return 0;
}

}  // extern "C"
