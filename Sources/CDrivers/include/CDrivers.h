// Umbrella header: our own declarations of libraries that are opened at run time, and the kernels for the CPU.
#ifndef CDRIVERS_H
#define CDRIVERS_H

#include "cpu_kernels.h"
#include "cuda_driver.h"
#include "heap.h"
#include "nccl.h"
#include "nvrtc.h"

#endif
