/* grid.h - the formats whose codes point into a grid: blocks of 256 elements, in units of 32. What is read here of a unit, small
 * whole numbers and a scale for each half of them, becomes floats in grid.c and in the CPU's kernels. In units g of a block:
 *   IQ2_XXS  half d; of each unit 4 codes of 8 bits, then 28 bits of signs, 4 of scale     y = d (1/2 + s) / 4 * grid
 *   IQ2_XS   half d; 32 x (9 bits of code, 7 of signs); 16 scales of 4 bits                  "
 *   IQ2_S    half d; 32 codes' low bytes; 32 bytes of signs; 8 x 4 x 2 high bits; 16 scales  "
 *   IQ3_XXS  half d; 64 codes; of each unit 28 bits of signs, 4 of scale                   y = d (1/2 + s) / 2 * grid
 *   IQ3_S    half d; 64 codes' low bytes; 8 x 8 high bits; 32 bytes of signs; 8 scales     y = d (1 + 2 s) * grid
 *   IQ1_S    half d; 32 codes' low bytes; 8 x (4 x 3 high bits, 3 of scale, 1 of delta)    y = d (1 + 2 s) (grid +- 1/8)
 *   IQ1_M    32 codes' low bytes; 16 x 2 x (3 high bits, 1 of delta); 4 x (4 scales of 3 bits, a quarter of half d)
 * Seven bits of signs are those of eight values, of which an even number is negative. Formats: ggml's GGUF specification. */
#ifndef FB_GRID_H
#define FB_GRID_H
#include "quant.h"

typedef struct fb_grid_unit {
    int8_t v[32];
    float d[2]; /* of the halves */
} fb_grid_unit;

static const uint64_t FB_ONES = 0x0101010101010101u; /* a byte each */

static inline uint64_t fb_grid(uint32_t entry) { return fb_grids[entry / 2] >> entry % 2 * 16 & 0xffff; }

/* Eight numbers of 2 bits, or eight of 3 bits in two entries, into a byte each. */
static inline uint64_t fb_spread2(uint64_t x) {
    x = (x | x << 24) & 0x000000ff000000ffu;
    x = (x | x << 12) & 0x000f000f000f000fu;
    return (x | x << 6) & (3 * FB_ONES);
}
static inline uint64_t fb_spread3(uint64_t low, uint64_t high) {
    uint64_t x = low | high << 32;
    x = (x | x << 10) & 0x003f003f003f003fu;
    return (x | x << 5) & (7 * FB_ONES);
}

/* Bytes 1 .. 127, the i-th negated where bit i of `signs` is set. */
static inline void fb_put_signed(int8_t *to, uint64_t bytes, uint32_t signs) {
    const uint64_t bits = (signs & 255) * FB_ONES & 0x8040201008040201u,
                   ones = (((bits & 127 * FB_ONES) + 127 * FB_ONES) | bits) >> 7 & FB_ONES;
    bytes = (bytes ^ ones * 255) + ones;
    memcpy(to, &bytes, 8);
}

static inline void fb_put_iq2(int8_t *to, uint32_t entry, uint32_t signs) {
    const uint64_t q = fb_spread2(fb_grid(entry));
    fb_put_signed(to, q * 17 + 8 * FB_ONES + (q >> 1 & FB_ONES), signs);
}

static inline void fb_put_iq1(int8_t *to, uint32_t code, int below) { /* eighths */
    const uint64_t eighths = (fb_spread2(fb_grid(FB_GRID_IQ1 + code)) * 8 + (below ? 119 : 121) * FB_ONES) ^ 128 * FB_ONES;
    memcpy(to, &eighths, 8);
}

static inline uint32_t fb_load_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static inline uint32_t fb_even_signs(uint32_t seven) { /* bit i of 0x6996 is the parity of i */
    return seven | (0x6996u >> ((seven ^ seven >> 4) & 15) & 1) << 7;
}

#define FB_GRID_UNIT(name) static inline fb_grid_unit fb_unit_##name(const uint8_t *b, int g)

FB_GRID_UNIT(iq2_xxs) {
    fb_grid_unit u;
    const uint8_t *q = b + 2 + 8 * g;
    const uint32_t rest = fb_load_bits(q + 4);
    for (int i = 0; i < 4; i++) fb_put_iq2(u.v + 8 * i, FB_GRID_IQ2_XXS + q[i], fb_even_signs(rest >> 7 * i & 127));
    u.d[0] = u.d[1] = fb_load_half(b) * (0.5f + (float)(rest >> 28)) * 0.25f;
    return u;
}

FB_GRID_UNIT(iq2_xs) {
    fb_grid_unit u;
    for (int i = 0; i < 4; i++) {
        const uint32_t q = fb_load_u16(b + 2 + 8 * g + 2 * i);
        fb_put_iq2(u.v + 8 * i, FB_GRID_IQ2_XS + (q & 511), fb_even_signs(q >> 9));
    }
    for (int h = 0; h < 2; h++) u.d[h] = fb_load_half(b) * (0.5f + (float)(b[66 + g] >> 4 * h & 15)) * 0.25f;
    return u;
}

FB_GRID_UNIT(iq2_s) {
    fb_grid_unit u;
    for (int i = 0; i < 4; i++)
        fb_put_iq2(u.v + 8 * i, FB_GRID_IQ2_S + (b[2 + 4 * g + i] | (b[66 + g] >> 2 * i & 3u) << 8), b[34 + 4 * g + i]);
    for (int h = 0; h < 2; h++) u.d[h] = fb_load_half(b) * (0.5f + (float)(b[74 + g] >> 4 * h & 15)) * 0.25f;
    return u;
}

FB_GRID_UNIT(iq3_xxs) {
    fb_grid_unit u;
    const uint32_t rest = fb_load_bits(b + 66 + 4 * g);
    for (int i = 0; i < 4; i++) {
        const uint8_t *q = b + 2 + 8 * g + 2 * i;
        const uint64_t x = fb_spread3(fb_grid(FB_GRID_IQ3_XXS + q[0]), fb_grid(FB_GRID_IQ3_XXS + q[1]));
        fb_put_signed(u.v + 8 * i, x * 8 + 4 * FB_ONES + ((x + FB_ONES) >> 2 & 2 * FB_ONES), fb_even_signs(rest >> 7 * i & 127));
    }
    u.d[0] = u.d[1] = fb_load_half(b) * (0.5f + (float)(rest >> 28)) * 0.5f;
    return u;
}

FB_GRID_UNIT(iq3_s) {
    fb_grid_unit u;
    for (int i = 0; i < 4; i++) {
        const uint8_t *q = b + 2 + 8 * g + 2 * i;
        const uint32_t high = b[66 + g] >> 2 * i;
        const uint64_t x = fb_spread3(fb_grid(FB_GRID_IQ3_S + (q[0] | (high & 1) << 8)),
                                      fb_grid(FB_GRID_IQ3_S + (q[1] | (high & 2) << 7)));
        fb_put_signed(u.v + 8 * i, x * 2 + FB_ONES, b[74 + 4 * g + i]);
    }
    u.d[0] = u.d[1] = fb_load_half(b) * (float)(1 + 2 * (b[106 + g / 2] >> g % 2 * 4 & 15));
    return u;
}

FB_GRID_UNIT(iq1_s) {
    fb_grid_unit u;
    const uint32_t high = fb_load_u16(b + 34 + 2 * g);
    for (int i = 0; i < 4; i++) fb_put_iq1(u.v + 8 * i, b[2 + 4 * g + i] | (high >> 3 * i & 7) << 8, high >> 15);
    u.d[0] = u.d[1] = fb_load_half(b) * (float)(1 + 2 * (high >> 12 & 7));
    return u;
}

FB_GRID_UNIT(iq1_m) {
    fb_grid_unit u;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t high = b[32 + 2 * g + i / 2] >> i % 2 * 4 & 15;
        fb_put_iq1(u.v + 8 * i, b[4 * g + i] | (high & 7) << 8, high >> 3);
        d |= (b[49 + 2 * i] >> 4 & 15u) << 4 * i;
    }
    for (int h = 0; h < 2; h++)
        u.d[h] = fb_half_to_float((uint16_t)d) * (float)(1 + 2 * (fb_load_u16(b + 48 + g / 2 * 2) >> (g % 2 * 2 + h) * 3 & 7));
    return u;
}

/* What the numbers of a unit count: eighths in IQ1. */
#define FB_GRID_STEP(number) ((number) == 19 || (number) == 29 ? 0.125f : 1.0f)

#endif
