/* simd.h - the thin layer that kernels are written over: VW floats a vector, in GNU vector types, so + - * / & | << >>
 * and comparisons are the language's own. What an instruction set must add is one section of a few functions; the file
 * that includes this has set one of FB_SIMD_AVX512, _AVX2, _NEON, or none for plain vectors of four.
 * MR x (NV*VW) is the register tile of products. */
#ifndef FB_SIMD_H
#define FB_SIMD_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "../../graph/backend.h"
#include "../../quant/quant.h"

#if defined(FB_SIMD_AVX512)
enum { VW = 16, MR = 14, NV = 2 };
#define VB 64
#elif defined(FB_SIMD_AVX2)
enum { VW = 8, MR = 6, NV = 2 };
#define VB 32
#elif defined(FB_SIMD_NEON)
enum { VW = 4, MR = 12, NV = 2 };
#define VB 16
#else
enum { VW = 4, MR = 6, NV = 2 };
#define VB 16
#endif
enum { NR = NV * VW };

typedef float vf __attribute__((vector_size(VB)));
typedef int32_t vi __attribute__((vector_size(VB)));
typedef uint32_t vu __attribute__((vector_size(VB)));
typedef uint16_t vh __attribute__((vector_size(VB / 2)));
typedef int8_t vb __attribute__((vector_size(VB / 4)));
typedef uint8_t vub __attribute__((vector_size(VB / 4)));

static inline vf v_load(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
static inline void v_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
static inline vf v_float(vi x) { return __builtin_convertvector(x, vf); }
static inline vi v_iset(int32_t x) { return x - (vi){0}; }
static inline vf v_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

#if defined(FB_SIMD_AVX512)
static inline vf v_set(float x) { return (vf)_mm512_set1_ps(x); }
static inline vf v_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static inline vf v_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf v_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vf v_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
static inline float v_sum(vf a) { return _mm512_reduce_add_ps((__m512)a); }
static inline vf v_half(const void *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p)); }
static inline vi v_i8(const void *p) { return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(p)); }
static inline vi v_u8(const void *p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(p)); }
static inline vi v_u16(const void *p) { return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)); }
static inline void v_store_u16(void *p, vi x) { _mm256_storeu_si256(p, _mm512_cvtepi32_epi16((__m512i)x)); }
static inline float half(uint16_t h) { return _cvtsh_ss(h); }
static inline vi v_lookup(const int8_t table[16], vi i) {
    return (vi)_mm512_permutexvar_epi32((__m512i)i, (__m512i)v_i8(table));
}

static inline void v_transpose(vf r[16]) {
    __m512 t[16], s[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
            s[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            s[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; j++) {
        __m512 a = _mm512_shuffle_f32x4(s[j], s[4 + j], 0x88), b = _mm512_shuffle_f32x4(s[8 + j], s[12 + j], 0x88);
        __m512 c = _mm512_shuffle_f32x4(s[j], s[4 + j], 0xdd), d = _mm512_shuffle_f32x4(s[8 + j], s[12 + j], 0xdd);
        r[j] = (vf)_mm512_shuffle_f32x4(a, b, 0x88);
        r[8 + j] = (vf)_mm512_shuffle_f32x4(a, b, 0xdd);
        r[4 + j] = (vf)_mm512_shuffle_f32x4(c, d, 0x88);
        r[12 + j] = (vf)_mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

#elif defined(FB_SIMD_AVX2)
static inline vf v_set(float x) { return (vf)_mm256_set1_ps(x); }
static inline vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static inline vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vf v_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
static inline float v_sum(vf a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
static inline vf v_half(const void *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline vi v_i8(const void *p) { return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)); }
static inline vi v_u8(const void *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(p)); }
static inline vi v_u16(const void *p) { return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128(p)); }
static inline void v_store_u16(void *p, vi x) {
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)x, (__m256i)x), 0x08);
    _mm_storeu_si128(p, _mm256_castsi256_si128(packed));
}
static inline float half(uint16_t h) { return _cvtsh_ss(h); }
static inline vi v_lookup(const int8_t table[16], vi i) {
    __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    return (vi)_mm256_shuffle_epi8(bytes, (__m256i)i) << 24 >> 24;
}

static inline void v_transpose(vf r[8]) {
    __m256 t[8], s[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            s[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0x44);
            s[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + 2 + j], 0xee);
        }
    for (int j = 0; j < 4; j++) {
        r[j] = (vf)_mm256_permute2f128_ps(s[j], s[4 + j], 0x20);
        r[4 + j] = (vf)_mm256_permute2f128_ps(s[j], s[4 + j], 0x31);
    }
}

#else
static inline vi v_i8(const void *p) { vb x; memcpy(&x, p, sizeof x); return __builtin_convertvector(x, vi); }
static inline vi v_u8(const void *p) { vub x; memcpy(&x, p, sizeof x); return __builtin_convertvector(x, vi); }
static inline vi v_u16(const void *p) { vh x; memcpy(&x, p, sizeof x); return __builtin_convertvector(x, vi); }
static inline void v_store_u16(void *p, vi x) { vh h = __builtin_convertvector(x, vh); memcpy(p, &h, sizeof h); }
static inline float v_sum(vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
static inline void v_transpose(vf r[4]) {
    vf a = r[0], b = r[1], c = r[2], d = r[3];
    for (int i = 0; i < 4; i++) r[i] = (vf){a[i], b[i], c[i], d[i]};
}
#if defined(FB_SIMD_NEON)
static inline vf v_set(float x) { return (vf)vdupq_n_f32(x); }
static inline vf v_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
static inline vf v_max(vf a, vf b) { return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
static inline vf v_min(vf a, vf b) { return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b); }
static inline vf v_sqrt(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
static inline vf v_half(const void *p) {
    uint16x4_t h;
    memcpy(&h, p, sizeof h);
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(h));
}
static inline float half(uint16_t h) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0); }
static inline vi v_lookup(const int8_t table[16], vi i) {
    return (vi)vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32((int32x4_t)i))) << 24 >> 24;
}
#else
static inline vf v_set(float x) { return (vf){x, x, x, x}; }
static inline vf v_fma(vf a, vf b, vf c) { return a * b + c; }
static inline vf v_max(vf a, vf b) { return v_select(a > b, a, b); }
static inline vf v_min(vf a, vf b) { return v_select(a < b, a, b); }
static inline vf v_sqrt(vf a) { return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
static inline float half(uint16_t h) { return fb_half_to_float(h); }
static inline vf v_half(const void *p) {
    uint16_t h[4];
    memcpy(h, p, sizeof h);
    return (vf){half(h[0]), half(h[1]), half(h[2]), half(h[3])};
}
static inline vi v_lookup(const int8_t table[16], vi i) { return (vi){table[i[0]], table[i[1]], table[i[2]], table[i[3]]}; }
#endif
#endif

/* ---- the same for all ---- */

static inline vf v_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }

static inline float v_top(vf x) {
    float t[VW];
    v_store(t, x);
    for (int h = VW / 2; h; h /= 2)
        for (int i = 0; i < h; i++) t[i] = t[i] > t[i + h] ? t[i] : t[i + h];
    return t[0];
}

static inline vi v_lanes(void) { /* 0, 1, 2 ... */
    static const int32_t lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vi x;
    memcpy(&x, lane, sizeof x);
    return x;
}

/* x + by in the lanes of which `bits` has the bit set, lane 0 the lowest */
static inline vi v_add_where(vi x, uint32_t bits, int32_t by) {
#if defined(FB_SIMD_AVX512)
    return (vi)_mm512_mask_add_epi32((__m512i)x, (__mmask16)bits, (__m512i)x, (__m512i)v_iset(by));
#else
    return x + ((vi)((vu)v_iset((int32_t)bits) >> (vu)v_lanes()) & 1) * by;
#endif
}

static inline vf v_bf16(const void *p) { return (vf)(v_u16(p) << 16); }
static inline vi v_to_bf16(vf x) { /* nearest even; the value in the low half */
    vu u = (vu)x;
    return (vi)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#ifdef FB_SIMD_DP
/* Products of bf16 pairs: a unit is two of them in 32 bits, the one with the lower index in the low half. */
#if defined(FB_SIMD_AVX512)
static inline vf v_dot2(vf a, vf b, vf c) { return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
static inline vf v_pairs(vf lo, vf hi) { return (vf)(__m512)_mm512_cvtne2ps_pbh((__m512)hi, (__m512)lo); }
static inline vf v_interleave(__m512i x) { /* its halves, 16 bits at a time */
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (vf)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), x);
}
static inline vf v_weave(vf even, vf odd) { return v_interleave((__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even)); }
static inline vf v_weave_bf16(const void *even, const void *odd) {
    __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256(even));
    return v_interleave(_mm512_inserti64x4(low, _mm256_loadu_si256(odd), 1));
}
#elif defined(FB_SIMD_NEON)
static inline vf v_matrix(vf a, vf b, vf c) { /* c (2, 2) += a (2, 4) b (2, 4)^T, of bf16 */
    return (vf)vbfmmlaq_f32((float32x4_t)c, vreinterpretq_bf16_f32((float32x4_t)a), vreinterpretq_bf16_f32((float32x4_t)b));
}
static inline void v_zip(vf a, vf b, vf to[2]) {
    to[0] = (vf)vzip1q_f32((float32x4_t)a, (float32x4_t)b);
    to[1] = (vf)vzip2q_f32((float32x4_t)a, (float32x4_t)b);
}
static inline void v_zip_pairs(vf a, vf b, vf to[2]) {
    to[0] = (vf)vzip1q_f64((float64x2_t)a, (float64x2_t)b);
    to[1] = (vf)vzip2q_f64((float64x2_t)a, (float64x2_t)b);
}
static inline vf v_pairs(vf lo, vf hi) {
    return (vf)vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32((float32x4_t)lo), (float32x4_t)hi));
}
static inline vf v_interleave(uint16x4_t even, uint16x4_t odd) {
    return (vf)vreinterpretq_f32_u16(vcombine_u16(vzip1_u16(even, odd), vzip2_u16(even, odd)));
}
static inline vf v_weave(vf even, vf odd) {
    return v_interleave(vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)even)),
                        vreinterpret_u16_bf16(vcvt_bf16_f32((float32x4_t)odd)));
}
static inline vf v_weave_bf16(const void *even, const void *odd) { return v_interleave(vld1_u16(even), vld1_u16(odd)); }
#endif
/* v_pairs: 2 VW consecutive floats as VW units; v_weave: unit i is (even[i], odd[i]), also from bf16 in memory. */
#else
static inline vf v_pairs(vf lo, vf hi) { return (void)hi, lo; }
static inline vf v_weave(vf even, vf odd) { return (void)odd, even; }
static inline vf v_weave_bf16(const void *even, const void *odd) { return (void)even, (void)odd, v_set(0); }
#endif

/* Operands of 32 or 16 bits: n elements at p + i elements, n <= VW; lanes beyond n are 0. */
static inline vf a_load(const void *p, int32_t type, int64_t i, int64_t n) {
    if (n >= VW) return type == FB_F32 ? v_load((const float *)p + i) : v_bf16((const uint16_t *)p + i);
    float t[VW] = {0};
    if (type == FB_F32) memcpy(t, (const float *)p + i, (size_t)n * 4);
    else {
        uint16_t h[VW] = {0};
        memcpy(h, (const uint16_t *)p + i, (size_t)n * 2);
        return v_bf16(h);
    }
    return v_load(t);
}

static inline void a_store(void *p, int32_t type, int64_t i, int64_t n, vf x) {
    if (type == FB_F32) {
        if (n >= VW) v_store((float *)p + i, x);
        else {
            float t[VW];
            v_store(t, x);
            memcpy((float *)p + i, t, (size_t)n * 4);
        }
    } else {
        uint16_t h[VW];
        if (n >= VW) v_store_u16((uint16_t *)p + i, v_to_bf16(x));
        else {
            v_store_u16(h, v_to_bf16(x));
            memcpy((uint16_t *)p + i, h, (size_t)n * 2);
        }
    }
}

/* NV whole vectors to elements i .. of memory whose elements 0 and i begin a cache line: past the caches where that can be
 * said, as what is written so is not read soon, and a line need not be fetched, perhaps from another core, to be written
 * over. v_fence before other threads may read it. */
enum { LINE = 64 };
static inline void a_stream(void *p, int32_t type, int64_t i, const vf x[NV]) {
#if defined(FB_SIMD_AVX512) && defined(FB_SIMD_DP)
    if (type == FB_BF16) {
        _mm512_stream_ps((void *)((uint16_t *)p + i), (__m512)v_pairs(x[0], x[1]));
        return;
    }
#endif
    for (int j = 0; j < NV; j++, i += VW) {
#if defined(FB_SIMD_AVX512)
        if (type == FB_F32) {
            _mm512_stream_ps((float *)p + i, (__m512)x[j]);
            continue;
        }
#elif defined(FB_SIMD_AVX2)
        if (type == FB_F32) {
            _mm256_stream_ps((float *)p + i, (__m256)x[j]);
            continue;
        }
#endif
        a_store(p, type, i, VW, x[j]);
    }
}

static inline void v_fence(void) {
#if defined(FB_SIMD_AVX512) || defined(FB_SIMD_AVX2)
    _mm_sfence();
#endif
}

/* p * 2^n with denormals and infinity as they should be; n a whole number in -150 .. 128, and in the low bits of
 * n + ROUND. */
#define ROUND v_set(12582912.0f) /* 1.5 * 2^23 */
static inline vf v_ldexp(vf p, vf n) {
#if defined(FB_SIMD_AVX512)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi whole = (vi)(n + ROUND) - (vi)ROUND, part = whole >> 1;
    return p * (vf)((part + 127) << 23) * (vf)((whole - part + 127) << 23);
#endif
}

/* e^x: split x = n ln 2 + r, a polynomial of r, and 2^n. About 1e-7 relative. NaN stays NaN, -inf gives 0. */
static inline vf v_exp(vf x) {
    x = v_min(v_set(89.0f), v_max(v_set(-104.0f), x));
    vf n = v_fma(x, v_set(1.44269504f), ROUND) - ROUND;
    vf r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    vf p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_fma(p, r * r, r) + 1.0f;
    return v_ldexp(p, n);
}

static inline vf v_tanh(vf x) {
    vf a = v_abs(x), s = x * x;
    vf far = 1.0f - 2.0f / (v_exp(a + a) + 1.0f);
    far = (vf)((vi)far | ((vi)x & (vi)v_set(-0.0f)));
    vf p = v_set(-5.70498872745e-3f);
    p = v_fma(p, s, v_set(2.06390887954e-2f));
    p = v_fma(p, s, v_set(-5.37397155531e-2f));
    p = v_fma(p, s, v_set(1.33314422036e-1f));
    p = v_fma(p, s, v_set(-3.33332819422e-1f));
    vf near = v_fma(p * s, x, x);
    return v_select(a < 0.625f, near, far);
}
#endif
