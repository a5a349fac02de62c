/* ops.h - every op of the table in native/graph/backend.h, in doubles and as plainly as it can be written. */
#ifndef FB_TEST_OPS_H
#define FB_TEST_OPS_H
#include "case.h"

static void make_embed(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT), *w = add(t, t->weight, s[2], s[1], 0), *ids = add_ids(t, s[0], s[2] + 4);
    t->equal = t->variant == 0;
    const int stride = t->launch.attr.stride = 1 + below(3), first = t->launch.attr.first = stride > 1 ? -1 : 2;
    t->launch.attr.scale = t->equal ? 1 : 1.5f;
    for (int r = 0; r < s[0]; r++)
        for (int c = 0, id = (int)AT(ids, r, 0) * stride - first; c < s[1] && id >= 0 && id < s[2]; c++)
            AT(y, r, c) = t->launch.attr.scale * AT(w, id, c);
}

static void make_decode(test_case *t, const int *s) {
    operand *y = add(t, FB_BF16, s[0], s[1], OUT), *w = add(t, t->weight, s[0], s[1], 0);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1]; c++) AT(y, r, c) = AT(w, r, c);
}

static double inv_rms(operand *x, int r, int c0, int g, double eps) {
    double sum = 0;
    for (int c = 0; c < g; c++) sum += AT(x, r, c0 + c) * AT(x, r, c0 + c);
    return 1 / sqrt(sum / g + eps);
}

static void make_rms_norm(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1] * s[2], OUT), *x = add(t, ACT, s[0], s[1] * s[2], 0);
    operand *w = add(t, FB_F32, 1, s[1], 0);
    t->launch.attr.eps = 1e-3f;
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1] * s[2]; c++)
            AT(y, r, c) = AT(x, r, c) * inv_rms(x, r, c / s[1] * s[1], s[1], 1e-3) * AT(w, 0, c % s[1]);
}

static void make_rms_norm_dx(test_case *t, const int *s) {
    int g = s[1], d = s[1] * s[2];
    operand *dx = add(t, ACT, s[0], d, OUT), *dy = add(t, ACT, s[0], d, 0), *x = add(t, ACT, s[0], d, 0);
    operand *w = add(t, FB_F32, 1, g, 0), *acc = add_maybe(t, below(2), ACT, s[0], d);
    t->launch.attr.eps = 1e-3f;
    for (int r = 0; r < s[0]; r++)
        for (int c0 = 0; c0 < d; c0 += g) {
            double inv = inv_rms(x, r, c0, g, 1e-3), dot = 0;
            for (int c = 0; c < g; c++) dot += AT(w, 0, c) * AT(dy, r, c0 + c) * AT(x, r, c0 + c);
            for (int c = 0; c < g; c++)
                AT(dx, r, c0 + c) = inv * (AT(w, 0, c) * AT(dy, r, c0 + c) - AT(x, r, c0 + c) * inv * inv * dot / g) +
                                    (PRESENT(acc) ? AT(acc, r, c0 + c) : 0);
        }
}

static void make_rms_norm_dw(test_case *t, const int *s) {
    int g = s[1], d = s[1] * s[2];
    operand *dw = add(t, FB_F32, 1, g, OUT), *dy = add(t, ACT, s[0], d, 0), *x = add(t, ACT, s[0], d, 0);
    t->launch.attr.eps = 1e-3f;
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < d; c++)
            AT(dw, 0, c % g) += AT(dy, r, c) * AT(x, r, c) * inv_rms(x, r, c / g * g, g, 1e-3);
}

static void make_linear(test_case *t, const int *s) { /* T, N, K, R */
    operand *y = add(t, ACT, s[0], s[1], OUT), *x = add(t, ACT, s[0], s[2], 0), *w = add(t, t->weight, s[1], s[2], 0);
    operand *bias = add_maybe(t, below(2), FB_F32, 1, s[1]), *u = add_maybe(t, s[3], ACT, s[0], s[3]);
    operand *b = add_maybe(t, s[3], FB_F32, s[1], s[3]), *acc = add_maybe(t, below(2), ACT, s[0], s[1]);
    t->launch.attr.scale = below(2) ? 1 : 0.75f;
    if (x->view.type == FB_BF16 || y->view.type == FB_BF16) t->coarse = 8e-3;
    for (int r = 0; r < s[0]; r++)
        for (int n = 0; n < s[1]; n++) {
            double sum = 0, low = 0;
            for (int k = 0; k < s[2]; k++) sum += AT(x, r, k) * AT(w, n, k);
            for (int k = 0; k < s[3]; k++) low += AT(u, r, k) * AT(b, n, k);
            AT(y, r, n) = t->launch.attr.scale * sum + low + (PRESENT(bias) ? AT(bias, 0, n) : 0) +
                          (PRESENT(acc) ? AT(acc, r, n) : 0);
        }
}

static void make_linear_dx(test_case *t, const int *s) { /* T, N, K, R */
    operand *dx = add(t, ACT, s[0], s[2], OUT), *dy = add(t, ACT, s[0], s[1], 0), *w = add(t, t->weight, s[1], s[2], 0);
    operand *u = add_maybe(t, s[3], ACT, s[0], s[3]), *a = add_maybe(t, s[3], FB_F32, s[3], s[2]);
    operand *acc = add_maybe(t, below(2), ACT, s[0], s[2]);
    t->launch.attr.scale = below(2) ? 1 : 0.75f;
    if (dy->view.type == FB_BF16 || dx->view.type == FB_BF16) t->coarse = 8e-3;
    for (int r = 0; r < s[0]; r++)
        for (int k = 0; k < s[2]; k++) {
            double sum = 0, low = 0;
            for (int n = 0; n < s[1]; n++) sum += AT(dy, r, n) * AT(w, n, k);
            for (int i = 0; i < s[3]; i++) low += AT(u, r, i) * AT(a, i, k);
            AT(dx, r, k) = t->launch.attr.scale * sum + low + (PRESENT(acc) ? AT(acc, r, k) : 0);
        }
}

/* Gradients whose rows are of very different sizes, down to 2^-60. */
static void make_small_dx(test_case *t, const int *s) {
    operand *o = t->o;
    make_linear_dx(t, s);
    free(o[5].image), free(o[5].d); /* no other term, which would be larger */
    o[5] = (operand){0};
    t->by_row = 1;
    for (int r = 0; r < s[0]; r++) {
        double size = ldexp(1, -(r * 7 % 61));
        for (int n = 0; n < s[1]; n++) set(&o[1], r, n, AT(&o[1], r, n) * size);
        for (int i = 0; i < s[3]; i++) set(&o[3], r, i, AT(&o[3], r, i) * size);
        for (int k = 0; k < s[2]; k++) {
            double sum = 0, low = 0;
            for (int n = 0; n < s[1]; n++) sum += AT(&o[1], r, n) * AT(&o[2], n, k);
            for (int i = 0; i < s[3]; i++) low += AT(&o[3], r, i) * AT(&o[4], i, k);
            AT(&o[0], r, k) = t->launch.attr.scale * sum + low;
        }
    }
}

/* Products with rows that are 0 but for a 1: what comes out are weights, by columns or by rows. T, N, K */
static void pick(test_case *t, const int *s, int dx) {
    int cols = dx ? s[1] : s[2], outs = dx ? s[2] : s[1];
    operand *y = add(t, FB_F32, s[0], outs, OUT), *x = add(t, FB_F32, s[0], cols, 0), *w = add(t, t->weight, s[1], s[2], 0);
    t->launch.attr.scale = 1;
    t->equal = 1;
    for (int r = 0; r < s[0]; r++) {
        for (int c = 0; c < cols; c++) set(x, r, c, c == r % cols);
        for (int c = 0; c < outs; c++) AT(y, r, c) = dx ? AT(w, r % cols, c) : AT(w, c, r % cols);
    }
}
static void make_pick(test_case *t, const int *s) { pick(t, s, 0); }
static void make_pick_dx(test_case *t, const int *s) { pick(t, s, 1); }

static void make_linear_dw(test_case *t, const int *s) { /* T, N, K */
    operand *dw = add(t, FB_F32, s[1], s[2], OUT), *dy = add(t, ACT, s[0], s[1], 0), *x = add(t, ACT, s[0], s[2], 0);
    t->launch.attr.scale = 0.75f;
    if (dy->view.type != x->view.type) t->coarse = 8e-3; /* products of two bf16 are exact in f32 */
    for (int n = 0; n < s[1]; n++)
        for (int k = 0; k < s[2]; k++)
            for (int r = 0; r < s[0]; r++) AT(dw, n, k) += 0.75f * AT(dy, r, n) * AT(x, r, k);
}

static void make_bias_db(test_case *t, const int *s) {
    operand *db = add(t, FB_F32, 1, s[1], OUT), *dy = add(t, ACT, s[0], s[1], 0);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1]; c++) AT(db, 0, c) += AT(dy, r, c);
}

static void make_embed_dw(test_case *t, const int *s) {
    operand *dw = add(t, FB_F32, s[2], s[1], OUT), *dy = add(t, ACT, s[0], s[1], 0), *ids = add_ids(t, s[0], s[2] + 4);
    const int stride = t->launch.attr.stride = 1 + below(3), first = t->launch.attr.first = stride > 1 ? -1 : 2;
    t->launch.attr.scale = 1.5f;
    for (int r = 0; r < s[0]; r++)
        for (int c = 0, id = (int)AT(ids, r, 0) * stride - first; c < s[1] && id >= 0 && id < s[2]; c++)
            AT(dw, id, c) += 1.5 * AT(dy, r, c);
}

static void make_rope_table(test_case *t, const int *s) {
    operand *y = add(t, FB_F32, s[0], 2 * s[1], OUT), *pos = add_ids(t, s[0], 3000), *f = add(t, FB_F32, 1, s[1], 0);
    t->launch.attr.scale = 1.25f;
    for (int r = 0; r < s[0]; r++)
        for (int i = 0; i < s[1]; i++) {
            float angle = (float)AT(pos, r, 0) * (float)AT(f, 0, i);
            AT(y, r, 2 * i) = cos(angle) * 1.25, AT(y, r, 2 * i + 1) = sin(angle) * 1.25;
        }
}

static void make_rope(test_case *t, const int *s) { /* T, heads, head_dim, n_rot */
    int hd = s[2], n = s[3], d = s[1] * hd;
    operand *y = add(t, ACT, s[0], d, OUT), *x = add(t, ACT, s[0], d, 0), *table = add(t, FB_F32, s[0], n, 0);
    operand *acc = add_maybe(t, below(2), ACT, s[0], d);
    int pairs = below(2), inverse = below(2);
    t->launch.attr.head_dim = hd, t->launch.attr.inverse = inverse;
    t->launch.attr.layout = pairs ? FB_ROPE_PAIRS : FB_ROPE_HALVES;
    for (int r = 0; r < s[0]; r++)
        for (int h = 0; h < d; h += hd) {
            for (int c = 0; c < hd; c++) AT(y, r, h + c) = AT(x, r, h + c);
            for (int i = 0; i < n / 2; i++) {
                int p = h + (pairs ? 2 * i : i), q = h + (pairs ? 2 * i + 1 : i + n / 2);
                double cs = AT(table, r, 2 * i), sn = AT(table, r, 2 * i + 1) * (inverse ? -1 : 1);
                AT(y, r, p) = AT(x, r, p) * cs - AT(x, r, q) * sn;
                AT(y, r, q) = AT(x, r, p) * sn + AT(x, r, q) * cs;
            }
            for (int c = 0; c < hd && PRESENT(acc); c++) AT(y, r, h + c) += AT(acc, r, h + c);
        }
}

/* ---- attention: T, S, heads, kv heads, head_dim, window, 10 * softcap ---- */

typedef struct scores {
    double *p, *slope; /* (heads, T, S): softmax, and the derivative of a score by q.k */
    double *lse;       /* (heads, T) */
} scores;

static void packed_rows(operand *range, int rows, int keys, int first) {
    int cached = keys != rows; /* then every query sees a stretch of its own; else rows are packed and causal */
    for (int r = 0, start = 0; r < rows; r++) {
        if (!below(9)) start = r;
        int a = cached ? below(keys) : start, b = cached ? a + below(keys - a + 1) : r + 1;
        if (r == 2) b = a; /* one that sees nothing */
        set(range, r, 0, a + first), set(range, r, 1, b + first);
    }
}

static scores score(const fb_attention_shape *a, operand *q, operand *k, operand *range, int first) {
    int rows = q->view.rows, keys = k->view.rows, group = a->n_head / a->n_kv_head, hd = a->head_dim;
    size_t n = (size_t)a->n_head * rows;
    scores s = {calloc(n * keys, 8), calloc(n * keys, 8), calloc(n, 8)};
    for (int h = 0; h < a->n_head; h++)
        for (int r = 0; r < rows; r++) {
            double *p = s.p + ((size_t)h * rows + r) * keys, *slope = s.slope + ((size_t)h * rows + r) * keys;
            double top = -INFINITY, sum = 0;
            int from = (int)AT(range, r, 0) - first, to = (int)AT(range, r, 1) - first;
            if (a->window && to - from > a->window) from = to - a->window;
            for (int i = 0; i < keys; i++) p[i] = -INFINITY;
            for (int i = from < 0 ? 0 : from; i < to && i < keys; i++) {
                double dot = 0;
                for (int d = 0; d < hd; d++) dot += AT(q, r, h * hd + d) * AT(k, i, h / group * hd + d);
                dot *= a->scale, slope[i] = a->scale;
                if (a->softcap != 0) {
                    double th = tanh(dot / a->softcap);
                    slope[i] *= 1 - th * th, dot = a->softcap * th;
                }
                p[i] = dot, top = fmax(top, dot);
            }
            for (int i = 0; i < keys; i++) sum += p[i] == -INFINITY ? 0 : exp(p[i] - top);
            double lse = s.lse[(size_t)h * rows + r] = sum > 0 ? top + log(sum) : -INFINITY;
            for (int i = 0; i < keys; i++) p[i] = p[i] == -INFINITY ? 0 : exp(p[i] - lse);
        }
    return s;
}

static fb_attention_shape *shape_of(test_case *t, const int *s) {
    fb_attention_shape *a = &t->launch.attr.attention;
    *a = (fb_attention_shape){s[2], s[3], s[4], s[5], (float)(2 / sqrt(s[4])), (float)s[6] / 10};
    return a;
}

/* Where all operands are bf16, probabilities may be too. */
static int is_half(const operand *q, const operand *k, const operand *v, const operand *grad) {
    return q->view.type == FB_BF16 && k->view.type == FB_BF16 && v->view.type == FB_BF16 &&
           (!grad || grad->view.type == FB_BF16);
}

static void make_attention(test_case *t, const int *s) {
    fb_attention_shape *a = shape_of(t, s);
    int T = s[0], S = s[1], hd = s[4], group = s[2] / s[3];
    operand *o = add(t, ACT, T, s[2] * hd, OUT), *stats = add(t, FB_F32, T, 2 * s[2], FINE), *q = add(t, ACT, T, s[2] * hd, 0);
    operand *k = add(t, ACT, S, s[3] * hd, 0), *v = add(t, ACT, S, s[3] * hd, 0);
    operand *range = add(t, FB_I32, T, 2, 0);
    packed_rows(range, T, S, 0);
    if (is_half(q, k, v, NULL)) t->coarse = 2e-3;
    scores sc = score(a, q, k, range, 0);
    for (int h = 0; h < s[2]; h++)
        for (int r = 0; r < T; r++) {
            AT(stats, r, h) = sc.lse[h * T + r];
            for (int d = 0; d < hd; d++) {
                double sum = 0;
                for (int i = 0; i < S; i++) sum += sc.p[((size_t)h * T + r) * S + i] * AT(v, i, h / group * hd + d);
                AT(o, r, h * hd + d) = sum;
            }
        }
    free(sc.p), free(sc.slope), free(sc.lse);
}

/* Both gradients: `dq` asks for the first; DKV may start at key `first` of more keys. */
static void attention_grad(test_case *t, const int *s, int dq) {
    fb_attention_shape *a = shape_of(t, s);
    int T = s[0], S = s[1], hd = s[4], group = s[2] / s[3], D = s[2] * hd, Dk = s[3] * hd, first = dq ? 0 : below(3);
    operand *g0, *g1, *o = NULL, *stats;
    if (dq) g0 = add(t, ACT, T, D, OUT), g1 = stats = add(t, FB_F32, T, 2 * s[2], FINE);
    else g0 = add(t, ACT, S, Dk, OUT), g1 = add(t, ACT, S, Dk, OUT);
    operand *q = add(t, ACT, T, D, 0), *k = add(t, ACT, S, Dk, 0), *v = add(t, ACT, S, Dk, 0);
    if (dq) o = add(t, ACT, T, D, 0);
    else stats = add(t, FB_F32, T, 2 * s[2], 0);
    operand *grad = add(t, ACT, T, D, 0), *range = add(t, FB_I32, T, 2, 0);
    t->launch.attr.first = first;
    packed_rows(range, T, S, first);
    if (is_half(q, k, v, grad)) t->coarse = 2.5e-3;
    scores sc = score(a, q, k, range, first);
    for (size_t i = 0; i < (size_t)T * D && dq; i++) g0->d[i] = 0;
    for (size_t i = 0; i < (size_t)S * Dk && !dq; i++) g0->d[i] = g1->d[i] = 0;
    for (int h = 0; h < s[2]; h++)
        for (int r = 0; r < T; r++) {
            set(stats, r, h, sc.lse[h * T + r]);
            double sum = 0;
            for (int d = 0; d < hd && dq; d++) sum += AT(grad, r, h * hd + d) * AT(o, r, h * hd + d);
            if (dq) AT(stats, r, s[2] + h) = sum;
            for (int i = 0; i < S; i++) {
                double p = sc.p[((size_t)h * T + r) * S + i], slope = sc.slope[((size_t)h * T + r) * S + i], dp = 0;
                int at = h * hd, kv = h / group * hd;
                if (p == 0) continue;
                for (int d = 0; d < hd; d++) dp += AT(grad, r, at + d) * AT(v, i, kv + d);
                double ds = p * (dp - AT(stats, r, s[2] + h)) * slope;
                for (int d = 0; d < hd; d++) {
                    if (dq) AT(g0, r, at + d) += ds * AT(k, i, kv + d);
                    else AT(g0, i, kv + d) += ds * AT(q, r, at + d), AT(g1, i, kv + d) += p * AT(grad, r, at + d);
                }
            }
        }
    free(sc.p), free(sc.slope), free(sc.lse);
}
static void make_attention_dq(test_case *t, const int *s) { attention_grad(t, s, 1); }
static void make_attention_dkv(test_case *t, const int *s) { attention_grad(t, s, 0); }

/* ---- convolutions: T, S, columns, taps; of dx: T, its rows, columns, taps ---- */

/* The key that tap `j` of `taps` meets for query t, or -1. */
static int met(operand *range, int t, int j, int taps) {
    int key = (int)AT(range, t, 1) - taps + j;
    return key >= (int)AT(range, t, 0) ? key : -1;
}

static void make_conv(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[2], OUT), *x = add(t, ACT, s[1], s[2], 0), *w = add(t, FB_F32, s[2], s[3], 0);
    operand *bias = add_maybe(t, below(2), FB_F32, 1, s[2]), *range = add(t, FB_I32, s[0], 2, 0);
    packed_rows(range, s[0], s[1], 0);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[2]; c++) {
            AT(y, r, c) = PRESENT(bias) ? AT(bias, 0, c) : 0;
            for (int j = 0, key; j < s[3]; j++)
                if ((key = met(range, r, j, s[3])) >= 0) AT(y, r, c) += AT(w, c, j) * AT(x, key, c);
        }
}

static void make_conv_dx(test_case *t, const int *s) {
    operand *dx = add(t, ACT, s[1], s[2], OUT), *dy = add(t, ACT, s[0], s[2], 0), *w = add(t, FB_F32, s[2], s[3], 0);
    operand *range = add(t, FB_I32, s[0], 2, 0);
    int first = t->launch.attr.first = (s[0] - s[1]) / 2;
    packed_rows(range, s[0], s[0], 0);
    for (int i = 0; i < s[1] * s[2]; i++) dx->d[i] = 0;
    for (int r = 0; r < s[0]; r++)
        for (int j = 0; j < s[3] && (int)AT(range, r, 1) == r + 1; j++) {
            int row = met(range, r, j, s[3]) - first;
            for (int c = 0; c < s[2] && row >= 0 && row < s[1]; c++) AT(dx, row, c) += AT(w, c, j) * AT(dy, r, c);
        }
}

static void make_conv_dw(test_case *t, const int *s) {
    operand *dw = add(t, FB_F32, s[2], s[3], OUT), *dy = add(t, ACT, s[0], s[2], 0), *x = add(t, ACT, s[1], s[2], 0);
    operand *range = add(t, FB_I32, s[0], 2, 0);
    packed_rows(range, s[0], s[1], 0);
    for (int r = 0; r < s[0]; r++)
        for (int j = 0, key; j < s[3]; j++)
            for (int c = 0; c < s[2] && (key = met(range, r, j, s[3])) >= 0; c++) AT(dw, c, j) += AT(dy, r, c) * AT(x, key, c);
}

#include "ops_delta.h"

/* ---- element by element ---- */

static double gate_of(int kind, double x) {
    if (kind == FB_BILINEAR) return x;
    if (kind == FB_RELU2) return x > 0 ? x * x : 0;
    if (kind == FB_SIGMOID) return 1 / (1 + exp(-x));
    return kind == FB_SILU ? x / (1 + exp(-x)) : 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static void spread(operand *o, double by) { /* values far enough out for tanh and exp to bend */
    for (int r = 0; r < o->view.rows; r++)
        for (int c = 0; c < o->view.cols; c++) set(o, r, c, AT(o, r, c) * by);
}

static void make_glu(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT), *gate = add(t, ACT, s[0], s[1], 0), *up = add(t, ACT, s[0], s[1], 0);
    int kind = t->launch.attr.kind = below(5);
    spread(gate, 6);
    for (int i = 0; i < s[0] * s[1]; i++) y->d[i] = gate_of(kind, gate->d[i]) * up->d[i];
}

static void make_glu_grad(test_case *t, const int *s) {
    operand *dgate = add(t, ACT, s[0], s[1], OUT), *dup = add(t, ACT, s[0], s[1], OUT), *dy = add(t, ACT, s[0], s[1], 0);
    operand *gate = add(t, ACT, s[0], s[1], 0), *up = add(t, ACT, s[0], s[1], 0);
    int kind = t->launch.attr.kind = below(5);
    spread(gate, 6);
    for (int i = 0; i < s[0] * s[1]; i++) {
        double h = 1e-5, slope = (gate_of(kind, gate->d[i] + h) - gate_of(kind, gate->d[i] - h)) / (2 * h);
        dup->d[i] = dy->d[i] * gate_of(kind, gate->d[i]);
        dgate->d[i] = dy->d[i] * up->d[i] * slope;
    }
}

static void make_add(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT), *a = add(t, ACT, s[0], s[1], 0), *b = add(t, ACT, s[0], s[1], 0);
    for (int i = 0; i < s[0] * s[1]; i++) y->d[i] = a->d[i] + b->d[i];
}

static void make_scale(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT), *x = add(t, ACT, s[0], s[1], 0);
    operand *acc = add_maybe(t, below(2), ACT, s[0], s[1]);
    t->launch.attr.scale = -0.75f;
    for (int i = 0; i < s[0] * s[1]; i++) y->d[i] = -0.75 * x->d[i] + (PRESENT(acc) ? acc->d[i] : 0);
}

static uint32_t mixed(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    return x;
}

static void make_dropout(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT), *x = add(t, ACT, s[0], s[1], 0), *keys = add_ids(t, s[0], 1 << 30);
    operand *acc = add_maybe(t, below(2), ACT, s[0], s[1]);
    t->launch.attr.threshold = 0x40000000u, t->launch.attr.scale = 4.0f / 3, t->launch.attr.salt = (uint32_t)below(100);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1]; c++) {
            uint32_t row = mixed((uint32_t)AT(keys, r, 0) + t->launch.attr.salt * 0x9e3779b9u);
            int kept = mixed(row + (uint32_t)c * 0x85ebca77u) >= 0x40000000u;
            AT(y, r, c) = (kept ? AT(x, r, c) * 4 / 3 : 0) + (PRESENT(acc) ? AT(acc, r, c) : 0);
        }
}

static void make_softcap(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT), *x = add(t, ACT, s[0], s[1], 0);
    t->launch.attr.softcap = 3;
    spread(x, 20);
    for (int i = 0; i < s[0] * s[1]; i++) y->d[i] = 3 * tanh(x->d[i] / 3);
}

static void make_softcap_grad(test_case *t, const int *s) {
    operand *dx = add(t, ACT, s[0], s[1], OUT), *dy = add(t, ACT, s[0], s[1], 0), *y = add(t, ACT, s[0], s[1], 0);
    operand *acc = add_maybe(t, below(2), ACT, s[0], s[1]);
    t->launch.attr.softcap = 1.5f;
    for (int i = 0; i < s[0] * s[1]; i++)
        dx->d[i] = dy->d[i] * (1 - y->d[i] / 1.5 * (y->d[i] / 1.5)) + (PRESENT(acc) ? acc->d[i] : 0);
}

static void make_gather(test_case *t, const int *s) { /* M, D, T */
    operand *y = add(t, ACT, s[0], s[1], OUT), *x = add(t, ACT, s[2], s[1], 0), *index = add_ids(t, s[0], s[2]);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1]; c++) AT(y, r, c) = AT(x, (int)AT(index, r, 0), c);
}

static void make_scatter(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[2], s[1], OUT), *x = add(t, ACT, s[0], s[1], 0), *index = add_ids(t, s[0], s[2]);
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < s[1]; c++) { /* rows that meet are rounded each time */
            float sum = (float)(AT(y, (int)AT(index, r, 0), c) + AT(x, r, c));
            uint32_t bytes = 0;
            encode_row(y->view.type, &sum, &bytes, 1), decode_row(y->view.type, &bytes, &sum, 1);
            AT(y, (int)AT(index, r, 0), c) = sum;
        }
}

static void make_append(test_case *t, const int *s) { /* T, D, S; slots never meet */
    operand *y = add(t, ACT, s[2], s[1], OUT), *x = add(t, ACT, s[0], s[1], 0), *slots = add_ids(t, s[0], 1);
    for (int r = 0; r < s[0]; r++) {
        set(slots, r, 0, s[2] - 1 - r);
        for (int c = 0; c < s[1]; c++) AT(y, s[2] - 1 - r, c) = AT(x, r, c);
    }
}

#include "ops_experts.h"

static void make_xent(test_case *t, const int *s) { /* M, V, 10 * softcap, grad */
    operand *nll = add(t, FB_F32, s[0], 1, OUT), *x = add(t, FB_F32, s[0], s[1], OUT), *target = add_ids(t, s[0], s[1]);
    double cap = t->launch.attr.softcap = (float)s[2] / 10;
    t->launch.attr.grad = s[3];
    spread(x, 12);
    if (!s[3]) x->out = CHECK_SKIP;
    for (int r = 0; r < s[0]; r++) {
        double top = -INFINITY, sum = 0;
        int hit = (int)AT(target, r, 0);
        for (int c = 0; c < s[1]; c++) {
            if (cap != 0) AT(x, r, c) = cap * tanh(AT(x, r, c) / cap);
            top = fmax(top, AT(x, r, c));
        }
        for (int c = 0; c < s[1]; c++) sum += exp(AT(x, r, c) - top);
        AT(nll, r, 0) = top + log(sum) - AT(x, r, hit);
        for (int c = 0; c < s[1]; c++) {
            double z = AT(x, r, c), slope = cap != 0 ? 1 - z / cap * (z / cap) : 1;
            AT(x, r, c) = (exp(z - top) / sum - (c == hit)) * slope;
        }
    }
}

static void make_zero(test_case *t, const int *s) {
    operand *y = add(t, ACT, s[0], s[1], OUT);
    memset(y->d, 0, (size_t)s[0] * s[1] * 8);
}

static void make_sumsq(test_case *t, const int *s) { /* n, P */
    operand *partial = add(t, FB_F32, 1, s[1], OUT), *x = add(t, FB_F32, 1, s[0], 0);
    int piece = (s[0] + s[1] - 1) / s[1];
    memset(partial->d, 0, (size_t)s[1] * 8);
    for (int i = 0; i < s[0]; i++) partial->d[i / piece] += x->d[i] * x->d[i];
}

/* The record and the numbers of a step that an update reads; in every third case it must not take place. */
static int step_operands(test_case *t, int n, float scale) {
    operand *hyper = add(t, FB_F32, 1, FB_HYPER, 0), *record = add(t, FB_F32, 1, FB_RECORD, 0);
    int finite = n % 3 != 2;
    set(hyper, 0, FB_HYPER_LR, 0.02), set(hyper, 0, FB_HYPER_CORRECT1, 0.271), set(hyper, 0, FB_HYPER_CORRECT2, 0.003);
    set(record, 0, FB_RECORD_SCALE, scale), set(record, 0, FB_RECORD_FINITE, finite);
    return finite;
}

static void make_adamw(test_case *t, const int *s) {
    operand *o[4];
    for (int i = 0; i < 4; i++) o[i] = add(t, FB_F32, 1, s[0], i < 3 ? OUT : 0);
    fb_attr *a = &t->launch.attr;
    a->lr_scale = 0.5f, a->beta1 = 0.9f, a->beta2 = 0.999f, a->eps = 1e-4f, a->decay = 0.1f;
    for (int i = 0; i < s[0]; i++) set(o[2], 0, i, fabs(o[2]->d[i]));
    if (!step_operands(t, s[0], 0.5f)) return;
    for (int i = 0; i < s[0]; i++) {
        double g = 0.5 * o[3]->d[i], m = o[1]->d[i] = a->beta1 * o[1]->d[i] + (1 - a->beta1) * g;
        double v = o[2]->d[i] = a->beta2 * o[2]->d[i] + (1 - a->beta2) * g * g;
        o[0]->d[i] -= 0.01 * a->decay * o[0]->d[i] + 0.01 * (m / 0.271) / (sqrt(v / 0.003) + a->eps);
    }
}

static void make_sgd(test_case *t, const int *s) { /* n, momentum? */
    operand *p = add(t, FB_F32, 1, s[0], OUT), *m = s[1] ? add(t, FB_F32, 1, s[0], OUT) : absent(t);
    operand *g = add(t, FB_F32, 1, s[0], 0);
    fb_attr *a = &t->launch.attr;
    a->lr_scale = 0.5f, a->decay = 0.1f, a->momentum = 0.9f;
    if (!step_operands(t, s[0], 0.5f)) return;
    for (int i = 0; i < s[0]; i++) {
        double step = 0.5 * g->d[i];
        if (PRESENT(m)) step = m->d[i] = a->momentum * m->d[i] + step;
        p->d[i] -= 0.01 * a->decay * p->d[i] + 0.01 * step;
    }
}

static void make_tally(test_case *t, const int *s) { /* M */
    operand *record = add(t, FB_F32, 1, FB_RECORD, OUT), *nll = add(t, FB_F32, s[0], 1, 0);
    const double before[FB_RECORD] = {512, 200.25, 1024, 255};
    for (int i = 0; i < FB_RECORD; i++) set(record, 0, i, before[i]);
    double loss = 712.25, trained = 1279 + s[0];
    for (int r = 0; r < s[0]; r++) {
        set(nll, r, 0, 8 * fabs(AT(nll, r, 0)));
        loss += AT(nll, r, 0);
    }
    record->d[FB_RECORD_LOSS] = loss, record->d[FB_RECORD_LOSS + 1] = 0;
    record->d[FB_RECORD_TRAINED] = trained, record->d[FB_RECORD_TRAINED + 1] = 0;
    t->in_pairs = 1;
}

static void make_norm(test_case *t, const int *s) { /* P, clip, what is infinite or no number: 1 the loss, 2 the gradient */
    operand *record = add(t, FB_F32, 1, FB_RECORD, OUT), *partial = add(t, FB_F32, 1, s[0], 0);
    operand *hyper = add(t, FB_F32, 1, FB_HYPER, 0);
    double sum = 0;
    for (int i = 0; i < s[0]; i++) set(partial, 0, i, fabs(partial->d[i])), sum += partial->d[i];
    if (s[2] == 2) set(partial, 0, s[0] / 2, sum = INFINITY);
    set(hyper, 0, FB_HYPER_CLIP, s[1]);
    set(record, 0, FB_RECORD_LOSS, s[2] == 1 ? INFINITY : 0), set(record, 0, FB_RECORD_LOSS + 1, 3);
    set(record, 0, FB_RECORD_TRAINED, 0), set(record, 0, FB_RECORD_TRAINED + 1, 5);
    double norm = record->d[FB_RECORD_NORM] = sqrt(sum) / 5;
    record->d[FB_RECORD_SCALE] = s[1] && norm > s[1] ? s[1] / (norm + 1e-6) / 5 : 0.2;
    record->d[FB_RECORD_FINITE] = s[2] == 0;
}
#endif
