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

static inline uint32_t load_bits(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Elements first .. first + n of a row of any type the core knows; for block formats both are whole blocks. */
static inline void decode(int32_t type, const char *row, int64_t first, int64_t n, float *dst) {
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
            decode_nibbles(src + 6, 1, load_bits(src + 2), 16, load_half(src), 0, dst);
        return;
    case FB_Q5_1:
        for (src += skip * 24; blocks--; src += 24, dst += 32)
            decode_nibbles(src + 8, 1, load_bits(src + 4), 0, load_half(src), load_half(src + 2), dst);
        return;
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
