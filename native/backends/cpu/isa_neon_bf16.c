/* isa_neon_bf16.c - the kernels for 64-bit ARM with BF16 products (Armv8.6, and 8.2 where the bit says so). */
#include "cpu.h"
#if defined(FB_HAS_NEON_BF16)
#include <arm_neon.h>
#include <math.h>
#include <string.h>
#include "../../quant/quant.h"
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+bf16")
#endif
#define FB_SIMD_NEON
#define FB_SIMD_DP
#include "kernels.h"

FB_KERNELS(neon_bf16)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
