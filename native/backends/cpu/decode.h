/* decode.h - block formats to floats over the thin layer, a row's stretch at a time, bit for bit as native/quant does. */
#ifndef FB_CPU_DECODE_H
#define FB_CPU_DECODE_H
#include "simd.h"
#include "../../quant/grid.h"

static inline float load_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return half(h);
}

/* ---- a unit: 32 neighbours of a row as vectors w[32 / VW]; b: the block, g: which unit of it, 0 but in super-blocks ---- */

typedef struct unit {
    vf w[32 / VW];
} unit;

#define UNIT(NAME) static inline __attribute__((always_inline)) unit unit_##NAME(const uint8_t *b, int g)
#define EACH(J) _Pragma("GCC unroll 8") for (int J = 0; J < 32; J += VW)

UNIT(q8_0) {
    unit u;
    (void)g;
    vf d = v_set(load_half(b));
    EACH(j) u.w[j / VW] = d * v_float(v_i8(b + 2 + j));
    return u;
}

/* Nibbles: element j is the low half of byte j, element 16 + j its high half; with `five`, bit j of `high` is its fifth
 * bit. Then (q - offset) * d, or q * d + m where the format has a minimum and so no offset. */
static inline __attribute__((always_inline)) unit nibbles(const uint8_t *qs, int five, uint32_t high, int offset, float d,
                                                          float m) {
    unit u;
    EACH(j) {
        vi q = j < 16 ? v_u8(qs + j % 16) & 15 : v_u8(qs + j % 16) >> 4;
        if (five) q = v_add_where(q, high >> j, 16);
        vf x = v_float(q - offset) * v_set(d);
        u.w[j / VW] = offset ? x : x + v_set(m);
    }
    return u;
}
UNIT(q4_0) { return (void)g, nibbles(b + 2, 0, 0, 8, load_half(b), 0); }
UNIT(q4_1) { return (void)g, nibbles(b + 4, 0, 0, 0, load_half(b), load_half(b + 2)); }
UNIT(q5_0) { return (void)g, nibbles(b + 6, 1, fb_load_bits(b + 2), 16, load_half(b), 0); }
UNIT(q5_1) { return (void)g, nibbles(b + 8, 1, fb_load_bits(b + 4), 0, load_half(b), load_half(b + 2)); }

/* Nibbles that point into a table of 16. */
static inline __attribute__((always_inline)) unit looked_up(const uint8_t *qs, const int8_t *table, float d) {
    unit u;
    EACH(j) {
        vi q = j < 16 ? v_u8(qs + j % 16) & 15 : v_u8(qs + j % 16) >> 4;
        u.w[j / VW] = v_set(d) * v_float(v_lookup(table, q));
    }
    return u;
}
UNIT(iq4_nl) { return (void)g, looked_up(b + 2, fb_table_iq4_nl, load_half(b)); }
UNIT(mxfp4) { return (void)g, looked_up(b + 1, fb_table_mxfp4, fb_power_of_two(b[0])); }
UNIT(iq4_xs) { return looked_up(b + 8 + 16 * g, fb_table_iq4_nl, load_half(b) * (float)fb_iq4_xs_scale(b + 2, g)); }
UNIT(nvfp4) { /* nibbles in the order of their elements */
    unit u;
    uint8_t q[32];
    for (int j = 0; j < 32; j++) q[j] = b[4 + 16 * g + j / 16 * 8 + j % 8] >> j % 16 / 8 * 4 & 15;
    EACH(j) u.w[j / VW] = v_set(fb_half_e4m3(b[2 * g + j / 16])) * v_float(v_lookup(fb_table_mxfp4, v_u8(q + j)));
    return u;
}

UNIT(q1_0) {
    unit u;
    const uint32_t bits = fb_load_bits(b + 2 + 4 * g);
    const vf d = v_set(load_half(b));
    EACH(j) u.w[j / VW] = d * v_float(v_add_where(v_iset(-1), bits >> j, 2));
    return u;
}

UNIT(q2_k) {
    unit u;
    float d = load_half(b + 80), dmin = load_half(b + 82);
    EACH(j) {
        uint8_t scale = b[2 * g + j / 16];
        vi q = v_u8(b + 16 + g / 4 * 32 + j) >> g % 4 * 2 & 3;
        u.w[j / VW] = v_set(d * (float)(scale & 15)) * v_float(q) - v_set(dmin * (float)(scale >> 4));
    }
    return u;
}

UNIT(q3_k) {
    unit u;
    float d = load_half(b + 108);
    EACH(j) {
        vi q = (v_u8(b + 32 + g / 4 * 32 + j) >> g % 4 * 2 & 3) | (v_u8(b + j) >> g & 1) << 2;
        u.w[j / VW] = v_set(d * (float)fb_q3_k_scale(b + 96, 2 * g + j / 16)) * v_float(q - 4);
    }
    return u;
}

UNIT(q4_k) {
    unit u;
    vf step = v_set(load_half(b) * (float)fb_k_scale(b + 4, g)), m = v_set(load_half(b + 2) * (float)fb_k_min(b + 4, g));
    EACH(j) u.w[j / VW] = step * v_float(v_u8(b + 16 + g / 2 * 32 + j) >> g % 2 * 4 & 15) - m;
    return u;
}

UNIT(q5_k) {
    unit u;
    vf step = v_set(load_half(b) * (float)fb_k_scale(b + 4, g)), m = v_set(load_half(b + 2) * (float)fb_k_min(b + 4, g));
    EACH(j) {
        vi q = (v_u8(b + 48 + g / 2 * 32 + j) >> g % 2 * 4 & 15) | (v_u8(b + 16 + j) >> g & 1) << 4;
        u.w[j / VW] = step * v_float(q) - m;
    }
    return u;
}

UNIT(q6_k) {
    unit u;
    const uint8_t *low = b + g / 4 * 64 + g % 2 * 32, *high = b + 128 + g / 4 * 32;
    float d = load_half(b + 208);
    EACH(j) {
        vi q = (v_u8(low + j) >> g % 4 / 2 * 4 & 15) | (v_u8(high + j) >> g % 4 * 2 & 3) << 4;
        u.w[j / VW] = v_set(d * (float)(int8_t)b[192 + 2 * g + j / 16]) * v_float(q - 32);
    }
    return u;
}

/* Sixteen elements at a time are one digit of 16 bytes, but for the last ones, four digits of four. */
UNIT(tq1_0) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    static const uint8_t last[16] = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    unit u;
    uint8_t tail[16];
    for (int i = 0; i < 16; i += 4) memcpy(tail + i, b + 48, 4);
    vf d = v_set(load_half(b + 52));
    EACH(j) {
        const int i = 2 * g + j / 16;
        const uint8_t *bytes = i == 15 ? tail : i < 10 ? b + i % 2 * 16 : b + 32;
        vi digit = i == 15 ? v_u8(last + j % 16) : v_iset(power[i < 10 ? i / 2 : i - 10]);
        u.w[j / VW] = d * v_float(((v_u8(bytes + j % 16) * digit & 255) * 3 >> 8) - 1);
    }
    return u;
}

UNIT(tq2_0) {
    unit u;
    vf d = v_set(load_half(b + 64));
    EACH(j) u.w[j / VW] = d * v_float((v_u8(b + g / 4 * 32 + j) >> g % 4 * 2 & 3) - 1);
    return u;
}

#define GRID_UNIT(NAME, name, number, block, bytes, file_type, encoders)                                       \
    UNIT(name) {                                                                                               \
        unit u;                                                                                                \
        const fb_grid_unit from = fb_unit_##name(b, g);                                                        \
        EACH(j) u.w[j / VW] = v_set(from.d[j / 16]) * (v_float(v_i8(from.v + j)) * v_set(FB_GRID_STEP(number))); \
        return u;                                                                                              \
    }
FB_GRID_FORMATS(GRID_UNIT)
#undef GRID_UNIT

/* Units g .. end of a row as floats. */
#define DECODER(NAME, name, number, block, bytes, file_type, encoders)                                              \
    static void decode_##name(const uint8_t *restrict row, int64_t g, int64_t end, float *restrict dst) {           \
        enum { UNITS = block / 32 };                                                                                \
        while (g < end) {                                                                                           \
            const uint8_t *b = row + g / UNITS * bytes;                                                             \
            const int64_t to = g / UNITS * UNITS + UNITS;                                                           \
            for (const int64_t stop = to < end ? to : end; g < stop; g++, dst += 32) {                              \
                unit u = unit_##name(b, (int)(g % UNITS));                                                          \
                EACH(j) v_store(dst + j, u.w[j / VW]);                                                              \
            }                                                                                                       \
        }                                                                                                           \
    }
FB_BLOCK_FORMATS(DECODER)
#undef DECODER

/* Elements first .. first + n of a row of any type the core knows; for block formats both are multiples of 32. */
static void decode(int32_t type, const char *row, int64_t first, int64_t n, float *dst) {
    const uint8_t *src = (const uint8_t *)row;
    switch (type) {
#define CASE(NAME, name, number, block, bytes, file_type, encoders) \
    case FB_##NAME: decode_##name(src, first / 32, (first + n) / 32, dst); return;
        FB_BLOCK_FORMATS(CASE)
#undef CASE
    case FB_F16:
        for (; n >= VW; n -= VW, first += VW, dst += VW) v_store(dst, v_half(src + 2 * first));
        for (; n; n--, first++) *dst++ = load_half(src + 2 * first);
        return;
    default: /* F32, BF16 */
        for (; n >= VW; n -= VW, first += VW, dst += VW) v_store(dst, a_load(src, type, first, VW));
        if (n) a_store(dst, FB_F32, 0, n, a_load(src, type, first, n));
    }
}
#endif
