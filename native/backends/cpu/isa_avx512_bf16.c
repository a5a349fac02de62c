/* isa_avx512_bf16.c - the kernels for x86 with AVX-512 and its BF16 products. */
#include "cpu.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include "../../quant/quant.h"
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif
#define FB_SIMD_AVX512
#define FB_SIMD_DP
#include "kernels.h"

FB_KERNELS(avx512_bf16)

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
