/* table.c - formats whose nibbles point into a table of 16 values; of 32 elements (NVFP4: 16), byte j holds element j in its
 * low nibble and element j + 16 (j + 8) in its high one:
 *   IQ4_NL  a half d, 16 bytes of nibbles                             y = d table[q]
 *   IQ4_XS  a half d, 8 scales of 6 bits, 8 x 16 bytes of nibbles     y = d (scale - 32) table[q]
 *   MXFP4   an exponent of 8 bits, 16 bytes of nibbles (E2M1)         y = 2^(e - 128) table[q], the table in halves
 *   NVFP4   4 scales in unsigned E4M3, 4 x 8 bytes of nibbles (E2M1)  y = scale / 2 table[q]
 * Formats: ggml's GGUF specification; OCP Microscaling Formats 1.0. */
#include "quant.h"

enum { QK = 32 };

const int8_t fb_table_iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t fb_table_mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static inline void decode_table(const uint8_t *qs, int bytes, const int8_t *table, float d, float *y) {
    for (int j = 0; j < bytes; j++) {
        y[j] = d * (float)table[qs[j] & 15];
        y[j + bytes] = d * (float)table[qs[j] >> 4];
    }
}

void fb_decode_iq4_nl(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 18, dst += QK) {
        decode_table(src + 2, 16, fb_table_iq4_nl, fb_load_half(src), dst);
    }
}

void fb_decode_mxfp4(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 17, dst += QK) {
        decode_table(src + 1, 16, fb_table_mxfp4, fb_power_of_two(src[0]), dst);
    }
}

void fb_decode_iq4_xs(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 136) {
        for (int g = 0; g < 8; g++, dst += QK) {
            decode_table(src + 8 + 16 * g, 16, fb_table_iq4_nl, fb_load_half(src) * (float)fb_iq4_xs_scale(src + 2, g), dst);
        }
    }
}

void fb_decode_nvfp4(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 36) {
        for (int g = 0; g < 4; g++, dst += 16) {
            decode_table(src + 4 + 8 * g, 8, fb_table_mxfp4, fb_half_e4m3(src[g]), dst);
        }
    }
}
