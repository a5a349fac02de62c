/* delta.h - the gated delta rule and its gates. A chunk of up to FB_DELTA_CHUNK rows is products of small matrices; only the
 * state goes on from one to the next. With D[t][i] what is left at row t of what row i wrote (0 where a row of the data begins
 * between them), F[t] what is left of the state s before the chunk, and A = D K K^T below the diagonal, P = D Q K^T on it too:
 *     w = v - F (K s) - A u,  u = beta w        row by row
 *     o = F (Q s) + P u,      s' = F[n-1] s + K^T (D[n-1] u)
 * Yang et al. 2024, https://arxiv.org/abs/2406.06484 and 2412.06464. A thread owns a key head and its value heads. */
#ifndef FB_CPU_DELTA_H
#define FB_CPU_DELTA_H
#include "rows.h"

enum { ROWS_AT_ONCE = 8, NC = FB_DELTA_CHUNK };

static inline __attribute__((always_inline)) void mul_rows(int rows, float *y, int64_t ldy, int64_t n, int64_t k, const float *a,
                                                           int64_t am, int64_t ak, const float *b, int64_t ldb, int add) {
    for (int64_t j = 0; j < n; j += VW) {
        vf sum[ROWS_AT_ONCE];
        for (int r = 0; r < rows; r++) sum[r] = add ? v_load(y + r * ldy + j) : v_set(0);
        for (int64_t i = 0; i < k; i++) {
            const vf x = v_load(b + i * ldb + j);
            for (int r = 0; r < rows; r++) sum[r] = v_fma(v_set(a[r * am + i * ak]), x, sum[r]);
        }
        for (int r = 0; r < rows; r++) v_store(y + r * ldy + j, sum[r]);
    }
}

/* y (m, n) = a (m, k) b (k, n), or added to it; element (r, i) of a is a[r am + i ak], n whole vectors. */
static void mul(float *y, int64_t ldy, int64_t m, int64_t n, int64_t k, const float *a, int64_t am, int64_t ak, const float *b,
                int64_t ldb, int add) {
    int64_t r = 0;
    for (; r + ROWS_AT_ONCE <= m; r += ROWS_AT_ONCE) mul_rows(ROWS_AT_ONCE, y + r * ldy, ldy, n, k, a + r * am, am, ak, b, ldb, add);
    for (; r < m; r++) mul_rows(1, y + r * ldy, ldy, n, k, a + r * am, am, ak, b, ldb, add);
}

/* y (n, m) = x (m, n)^T, both of whole vectors. */
static void flip(float *y, int64_t ldy, const float *x, int64_t ldx, int64_t m, int64_t n) {
    for (int64_t r = 0; r < m; r += VW)
        for (int64_t c = 0; c < n; c += VW) {
            vf t[VW];
            for (int i = 0; i < VW; i++) t[i] = v_load(x + (r + i) * ldx + c);
            v_transpose(t);
            for (int i = 0; i < VW; i++) v_store(y + (c + i) * ldy + r, t[i]);
        }
}

/* x (m, n) times a number a row, all of them times `by`. */
static void scale_rows(float *x, int64_t ld, int64_t m, int64_t n, const float *each, float by) {
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < n; c += VW) v_store(x + r * ld + c, v_load(x + r * ld + c) * v_set(each[r] * by));
}

static float dot_of(const float *a, const float *b, int64_t n) {
    vf sum = v_set(0);
    for (int64_t c = 0; c < n; c += VW) sum = v_fma(v_load(a + c), v_load(b + c), sum);
    return v_sum(sum);
}

typedef struct delta {
    int64_t heads, key_heads, dk, dv, wk, wv; /* wk, wv: dk and dv in whole vectors */
    int64_t n;                                /* rows of the chunk */
    float *q, *k, *kt, *qd, *kd, *z;          /* (NC, wk), kt (wk, NC) */
    float *w, *u, *x, *e, *ut;                /* (NC, wv), ut (wv, NC) */
    float *a, *p, *d, *da, *dp;               /* (NC, NC); a is less than nothing: -A */
    float *beta, *left, *last, *dg, *db;      /* (NC) left: F; last: D of the last row */
    float *s, *st, *dst, *ds;                 /* (wk, wv), st and dst (wv, wk); ds of every value head of the group */
} delta;

static int64_t delta_floats(int64_t wk, int64_t wv, int64_t group) {
    return NC * (6 * wk + 5 * wv + 5 * NC + 5) + (3 + group) * wk * wv;
}

static delta delta_of(const fb_launch *l, const fb_view *q, const fb_view *v, const fb_view *gates, float *at) {
    delta t = {.heads = gates->cols / 4, .key_heads = l->attr.key_heads};
    t.dk = q->cols / t.key_heads, t.dv = v->cols / t.heads;
    t.wk = round_up(t.dk, 16), t.wv = round_up(t.dv, 16);
    float **const parts[] = {&t.q, &t.k, &t.kt, &t.qd, &t.kd, &t.z, &t.w, &t.u, &t.x, &t.e, &t.ut, &t.a, &t.p, &t.d, &t.da, &t.dp,
                             &t.beta, &t.left, &t.last, &t.dg, &t.db, &t.s, &t.st, &t.dst, &t.ds};
    for (int i = 0; i < 25 && at; i++) {
        *parts[i] = at;
        at += i < 6 ? NC * t.wk : i < 11 ? NC * t.wv : i < 16 ? NC * NC : i < 21 ? NC : t.wk * t.wv;
    }
    return t;
}

static uint64_t delta_scratch(const fb_launch *l, int threads) {
    const int back = l->op == FB_OP_DELTA_GRAD;
    const fb_view *q = back ? &l->delta_grad.q : &l->delta.q, *v = back ? &l->delta_grad.v : &l->delta.v;
    const delta t = delta_of(l, q, v, back ? &l->delta_grad.gates : &l->delta.gates, NULL);
    return (uint64_t)threads * 4 * (uint64_t)delta_floats(t.wk, t.wv, t.heads / t.key_heads);
}

static delta delta_room(fb_worker *w, const fb_launch *l, const fb_view *q, const fb_view *v, const fb_view *gates, char *scratch) {
    const delta t = delta_of(l, q, v, gates, NULL);
    return delta_of(l, q, v, gates, (float *)scratch + w->index * delta_floats(t.wk, t.wv, t.heads / t.key_heads));
}

/* Columns [c0, c0 + cols) of rows from t0 on, with zeros to whole vectors both ways; and back again. */
static void rows_in(float *x, int64_t ld, const fb_view *v, int64_t t0, int64_t n, int64_t c0, int64_t cols) {
    for (int64_t r = 0; r < round_up(n, 16); r++)
        for (int64_t c = 0; c < ld; c += VW)
            v_store(x + r * ld + c, r < n && c < cols ? a_load(fb_row(v, t0 + r), v->type, c0 + c, cols - c) : v_set(0));
}
static void rows_out(const fb_view *v, int64_t t0, int64_t n, int64_t c0, int64_t cols, const float *x, int64_t ld) {
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < cols; c += VW) a_store(fb_row(v, t0 + r), v->type, c0 + c, cols - c, v_load(x + r * ld + c));
}

/* A head's state of a row of states. */
static fb_view state_of(const delta *t, const fb_view *v, int64_t row, int64_t h) {
    fb_view s = *v;
    s.offset += fb_type_bytes(FB_F32, row * v->ld + h * t->dk * t->dv);
    s.rows = (int32_t)t->dk, s.cols = (int32_t)t->dv, s.ld = t->dv;
    return s;
}
static void state_in(const delta *t, const fb_view *v, int64_t row, int64_t h) {
    const fb_view s = state_of(t, v, row, h);
    rows_in(t->s, t->wv, &s, 0, t->dk, 0, t->dv);
}

static void keys_in(delta *t, const fb_view *q, const fb_view *k, int64_t kh, int64_t t0, int64_t n) {
    t->n = n;
    rows_in(t->q, t->wk, q, t0, n, kh * t->dk, t->dk);
    rows_in(t->k, t->wk, k, t0, n, kh * t->dk, t->dk);
    flip(t->kt, NC, t->k, t->wk, round_up(n, 16), t->wk);
}

/* What both directions need of a value head: -A, P, D and the rest of the gates; x = F (K s), w and u. */
static void chunk_of(const delta *t, const fb_view *v, const fb_view *gates, int64_t h, int64_t t0) {
    const int64_t n = t->n, wide = round_up(n, 16);
    float left = 1;
    mul(t->a, NC, n, wide, t->dk, t->k, t->wk, 1, t->kt, NC, 0);
    mul(t->p, NC, n, wide, t->dk, t->q, t->wk, 1, t->kt, NC, 0);
    memset(t->last, 0, NC * sizeof *t->last);
    for (int64_t r = 0; r < n; r++) {
        const float *gate = (const float *)fb_row(gates, t0 + r), decay = gate[t->heads + h];
        t->beta[r] = gate[h];
        t->left[r] = left *= decay;
        for (int64_t i = 0; i < wide; i += VW) {
            vf d = v_load(t->last + i) * v_set(decay);
            v_store(t->last + i, d);
            v_store(t->a + r * NC + i, v_load(t->a + r * NC + i) * -d);
        }
        t->last[r] = 1;
        for (int64_t i = 0; i < wide; i += VW) {
            v_store(t->d + r * NC + i, v_load(t->last + i));
            v_store(t->p + r * NC + i, v_load(t->p + r * NC + i) * v_load(t->last + i));
        }
    }
    mul(t->x, t->wv, n, t->wv, t->dk, t->k, t->wk, 1, t->s, t->wv, 0);
    scale_rows(t->x, t->wv, n, t->wv, t->left, 1);
    rows_in(t->w, t->wv, v, t0, n, h * t->dv, t->dv);
    memset(t->u + n * t->wv, 0, (size_t)((wide - n) * t->wv) * sizeof *t->u);
    for (int64_t r0 = 0; r0 < n; r0 += ROWS_AT_ONCE) {
        const int64_t rows = at_most(n - r0, ROWS_AT_ONCE);
        float *w = t->w + r0 * t->wv;
        for (int64_t i = 0; i < rows * t->wv; i += VW) v_store(w + i, v_load(w + i) - v_load(t->x + r0 * t->wv + i));
        mul(w, t->wv, rows, t->wv, r0, t->a + r0 * NC, NC, 1, t->u, t->wv, 1);
        for (int64_t r = r0; r < r0 + rows; r++, w += t->wv) {
            mul(w, t->wv, 1, t->wv, r - r0, t->a + r * NC + r0, NC, 1, t->u + r0 * t->wv, t->wv, 1);
            for (int64_t c = 0; c < t->wv; c += VW) v_store(t->u + r * t->wv + c, v_load(w + c) * v_set(t->beta[r]));
        }
    }
}

/* The number of the state that row t begins from (which 0) or leaves (1); 0: none. */
static int32_t cached(const fb_view *at, int64_t t, int which) {
    return fb_has(at) ? ((const int32_t *)fb_row(at, t))[which] : 0;
}

static void run_delta(fb_worker *w, const fb_launch *l, char *scratch) {
    const struct fb_delta_views *v = &l->delta;
    delta t = delta_room(w, l, &v->q, &v->v, &v->gates, scratch);
    const int64_t rows = v->q.rows;
    for (int64_t h; (h = fb_next(w)) < t.heads;) {
        memset(t.s, 0, (size_t)(t.wk * t.wv) * sizeof *t.s);
        for (int64_t t0 = 0, n; t0 < rows; t0 += n) {
            for (n = 1; t0 + n < rows && (t0 + n) % NC; n++)
                if (cached(&v->at, t0 + n, 0) || cached(&v->at, t0 + n - 1, 1)) break;
            if (cached(&v->at, t0, 0)) state_in(&t, &v->cache, cached(&v->at, t0, 0) - 1, h);
            if (t0 % NC == 0) {
                const fb_view s = state_of(&t, &v->states, t0 / NC, h);
                rows_out(&s, 0, t.dk, 0, t.dv, t.s, t.wv);
            }
            keys_in(&t, &v->q, &v->k, h % t.key_heads, t0, n);
            chunk_of(&t, &v->v, &v->gates, h, t0);
            mul(t.x, t.wv, n, t.wv, t.dk, t.q, t.wk, 1, t.s, t.wv, 0);
            scale_rows(t.x, t.wv, n, t.wv, t.left, 1);
            mul(t.x, t.wv, n, t.wv, n, t.p, NC, 1, t.u, t.wv, 1);
            rows_out(&v->o, t0, n, h * t.dv, t.dv, t.x, t.wv);
            scale_rows(t.u, t.wv, n, t.wv, t.last, 1);
            for (int64_t i = 0; i < t.wk * t.wv; i += VW) v_store(t.s + i, v_load(t.s + i) * v_set(t.left[n - 1]));
            mul(t.s, t.wv, t.dk, t.wv, n, t.kt, NC, 1, t.u, t.wv, 1);
            if (cached(&v->at, t0 + n - 1, 1)) {
                const fb_view s = state_of(&t, &v->cache, cached(&v->at, t0 + n - 1, 1) - 1, h);
                rows_out(&s, 0, t.dk, 0, t.dv, t.s, t.wv);
            }
        }
    }
}

/* d beta, d log(decay) and e = d v of a chunk, what is added to the gradients of q and k, and ds of the state before it. */
static void chunk_back(const delta *t, const fb_view *dout, const fb_view *dv, const fb_view *gates, float *ds, int64_t h,
                       int64_t t0) {
    const int64_t n = t->n, wide = round_up(n, 16), wk = t->wk, wv = t->wv;
    float *const o = t->x, *const e = t->e, *const u = t->u;
    rows_in(o, wv, dout, t0, n, h * t->dv, t->dv);
    mul(e, wv, n, wv, t->dk, t->k, wk, 1, ds, wv, 0);
    scale_rows(e, wv, n, wv, t->last, 1);
    mul(e, wv, n, wv, n, t->p, 1, NC, o, wv, 1);
    for (int64_t end = n, r0; end > 0; end = r0) {
        r0 = (end - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
        mul(e + r0 * wv, wv, end - r0, wv, n - end, t->a + end * NC + r0, 1, NC, e + end * wv, wv, 1);
        for (int64_t r = end - 1; r >= r0; r--) {
            float *row = e + r * wv;
            mul(row, wv, 1, wv, end - 1 - r, t->a + (r + 1) * NC + r, 1, NC, row + wv, wv, 1);
            t->db[r] = dot_of(row, t->w + r * wv, wv);
            for (int64_t c = 0; c < wv; c += VW) v_store(row + c, v_load(row + c) * v_set(t->beta[r]));
        }
    }
    rows_out(dv, t0, n, h * t->dv, t->dv, e, wv);
    flip(t->ut, NC, u, wv, wide, wv);
    mul(t->dp, NC, n, wide, t->dv, o, wv, 1, t->ut, NC, 0);
    mul(t->da, NC, n, wide, t->dv, e, wv, 1, t->ut, NC, 0);
    memset(t->dg, 0, NC * sizeof *t->dg);
    for (int64_t r = 0; r < n; r++) {
        float *dp = t->dp + r * NC, *da = t->da + r * NC;
        vf all = v_set(0);
        for (int64_t i = 0; i < wide; i += VW) { /* what D is multiplied by, and so what decays between rows i and r get */
            vf m = v_load(dp + i) * v_load(t->p + r * NC + i) + v_load(da + i) * v_load(t->a + r * NC + i), d = v_load(t->d + r * NC + i);
            all += m;
            v_store(t->dg + i, v_load(t->dg + i) - m);
            v_store(dp + i, v_load(dp + i) * d);
            v_store(da + i, v_load(da + i) * -d);
        }
        da[r] = 0;
        t->dg[r] += v_sum(all);
    }
    flip(t->st, wk, t->s, wv, wk, wv);
    flip(t->dst, wk, ds, wv, wk, wv);
    float end = dot_of(ds, t->s, wk * wv) * t->left[n - 1];
    mul(t->z, wk, n, wk, t->dv, o, wv, 1, t->st, wk, 0);
    scale_rows(t->z, wk, n, wk, t->left, 1);
    for (int64_t r = 0; r < n; r++) t->dg[r] += dot_of(t->q + r * wk, t->z + r * wk, wk);
    mul(t->z, wk, n, wk, n, t->dp, NC, 1, t->k, wk, 1);
    for (int64_t i = 0; i < n * wk; i += VW) v_store(t->qd + i, v_load(t->qd + i) + v_load(t->z + i));
    mul(t->z, wk, n, wk, t->dv, e, wv, 1, t->st, wk, 0);
    scale_rows(t->z, wk, n, wk, t->left, -1);
    for (int64_t r = 0; r < n; r++) t->dg[r] += dot_of(t->k + r * wk, t->z + r * wk, wk);
    mul(t->z, wk, n, wk, n, t->da, NC, 1, t->k, wk, 1);
    mul(t->z, wk, n, wk, n, t->da, 1, NC, t->k, wk, 1);
    mul(t->z, wk, n, wk, n, t->dp, 1, NC, t->q, wk, 1);
    for (int64_t i = 0; i < n * wk; i += VW) v_store(t->kd + i, v_load(t->kd + i) + v_load(t->z + i));
    mul(t->z, wk, n, wk, t->dv, u, wv, 1, t->dst, wk, 0);
    scale_rows(t->z, wk, n, wk, t->last, 1);
    for (int64_t r = 0; r < n; r++) {
        const float kz = dot_of(t->k + r * wk, t->z + r * wk, wk);
        t->dg[r] -= kz, end += kz;
    }
    for (int64_t i = 0; i < n * wk; i += VW) v_store(t->kd + i, v_load(t->kd + i) + v_load(t->z + i));
    for (int64_t r = n - 1; r >= 0; r--) {
        float *gate = (float *)fb_row(gates, t0 + r);
        end += t->dg[r];
        gate[2 * t->heads + h] = t->db[r], gate[3 * t->heads + h] = gate[t->heads + h] > 0 ? end : 0;
    }
    scale_rows(o, wv, n, wv, t->left, 1);
    scale_rows(e, wv, n, wv, t->left, -1);
    for (int64_t i = 0; i < wk * wv; i += VW) v_store(ds + i, v_load(ds + i) * v_set(t->left[n - 1]));
    mul(ds, wv, t->dk, wv, n, t->q, 1, wk, o, wv, 1);
    mul(ds, wv, t->dk, wv, n, t->k, 1, wk, e, wv, 1);
}

static void run_delta_grad(fb_worker *w, const fb_launch *l, char *scratch) {
    const struct fb_delta_grad_views *v = &l->delta_grad;
    delta t = delta_room(w, l, &v->q, &v->v, &v->gates, scratch);
    const int64_t group = t.heads / t.key_heads, rows = v->q.rows, state = t.wk * t.wv;
    for (int64_t kh; (kh = fb_next(w)) < t.key_heads;) {
        memset(t.ds, 0, (size_t)(group * state) * sizeof *t.ds);
        for (int64_t t0 = (rows - 1) / NC * NC; t0 >= 0; t0 -= NC) {
            keys_in(&t, &v->q, &v->k, kh, t0, at_most(rows - t0, NC));
            memset(t.qd, 0, (size_t)(2 * NC * t.wk) * sizeof *t.qd); /* and kd behind it */
            for (int64_t g = 0, h = kh; g < group; g++, h += t.key_heads) {
                state_in(&t, &v->states, t0 / NC, h);
                chunk_of(&t, &v->v, &v->gates, h, t0);
                chunk_back(&t, &v->dout, &v->dv, &v->gates, t.ds + g * state, h, t0);
            }
            rows_out(&v->dq, t0, t.n, kh * t.dk, t.dk, t.qd, t.wk);
            rows_out(&v->dk, t0, t.n, kh * t.dk, t.dk, t.kd, t.wk);
        }
    }
}

/* ---- gates ---- */

static float softplus(float x) { return x > 20 ? x : log1pf(expf(x)); }
static float one_of(const fb_view *v, int64_t r, int64_t c) { return v_sum(a_load(fb_row(v, r), v->type, c, 1)); }

static void run_delta_gates(fb_worker *w, const fb_launch *l, char *scratch) {
    const struct fb_delta_gates_views *v = &l->delta_gates;
    const float *rate = (const float *)fb_row(&v->rate, 0);
    (void)scratch;
    for (int64_t r; (r = fb_next(w)) < v->b.rows;) {
        float *gate = (float *)fb_row(&v->gates, r);
        const int32_t *range = (const int32_t *)fb_row(&v->range, r);
        for (int64_t h = 0, heads = v->b.cols; h < heads; h++) {
            gate[h] = 1 / (1 + expf(-one_of(&v->b, r, h)));
            gate[heads + h] = range[1] - range[0] <= 1 ? 0 : expf(rate[h] * softplus(one_of(&v->a, r, h)));
        }
    }
}

static void run_delta_gates_grad(fb_worker *w, const fb_launch *l, char *scratch) {
    const struct fb_delta_gates_grad_views *v = &l->delta_gates_grad;
    const float *rate = (const float *)fb_row(&v->rate, 0);
    (void)scratch;
    for (int64_t r; (r = fb_next(w)) < v->b.rows;) {
        const float *gate = (const float *)fb_row(&v->gates, r);
        for (int64_t h = 0, heads = v->b.cols; h < heads; h++) {
            const float beta = gate[h], dg = gate[3 * heads + h], a = one_of(&v->a, r, h);
            a_store(fb_row(&v->db, r), v->db.type, h, 1, v_set(gate[2 * heads + h] * beta * (1 - beta)));
            a_store(fb_row(&v->da, r), v->da.type, h, 1, v_set(dg * rate[h] / (1 + expf(-a))));
        }
    }
}

static void run_part(fb_worker *w, const fb_launch *l, char *scratch) {
    const struct fb_part_views *v = &l->part;
    const int64_t head = l->attr.head_dim, width = l->attr.width, first = l->attr.first, heads = (l->attr.inverse ? v->y : v->x).cols / head;
    const int64_t to = l->attr.inverse ? head : width, from = l->attr.inverse ? width : head;
    (void)scratch;
    for (int64_t r; (r = fb_next(w)) < v->y.rows;)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t c = 0, n; c < to; c += n) { /* stretches that are copied, or 0 */
                const int64_t at = l->attr.inverse ? c - first : c + first, inside = !l->attr.inverse || (at >= 0 && at < width);
                n = inside ? to - c : at < 0 ? -at : to - c;
                if (inside && l->attr.inverse) n = width - at;
                for (int64_t i = 0; i < n; i += VW) {
                    vf x = inside ? a_load(fb_row(&v->x, r), v->x.type, h * from + at + i, n - i) : v_set(0);
                    if (fb_has(&v->acc)) x += a_load(fb_row(&v->acc, r), v->acc.type, h * to + c + i, n - i);
                    a_store(fb_row(&v->y, r), v->y.type, h * to + c + i, n - i, x);
                }
            }
}
#endif
