/* plain.c - the formats without blocks: F32, F16, BF16. Every half that exists decodes exactly; encoding rounds to
 * nearest even and keeps NaN a (quiet) NaN. */
#include "quant.h"

void fb_decode_f32(const uint8_t *src, float *dst, int64_t n) { memcpy(dst, src, (size_t)n * 4); }
void fb_encode_f32(const float *src, uint8_t *dst, int64_t n) { memcpy(dst, src, (size_t)n * 4); }

void fb_decode_f16(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        dst[i] = fb_load_half(src + 2 * i);
    }
}

void fb_encode_f16(const float *src, uint8_t *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        fb_store_half(dst + 2 * i, src[i]);
    }
}

void fb_decode_bf16(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        dst[i] = fb_float((uint32_t)h << 16);
    }
}

void fb_encode_bf16(const float *src, uint8_t *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const uint32_t u = fb_bits(src[i]);
        const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
        const uint32_t quiet = u >> 16 | 0x40u;
        const uint16_t h = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
        memcpy(dst + 2 * i, &h, 2);
    }
}
