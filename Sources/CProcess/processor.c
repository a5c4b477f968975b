// The oldest processor and the oldest C library that the program runs on.
#include "CProcess.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

static void refuse(const char *missing) {
    static const char before[] = "Error: this processor lacks ";
    static const char after[] =
        "; expected x86-64 with AVX2, FMA, BMI and F16C (Intel since Haswell 2013, AMD since Excavator 2015)\n";
    ssize_t ignored = write(STDERR_FILENO, before, sizeof before - 1);
    ignored = write(STDERR_FILENO, missing, strlen(missing));
    ignored = write(STDERR_FILENO, after, sizeof after - 1);
    (void)ignored;
    _exit(1);
}

void require_processor(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) refuse("AVX2");
    if (!__builtin_cpu_supports("fma")) refuse("FMA");
    if (!__builtin_cpu_supports("bmi")) refuse("BMI1");
    if (!__builtin_cpu_supports("bmi2")) refuse("BMI2");
    if (!__builtin_cpu_supports("f16c")) refuse("F16C");
#endif
}

// Swift's runtime names hypotf, whose newest version is that of glibc 2.35 and would be the only symbol newer than 2.34:
// with this one the program also starts on RHEL 9 and Amazon Linux 2023. The sum of squares is exact enough in double and
// cannot overflow there.
float hypotf(float x, float y) {
    if (isinf(x) || isinf(y)) return INFINITY;
    return (float)sqrt((double)x * x + (double)y * y);
}
