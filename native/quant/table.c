/* table.c - blocks of 32 elements whose nibbles point into a table of 16 values; byte j holds element j in its low
 * nibble and element j + 16 in its high one:
 *   IQ4_NL  a half d, 16 bytes of nibbles                             y = d table[q]
 *   MXFP4   an exponent of 8 bits, 16 bytes of nibbles (E2M1)         y = 2^(e - 128) table[q], the table in halves
 * Formats: ggml's GGUF specification; OCP Microscaling Formats 1.0. */
#include "quant.h"

enum { QK = 32, HALF = QK / 2 };

const int8_t fb_table_iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t fb_table_mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static inline void decode_table(const uint8_t *qs, const int8_t *table, float d, float *y) {
    for (int j = 0; j < HALF; j++) {
        y[j] = d * (float)table[qs[j] & 15];
        y[j + HALF] = d * (float)table[qs[j] >> 4];
    }
}

void fb_decode_iq4_nl(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 18, dst += QK) {
        decode_table(src + 2, fb_table_iq4_nl, fb_load_half(src), dst);
    }
}

void fb_decode_mxfp4(const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++, src += 17, dst += QK) {
        decode_table(src + 1, fb_table_mxfp4, fb_power_of_two(src[0]), dst);
    }
}
