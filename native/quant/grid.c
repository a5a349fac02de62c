/* grid.c - the decoders of grid.h. */
#include "grid.h"

#define DECODER(NAME, name, number, block, bytes, file_type, encoders)                                  \
    void fb_decode_##name(const uint8_t *src, float *dst, int64_t n) {                                  \
        for (; n; n--, src += bytes) {                                                                  \
            for (int g = 0; g < block / 32; g++, dst += 32) {                                           \
                const fb_grid_unit u = fb_unit_##name(src, g);                                          \
                for (int j = 0; j < 32; j++) dst[j] = u.d[j / 16] * ((float)u.v[j] * FB_GRID_STEP(number)); \
            }                                                                                           \
        }                                                                                               \
    }
FB_GRID_FORMATS(DECODER)
