/* isa_neon.c - the kernels for 64-bit ARM, which always has NEON. */
#include "cpu.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#define FB_SIMD_NEON
#include "kernels.h"

FB_KERNELS(neon)
#endif
