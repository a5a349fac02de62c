/* isa_avx2.c - the kernels for x86 with AVX2, FMA and F16C. */
#include "cpu.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include "../../quant/quant.h"
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FB_SIMD_AVX2
#include "kernels.h"

FB_KERNELS(avx2)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
