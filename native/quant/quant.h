/* quant.h - the decoders and encoders of the block formats, for the table in format.c alone; the rest of the core goes
 * through fb_decode and fb_encode. One file a family; sources may lie at any address, so loads go through memcpy. */
#ifndef FB_QUANT_H
#define FB_QUANT_H
#include <stdint.h>
#include <string.h>

/* src: n blocks; dst: n * block floats. */
typedef void fb_decoder(const uint8_t *src, float *dst, int64_t n);
/* src: n * block floats; dst: n blocks. */
typedef void fb_encoder(const float *src, uint8_t *dst, int64_t n);

fb_decoder fb_decode_f32, fb_decode_f16, fb_decode_bf16;
fb_encoder fb_encode_f32, fb_encode_f16, fb_encode_bf16;
fb_decoder fb_decode_q4_0, fb_decode_q4_1, fb_decode_q5_0, fb_decode_q5_1, fb_decode_q8_0;
fb_encoder fb_encode_q4_0, fb_encode_q4_1, fb_encode_q5_0, fb_encode_q5_1, fb_encode_q8_0;

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

#endif
