/* attention.h - attention forward, dQ, and dK/dV, block by block over the register tile of products.h; no score matrix
 * beyond a chunk ever exists.
 *
 * All three have one shape. An item owns NR queries of a head (or NR keys) as vector lanes and walks over the other side
 * in chunks of rows. Scores come out of the register tile as [row][lane], which is just the form in which the same tile
 * takes its right operand, so probabilities and their gradients are multiplied again without being moved:
 *     scores[row][lane]   = rows packed for dots [tile][d][MR]  *  lanes [d][NR]
 *     result[d][lane]    += rows packed for sums [d tile][row][MR]  *  probabilities [row][NR]
 * Both packings are made once a launch. Softmax runs down the lanes: no sums across a vector. Of bf16 operands all are
 * products of bf16 pairs: two neighbours along d in scores, two rows in results. */
#ifndef FB_CPU_ATTENTION_H
#define FB_CPU_ATTENTION_H
#include "products.h"

enum { CHUNK_TILES = 6, CHUNK_ROWS = CHUNK_TILES * MR };

typedef struct attention {
    const fb_view *q, *k, *v, *range;
    int64_t hd, heads, kv_heads, group;
    int64_t keys, first;      /* rows of k, and the number of the first */
    int64_t from, to;         /* rows of k that any query sees */
    int32_t window;
    int bf16;                 /* every operand is bf16, and products are of bf16 pairs */
    float scale, softcap;
} attention;

/* Where a thread works: lane operands, results, and a chunk of scores and of their gradients. */
typedef struct attention_room {
    float *lanes, *lanes2, *result, *result2, *p, *ds;
} attention_room;

/* Keys that query t sees: [*a, *b), numbered from the first row of k. */
static inline void keys_of(const attention *at, int64_t t, int32_t *a, int32_t *b) {
    const int32_t *range = (const int32_t *)fb_row(at->range, t);
    int32_t lo = range[0], hi = range[1];
    if (at->window > 0 && hi - lo > at->window) lo = hi - at->window;
    *a = lo - (int32_t)at->first;
    *b = hi - (int32_t)at->first;
}

static attention attention_of(const fb_launch *l, const fb_view *q, const fb_view *range, const fb_view *grad) {
    const fb_attention_shape *s = &l->attr.attention;
    attention at = {.q = q, .k = q + 1, .v = q + 2, .range = range, .hd = s->head_dim, .heads = s->n_head};
    at.kv_heads = s->n_kv_head;
    at.group = s->n_head / s->n_kv_head;
    at.keys = at.k->rows;
    at.first = l->op == FB_OP_ATTENTION_DKV ? l->attr.first : 0;
    at.window = s->window;
    at.scale = s->scale;
    at.softcap = s->softcap;
#ifdef FB_SIMD_DP
    at.bf16 = is_16bit(at.q) && is_16bit(at.k) && is_16bit(at.v) && (!grad || is_16bit(grad));
#endif
    (void)grad;
    return at;
}

/* Needs the operands themselves, so it is no part of planning. */
static void attention_range(attention *at) {
    int64_t from = at->keys, to = 0;
    for (int64_t t = 0; t < at->range->rows; t++) {
        int32_t a, b;
        keys_of(at, t, &a, &b);
        if (a >= b) continue;
        from = a < from ? a : from;
        to = b > to ? b : to;
    }
    at->from = from < 0 ? 0 : from;
    at->to = at_most(to, at->keys);
}

static fb_view head_of(const fb_view *v, int64_t head, int64_t hd) {
    fb_view h = *v;
    h.offset += fb_type_bytes(v->type, head * hd);
    h.cols = (int32_t)hd;
    return h;
}

/* ---- packed rows; both forms of a head take as many floats ---- */

static int64_t dots_floats(int64_t hd, int64_t rows) {
    return round_up(rows, MR) / MR * round_up(hd * MR + VW, 16);
}
static int64_t sums_apart(int64_t rows) { return round_up(round_up(rows, MR) * MR + VW, 16); }
static int64_t sums_floats(int64_t hd, int64_t rows) { return round_up(hd, MR) / MR * sums_apart(rows); }

/* Rows from .. to of every head, parted among the threads by tile. */
static void pack_dots(fb_worker *w, float *packed, const fb_view *v, int64_t heads, int64_t hd, int64_t from, int64_t to,
                      int bf16) {
    const int64_t t0 = from / MR, tiles = to > from ? (to + MR - 1) / MR - t0 : 0;
    for (int64_t i; (i = fb_next(w)) < heads * tiles;) {
        fb_view h = head_of(v, i % heads, hd);
        int64_t t = t0 + i / heads;
        float *dst = packed + (i % heads) * dots_floats(hd, v->rows) + t * round_up(hd * MR + VW, 16);
        pack_across(dst, MR, MR, &h, t * MR, at_most(v->rows - t * MR, MR), 0, hd, bf16, NULL, (listed){0});
    }
    fb_sync(w);
}

static void pack_sums(fb_worker *w, float *packed, const fb_view *v, int64_t heads, int64_t hd, int64_t from, int64_t to,
                      int bf16) {
    const int64_t d_tiles = round_up(hd, MR) / MR, r0 = from / MR * MR;
    const int64_t first = units_of(bf16, r0), last = units_of(bf16, to), end = units_of(bf16, round_up(to, MR));
    for (int64_t i; (i = fb_next(w)) < heads * d_tiles;) {
        fb_view h = head_of(v, i / d_tiles, hd);
        int64_t d = i % d_tiles;
        float *dst = packed + i / d_tiles * sums_floats(hd, v->rows) + d * sums_apart(v->rows);
        if (to > from) pack_along(dst + first * MR, MR, 0, MR, &h, r0, to - r0, d * MR, hd - d * MR, bf16, (listed){0});
        memset(dst + last * MR, 0, (size_t)((end - last) * MR) * 4);
    }
    fb_sync(w);
}

/* One chunk of `tiles` row tiles from tile t0: scores[row][lane]. */
static void chunk_dots(const float *packed, int64_t hd, int64_t t0, int64_t tiles, const float *lanes, float *scores,
                       int bf16) {
    for (int64_t t = 0; t < tiles; t++)
        tile(bf16, NR, units_of(bf16, hd), packed + (t0 + t) * round_up(hd * MR + VW, 16), lanes, scores + t * MR * NR, 0);
}

/* result[d][lane] += rows of the chunk * p[row][lane] */
static void chunk_sums(const float *packed, int64_t hd, int64_t rows, int64_t t0, int64_t tiles, const float *p,
                       float *result, int bf16) {
    packed += units_of(bf16, t0 * MR) * MR;
    for (int64_t d = 0; d < hd; d += MR, packed += sums_apart(rows))
        tile(bf16, NR, units_of(bf16, tiles * MR), packed, p, result + d * NR, 1);
}

/* out[r0 + lane][d] = result[d][lane] * by[lane] */
static void store_lanes(const fb_view *out, int64_t r0, int64_t n, int64_t hd, const float *result, const float *by) {
    for (int64_t j = 0; j < at_most(n, NR); j += VW)
        for (int64_t d = 0; d < hd; d += VW) {
            vf x[VW];
            for (int i = 0; i < VW; i++) x[i] = v_load(result + (d + i) * NR + j) * v_load(by + j);
            v_transpose(x);
            for (int64_t i = 0; i < at_most(n - j, VW); i++)
                a_store(fb_row(out, r0 + j + i), out->type, d, hd - d, x[i]);
        }
}

static int64_t result_floats(int64_t hd) { return (round_up(hd, MR) + VW) * NR; }

static int64_t room_floats(int64_t hd) { return 2 * hd * NR + 2 * result_floats(hd) + 2 * CHUNK_ROWS * NR; }

static attention_room room_of(fb_worker *w, float *scratch, int64_t hd) {
    attention_room room;
    room.lanes = scratch + w->index * room_floats(hd);
    room.lanes2 = room.lanes + hd * NR;
    room.result = room.lanes2 + hd * NR;
    room.result2 = room.result + result_floats(hd);
    room.p = room.result2 + result_floats(hd);
    room.ds = room.p + CHUNK_ROWS * NR;
    return room;
}

/* Score as softmax sees it; *slope is its derivative by q.k */
static inline vf score_of(float scale, float softcap, vf dot, vf *slope) {
    vf s = dot * scale;
    *slope = v_set(scale);
    if (softcap != 0) {
        vf t = v_tanh(s / softcap);
        *slope *= 1.0f - t * t;
        s = t * softcap;
    }
    return s;
}

/* Rows r and r + 1 of what results are summed from, where rows 0 .. r + 1 of scores were; r is even. */
static inline void store_rows(float *p, int64_t r, vf even, vf odd, int bf16) {
    if (bf16) v_store(p + r / 2 * NR, v_weave(even, odd));
    else v_store(p + r * NR, even), v_store(p + (r + 1) * NR, odd);
}

/* Queries as lanes: which keys each sees (none beyond the last query), the range that any sees, and the one that all do. */
typedef struct query_lanes {
    int32_t lo[NR], hi[NR];
    int64_t from, to, all_from, all_to;
} query_lanes;

static query_lanes query_lanes_of(const attention *at, int64_t r0) {
    query_lanes q = {.from = at->keys, .all_to = at->keys};
    for (int64_t i = 0; i < NR; i++) {
        if (r0 + i < at->q->rows) keys_of(at, r0 + i, &q.lo[i], &q.hi[i]);
        q.all_from = q.lo[i] > q.all_from ? q.lo[i] : q.all_from;
        q.all_to = at_most(q.all_to, q.hi[i]);
        if (q.lo[i] >= q.hi[i]) continue;
        q.from = at_most(q.from, q.lo[i]);
        q.to = q.hi[i] > q.to ? q.hi[i] : q.to;
    }
    if (q.from < 0) q.from = 0;
    q.to = at_most(q.to, at->keys);
    return q;
}

static inline vi load_ints(const int32_t *p) {
    vi x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* ---- forward ---- */

/* One chunk of scores into probabilities against the running top; `fade` is what older sums must be multiplied by. */
static inline __attribute__((always_inline)) void softmax_rows(const attention *at, float *p, int64_t key, int64_t rows,
                                                               const query_lanes *q, int masked, float *top, float *sum,
                                                               float *fade) {
    const float scale = at->scale, softcap = at->softcap;
    const int bf16 = at->bf16;
    for (int j = 0; j < NR; j += VW) {
        const vi a = load_ints(q->lo + j), b = load_ints(q->hi + j);
        const vf none = v_set(-INFINITY), before = v_load(top + j);
        vf now = before, total = v_set(0), slope;
        for (int64_t r = 0; r < rows; r++) {
            vi number = v_iset((int32_t)(key + r));
            vf s = score_of(scale, softcap, v_load(p + r * NR + j), &slope);
            if (masked) s = v_select((number >= a) & (number < b), s, none);
            now = v_max(s, now);
            v_store(p + r * NR + j, s);
        }
        vf base = v_select(now == none, v_set(0), now), f = v_exp(before - base);
        for (int64_t r = 0; r < rows; r += 2) {
            vf e = v_exp(v_load(p + r * NR + j) - base), odd = v_exp(v_load(p + (r + 1) * NR + j) - base);
            total += e;
            total += odd;
            store_rows(p + j, r, e, odd, bf16);
        }
        v_store(top + j, now);
        v_store(sum + j, v_fma(v_load(sum + j), f, total));
        v_store(fade + j, f);
    }
}

static void softmax_chunk(const attention *at, float *p, int64_t key, int64_t rows, const query_lanes *q, float *top,
                          float *sum, float *fade) {
    if (key >= q->all_from && key + rows <= q->all_to) softmax_rows(at, p, key, rows, q, 0, top, sum, fade);
    else softmax_rows(at, p, key, rows, q, 1, top, sum, fade);
}

static void attention_item(const attention *at, const fb_launch *l, int64_t item, const float *k_dots,
                           const float *v_sums, attention_room room) {
    const int64_t h = item % at->heads, r0 = item / at->heads * NR, hd = at->hd, n = at_most(at->q->rows - r0, NR);
    const query_lanes lanes = query_lanes_of(at, r0);
    float top[NR], sum[NR], fade[NR];
    fb_view q = head_of(at->q, h, hd), o = head_of(&l->v[0], h, hd);
    k_dots += h / at->group * dots_floats(hd, at->keys);
    v_sums += h / at->group * sums_floats(hd, at->keys);
    pack_across(room.lanes, NR, NR, &q, r0, n, 0, hd, at->bf16, NULL, (listed){0});
    memset(room.result, 0, (size_t)result_floats(hd) * 4);
    for (int i = 0; i < NR; i++) top[i] = -INFINITY, sum[i] = 0;
    for (int64_t t = lanes.from / MR; t * MR < lanes.to; t += CHUNK_TILES) {
        int64_t tiles = at_most((lanes.to + MR - 1) / MR - t, CHUNK_TILES);
        chunk_dots(k_dots, hd, t, tiles, room.lanes, room.p, at->bf16);
        softmax_chunk(at, room.p, t * MR, tiles * MR, &lanes, top, sum, fade);
        for (int64_t d = 0; d < hd; d++)
            for (int j = 0; j < NR; j += VW)
                v_store(room.result + d * NR + j, v_load(room.result + d * NR + j) * v_load(fade + j));
        chunk_sums(v_sums, hd, at->keys, t, tiles, room.p, room.result, at->bf16);
    }
    for (int64_t i = 0; i < NR; i++) {
        fade[i] = sum[i] > 0 ? 1.0f / sum[i] : 0;
        if (i < n) ((float *)fb_row(&l->attention.stats, r0 + i))[h] = sum[i] > 0 ? top[i] + logf(sum[i]) : -INFINITY;
    }
    store_lanes(&o, r0, n, hd, room.result, fade);
}

/* A few queries over a cache: packing it would cost more than reading it. An item is one query of one head. */
static void attention_few(const attention *at, const fb_launch *l, int64_t item, attention_room room) {
    enum { STEP = 64 };
    const int64_t t = item / at->heads, h = item % at->heads, hd = at->hd;
    float *q = room.lanes, *o = room.result, *p = room.p;
    int32_t from, to;
    fb_view k = head_of(at->k, h / at->group, hd), v = head_of(at->v, h / at->group, hd);
    keys_of(at, t, &from, &to);
    from = from < 0 ? 0 : from;
    to = (int32_t)at_most(to, at->keys);
    const int64_t k_bytes = (int64_t)fb_type_bytes(k.type, k.ld), v_bytes = (int64_t)fb_type_bytes(v.type, v.ld);
    float top = -INFINITY, sum = 0;
    decode(at->q->type, fb_row(at->q, t), h * hd, hd, q);
    memset(o, 0, (size_t)hd * 4);
    for (int64_t s = from; s < to; s += STEP) {
        const int64_t n = at_most(to - s, STEP);
        const char *k_rows = fb_row(&k, s), *v_rows = fb_row(&v, s);
        vf now = v_set(top), total = v_set(0), slope;
        for (int64_t i = 0; i < n; i++) {
            vf dot = v_set(0);
            for (int64_t d = 0; d < hd; d += VW)
                dot = v_fma(a_load(q, FB_F32, d, hd - d), a_load(k_rows + i * k_bytes, k.type, d, hd - d), dot);
            p[i] = v_sum(dot);
        }
        for (int64_t i = 0; i < n; i += VW) {
            vf x = score_of(at->scale, at->softcap, a_load(p, FB_F32, i, n - i), &slope);
            x = v_select(v_lanes() + (int32_t)i < v_iset((int32_t)n), x, v_set(-INFINITY));
            now = v_max(x, now);
            v_store(p + i, x);
        }
        const float before = top;
        top = v_top(now);
        for (int64_t i = 0; i < n; i += VW) {
            vf e = v_exp(v_load(p + i) - top);
            total += e;
            v_store(p + i, e);
        }
        const float fade = v_exp(v_set(before - top))[0];
        sum = sum * fade + v_sum(total);
        for (int64_t d = 0; d < hd; d += VW) {
            vf x = fade * a_load(o, FB_F32, d, hd - d), y = v_set(0); /* two sums: one would wait for itself */
            for (int64_t i = 0; i < n; i += 2) {
                x = v_fma(v_set(p[i]), a_load(v_rows + i * v_bytes, v.type, d, hd - d), x);
                if (i + 1 < n) y = v_fma(v_set(p[i + 1]), a_load(v_rows + (i + 1) * v_bytes, v.type, d, hd - d), y);
            }
            x += y;
            a_store(o, FB_F32, d, hd - d, x);
        }
    }
    ((float *)fb_row(&l->attention.stats, t))[h] = sum > 0 ? top + logf(sum) : -INFINITY;
    for (int64_t d = 0; d < hd; d += VW)
        a_store(fb_row(&l->v[0], t), l->v[0].type, h * hd + d, hd - d,
                a_load(o, FB_F32, d, hd - d) * (sum > 0 ? 1.0f / sum : 0));
}

static void run_attention(fb_worker *w, const fb_launch *l, char *scratch) {
    attention at = attention_of(l, &l->attention.q, &l->attention.range, NULL);
    attention_range(&at);
    float *k_dots = (float *)scratch, *v_sums = k_dots + at.kv_heads * dots_floats(at.hd, at.keys);
    attention_room room = room_of(w, v_sums + at.kv_heads * sums_floats(at.hd, at.keys), at.hd);
    if (at.q->rows <= FEW) {
        for (int64_t i; (i = fb_next(w)) < at.heads * at.q->rows;) attention_few(&at, l, i, room);
        return;
    }
    pack_dots(w, k_dots, at.k, at.kv_heads, at.hd, at.from, at.to, at.bf16);
    pack_sums(w, v_sums, at.v, at.kv_heads, at.hd, at.from, at.to, at.bf16);
    for (int64_t i; (i = fb_next(w)) < at.heads * ((at.q->rows + NR - 1) / NR);)
        attention_item(&at, l, i, k_dots, v_sums, room);
}

/* ---- gradient of q ---- */

/* One chunk of scores and of v . grad into the scores' gradients, in `ds`. */
static inline __attribute__((always_inline)) void dq_rows(const attention *at, attention_room room, int64_t key,
                                                          int64_t rows, const query_lanes *q, int masked,
                                                          const float *lse, const float *delta) {
    const float scale = at->scale, softcap = at->softcap;
    const int bf16 = at->bf16;
    for (int j = 0; j < NR; j += VW) {
        const vi a = load_ints(q->lo + j), b = load_ints(q->hi + j);
        const vf base = v_load(lse + j), minus = v_load(delta + j);
        for (int64_t r = 0; r < rows; r += 2) {
            vf ds[2];
            for (int i = 0; i < 2; i++) {
                vi number = v_iset((int32_t)(key + r + i));
                vf slope, s = score_of(scale, softcap, v_load(room.p + (r + i) * NR + j), &slope);
                ds[i] = v_exp(s - base) * (v_load(room.ds + (r + i) * NR + j) - minus) * slope;
                if (masked) ds[i] = v_select((number >= a) & (number < b), ds[i], v_set(0));
            }
            store_rows(room.ds + j, r, ds[0], ds[1], bf16);
        }
    }
}

static void dq_item(const attention *at, const fb_launch *l, int64_t item, const float *k_dots, const float *v_dots,
                    const float *k_sums, attention_room room) {
    const int64_t h = item % at->heads, r0 = item / at->heads * NR, hd = at->hd, n = at_most(at->q->rows - r0, NR);
    const int64_t kv = h / at->group;
    const query_lanes lanes = query_lanes_of(at, r0);
    float lse[NR] = {0}, delta[NR] = {0}, one[NR];
    fb_view q = head_of(at->q, h, hd), o = head_of(&l->attention_dq.o, h, hd);
    fb_view out = head_of(&l->attention_dq.dq, h, hd), grad = head_of(&l->attention_dq.dout, h, hd);
    k_dots += kv * dots_floats(hd, at->keys);
    v_dots += kv * dots_floats(hd, at->keys);
    k_sums += kv * sums_floats(hd, at->keys);
    for (int64_t i = 0; i < NR; i++) one[i] = 1;
    for (int64_t i = 0; i < n; i++) {
        vf sum = v_set(0);
        for (int64_t d = 0; d < hd; d += VW)
            sum = v_fma(a_load(fb_row(&o, r0 + i), o.type, d, hd - d),
                        a_load(fb_row(&grad, r0 + i), grad.type, d, hd - d), sum);
        delta[i] = v_sum(sum);
        float *stats = (float *)fb_row(&l->attention_dq.stats, r0 + i);
        lse[i] = stats[h];
        stats[at->heads + h] = delta[i];
    }
    pack_across(room.lanes, NR, NR, &q, r0, n, 0, hd, at->bf16, NULL, (listed){0});
    pack_across(room.lanes2, NR, NR, &grad, r0, n, 0, hd, at->bf16, NULL, (listed){0});
    memset(room.result, 0, (size_t)result_floats(hd) * 4);
    for (int64_t t = lanes.from / MR; t * MR < lanes.to; t += CHUNK_TILES) {
        int64_t tiles = at_most((lanes.to + MR - 1) / MR - t, CHUNK_TILES), key = t * MR, rows = tiles * MR;
        chunk_dots(k_dots, hd, t, tiles, room.lanes, room.p, at->bf16);
        chunk_dots(v_dots, hd, t, tiles, room.lanes2, room.ds, at->bf16);
        if (key >= lanes.all_from && key + rows <= lanes.all_to) dq_rows(at, room, key, rows, &lanes, 0, lse, delta);
        else dq_rows(at, room, key, rows, &lanes, 1, lse, delta);
        chunk_sums(k_sums, hd, at->keys, t, tiles, room.ds, room.result, at->bf16);
    }
    store_lanes(&out, r0, n, hd, room.result, one);
}

static void run_attention_dq(fb_worker *w, const fb_launch *l, char *scratch) {
    attention at = attention_of(l, &l->attention_dq.q, &l->attention_dq.range, &l->attention_dq.dout);
    attention_range(&at);
    float *k_dots = (float *)scratch, *v_dots = k_dots + at.kv_heads * dots_floats(at.hd, at.keys);
    float *k_sums = v_dots + at.kv_heads * dots_floats(at.hd, at.keys);
    attention_room room = room_of(w, k_sums + at.kv_heads * sums_floats(at.hd, at.keys), at.hd);
    pack_dots(w, k_dots, at.k, at.kv_heads, at.hd, at.from, at.to, at.bf16);
    pack_dots(w, v_dots, at.v, at.kv_heads, at.hd, at.from, at.to, at.bf16);
    pack_sums(w, k_sums, at.k, at.kv_heads, at.hd, at.from, at.to, at.bf16);
    for (int64_t i; (i = fb_next(w)) < at.heads * ((at.q->rows + NR - 1) / NR);)
        dq_item(&at, l, i, k_dots, v_dots, k_sums, room);
}

/* ---- gradients of k and v ---- */

typedef struct packed_queries {
    float *q_dots, *q_sums, *do_dots, *do_sums;
} packed_queries;

/* Queries t0 .. of a chunk against the item's keys, as rows: probabilities into p, their gradient into ds. */
static void dkv_chunk(const attention *at, const fb_launch *l, int64_t h, int64_t t0, int64_t rows, int64_t key,
                      attention_room room) {
    const float scale = at->scale, softcap = at->softcap;
    const int bf16 = at->bf16;
    for (int64_t r = 0; r < rows; r += 2) {
        int32_t a[2] = {0}, b[2] = {0};
        float base[2] = {0}, minus[2] = {0};
        for (int i = 0; i < 2 && t0 + r + i < at->q->rows; i++) {
            keys_of(at, t0 + r + i, &a[i], &b[i]);
            const float *stats = (const float *)fb_row(&l->attention_dkv.stats, t0 + r + i);
            base[i] = stats[h];
            minus[i] = stats[at->heads + h];
        }
        for (int j = 0; j < NR; j += VW) {
            vf p[2], ds[2];
            for (int i = 0; i < 2; i++) {
                vf slope, s = score_of(scale, softcap, v_load(room.p + (r + i) * NR + j), &slope);
                p[i] = v_exp(s - base[i]);
                ds[i] = p[i] * (v_load(room.ds + (r + i) * NR + j) - minus[i]) * slope;
                if (a[i] <= key && b[i] >= key + NR) continue;
                vi number = v_lanes() + (int32_t)(key + j), seen = (number >= a[i]) & (number < b[i]);
                p[i] = v_select(seen, p[i], v_set(0));
                ds[i] = v_select(seen, ds[i], v_set(0));
            }
            store_rows(room.p + j, r, p[0], p[1], bf16);
            store_rows(room.ds + j, r, ds[0], ds[1], bf16);
        }
    }
}

/* The tiles of queries that see any of the keys [key, key + NR): [*t0, *t1). */
static void query_tiles(const attention *at, int64_t key, int64_t *t0, int64_t *t1) {
    int64_t first = at->q->rows, last = -1;
    for (int64_t t = 0; t < at->q->rows; t++) {
        int32_t a, b;
        keys_of(at, t, &a, &b);
        if (a >= b || b <= key || a >= key + NR) continue;
        if (first > t) first = t;
        last = t;
    }
    *t0 = first / MR;
    *t1 = last < 0 ? *t0 : last / MR + 1;
}

static void dkv_item(const attention *at, const fb_launch *l, int64_t item, const packed_queries *packed,
                     attention_room room) {
    const int64_t kv = item % at->kv_heads, key = item / at->kv_heads * NR, hd = at->hd, rows = at->q->rows;
    const int64_t n = at_most(at->keys - key, NR);
    float one[NR];
    int64_t t0, t1;
    fb_view k = head_of(at->k, kv, hd), v = head_of(at->v, kv, hd);
    fb_view dk = head_of(&l->v[0], kv, hd), dv = head_of(&l->v[1], kv, hd);
    for (int64_t i = 0; i < NR; i++) one[i] = 1;
    query_tiles(at, key, &t0, &t1);
    pack_across(room.lanes, NR, NR, &k, key, n, 0, hd, at->bf16, NULL, (listed){0});
    pack_across(room.lanes2, NR, NR, &v, key, n, 0, hd, at->bf16, NULL, (listed){0});
    memset(room.result, 0, (size_t)result_floats(hd) * 4);
    memset(room.result2, 0, (size_t)result_floats(hd) * 4);
    for (int64_t h = kv * at->group; h < (kv + 1) * at->group; h++)
        for (int64_t t = t0; t < t1; t += CHUNK_TILES) {
            int64_t tiles = at_most(t1 - t, CHUNK_TILES);
            int64_t dots = h * dots_floats(hd, rows), sums = h * sums_floats(hd, rows);
            chunk_dots(packed->q_dots + dots, hd, t, tiles, room.lanes, room.p, at->bf16);
            chunk_dots(packed->do_dots + dots, hd, t, tiles, room.lanes2, room.ds, at->bf16);
            dkv_chunk(at, l, h, t * MR, tiles * MR, key, room);
            chunk_sums(packed->do_sums + sums, hd, rows, t, tiles, room.p, room.result2, at->bf16);
            chunk_sums(packed->q_sums + sums, hd, rows, t, tiles, room.ds, room.result, at->bf16);
        }
    store_lanes(&dk, key, n, hd, room.result, one);
    store_lanes(&dv, key, n, hd, room.result2, one);
}

static void run_attention_dkv(fb_worker *w, const fb_launch *l, char *scratch) {
    attention at = attention_of(l, &l->attention_dkv.q, &l->attention_dkv.range, &l->attention_dkv.dout);
    const int64_t rows = at.q->rows, dots = at.heads * dots_floats(at.hd, rows), sums = at.heads * sums_floats(at.hd, rows);
    packed_queries packed;
    packed.q_dots = (float *)scratch;
    packed.do_dots = packed.q_dots + dots;
    packed.q_sums = packed.do_dots + dots;
    packed.do_sums = packed.q_sums + sums;
    attention_room room = room_of(w, packed.do_sums + sums, at.hd);
    pack_dots(w, packed.q_dots, at.q, at.heads, at.hd, 0, rows, at.bf16);
    pack_dots(w, packed.do_dots, &l->attention_dkv.dout, at.heads, at.hd, 0, rows, at.bf16);
    pack_sums(w, packed.q_sums, at.q, at.heads, at.hd, 0, rows, at.bf16);
    pack_sums(w, packed.do_sums, &l->attention_dkv.dout, at.heads, at.hd, 0, rows, at.bf16);
    for (int64_t i; (i = fb_next(w)) < at.kv_heads * ((at.keys + NR - 1) / NR);) dkv_item(&at, l, i, &packed, room);
}

static uint64_t attention_scratch(const fb_launch *l, int threads) {
    attention at = attention_of(l, &l->v[2], NULL, NULL);
    const int64_t keys = at.keys, rows = at.q->rows, hd = at.hd;
    int64_t floats = threads * room_floats(hd);
    if (l->op == FB_OP_ATTENTION_DKV) floats += 2 * at.heads * (dots_floats(hd, rows) + sums_floats(hd, rows));
    else floats += at.kv_heads * (dots_floats(hd, keys) + sums_floats(hd, keys));
    if (l->op == FB_OP_ATTENTION_DQ) floats += at.kv_heads * dots_floats(hd, keys);
    return (uint64_t)floats * 4;
}
#endif
