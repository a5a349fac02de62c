/* quant.h - the decoders and encoders of the block formats, for the table in format.c alone; the rest of the core goes
 * through fb_decode and fb_encode. One file a family; sources may lie at any address, so loads go through memcpy. */
#ifndef FB_QUANT_H
#define FB_QUANT_H
#include <stdint.h>
#include <string.h>
#include "formats.h"

/* src: n blocks; dst: n * block floats. */
typedef void fb_decoder(const uint8_t *src, float *dst, int64_t n);
/* src: n * block floats; dst: n blocks. */
typedef void fb_encoder(const float *src, uint8_t *dst, int64_t n);
/* The same for one row, with a weight >= 0 for the squared error of each element; fb_encode_*: or NULL. */
typedef void fb_weighing_encoder(const float *src, uint8_t *dst, int64_t n, const float *importance);

#define FB_NONE_ENCODERS(name)
#define FB_PLAIN_ENCODERS(name) extern fb_encoder fb_encode_##name;
#define FB_FITTED_ENCODERS(name) extern fb_weighing_encoder fb_encode_##name;
#define FB_BOTH_ENCODERS(name) FB_PLAIN_ENCODERS(name) extern fb_weighing_encoder fb_weigh_##name;
#define FB_FUNCTIONS(NAME, name, number, block, bytes, file_type, encoders) \
    extern fb_decoder fb_decode_##name; \
    FB_##encoders##_ENCODERS(name)
FB_FORMATS(FB_FUNCTIONS)

extern const int8_t fb_table_iq4_nl[16], fb_table_mxfp4[16];
extern const uint32_t fb_grids[FB_GRID_ENTRIES / 2];

/* A fused multiply-add would round once where the formats' definitions round twice. gcc -std=c11 never fuses. */
#if defined(__clang__)
#define FB_NO_CONTRACT _Pragma("STDC FP_CONTRACT OFF")
#else
#define FB_NO_CONTRACT
#endif

static inline uint32_t fb_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float fb_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

/* IEEE half to single. A subnormal half is read as 2^-14 (1 + m) and has its implicit one taken off again. */
static inline float fb_half_to_float(uint16_t h) {
    const uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13;
    const uint32_t exponent = magnitude & 0x0f800000u;
    const uint32_t normal = magnitude + 0x38000000u + (exponent == 0x0f800000u ? 0x38000000u : 0u);
    const uint32_t tiny = fb_bits(fb_float(magnitude + 0x38800000u) - fb_float(0x38800000u));
    return fb_float((exponent == 0 ? tiny : normal) | (uint32_t)(h & 0x8000u) << 16);
}

/* IEEE single to half, to nearest even; NaN stays NaN (quiet). Adding 0.5 rounds at 2^-24, a subnormal half's step. */
static inline uint16_t fb_float_to_half(float x) {
    const uint32_t u = fb_bits(x);
    const uint32_t a = u & 0x7fffffffu;
    const uint32_t normal = (a - 0x38000000u + 0x0fffu + ((a >> 13) & 1u)) >> 13;
    const uint32_t tiny = fb_bits(fb_float(a) + 0.5f) - 0x3f000000u;
    const uint32_t special = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = a < 0x38800000u ? tiny : normal;
    return (uint16_t)((a >= 0x47800000u ? special : finite) | (u >> 16 & 0x8000u));
}

static inline float fb_load_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return fb_half_to_float(h);
}

static inline void fb_store_half(uint8_t *p, float x) {
    const uint16_t h = fb_float_to_half(x);
    memcpy(p, &h, 2);
}

/* 2^(e - 128), the scale of a block of MXFP4: subnormal for e < 2. */
static inline float fb_power_of_two(uint8_t e) { return fb_float(e < 2 ? 0x00200000u << e : (e - 1u) << 23); }

/* Half of an unsigned E4M3, the scale of 16 elements of NVFP4; its NaN counts as 0. */
static inline float fb_half_e4m3(uint8_t x) {
    const uint32_t bits = x & 127u;
    if (x == 127) return 0;
    return bits < 8 ? (float)bits * 0x1p-10f : fb_float((bits << 20) + 0x3b800000u);
}

static inline uint32_t fb_load_bits(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Scale and minimum g (0 .. 7) of a Q4_K or Q5_K, 6 bits each in 12 bytes: the first four of each are the low bits of
 * bytes 0 .. 3 and 4 .. 7, the others a nibble of bytes 8 .. 11 with two of the top bits that those leave. */
static inline int fb_k_scale(const uint8_t *p, int g) { return g < 4 ? p[g] & 63 : (p[g + 4] & 15) | p[g - 4] >> 6 << 4; }
static inline int fb_k_min(const uint8_t *p, int g) { return g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | p[g] >> 6 << 4; }

/* Scale g (0 .. 15) of a Q3_K, 6 bits in 12 bytes, less 32: a nibble of bytes 0 .. 7, and 2 bits of bytes 8 .. 11. */
static inline int fb_q3_k_scale(const uint8_t *p, int g) {
    return ((p[g % 8] >> g / 8 * 4 & 15) | (p[8 + g % 4] >> g / 4 * 2 & 3) << 4) - 32;
}

/* Scale g (0 .. 7) of an IQ4_XS: 2 high bits each in two bytes, then nibbles in four, less 32. */
static inline int fb_iq4_xs_scale(const uint8_t *p, int g) {
    return ((p[2 + g / 2] >> g % 2 * 4 & 15) | (p[g / 4] >> g % 4 * 2 & 3) << 4) - 32;
}

#endif
