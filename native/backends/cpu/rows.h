/* rows.h - the ops that move or combine rows and elements: embedding, norms, gates, sums, gathers, the optimizer.
 * All are bound by memory; each reads its operands once. */
#ifndef FB_CPU_ROWS_H
#define FB_CPU_ROWS_H
#include "cpu.h"
#include "decode.h"

#define OPERANDS(l) const fb_view *v = (l)->v; (void)scratch

enum { CHUNK = 512, COLUMNS = 64 }; /* floats decoded at a time; columns an item of a column sum owns */

static inline int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline int row_id(const fb_view *ids, int64_t t) {
    int32_t id;
    memcpy(&id, fb_row(ids, t), 4);
    return id;
}

static void run_embed(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    vf scale = v_set(l->attr.scale);
    float buf[CHUNK];
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        int64_t id = (int64_t)row_id(&v[2], t) * l->attr.stride - l->attr.first;
        if (id < 0 || id >= v[1].rows) continue;
        const char *src = fb_row(&v[1], id);
        char *dst = fb_row(&v[0], t);
        for (int64_t c0 = 0; c0 < v[0].cols; c0 += CHUNK) {
            int64_t n = at_most(v[0].cols - c0, CHUNK);
            decode(v[1].type, src, c0, n, buf);
            for (int64_t c = 0; c < n; c += VW)
                a_store(dst, v[0].type, c0 + c, n - c, scale * a_load(buf, FB_F32, c, n - c));
        }
    }
}

static void run_decode(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    float buf[CHUNK];
    for (int64_t r; (r = fb_next(w)) < v[0].rows;)
        for (int64_t c0 = 0; c0 < v[0].cols; c0 += CHUNK) {
            int64_t n = at_most(v[0].cols - c0, CHUNK);
            decode(v[1].type, fb_row(&v[1], r), c0, n, buf);
            for (int64_t c = 0; c < n; c += VW)
                a_store(fb_row(&v[0], r), v[0].type, c0 + c, n - c, a_load(buf, FB_F32, c, n - c));
        }
}

/* Rows of x[T,D] in items of about 16k elements: [*r0, *r1). */
static inline int next_rows(fb_worker *w, int64_t rows, int64_t cols, int64_t *r0, int64_t *r1) {
    int64_t high = cols < 16384 ? 16384 / cols : 1;
    *r0 = fb_next(w) * high;
    *r1 = at_most(*r0 + high, rows);
    return *r0 < rows;
}

/* 1 / sqrt(mean(x^2) + eps) of G columns from c0. */
static inline float norm_of(const char *x, int32_t type, int64_t c0, int64_t g, float eps) {
    vf sum = v_set(0);
    for (int64_t c = 0; c < g; c += VW) {
        vf a = a_load(x, type, c0 + c, g - c);
        sum = v_fma(a, a, sum);
    }
    return 1.0f / sqrtf(v_sum(sum) / (float)g + eps);
}

static void run_rms_norm(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const float *weight = (const float *)fb_row(&v[2], 0);
    int64_t g = v[2].cols, r0, r1;
    while (next_rows(w, v[0].rows, v[0].cols, &r0, &r1))
        for (int64_t r = r0; r < r1; r++) {
            const char *x = fb_row(&v[1], r);
            char *y = fb_row(&v[0], r);
            for (int64_t c0 = 0; c0 < v[0].cols; c0 += g) {
                vf inv = v_set(norm_of(x, v[1].type, c0, g, l->attr.eps));
                for (int64_t c = 0; c < g; c += VW) {
                    vf a = a_load(x, v[1].type, c0 + c, g - c), wt = a_load(weight, FB_F32, c, g - c);
                    a_store(y, v[0].type, c0 + c, g - c, a * inv * wt);
                }
            }
        }
}

/* dx = inv * (w dy - x * inv^2 * mean(w dy x)) */
static void run_rms_norm_dx(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const float *weight = (const float *)fb_row(&v[3], 0);
    int64_t g = v[3].cols, r0, r1;
    while (next_rows(w, v[0].rows, v[0].cols, &r0, &r1))
        for (int64_t r = r0; r < r1; r++) {
            const char *dy = fb_row(&v[1], r), *x = fb_row(&v[2], r), *acc = fb_has(&v[4]) ? fb_row(&v[4], r) : NULL;
            char *dx = fb_row(&v[0], r);
            for (int64_t c0 = 0; c0 < v[0].cols; c0 += g) {
                float inv = norm_of(x, v[2].type, c0, g, l->attr.eps);
                vf dot = v_set(0);
                for (int64_t c = 0; c < g; c += VW) {
                    vf wd = a_load(dy, v[1].type, c0 + c, g - c) * a_load(weight, FB_F32, c, g - c);
                    dot = v_fma(wd, a_load(x, v[2].type, c0 + c, g - c), dot);
                }
                vf back = v_set(-v_sum(dot) / (float)g * inv * inv), iv = v_set(inv);
                for (int64_t c = 0; c < g; c += VW) {
                    vf wd = a_load(dy, v[1].type, c0 + c, g - c) * a_load(weight, FB_F32, c, g - c);
                    vf out = iv * v_fma(a_load(x, v[2].type, c0 + c, g - c), back, wd);
                    if (acc) out += a_load(acc, v[4].type, c0 + c, g - c);
                    a_store(dx, v[0].type, c0 + c, g - c, out);
                }
            }
        }
}

/* Pieces of the rows are summed into scratch, then added in order: the columns may be few, as of a norm per head. */
enum { PIECES = 64, LEAST_PIECE = 16 /* rows */ };
static uint64_t rms_norm_dw_scratch(const fb_launch *l) { return (uint64_t)PIECES * (uint64_t)l->v[0].cols * sizeof(float); }

static void run_rms_norm_dw(fb_worker *w, const fb_launch *l, char *scratch) {
    const fb_view *v = l->v;
    const int64_t g = v[0].cols, rows = v[2].rows, least = (rows + PIECES - 1) / PIECES;
    const int64_t piece = least > LEAST_PIECE ? least : LEAST_PIECE, pieces = (rows + piece - 1) / piece;
    float *sums = (float *)scratch, *dw = (float *)fb_row(&v[0], 0);
    for (int64_t i; (i = fb_next(w)) < pieces;) {
        float *sum = sums + i * g;
        memset(sum, 0, (size_t)g * sizeof *sum);
        for (int64_t r = i * piece; r < at_most((i + 1) * piece, rows); r++) {
            const char *dy = fb_row(&v[1], r), *x = fb_row(&v[2], r);
            for (int64_t c0 = 0; c0 < v[2].cols; c0 += g) {
                const vf inv = v_set(norm_of(x, v[2].type, c0, g, l->attr.eps));
                for (int64_t c = 0; c < g; c += VW) {
                    vf a = a_load(dy, v[1].type, c0 + c, g - c) * inv;
                    a_store(sum, FB_F32, c, g - c, v_fma(a, a_load(x, v[2].type, c0 + c, g - c), a_load(sum, FB_F32, c, g - c)));
                }
            }
        }
    }
    fb_sync(w);
    for (int64_t c0; (c0 = fb_next(w) * COLUMNS) < g;)
        for (int64_t c = c0; c < at_most(c0 + COLUMNS, g); c += VW) {
            vf sum = a_load(dw, FB_F32, c, g - c);
            for (int64_t i = 0; i < pieces; i++) sum += a_load(sums + i * g, FB_F32, c, g - c);
            a_store(dw, FB_F32, c, g - c, sum);
        }
}

static void run_bias_db(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    float *db = (float *)fb_row(&v[0], 0);
    int64_t n = v[0].cols;
    for (int64_t c0; (c0 = fb_next(w) * COLUMNS) < n;)
        for (int64_t c = c0; c < at_most(c0 + COLUMNS, n); c += VW) {
            vf sum = a_load(db, FB_F32, c, n - c);
            for (int64_t r = 0; r < v[1].rows; r++) sum += a_load(fb_row(&v[1], r), v[1].type, c, n - c);
            a_store(db, FB_F32, c, n - c, sum);
        }
}

/* dst[index[t] * stride - first] += scale * x[t], every item its own columns, so rows that meet add up in order of t. */
static inline void scatter(fb_worker *w, const fb_view *dst, const fb_view *x, const fb_view *index, int64_t stride,
                           int64_t first, float scale) {
    int64_t n = dst->cols;
    for (int64_t c0; (c0 = fb_next(w) * COLUMNS) < n;)
        for (int64_t t = 0; t < x->rows; t++) {
            int64_t id = (int64_t)row_id(index, t) * stride - first;
            if (id < 0 || id >= dst->rows) continue;
            char *to = fb_row(dst, id);
            const char *from = fb_row(x, t);
            for (int64_t c = c0; c < at_most(c0 + COLUMNS, n); c += VW) {
                vf sum = v_fma(v_set(scale), a_load(from, x->type, c, n - c), a_load(to, dst->type, c, n - c));
                a_store(to, dst->type, c, n - c, sum);
            }
        }
}

static void run_embed_dw(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    scatter(w, &v[0], &v[1], &v[2], l->attr.stride, l->attr.first, l->attr.scale);
}

static void run_scatter(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    scatter(w, &v[0], &v[1], &v[2], 1, 0, 1.0f);
}

static void copy_row(const fb_view *out, int64_t r, const fb_view *in, int64_t from) {
    const char *x = fb_row(in, from);
    char *y = fb_row(out, r);
    if (in->type == out->type) memmove(y, x, fb_type_bytes(in->type, in->cols));
    else
        for (int64_t c = 0; c < in->cols; c += VW)
            a_store(y, out->type, c, in->cols - c, a_load(x, in->type, c, in->cols - c));
}

static void run_gather(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    int64_t r0, r1;
    while (next_rows(w, v[0].rows, v[0].cols, &r0, &r1))
        for (int64_t r = r0; r < r1; r++) copy_row(&v[0], r, &v[1], row_id(&v[2], r));
}

static void run_append(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    int64_t r0, r1;
    while (next_rows(w, v[1].rows, v[1].cols, &r0, &r1))
        for (int64_t r = r0; r < r1; r++) copy_row(&v[0], row_id(&v[2], r), &v[1], r);
}

static void run_rope_table(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const float *freq = (const float *)fb_row(&v[2], 0);
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        float *y = (float *)fb_row(&v[0], t), position = (float)row_id(&v[1], t);
        for (int64_t i = 0; i < v[2].cols; i++) {
            double angle = (double)(position * freq[i]);
            y[2 * i] = (float)cos(angle) * l->attr.scale;
            y[2 * i + 1] = (float)sin(angle) * l->attr.scale;
        }
    }
}

/* A thread's part of the scratch of a rotation: cos and sin of a row, and a head before and after. */
static int64_t rope_floats(const fb_launch *l) {
    return round_up(2 * (l->v[2].cols / 2) + 2 * (int64_t)l->attr.head_dim, 16);
}

static uint64_t rope_scratch(const fb_launch *l, int threads) { return (uint64_t)threads * (uint64_t)rope_floats(l) * 4; }

/* The pairs of a head are (i, i + half) or (2i, 2i + 1). In the first layout VW pairs are two plain vectors once the
 * table's cos and sin are parted, which is done once a row; the second goes pair by pair in an L1 buffer. */
static void run_rope(fb_worker *w, const fb_launch *l, char *scratch) {
    const fb_view *v = l->v;
    const int64_t hd = l->attr.head_dim, n_rot = v[2].cols, half_rot = n_rot / 2;
    const int step = l->attr.layout == FB_ROPE_PAIRS ? 2 : 1;
    const int64_t apart = step == 2 ? 1 : half_rot;
    float *restrict cs = (float *)scratch + w->index * rope_floats(l), *restrict sn = cs + half_rot;
    float *restrict in = sn + half_rot, *restrict out = in + hd;
    int64_t r0, r1;
    while (next_rows(w, v[0].rows, v[0].cols, &r0, &r1))
        for (int64_t r = r0; r < r1; r++) {
            const char *x = fb_row(&v[1], r), *acc = fb_has(&v[3]) ? fb_row(&v[3], r) : NULL;
            const float *table = (const float *)fb_row(&v[2], r);
            char *y = fb_row(&v[0], r);
            for (int64_t i = 0; i < half_rot; i++) {
                cs[i] = table[2 * i];
                sn[i] = l->attr.inverse ? -table[2 * i + 1] : table[2 * i + 1];
            }
            for (int64_t h = 0; h < v[0].cols; h += hd) {
                decode(v[1].type, x, h, hd, in);
                for (int64_t i = 0; i < half_rot; i++) {
                    float a = in[i * step], b = in[i * step + apart];
                    out[i * step] = a * cs[i] - b * sn[i];
                    out[i * step + apart] = a * sn[i] + b * cs[i];
                }
                for (int64_t i = n_rot; i < hd; i++) out[i] = in[i];
                for (int64_t c = 0; c < hd; c += VW) {
                    vf a = a_load(out, FB_F32, c, hd - c);
                    if (acc) a += a_load(acc, v[3].type, h + c, hd - c);
                    a_store(y, v[0].type, h + c, hd - c, a);
                }
            }
        }
}

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + v_exp(-x)); }

/* act(x) and its derivative. GELU in its tanh form: x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3). */
static inline vf gate(int kind, vf x, vf *slope) {
    if (kind == FB_BILINEAR) {
        *slope = v_set(1);
        return x;
    }
    if (kind == FB_RELU2) {
        vf positive = v_max(x, v_set(0));
        *slope = 2.0f * positive;
        return positive * positive;
    }
    if (kind == FB_SIGMOID) {
        vf s = sigmoid(x);
        *slope = s * (1.0f - s);
        return s;
    }
    if (kind == FB_SILU) {
        vf s = sigmoid(x);
        *slope = s * (1.0f + x * (1.0f - s));
        return x * s;
    }
    vf x2 = x * x, t = v_tanh(0.7978845608f * x * (1.0f + 0.044715f * x2));
    *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * (1.0f + 3.0f * 0.044715f * x2);
    return 0.5f * x * (1.0f + t);
}

/* Element by element over the output's shape: BODY sets `out` from operands read by IN(i). */
#define IN(i) a_load(row[i], v[i].type, c, p.c1 - c)
#define ELEMENTWISE(first_in, last_in, BODY)                                                    \
    fb_patch p;                                                                                 \
    while (fb_next_patch(w, v[0].rows, v[0].cols, &p))                                          \
        for (int64_t r = p.r0; r < p.r1; r++) {                                                 \
            char *row[FB_MAX_OPERANDS] = {NULL};                                                \
            for (int i = 0; i <= last_in; i++) row[i] = fb_has(&v[i]) ? fb_row(&v[i], r) : NULL; \
            for (int64_t c = p.c0; c < p.c1; c += VW) {                                         \
                vf out;                                                                         \
                BODY                                                                            \
                a_store(row[0], v[0].type, c, p.c1 - c, out);                                   \
            }                                                                                   \
        }

static void run_glu(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    vf slope;
    ELEMENTWISE(1, 2, out = gate(l->attr.kind, IN(1), &slope) * IN(2);)
}

static void run_glu_grad(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    ELEMENTWISE(2, 4, vf slope; vf dy = IN(2); vf up = IN(4); vf act = gate(l->attr.kind, IN(3), &slope);
                a_store(row[1], v[1].type, c, p.c1 - c, dy * act); out = dy * up * slope;)
}

static void run_add(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    ELEMENTWISE(1, 2, out = IN(1) + IN(2);)
}

static void run_scale(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    vf scale = v_set(l->attr.scale);
    ELEMENTWISE(1, 2, out = scale * IN(1); if (row[2]) out += IN(2);)
}

static void run_dropout(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const uint32_t threshold = l->attr.threshold, salt = l->attr.salt;
    float kept[CHUNK];
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        const char *x = fb_row(&v[1], t), *acc = fb_has(&v[3]) ? fb_row(&v[3], t) : NULL;
        const uint32_t key = (uint32_t)row_id(&v[2], t);
        char *y = fb_row(&v[0], t);
        for (int64_t c0 = 0; c0 < v[0].cols; c0 += CHUNK) {
            int64_t n = at_most(v[0].cols - c0, CHUNK);
            for (uint32_t c = 0; c < CHUNK; c++)
                kept[c] = fb_noise(key, salt, (uint32_t)c0 + c) >= threshold ? l->attr.scale : 0;
            for (int64_t c = 0; c < n; c += VW) {
                vf out = a_load(kept, FB_F32, c, n - c) * a_load(x, v[1].type, c0 + c, n - c);
                if (acc) out += a_load(acc, v[3].type, c0 + c, n - c);
                a_store(y, v[0].type, c0 + c, n - c, out);
            }
        }
    }
}

static void run_softcap(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    vf cap = v_set(l->attr.softcap);
    ELEMENTWISE(1, 1, out = cap * v_tanh(IN(1) / cap);)
}

static void run_softcap_grad(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    vf cap = v_set(l->attr.softcap);
    ELEMENTWISE(1, 3, vf t = IN(2) / cap; out = IN(1) * (1.0f - t * t); if (row[3]) out += IN(3);)
}

static void run_zero(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    fb_patch p;
    int64_t bytes = (int64_t)fb_type_bytes(v[0].type, v[0].cols);
    while (fb_next_patch(w, v[0].rows, bytes, &p))
        for (int64_t r = p.r0; r < p.r1; r++) memset(fb_row(&v[0], r) + p.c0, 0, (size_t)(p.c1 - p.c0));
}

/* ---- a mixture of experts ---- */

static uint64_t route_scratch(const fb_launch *l, int threads) { return (uint64_t)threads * (uint64_t)l->v[2].cols * 4; }

static void run_route(fb_worker *w, const fb_launch *l, char *scratch) {
    const fb_view *v = l->v;
    const int64_t experts = v[2].cols, k = v[0].cols;
    float *x = (float *)scratch + w->index * experts;
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        float *weights = (float *)fb_row(&v[0], t), sum = 0, first = 0;
        int32_t *chosen = (int32_t *)fb_row(&v[1], t);
        decode(v[2].type, fb_row(&v[2], t), 0, experts, x);
        for (int64_t j = 0; j < k; j++) {
            int32_t best = -1;
            for (int32_t c = 0; c < experts; c++)
                if (x[c] > (best < 0 ? -INFINITY : x[best])) best = c;
            for (int64_t i = best < 0 ? -1 : j; i < j; i++) /* no number is left: the first other one */
                if (i < 0 || chosen[i] == best) best++, i = -1;
            if (j == 0) first = x[best];
            sum += weights[j] = expf(x[best] - first);
            chosen[j] = best;
            x[best] = NAN;
        }
        for (int64_t j = 0; j < k; j++) weights[j] /= sum;
    }
}

static void run_route_grad(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        const float *dw = (const float *)fb_row(&v[1], t), *weights = (const float *)fb_row(&v[2], t);
        const int32_t *chosen = (const int32_t *)fb_row(&v[3], t);
        float mean = 0;
        memset(fb_row(&v[0], t), 0, fb_type_bytes(v[0].type, v[0].cols));
        for (int64_t j = 0; j < v[1].cols; j++) mean += weights[j] * dw[j];
        for (int64_t j = 0; j < v[1].cols; j++) a_store(fb_row(&v[0], t), v[0].type, chosen[j], 1, v_set(weights[j] * (dw[j] - mean)));
    }
}

static void run_order(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    if (fb_next(w) != 0) return;
    const int64_t k = v[2].cols, slots = v[2].rows * k;
    int32_t *order = (int32_t *)fb_row(&v[0], 0);
    const int32_t experts = l->attr.experts;
    float *load = fb_has(&v[1]) ? (float *)fb_row(&v[1], 0) : NULL;
    memset(order, 0, sizeof *order * (size_t)(experts + 1));
    for (int64_t s = 0; s < slots; s++) order[((const int32_t *)fb_row(&v[2], s / k))[s % k]]++;
    for (int32_t e = 0, at = experts + 1; e <= experts; e++) {
        const int32_t n = e < experts ? order[e] : 0;
        if (load && e < experts) load[e] += (float)n;
        order[e] = at;
        at += n;
    }
    for (int64_t s = 0; s < slots; s++) order[order[((const int32_t *)fb_row(&v[2], s / k))[s % k]]++] = (int32_t)s;
    for (int32_t e = experts; e > 0; e--) order[e] = order[e - 1];
    order[0] = experts + 1;
}

static void run_combine(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const int64_t d = v[0].cols, k = v[1].cols / d;
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        const char *x = fb_row(&v[1], t), *acc = fb_has(&v[3]) ? fb_row(&v[3], t) : NULL;
        const float *weights = fb_has(&v[2]) ? (const float *)fb_row(&v[2], t) : NULL;
        for (int64_t c = 0; c < d; c += VW) {
            vf sum = v_set(0);
            for (int64_t j = 0; j < k; j++) sum = v_fma(v_set(weights ? weights[j] : 1), a_load(x, v[1].type, j * d + c, d - c), sum);
            if (acc) sum += a_load(acc, v[3].type, c, d - c);
            a_store(fb_row(&v[0], t), v[0].type, c, d - c, sum);
        }
    }
}

static void run_combine_grad(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const int64_t d = v[2].cols, k = v[4].cols;
    for (int64_t t; (t = fb_next(w)) < v[0].rows;) {
        const char *dy = fb_row(&v[2], t), *x = fb_row(&v[3], t);
        for (int64_t j = 0; j < k; j++) {
            const float weight = ((const float *)fb_row(&v[4], t))[j];
            vf dot = v_set(0);
            for (int64_t c = 0; c < d; c += VW) {
                vf g = a_load(dy, v[2].type, c, d - c);
                dot = v_fma(g, a_load(x, v[3].type, j * d + c, d - c), dot);
                a_store(fb_row(&v[0], t), v[0].type, j * d + c, d - c, v_set(weight) * g);
            }
            ((float *)fb_row(&v[1], t))[j] = v_sum(dot);
        }
    }
}

/* Sums in doubles over stretches that are summed in lanes. */
static void run_sumsq(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    enum { STRETCH = 1024 };
    const float *x = (const float *)fb_row(&v[1], 0);
    float *partial = (float *)fb_row(&v[0], 0);
    int64_t n = v[1].cols, piece = (n + v[0].cols - 1) / v[0].cols;
    for (int64_t i; (i = fb_next(w)) < v[0].cols;) {
        double sum = 0;
        int64_t end = at_most((i + 1) * piece, n);
        for (int64_t c0 = i * piece; c0 < end; c0 += STRETCH) {
            vf lanes = v_set(0);
            for (int64_t c = c0; c < at_most(c0 + STRETCH, end); c += VW) {
                vf a = a_load(x, FB_F32, c, at_most(c0 + STRETCH, end) - c);
                lanes = v_fma(a, a, lanes);
            }
            sum += (double)v_sum(lanes);
        }
        partial[i] = (float)sum;
    }
}

/* Sums of a record: two floats, which keep 48 bits of what is summed in doubles. */
static inline double record_get(const float *pair) { return (double)pair[0] + (double)pair[1]; }
static inline void record_put(float *pair, double sum) {
    pair[0] = (float)sum;
    pair[1] = (float)(sum - (double)pair[0]);
}

static void run_tally(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    if (fb_next(w) != 0) return;
    float *record = (float *)fb_row(&v[0], 0);
    double sum = record_get(record + FB_RECORD_LOSS);
    for (int64_t r = 0; r < v[1].rows; r++) sum += (double)*(const float *)fb_row(&v[1], r);
    record_put(record + FB_RECORD_LOSS, sum);
    record_put(record + FB_RECORD_TRAINED, record_get(record + FB_RECORD_TRAINED) + (double)v[1].rows);
}

static void run_norm(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    if (fb_next(w) != 0) return;
    float *record = (float *)fb_row(&v[0], 0);
    const float *partial = (const float *)fb_row(&v[1], 0), clip = ((const float *)fb_row(&v[2], 0))[FB_HYPER_CLIP];
    double sum = 0, count = record_get(record + FB_RECORD_TRAINED);
    for (int64_t i = 0; i < v[1].cols; i++) sum += (double)partial[i];
    double norm = sqrt(sum) / count, scale = 1 / count;
    if (clip > 0 && norm > (double)clip) scale *= (double)clip / (norm + 1e-6);
    record[FB_RECORD_NORM] = (float)norm;
    record[FB_RECORD_SCALE] = (float)scale;
    record[FB_RECORD_FINITE] = isfinite(norm) && isfinite(record_get(record + FB_RECORD_LOSS));
}

static void run_adamw(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const fb_attr *at = &l->attr;
    const float *hyper = (const float *)fb_row(&v[4], 0), *record = (const float *)fb_row(&v[5], 0);
    const float lr = hyper[FB_HYPER_LR] * at->lr_scale, scale = record[FB_RECORD_SCALE];
    if (record[FB_RECORD_FINITE] == 0) return;
    vf b1 = v_set(at->beta1), b2 = v_set(at->beta2), keep = v_set(1.0f - lr * at->decay);
    vf c1 = v_set(1.0f - at->beta1), c2 = v_set(1.0f - at->beta2);
    vf rate = v_set(lr / hyper[FB_HYPER_CORRECT1]), fix = v_set(1.0f / hyper[FB_HYPER_CORRECT2]);
    ELEMENTWISE(0, 3, vf g = IN(3) * scale; vf m = v_fma(b1, IN(1), c1 * g);
                vf s = v_fma(b2, IN(2), c2 * (g * g)); a_store(row[1], FB_F32, c, p.c1 - c, m);
                a_store(row[2], FB_F32, c, p.c1 - c, s);
                out = IN(0) * keep - rate * m / (v_sqrt(s * fix) + at->eps);)
}

static void run_sgd(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const float *record = (const float *)fb_row(&v[4], 0), scale = record[FB_RECORD_SCALE];
    const float lr = ((const float *)fb_row(&v[3], 0))[FB_HYPER_LR] * l->attr.lr_scale;
    if (record[FB_RECORD_FINITE] == 0) return;
    vf keep = v_set(1.0f - lr * l->attr.decay);
    ELEMENTWISE(0, 2, vf g = IN(2) * scale; if (row[1]) {
        g = v_fma(v_set(l->attr.momentum), IN(1), g);
        a_store(row[1], FB_F32, c, p.c1 - c, g);
    } out = IN(0) * keep - lr * g;)
}

/* A row's logits: their top, the sum of exponentials in stretches, and the gradient softmax - onehot, which a soft-cap
 * multiplies by its slope. */
static void run_xent(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    enum { STRETCH = 1024 };
    const int64_t n = v[1].cols;
    const float softcap = l->attr.softcap;
    for (int64_t r; (r = fb_next(w)) < v[1].rows;) {
        float *x = (float *)fb_row(&v[1], r), *nll = (float *)fb_row(&v[0], r);
        int32_t target = row_id(&v[2], r);
        if (softcap != 0)
            for (int64_t c = 0; c < n; c += VW)
                a_store(x, FB_F32, c, n - c, softcap * v_tanh(a_load(x, FB_F32, c, n - c) / softcap));
        vf tops = v_set(-INFINITY);
        int64_t whole = n / VW * VW;
        for (int64_t c = 0; c < whole; c += VW) tops = v_max(v_load(x + c), tops);
        float top = v_top(tops);
        for (int64_t c = whole; c < n; c++) top = x[c] > top ? x[c] : top;
        double sum = 0;
        for (int64_t c0 = 0; c0 < n; c0 += STRETCH) {
            vf lanes = v_set(0);
            int64_t end = at_most(c0 + STRETCH, n), c = c0;
            for (; c + VW <= end; c += VW) lanes += v_exp(v_load(x + c) - top);
            if (c < end) {
                float tail[VW] = {0};
                a_store(tail, FB_F32, 0, end - c, v_exp(a_load(x, FB_F32, c, end - c) - top));
                lanes += v_load(tail);
            }
            sum += (double)v_sum(lanes);
        }
        *nll = (float)(log(sum) + (double)top - (double)x[target]);
        if (!l->attr.grad) continue;
        vf inv = v_set((float)(1.0 / sum));
        float hit = softcap != 0 ? 1.0f - x[target] / softcap * (x[target] / softcap) : 1.0f;
        for (int64_t c = 0; c < n; c += VW) {
            vf a = a_load(x, FB_F32, c, n - c), p = v_exp(a - top) * inv;
            if (softcap != 0) p *= 1.0f - a / softcap * (a / softcap);
            a_store(x, FB_F32, c, n - c, p);
        }
        x[target] -= hit;
    }
}
#endif
