/* decode.h - block formats to floats over the thin layer, a row's stretch at a time, bit for bit as native/quant does. */
#ifndef FB_CPU_DECODE_H
#define FB_CPU_DECODE_H
#include "simd.h"

static inline float load_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return half(h);
}

static inline void decode_q8_0(const uint8_t *src, float *dst, int64_t blocks) {
    for (int64_t i = 0; i < blocks; i++, src += 34, dst += 32) {
        vf d = v_set(load_half(src));
        for (int j = 0; j < 32; j += VW) v_store(dst + j, d * v_float(v_i8(src + 2 + j)));
    }
}

/* Nibbles: element j is the low half of byte j, element 16 + j its high half; with `five`, bit j of `high` is its fifth
 * bit. Then (q - offset) * d, or q * d + m where the format has a minimum and so no offset. */
static inline void decode_nibbles(const uint8_t *qs, int five, uint32_t high, int offset, float d, float m, float *dst) {
    vf dv = v_set(d), mv = v_set(m);
    for (int j = 0; j < 16; j += VW) {
        vi q = v_u8(qs + j), lo = q & 15, hi = q >> 4;
        if (five) {
            vu bits = (vu)v_iset((int32_t)high) >> (vu)(v_lanes() + j);
            lo |= (vi)((bits & 1) << 4);
            bits = (vu)v_iset((int32_t)high) >> (vu)(v_lanes() + (16 + j));
            hi |= (vi)((bits & 1) << 4);
        }
        vf a = v_float(lo - offset) * dv, b = v_float(hi - offset) * dv;
        v_store(dst + j, offset ? a : a + mv);
        v_store(dst + 16 + j, offset ? b : b + mv);
    }
}

/* Nibbles that point into a table of 16. */
static inline void decode_table(const uint8_t *qs, const int8_t *table, float d, float *dst) {
    vf dv = v_set(d);
    for (int j = 0; j < 16; j += VW) {
        vi q = v_u8(qs + j);
        v_store(dst + j, dv * v_float(v_lookup(table, q & 15)));
        v_store(dst + 16 + j, dv * v_float(v_lookup(table, q >> 4)));
    }
}

/* ---- super-blocks of 256, of which a slice may be wanted: units g .. end of 32 elements of one block ---- */

static inline void decode_q2_k(const uint8_t *b, int g, int end, float *dst) {
    float d = load_half(b + 80), dmin = load_half(b + 82);
    for (; g < end; g++, dst += 32)
        for (int j = 0; j < 32; j += VW) {
            uint8_t scale = b[2 * g + j / 16];
            vi q = v_u8(b + 16 + g / 4 * 32 + j) >> g % 4 * 2 & 3;
            v_store(dst + j, v_set(d * (float)(scale & 15)) * v_float(q) - v_set(dmin * (float)(scale >> 4)));
        }
}

static inline void decode_q3_k(const uint8_t *b, int g, int end, float *dst) {
    float d = load_half(b + 108);
    for (; g < end; g++, dst += 32)
        for (int j = 0; j < 32; j += VW) {
            vi q = (v_u8(b + 32 + g / 4 * 32 + j) >> g % 4 * 2 & 3) | (v_u8(b + j) >> g & 1) << 2;
            v_store(dst + j, v_set(d * (float)fb_q3_k_scale(b + 96, 2 * g + j / 16)) * v_float(q - 4));
        }
}

static inline void decode_q4_k(const uint8_t *b, int g, int end, float *dst) {
    float d = load_half(b), dmin = load_half(b + 2);
    for (; g < end; g++, dst += 32) {
        vf step = v_set(d * (float)fb_k_scale(b + 4, g)), m = v_set(dmin * (float)fb_k_min(b + 4, g));
        for (int j = 0; j < 32; j += VW) {
            vi q = v_u8(b + 16 + g / 2 * 32 + j) >> g % 2 * 4 & 15;
            v_store(dst + j, step * v_float(q) - m);
        }
    }
}

static inline void decode_q5_k(const uint8_t *b, int g, int end, float *dst) {
    float d = load_half(b), dmin = load_half(b + 2);
    for (; g < end; g++, dst += 32) {
        vf step = v_set(d * (float)fb_k_scale(b + 4, g)), m = v_set(dmin * (float)fb_k_min(b + 4, g));
        for (int j = 0; j < 32; j += VW) {
            vi q = (v_u8(b + 48 + g / 2 * 32 + j) >> g % 2 * 4 & 15) | (v_u8(b + 16 + j) >> g & 1) << 4;
            v_store(dst + j, step * v_float(q) - m);
        }
    }
}

static inline void decode_q6_k(const uint8_t *b, int g, int end, float *dst) {
    float d = load_half(b + 208);
    for (; g < end; g++, dst += 32) {
        const uint8_t *low = b + g / 4 * 64 + g % 2 * 32, *high = b + 128 + g / 4 * 32;
        for (int j = 0; j < 32; j += VW) {
            vi q = (v_u8(low + j) >> g % 4 / 2 * 4 & 15) | (v_u8(high + j) >> g % 4 * 2 & 3) << 4;
            v_store(dst + j, v_set(d * (float)(int8_t)b[192 + 2 * g + j / 16]) * v_float(q - 32));
        }
    }
}

/* Sixteen elements at a time are one digit of 16 bytes, but for the last ones, four digits of four. */
static inline void decode_tq1_0(const uint8_t *b, int g, int end, float *dst) {
    static const uint8_t power[5][16] = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                         {3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3},
                                         {9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9},
                                         {27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27},
                                         {81, 81, 81, 81, 81, 81, 81, 81, 81, 81, 81, 81, 81, 81, 81, 81}};
    static const uint8_t last[16] = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    uint8_t tail[16];
    for (int i = 0; i < 16; i += 4) memcpy(tail + i, b + 48, 4);
    vf d = v_set(load_half(b + 52));
    for (int i = 2 * g; i < 2 * end; i++, dst += 16) {
        const uint8_t *bytes = i == 15 ? tail : i < 10 ? b + i % 2 * 16 : b + 32;
        const uint8_t *p = i == 15 ? last : power[i < 10 ? i / 2 : i - 10];
        for (int j = 0; j < 16; j += VW) {
            vi rest = v_u8(bytes + j) * v_u8(p + j) & 255;
            v_store(dst + j, d * v_float((rest * 3 >> 8) - 1));
        }
    }
}

static inline void decode_tq2_0(const uint8_t *b, int g, int end, float *dst) {
    vf d = v_set(load_half(b + 64));
    for (; g < end; g++, dst += 32)
        for (int j = 0; j < 32; j += VW)
            v_store(dst + j, d * v_float((v_u8(b + g / 4 * 32 + j) >> g % 4 * 2 & 3) - 1));
}

#define SUPER_BLOCKS(BYTES, DECODE)                                            \
    for (int64_t g = first / 32, end = g + n / 32, to; g < end; g = to) {      \
        to = g / 8 * 8 + 8 < end ? g / 8 * 8 + 8 : end;                        \
        DECODE(src + g / 8 * BYTES, (int)(g % 8), (int)(to - g / 8 * 8), dst); \
        dst += (to - g) * 32;                                                  \
    }

/* Elements first .. first + n of a row of any type the core knows; for block formats both are multiples of 32. */
static void decode(int32_t type, const char *row, int64_t first, int64_t n, float *dst) {
    const uint8_t *src = (const uint8_t *)row;
    int64_t blocks = n / 32, skip = first / 32;
    switch (type) {
    case FB_Q8_0: decode_q8_0(src + skip * 34, dst, blocks); return;
    case FB_Q4_0:
        for (src += skip * 18; blocks--; src += 18, dst += 32)
            decode_nibbles(src + 2, 0, 0, 8, load_half(src), 0, dst);
        return;
    case FB_Q4_1:
        for (src += skip * 20; blocks--; src += 20, dst += 32)
            decode_nibbles(src + 4, 0, 0, 0, load_half(src), load_half(src + 2), dst);
        return;
    case FB_Q5_0:
        for (src += skip * 22; blocks--; src += 22, dst += 32)
            decode_nibbles(src + 6, 1, fb_load_bits(src + 2), 16, load_half(src), 0, dst);
        return;
    case FB_Q5_1:
        for (src += skip * 24; blocks--; src += 24, dst += 32)
            decode_nibbles(src + 8, 1, fb_load_bits(src + 4), 0, load_half(src), load_half(src + 2), dst);
        return;
    case FB_IQ4_NL:
        for (src += skip * 18; blocks--; src += 18, dst += 32)
            decode_table(src + 2, fb_table_iq4_nl, load_half(src), dst);
        return;
    case FB_MXFP4:
        for (src += skip * 17; blocks--; src += 17, dst += 32)
            decode_table(src + 1, fb_table_mxfp4, fb_power_of_two(src[0]), dst);
        return;
    case FB_Q2_K: SUPER_BLOCKS(84, decode_q2_k) return;
    case FB_Q3_K: SUPER_BLOCKS(110, decode_q3_k) return;
    case FB_Q4_K: SUPER_BLOCKS(144, decode_q4_k) return;
    case FB_Q5_K: SUPER_BLOCKS(176, decode_q5_k) return;
    case FB_Q6_K: SUPER_BLOCKS(210, decode_q6_k) return;
    case FB_TQ1_0: SUPER_BLOCKS(54, decode_tq1_0) return;
    case FB_TQ2_0: SUPER_BLOCKS(66, decode_tq2_0) return;
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
