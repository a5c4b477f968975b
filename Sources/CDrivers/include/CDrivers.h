// Umbrella: our own declarations of the libraries that are opened at run time, and the CPU's kernels.
#ifndef CDRIVERS_H
#define CDRIVERS_H

#include "cpu_kernels.h"
#include "cuda_driver.h"
#include "heap.h"
#include "nvrtc.h"
#include "onednn.h"

#endif
