/* legacy.c - blocks of 32 elements with one half-precision scale d, and in the _1 formats a half-precision minimum m:
 *   Q4_0  d, 16 bytes of nibbles                 y = d (q - 8)
 *   Q4_1  d, m, 16 bytes of nibbles              y = d q + m
 *   Q5_0  d, 32 high bits, 16 bytes of nibbles   y = d (q - 16)
 *   Q5_1  d, m, 32 high bits, 16 bytes           y = d q + m
 *   Q8_0  d, 32 signed bytes                     y = d q
 * Byte j holds element j in its low nibble and element j + 16 in its high one. Formats: ggml's GGUF specification. */
#include <math.h>
#include "quant.h"

enum { QK = 32, HALF = QK / 2 };

/* ---- decode ---- */

static inline void decode_nibbles(const uint8_t *qs, uint32_t high, float d, float offset, float m, float *y) {
    FB_NO_CONTRACT
    for (int j = 0; j < HALF; j++) {
        const int32_t lo = (int32_t)((qs[j] & 15u) | ((high >> j & 1u) << 4));
        const int32_t hi = (int32_t)((qs[j] >> 4) | ((high >> (j + HALF) & 1u) << 4));
        y[j] = d * ((float)lo - offset) + m;
        y[j + HALF] = d * ((float)hi - offset) + m;
    }
}

/* Adding m = -0 changes no bit of any product, so the _0 formats share the loop of the _1 formats. */
void fb_decode_q4_0(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 18, dst += QK) {
        decode_nibbles(src + 2, 0, fb_load_half(src), 8.0f, -0.0f, dst);
    }
}

void fb_decode_q4_1(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 20, dst += QK) {
        decode_nibbles(src + 4, 0, fb_load_half(src), 0.0f, fb_load_half(src + 2), dst);
    }
}

void fb_decode_q5_0(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 22, dst += QK) {
        decode_nibbles(src + 6, fb_load_bits(src + 2), fb_load_half(src), 16.0f, -0.0f, dst);
    }
}

void fb_decode_q5_1(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 24, dst += QK) {
        decode_nibbles(src + 8, fb_load_bits(src + 4), fb_load_half(src), 0.0f, fb_load_half(src + 2), dst);
    }
}

void fb_decode_q8_0(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 34, dst += QK) {
        const float d = fb_load_half(src);
        for (int j = 0; j < QK; j++) {
            dst[j] = d * (float)(int8_t)src[2 + j];
        }
    }
}

/* ---- encode ---- */

/* Largest magnitude as bits; magnitudes order like integers, which vectorises where a float maximum does not. */
static inline int32_t max_magnitude(const float *x) {
    int32_t best = 0;
    for (int j = 0; j < QK; j++) {
        const int32_t a = (int32_t)(fb_bits(x[j]) & 0x7fffffffu);
        best = a > best ? a : best;
    }
    return best;
}

/* The first element of largest magnitude, sign and all. */
static inline float extreme(const float *x) {
    const int32_t best = max_magnitude(x);
    int j = 0;
    while ((int32_t)(fb_bits(x[j]) & 0x7fffffffu) != best) {
        j++;
    }
    return x[j];
}

/* Floats order like integers once the magnitude bits of negative ones are flipped; the map is its own inverse. */
static inline int32_t ordered(uint32_t u) { return (int32_t)(u ^ ((0u - (u >> 31)) & 0x7fffffffu)); }

static inline void range_of(const float *x, float *lowest, float *highest) {
    int32_t lo = INT32_MAX, hi = INT32_MIN;
    for (int j = 0; j < QK; j++) {
        const int32_t v = ordered(fb_bits(x[j]));
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
    *lowest = fb_float((uint32_t)ordered((uint32_t)lo));
    *highest = fb_float((uint32_t)ordered((uint32_t)hi));
}

/* q = floor((x - m) * id + shift), held to 0 .. top; NaN becomes 0. */
static inline void to_levels(const float *x, float m, float id, float shift, float top, uint8_t *q) {
    FB_NO_CONTRACT
    for (int j = 0; j < QK; j++) {
        float t = (x[j] - m) * id + shift;
        t = t > 0.0f ? t : 0.0f;
        t = t < top ? t : top;
        q[j] = (uint8_t)(int32_t)t;
    }
}

static inline void store_nibbles(const uint8_t *q, uint8_t *qs) {
    for (int j = 0; j < HALF; j++) {
        qs[j] = (uint8_t)((q[j] & 15u) | q[j + HALF] << 4);
    }
}

static inline void store_high(const uint8_t *q, uint8_t *p) {
    for (int k = 0; k < 4; k++) {
        uint32_t bits = 0;
        for (int j = 0; j < 8; j++) {
            bits |= (uint32_t)(q[8 * k + j] >> 4) << j;
        }
        p[k] = (uint8_t)bits;
    }
}

static inline float inverse(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

/* Symmetric: d is such that the element of largest magnitude gets the lowest level, -levels. */
static inline float encode_symmetric(const float *x, float levels, uint8_t *q) {
    const float d = extreme(x) / -levels;
    to_levels(x, 0.0f, inverse(d), levels + 0.5f, 2.0f * levels - 1.0f, q);
    return d;
}

static inline float encode_range(const float *x, float levels, uint8_t *q, float *m) {
    float highest;
    range_of(x, m, &highest);
    const float d = (highest - *m) / levels;
    to_levels(x, *m, inverse(d), 0.5f, levels, q);
    return d;
}

void fb_encode_q4_0(const float *src, uint8_t *dst, int64_t n) {
    uint8_t q[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 18) {
        fb_store_half(dst, encode_symmetric(src, 8.0f, q));
        store_nibbles(q, dst + 2);
    }
}

void fb_encode_q4_1(const float *src, uint8_t *dst, int64_t n) {
    uint8_t q[QK];
    float m;
    for (int64_t i = 0; i < n; i++, src += QK, dst += 20) {
        fb_store_half(dst, encode_range(src, 15.0f, q, &m));
        fb_store_half(dst + 2, m);
        store_nibbles(q, dst + 4);
    }
}

void fb_encode_q5_0(const float *src, uint8_t *dst, int64_t n) {
    uint8_t q[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 22) {
        fb_store_half(dst, encode_symmetric(src, 16.0f, q));
        store_high(q, dst + 2);
        store_nibbles(q, dst + 6);
    }
}

void fb_encode_q5_1(const float *src, uint8_t *dst, int64_t n) {
    uint8_t q[QK];
    float m;
    for (int64_t i = 0; i < n; i++, src += QK, dst += 24) {
        fb_store_half(dst, encode_range(src, 31.0f, q, &m));
        fb_store_half(dst + 2, m);
        store_high(q, dst + 4);
        store_nibbles(q, dst + 8);
    }
}

/* To nearest, halves away from zero. */
void fb_encode_q8_0(const float *src, uint8_t *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += QK, dst += 34) {
        const float d = fb_float((uint32_t)max_magnitude(src)) / 127.0f;
        const float id = inverse(d);
        fb_store_half(dst, d);
        for (int j = 0; j < QK; j++) {
            float t = src[j] * id;
            t = t > -127.0f ? t : -127.0f;
            t = t < 127.0f ? t : 127.0f;
            const int32_t whole = (int32_t)t;
            const float rest = t - (float)whole;
            dst[2 + j] = (uint8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f));
        }
    }
}

/* ---- encode by importance: levels from several steps, each with the line through them that loses least ---- */

enum { STARTS = 10, REFITS = 3 };
#define STEP 0.15f /* levels between two starts */

/* Each a little more than its importance: what has none must not go wild. */
static void weights_of(const float *importance, float *w) {
    float mean = 0.0f;
    for (int j = 0; j < QK; j++) {
        mean += importance[j] / QK;
    }
    for (int j = 0; j < QK; j++) {
        w[j] = mean > 0.0f ? importance[j] + 1e-3f * mean : 1.0f;
    }
}

static float as_half(float x) { return fb_half_to_float(fb_float_to_half(x)); }

static float fit_symmetric(const float *x, const float *importance, float levels, uint8_t *q) {
    const float first = inverse(extreme(x) / -levels);
    float w[QK], d = 0.0f, most = 0.0f;
    weights_of(importance, w);
    for (int s = -STARTS; s <= STARTS; s++) {
        float id = first * (1.0f + STEP * (float)s / levels);
        for (int r = 0; r < REFITS; r++) {
            float xq = 0.0f, qq = 0.0f;
            to_levels(x, 0.0f, id, levels + 0.5f, 2.0f * levels - 1.0f, q);
            for (int j = 0; j < QK; j++) {
                const float level = (float)q[j] - levels;
                xq += w[j] * x[j] * level;
                qq += w[j] * level * level;
            }
            if (!(qq > 0.0f)) break;
            if (xq * xq > most * qq) {
                most = xq * xq / qq;
                d = xq / qq;
            }
            id = inverse(xq / qq);
        }
    }
    d = as_half(d);
    to_levels(x, 0.0f, inverse(d), levels + 0.5f, 2.0f * levels - 1.0f, q);
    return d;
}

static float fit_range(const float *x, const float *importance, float levels, uint8_t *q, float *m) {
    float w[QK], lowest, highest, d = 0.0f, least = INFINITY;
    weights_of(importance, w);
    range_of(x, &lowest, &highest);
    const float first = inverse((highest - lowest) / levels);
    *m = lowest;
    for (int s = -STARTS; s <= STARTS; s++) {
        float id = first * (1.0f + STEP * (float)s / levels), base = lowest;
        for (int r = 0; r < REFITS; r++) {
            float sw = 0.0f, sx = 0.0f, sq = 0.0f, sqq = 0.0f, sxq = 0.0f, error = 0.0f;
            to_levels(x, base, id, 0.5f, levels, q);
            for (int j = 0; j < QK; j++) {
                const float level = (float)q[j];
                sw += w[j], sx += w[j] * x[j], sq += w[j] * level, sqq += w[j] * level * level, sxq += w[j] * x[j] * level;
            }
            const float det = sw * sqq - sq * sq, slope = (sw * sxq - sx * sq) / det;
            if (!(det > 0.0f) || !(slope > 0.0f)) break;
            base = (sqq * sx - sq * sxq) / det;
            for (int j = 0; j < QK; j++) {
                const float off = slope * (float)q[j] + base - x[j];
                error += w[j] * off * off;
            }
            if (error < least) {
                least = error;
                d = slope;
                *m = base;
            }
            id = inverse(slope);
        }
    }
    d = as_half(d);
    *m = as_half(*m);
    to_levels(x, *m, inverse(d), 0.5f, levels, q);
    return d;
}

void fb_weigh_q4_0(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    uint8_t q[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 18, importance += QK) {
        fb_store_half(dst, fit_symmetric(src, importance, 8.0f, q));
        store_nibbles(q, dst + 2);
    }
}

void fb_weigh_q4_1(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    uint8_t q[QK];
    float m;
    for (int64_t i = 0; i < n; i++, src += QK, dst += 20, importance += QK) {
        fb_store_half(dst, fit_range(src, importance, 15.0f, q, &m));
        fb_store_half(dst + 2, m);
        store_nibbles(q, dst + 4);
    }
}

void fb_weigh_q5_0(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    uint8_t q[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 22, importance += QK) {
        fb_store_half(dst, fit_symmetric(src, importance, 16.0f, q));
        store_high(q, dst + 2);
        store_nibbles(q, dst + 6);
    }
}

void fb_weigh_q5_1(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    uint8_t q[QK];
    float m;
    for (int64_t i = 0; i < n; i++, src += QK, dst += 24, importance += QK) {
        fb_store_half(dst, fit_range(src, importance, 31.0f, q, &m));
        fb_store_half(dst + 2, m);
        store_high(q, dst + 4);
        store_nibbles(q, dst + 8);
    }
}
