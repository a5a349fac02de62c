/* ternary.c - Q1_0: a half d, then 128 bits: y = d where the bit is set, else -d.
 * Blocks of 256 elements -1, 0, 1 times a half d at the end:
 *   TQ2_0  64 bytes of 2 bits: unit g of 32 elements is bits 2 (g % 4) of bytes 32 (g / 4) ..
 *   TQ1_0  52 bytes, each five (the last four: four) ternary digits as a fraction of 256: the first digit is the whole
 *          part of 3 b / 256, the next that of 3 (3 b mod 256) / 256. First digits of a stretch of bytes come first:
 *          32 bytes are elements 0 .. 159, 16 are 160 .. 239, 4 are 240 .. 255.
 * Formats: ggml's GGUF specification. */
#include "quant.h"

enum { QK = 256, UNIT = 32, UNITS = QK / UNIT };

void fb_decode_tq1_0(const uint8_t *src, float *dst, int64_t n) {
    static const struct {
        int from, bytes, digits;
    } stretches[] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}};
    for (int64_t i = 0; i < n; i++, src += 54) {
        const float d = fb_load_half(src + 52);
        for (int s = 0; s < 3; s++) {
            uint8_t power = 1;
            for (int digit = 0; digit < stretches[s].digits; digit++, power *= 3) {
                for (int j = 0; j < stretches[s].bytes; j++) {
                    const uint8_t rest = (uint8_t)(src[stretches[s].from + j] * power);
                    *dst++ = d * (float)((rest * 3 >> 8) - 1);
                }
            }
        }
    }
}

void fb_decode_tq2_0(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 66) {
        const float d = fb_load_half(src + 64);
        for (int g = 0; g < UNITS; g++, dst += UNIT) {
            for (int j = 0; j < UNIT; j++) {
                dst[j] = d * (float)((src[g / 4 * UNIT + j] >> g % 4 * 2 & 3) - 1);
            }
        }
    }
}

void fb_decode_q1_0(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 18) {
        const float d = fb_load_half(src);
        for (int j = 0; j < 128; j++) {
            *dst++ = src[2 + j / 8] >> j % 8 & 1 ? d : -d;
        }
    }
}
