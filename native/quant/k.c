/* k.c - super-blocks of 256 elements in groups that have scales of their own, whole numbers times a half d (and of the
 * minima m a half dmin):
 *   Q2_K  16 bytes scale | min << 4, 64 bytes of 2 bits, d, dmin             groups of 16   y = d s q - dmin m
 *   Q3_K  32 bytes of top bits, 64 bytes of 2 bits, 12 bytes of scales, d    groups of 16   y = d (s - 32) (q - 4)
 *   Q4_K  d, dmin, 12 bytes of scales and minima, 128 bytes of nibbles       groups of 32   y = d s q - dmin m
 *   Q5_K  the same with 32 bytes of top bits before the nibbles              groups of 32   y = d s q - dmin m
 *   Q6_K  128 bytes of nibbles, 64 bytes of 2 bits, 16 signed scales, d      groups of 16   y = d s (q - 32)
 * A byte holds the bits of elements that are whole units of 32 apart: unit g has its nibbles in half g % 2 of the g/2-th
 * 32 bytes (Q6_K: half g % 4 / 2), its 2 bits at 2 (g % 4) of the g/4-th 32 bytes, its top bit at bit g of 32 bytes.
 * Formats: ggml's GGUF specification. */
#include "quant.h"

enum { QK = 256, UNIT = 32, UNITS = QK / UNIT };

/* ---- decode ---- */

void fb_decode_q2_k(const uint8_t *src, float *dst, int64_t n) {
    FB_NO_CONTRACT
    for (int64_t i = 0; i < n; i++, src += 84) {
        const float d = fb_load_half(src + 80), dmin = fb_load_half(src + 82);
        for (int g = 0; g < UNITS; g++, dst += UNIT) {
            const uint8_t *qs = src + 16 + g / 4 * UNIT;
            for (int j = 0; j < UNIT; j++) {
                const uint8_t scale = src[2 * g + j / 16];
                dst[j] = d * (float)(scale & 15) * (float)(qs[j] >> g % 4 * 2 & 3) - dmin * (float)(scale >> 4);
            }
        }
    }
}

void fb_decode_q3_k(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 110) {
        const float d = fb_load_half(src + 108);
        for (int g = 0; g < UNITS; g++, dst += UNIT) {
            const uint8_t *qs = src + 32 + g / 4 * UNIT;
            for (int j = 0; j < UNIT; j++) {
                const int q = (qs[j] >> g % 4 * 2 & 3) | (src[j] >> g & 1) << 2;
                dst[j] = d * (float)fb_q3_k_scale(src + 96, 2 * g + j / 16) * (float)(q - 4);
            }
        }
    }
}

void fb_decode_q4_k(const uint8_t *src, float *dst, int64_t n) {
    FB_NO_CONTRACT
    for (int64_t i = 0; i < n; i++, src += 144) {
        const float d = fb_load_half(src), dmin = fb_load_half(src + 2);
        for (int g = 0; g < UNITS; g++, dst += UNIT) {
            const uint8_t *qs = src + 16 + g / 2 * UNIT;
            const float step = d * (float)fb_k_scale(src + 4, g), m = dmin * (float)fb_k_min(src + 4, g);
            for (int j = 0; j < UNIT; j++) {
                dst[j] = step * (float)(qs[j] >> g % 2 * 4 & 15) - m;
            }
        }
    }
}

void fb_decode_q5_k(const uint8_t *src, float *dst, int64_t n) {
    FB_NO_CONTRACT
    for (int64_t i = 0; i < n; i++, src += 176) {
        const float d = fb_load_half(src), dmin = fb_load_half(src + 2);
        for (int g = 0; g < UNITS; g++, dst += UNIT) {
            const uint8_t *high = src + 16, *qs = src + 48 + g / 2 * UNIT;
            const float step = d * (float)fb_k_scale(src + 4, g), m = dmin * (float)fb_k_min(src + 4, g);
            for (int j = 0; j < UNIT; j++) {
                const int q = (qs[j] >> g % 2 * 4 & 15) | (high[j] >> g & 1) << 4;
                dst[j] = step * (float)q - m;
            }
        }
    }
}

void fb_decode_q6_k(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 210) {
        const float d = fb_load_half(src + 208);
        for (int g = 0; g < UNITS; g++, dst += UNIT) {
            const uint8_t *low = src + g / 4 * 64 + g % 2 * UNIT, *high = src + 128 + g / 4 * UNIT;
            for (int j = 0; j < UNIT; j++) {
                const int q = (low[j] >> g % 4 / 2 * 4 & 15) | (high[j] >> g % 4 * 2 & 3) << 4;
                dst[j] = d * (float)(int8_t)src[192 + 2 * g + j / 16] * (float)(q - 32);
            }
        }
    }
}
