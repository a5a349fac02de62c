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
#include <math.h>
#include "quant.h"

FB_NO_CONTRACT

enum { QK = 256, UNIT = 32, UNITS = QK / UNIT };

/* ---- decode ---- */

void fb_decode_q2_k(const uint8_t *src, float *dst, int64_t n) {
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

/* ---- encode: least squares, weighted by importance ----
 *
 * A group is fitted first: from several steps, levels are rounded, then the line through them is drawn anew, and the
 * line that loses least stays. Then steps and minima become whole numbers of a common d and dmin, for each group those
 * of the nearest that lose least, and d and dmin are fitted to what was chosen. */

enum { STARTS = 8, REFITS = 2, ROUNDS = 2 };

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));

static inline f4 load4(const float *p) {
    f4 x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline f4 choose4(i4 mask, f4 a, f4 b) { return (f4)(((i4)a & mask) | ((i4)b & ~mask)); }
static inline float sum4(f4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }

/* The whole number nearest to t in bottom .. top; bottom where t is no number. */
static inline f4 level4(f4 t, float bottom, float top) {
    t = choose4(t > bottom, t, bottom - (f4){0});
    t = choose4(t < top, t, top - (f4){0});
    return (t + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23 leaves no room for a fraction */
}

static inline int nearest(float t, int bottom, int top) {
    return (int)level4(t - (f4){0}, (float)bottom, (float)top)[0];
}

static inline float inverse(float x) { return x != 0.0f ? 1.0f / x : 0.0f; }
static inline float as_half(float x) { return fb_half_to_float(fb_float_to_half(x)); }

/* n elements with their weights, and sums of w, w x and w x^2. */
typedef struct group {
    const float *x, *w;
    int n;
    float lowest, highest, sw, sx, sxx;
} group;

/* x ~ step q + low for q = 0 .. top, low <= 0; without minima low is 0 and q may be negative. */
typedef struct line {
    float step, low, loss;
} line;

/* Sums of w q, w q^2 and w q x, and what is lost, when x becomes levels q of a line. */
typedef struct fit {
    float sq, sqq, sqx, loss;
} fit;

/* Weights of block i, each a little more than its importance: what has none must not go wild. */
static const float *weights_of(const float *importance, int64_t i, float w[QK]) {
    float mean = 0.0f;
    for (int j = 0; importance && j < QK; j++) {
        mean += importance[i * QK + j] / QK;
    }
    for (int j = 0; j < QK; j++) {
        w[j] = mean > 0.0f ? importance[i * QK + j] + 1e-3f * mean : 1.0f;
    }
    return w;
}

static group group_of(const float *x, const float *w, int n) {
    f4 lowest = load4(x), highest = lowest, sw = {0}, sx = {0}, sxx = {0};
    for (int j = 0; j < n; j += 4) {
        const f4 v = load4(x + j), u = load4(w + j);
        lowest = choose4(v < lowest, v, lowest);
        highest = choose4(v > highest, v, highest);
        sw += u, sx += u * v, sxx += u * v * v;
    }
    group g = {x, w, n, lowest[0], highest[0], sum4(sw), sum4(sx), sum4(sxx)};
    for (int k = 1; k < 4; k++) {
        g.lowest = lowest[k] < g.lowest ? lowest[k] : g.lowest;
        g.highest = highest[k] > g.highest ? highest[k] : g.highest;
    }
    return g;
}

static inline float loss_of(const group *g, const fit *f, float step, float low) {
    return g->sxx + step * (step * f->sqq - 2.0f * f->sqx) + low * (low * g->sw - 2.0f * g->sx + 2.0f * step * f->sq);
}

static inline fit fit_levels(const group *g, float step, float low, float bottom, float top) {
    const float inv = inverse(step);
    f4 sq = {0}, sqq = {0}, sqx = {0};
    for (int j = 0; j < g->n; j += 4) {
        const f4 v = load4(g->x + j), q = level4((v - low) * inv, bottom, top), wq = load4(g->w + j) * q;
        sq += wq, sqq += wq * q, sqx += wq * v;
    }
    fit f = {sum4(sq), sum4(sqq), sum4(sqx), 0.0f};
    f.loss = loss_of(g, &f, step, low);
    return f;
}

static void store_levels(const group *g, float step, float low, float bottom, float top, uint8_t *q) {
    const float inv = inverse(step);
    for (int j = 0; j < g->n; j += 4) {
        const f4 t = level4((load4(g->x + j) - low) * inv, bottom, top) - bottom;
        for (int k = 0; k < 4; k++) {
            q[j + k] = (uint8_t)t[k];
        }
    }
}

/* ---- with minima: Q4_K, Q5_K ---- */

/* The best line through the levels of another. */
static line redraw(const group *g, float step, float low, float top) {
    const fit f = fit_levels(g, step, low, 0.0f, top);
    const float det = g->sw * f.sqq - f.sq * f.sq;
    line to = {f.sqx * inverse(f.sqq), 0.0f, 0.0f};
    if (det > 0.0f && f.sqq * g->sx < f.sq * f.sqx) {
        to.step = (g->sw * f.sqx - g->sx * f.sq) / det;
        to.low = (f.sqq * g->sx - f.sq * f.sqx) / det;
    }
    to.loss = loss_of(g, &f, to.step, to.low);
    return to;
}

static line fit_line(const group *g, float top) {
    const float low = g->lowest < 0.0f ? g->lowest : 0.0f;
    line best = {0.0f, low, INFINITY};
    for (int k = 0; k < STARTS + REFITS; k++) {
        const float start = (g->highest - low) / (top - 1.0f + 2.0f * (float)k / (STARTS - 1));
        const line to = k < STARTS ? redraw(g, start, low, top) : redraw(g, best.step, best.low, top);
        best = to.loss < best.loss ? to : best;
    }
    return best;
}

/* Eight groups of x ~ d scale q - dmin min. */
typedef struct range_block {
    float d, dmin;
    uint8_t scale[UNITS], min[UNITS], q[QK];
} range_block;

/* Scale and minimum of a group: of those next to the line's the ones that lose least. */
static void pick_range(const group *g, const line *l, float top, range_block *b, int i) {
    const int scale = nearest(l->step * inverse(b->d), 0, 63), min = nearest(-l->low * inverse(b->dmin), 0, 63);
    float best = INFINITY;
    b->scale[i] = (uint8_t)scale, b->min[i] = (uint8_t)min;
    for (int s = scale > 0 ? scale - 1 : 0; s <= scale + 1 && s < 64; s++) {
        for (int m = min > 0 ? min - 1 : 0; m <= min + 1 && m < 64; m++) {
            const float loss = fit_levels(g, b->d * (float)s, -b->dmin * (float)m, 0.0f, top).loss;
            if (loss < best) {
                best = loss;
                b->scale[i] = (uint8_t)s, b->min[i] = (uint8_t)m;
            }
        }
    }
}

/* d and dmin by least squares, with the levels, scales and minima that there are. */
static void refit_ranges(const group *g, float top, range_block *b) {
    float ss = 0, sm = 0, mm = 0, sx = 0, mx = 0;
    for (int i = 0; i < UNITS; i++) {
        const float s = (float)b->scale[i], m = (float)b->min[i];
        const fit f = fit_levels(&g[i], b->d * s, -b->dmin * m, 0.0f, top);
        ss += s * s * f.sqq, sm += s * m * f.sq, mm += m * m * g[i].sw, sx += s * f.sqx, mx += m * g[i].sx;
    }
    const float det = ss * mm - sm * sm;
    if (det > 0.0f) {
        b->d = as_half((sx * mm - mx * sm) / det);
        b->dmin = as_half((sx * sm - mx * ss) / det);
    } else if (ss > 0.0f) {
        b->d = as_half(sx / ss);
    }
}

static void encode_ranges(const float *x, const float *w, float top, range_block *b) {
    group g[UNITS];
    line l[UNITS];
    float step = 0.0f, low = 0.0f;
    for (int i = 0; i < UNITS; i++) {
        g[i] = group_of(x + i * UNIT, w + i * UNIT, UNIT);
        l[i] = fit_line(&g[i], top);
        step = l[i].step > step ? l[i].step : step;
        low = l[i].low < low ? l[i].low : low;
    }
    b->d = as_half(step / 63.0f);
    b->dmin = as_half(-low / 63.0f);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < UNITS; i++) {
            pick_range(&g[i], &l[i], top, b, i);
        }
        refit_ranges(g, top, b);
    }
    for (int i = 0; i < UNITS; i++) {
        store_levels(&g[i], b->d * (float)b->scale[i], -b->dmin * (float)b->min[i], 0.0f, top, b->q + i * UNIT);
    }
}

static void store_ranges(const range_block *b, uint8_t *dst) {
    fb_store_half(dst, b->d);
    fb_store_half(dst + 2, b->dmin);
    for (int g = 0; g < 4; g++) {
        dst[4 + g] = (uint8_t)(b->scale[g] | b->scale[g + 4] >> 4 << 6);
        dst[8 + g] = (uint8_t)(b->min[g] | b->min[g + 4] >> 4 << 6);
        dst[12 + g] = (uint8_t)((b->scale[g + 4] & 15) | b->min[g + 4] << 4);
    }
}

static void store_nibbles(const uint8_t *q, uint8_t *dst) {
    for (int g = 0; g < UNITS; g += 2, q += 2 * UNIT, dst += UNIT) {
        for (int j = 0; j < UNIT; j++) {
            dst[j] = (uint8_t)((q[j] & 15) | q[j + UNIT] << 4);
        }
    }
}

void fb_encode_q4_k(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    range_block b;
    float w[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 144) {
        encode_ranges(src, weights_of(importance, i, w), 15.0f, &b);
        store_ranges(&b, dst);
        store_nibbles(b.q, dst + 16);
    }
}

void fb_encode_q5_k(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    range_block b;
    float w[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 176) {
        encode_ranges(src, weights_of(importance, i, w), 31.0f, &b);
        store_ranges(&b, dst);
        memset(dst + 16, 0, UNIT);
        for (int j = 0; j < QK; j++) {
            dst[16 + j % UNIT] |= (uint8_t)(b.q[j] >> 4 << j / UNIT);
        }
        store_nibbles(b.q, dst + 48);
    }
}

/* ---- without: Q6_K ---- */

enum { SMALL = 16, SMALLS = QK / SMALL };

/* The step of x ~ step q, q = -32 .. 31, that loses least. */
static float fit_step(const group *g) {
    const float extreme = -g->lowest > g->highest ? g->lowest : g->highest;
    float best = 0.0f, least = INFINITY;
    for (int k = 0; k < STARTS + REFITS; k++) {
        const float start = k < STARTS ? extreme / (-33.0f + 2.0f * (float)k / (STARTS - 1)) : best;
        const fit f = fit_levels(g, start, 0.0f, -32.0f, 31.0f);
        const float step = f.sqx * inverse(f.sqq), loss = loss_of(g, &f, step, 0.0f);
        best = loss < least ? step : best;
        least = loss < least ? loss : least;
    }
    return best;
}

/* Sixteen groups of x ~ d scale q. */
typedef struct step_block {
    float d;
    int8_t scale[SMALLS];
    uint8_t q[QK];
} step_block;

static void pick_scale(const group *g, float step, step_block *b, int i) {
    const int scale = nearest(step * inverse(b->d), -128, 127);
    float best = INFINITY;
    b->scale[i] = (int8_t)scale;
    for (int s = scale > -128 ? scale - 1 : scale; s <= scale + 1 && s < 128; s++) {
        const float loss = fit_levels(g, b->d * (float)s, 0.0f, -32.0f, 31.0f).loss;
        if (loss < best) {
            best = loss;
            b->scale[i] = (int8_t)s;
        }
    }
}

static void encode_steps(const float *x, const float *w, step_block *b) {
    group g[SMALLS];
    float step[SMALLS], largest = 0.0f;
    for (int i = 0; i < SMALLS; i++) {
        g[i] = group_of(x + i * SMALL, w + i * SMALL, SMALL);
        step[i] = fit_step(&g[i]);
        largest = fabsf(step[i]) > fabsf(largest) ? step[i] : largest;
    }
    b->d = as_half(largest / -128.0f);
    for (int round = 0; round < ROUNDS; round++) {
        float ss = 0.0f, sx = 0.0f;
        for (int i = 0; i < SMALLS; i++) {
            pick_scale(&g[i], step[i], b, i);
            const float s = b->scale[i];
            const fit f = fit_levels(&g[i], b->d * s, 0.0f, -32.0f, 31.0f);
            ss += s * s * f.sqq, sx += s * f.sqx;
        }
        b->d = ss > 0.0f ? as_half(sx / ss) : b->d;
    }
    for (int i = 0; i < SMALLS; i++) {
        store_levels(&g[i], b->d * b->scale[i], 0.0f, -32.0f, 31.0f, b->q + i * SMALL);
    }
}

void fb_encode_q6_k(const float *src, uint8_t *dst, int64_t n, const float *importance) {
    step_block b;
    float w[QK];
    for (int64_t i = 0; i < n; i++, src += QK, dst += 210) {
        encode_steps(src, weights_of(importance, i, w), &b);
        for (int half = 0; half < 2; half++) {
            const uint8_t *q = b.q + half * QK / 2;
            uint8_t *low = dst + half * 64, *high = dst + 128 + half * UNIT;
            for (int j = 0; j < 64; j++) {
                low[j] = (uint8_t)((q[j] & 15) | q[j + 64] << 4);
            }
            for (int j = 0; j < UNIT; j++) {
                high[j] = (uint8_t)(q[j] >> 4 | q[j + 32] >> 4 << 2 | q[j + 64] >> 4 << 4 | q[j + 96] >> 4 << 6);
            }
        }
        memcpy(dst + 192, b.scale, SMALLS);
        fb_store_half(dst + 208, b.d);
    }
}
