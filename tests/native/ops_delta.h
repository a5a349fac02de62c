/* ops_delta.h - cases of the gated delta rule and of parts of heads, for ops.h. */
#ifndef OPS_DELTA_H
#define OPS_DELTA_H

/* ---- the gated delta rule, row by row: T, key heads, groups, dk, dv, cached ---- */

/* One step of a head's state s (dk, dv): fades it, then writes; `u` is what is written, `w` that before beta. */
static void delta_step(double *s, operand *k, operand *v, operand *gates, int r, int h, int kh, int dk, int dv, double *w, double *u) {
    int heads = gates->view.cols / 4;
    for (int i = 0; i < dk * dv; i++) s[i] *= AT(gates, r, heads + h);
    for (int j = 0; j < dv; j++) {
        w[j] = AT(v, r, h * dv + j);
        for (int i = 0; i < dk; i++) w[j] -= s[i * dv + j] * AT(k, r, kh * dk + i);
        u[j] = AT(gates, r, h) * w[j];
    }
}

static operand *add_gates(test_case *t, int rows, int heads, int out) {
    operand *gates = add(t, FB_F32, rows, 4 * heads, out);
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++) {
            set(gates, r, h, uniform(0, 1));
            set(gates, r, heads + h, below(23) ? uniform(below(3) ? 0.9 : 0.2, 1) : 0);
        }
    return gates;
}

static operand *add_keys(test_case *t, int rows, int heads, int dk) { /* of length 1 */
    operand *k = add(t, ACT, rows, heads * dk, 0);
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++) {
            double sum = 1e-3;
            for (int i = 0; i < dk; i++) sum += AT(k, r, h * dk + i) * AT(k, r, h * dk + i);
            for (int i = 0; i < dk; i++) set(k, r, h * dk + i, AT(k, r, h * dk + i) / sqrt(sum));
        }
    return k;
}

static void make_delta(test_case *t, const int *s) {
    int T = s[0], Hk = s[1], Hv = Hk * s[2], dk = s[3], dv = s[4], chunks = (T + FB_DELTA_CHUNK - 1) / FB_DELTA_CHUNK, size = dk * dv;
    operand *o = add(t, ACT, T, Hv * dv, OUT), *states = add(t, FB_F32, chunks, Hv * size, OUT), *q = add_keys(t, T, Hk, dk);
    operand *k = add_keys(t, T, Hk, dk), *v = add(t, ACT, T, Hv * dv, 0), *gates = add_gates(t, T, Hv, 0), *cache = NULL, *at = NULL;
    if (s[5]) {
        cache = add(t, FB_F32, 4, Hv * size, OUT), at = add(t, FB_I32, T, 2, 0);
        for (int r = 0; r < T; r++) set(at, r, 0, 0), set(at, r, 1, 0);
        set(at, 0, 0, 1), set(at, T / 2, 1, 3), set(at, T - 1, 1, 4);
        if (T > 2) set(at, T / 2 + 1, 0, 2);
    }
    t->launch.attr.key_heads = Hk;
    double *state = malloc(8 * (size_t)size), *w = malloc(8 * (size_t)dv), *u = malloc(8 * (size_t)dv);
    for (int h = 0; h < Hv; h++) {
        memset(state, 0, 8 * (size_t)size);
        for (int r = 0; r < T; r++) {
            int from = at ? (int)AT(at, r, 0) : 0, to = at ? (int)AT(at, r, 1) : 0;
            for (int i = 0; i < size && from; i++) state[i] = AT(cache, from - 1, h * size + i);
            for (int i = 0; i < size && r % FB_DELTA_CHUNK == 0; i++) AT(states, r / FB_DELTA_CHUNK, h * size + i) = state[i];
            delta_step(state, k, v, gates, r, h, h % Hk, dk, dv, w, u);
            for (int j = 0; j < dv; j++) {
                AT(o, r, h * dv + j) = 0;
                for (int i = 0; i < dk; i++) {
                    state[i * dv + j] += AT(k, r, h % Hk * dk + i) * u[j];
                    AT(o, r, h * dv + j) += state[i * dv + j] * AT(q, r, h % Hk * dk + i);
                }
            }
            for (int i = 0; i < size && to; i++) AT(cache, to - 1, h * size + i) = state[i];
        }
    }
    free(state), free(w), free(u);
}

static void make_delta_grad(test_case *t, const int *s) {
    int T = s[0], Hk = s[1], Hv = Hk * s[2], dk = s[3], dv = s[4], chunks = (T + FB_DELTA_CHUNK - 1) / FB_DELTA_CHUNK, size = dk * dv;
    operand *dq = add(t, ACT, T, Hk * dk, OUT), *dkey = add(t, ACT, T, Hk * dk, OUT), *dval = add(t, ACT, T, Hv * dv, OUT);
    operand *gates = add_gates(t, T, Hv, OUT), *q = add_keys(t, T, Hk, dk), *k = add_keys(t, T, Hk, dk);
    operand *v = add(t, ACT, T, Hv * dv, 0), *states = add(t, FB_F32, chunks, Hv * size, 0), *dout = add(t, ACT, T, Hv * dv, 0);
    t->launch.attr.key_heads = Hk;
    memset(dq->d, 0, 8 * (size_t)T * Hk * dk), memset(dkey->d, 0, 8 * (size_t)T * Hk * dk);
    double *past = malloc(8 * (size_t)size * FB_DELTA_CHUNK), *w = malloc(16 * (size_t)dv * FB_DELTA_CHUNK);
    double *u = w + dv * FB_DELTA_CHUNK, *state = malloc(8 * (size_t)size), *ds = malloc(8 * (size_t)size);
    for (int h = 0; h < Hv; h++) {
        const int kh = h % Hk * dk;
        memset(ds, 0, 8 * (size_t)size);
        for (int c = chunks - 1; c >= 0; c--) {
            const int t0 = c * FB_DELTA_CHUNK, n = T - t0 < FB_DELTA_CHUNK ? T - t0 : FB_DELTA_CHUNK;
            for (int i = 0; i < size; i++) state[i] = AT(states, c, h * size + i);
            for (int r = 0; r < n; r++) {
                delta_step(state, k, v, gates, t0 + r, h, h % Hk, dk, dv, w + r * dv, u + r * dv);
                memcpy(past + (size_t)r * size, state, 8 * (size_t)size); /* faded, not yet written to */
                for (int i = 0; i < size; i++) state[i] += AT(k, t0 + r, kh + i / dv) * u[r * dv + i % dv];
            }
            for (int r = n - 1; r >= 0; r--) {
                const double *before = past + (size_t)r * size, decay = AT(gates, t0 + r, Hv + h), beta = AT(gates, t0 + r, h);
                double dbeta = 0, dg = 0;
                for (int j = 0; j < dv; j++) {
                    const double grad = AT(dout, t0 + r, h * dv + j), uj = u[r * dv + j];
                    double du = 0, e;
                    for (int i = 0; i < dk; i++) {
                        AT(dq, t0 + r, kh + i) += (before[i * dv + j] + AT(k, t0 + r, kh + i) * uj) * grad;
                        ds[i * dv + j] += AT(q, t0 + r, kh + i) * grad;
                        du += ds[i * dv + j] * AT(k, t0 + r, kh + i);
                    }
                    e = AT(dval, t0 + r, h * dv + j) = beta * du;
                    dbeta += du * w[r * dv + j];
                    for (int i = 0; i < dk; i++) {
                        AT(dkey, t0 + r, kh + i) += ds[i * dv + j] * uj - before[i * dv + j] * e;
                        ds[i * dv + j] -= AT(k, t0 + r, kh + i) * e;
                        dg += ds[i * dv + j] * before[i * dv + j];
                        ds[i * dv + j] *= decay;
                    }
                }
                AT(gates, t0 + r, 2 * Hv + h) = dbeta, AT(gates, t0 + r, 3 * Hv + h) = dg;
            }
        }
    }
    free(past), free(w), free(state), free(ds);
}

static void make_delta_gates(test_case *t, const int *s) { /* T, heads */
    operand *gates = add(t, FB_F32, s[0], 4 * s[1], OUT), *b = add(t, ACT, s[0], s[1], 0), *a = add(t, ACT, s[0], s[1], 0);
    operand *rate = add(t, FB_F32, 1, s[1], 0), *range = add(t, FB_I32, s[0], 2, 0);
    for (int r = 0; r < s[0]; r++) {
        int n = 1 + below(4);
        set(range, r, 0, r), set(range, r, 1, r + n);
        for (int h = 0; h < s[1]; h++) {
            set(a, r, h, AT(a, r, h) * 30);
            AT(gates, r, h) = 1 / (1 + exp(-AT(b, r, h)));
            AT(gates, r, s[1] + h) = n == 1 ? 0 : 1;
        }
    }
    for (int h = 0; h < s[1]; h++) { /* rates are not positive */
        set(rate, 0, h, -fabs(AT(rate, 0, h)));
        for (int r = 0; r < s[0]; r++)
            if (AT(gates, r, s[1] + h) != 0) AT(gates, r, s[1] + h) = exp(AT(rate, 0, h) * log1p(exp(AT(a, r, h))));
    }
}

static void make_delta_gates_grad(test_case *t, const int *s) {
    operand *db = add(t, ACT, s[0], s[1], OUT), *da = add(t, ACT, s[0], s[1], OUT);
    operand *gates = add_gates(t, s[0], s[1], 0), *b = add(t, ACT, s[0], s[1], 0), *a = add(t, ACT, s[0], s[1], 0);
    operand *rate = add(t, FB_F32, 1, s[1], 0);
    (void)b;
    for (int r = 0; r < s[0]; r++)
        for (int h = 0; h < s[1]; h++) {
            double beta = AT(gates, r, h), dg = AT(gates, r, 3 * s[1] + h);
            set(a, r, h, AT(a, r, h) * 30);
            AT(db, r, h) = AT(gates, r, 2 * s[1] + h) * beta * (1 - beta);
            AT(da, r, h) = dg * AT(rate, 0, h) / (1 + exp(-AT(a, r, h)));
        }
}

static void make_part(test_case *t, const int *s) { /* T, heads, columns of each, first, width */
    int inverse = t->launch.attr.inverse = below(2), whole = s[1] * s[2], part = s[1] * s[4];
    operand *y = add(t, ACT, s[0], inverse ? whole : part, OUT), *x = add(t, ACT, s[0], inverse ? part : whole, 0);
    operand *acc = add_maybe(t, below(2), ACT, s[0], inverse ? whole : part);
    t->launch.attr.head_dim = s[2], t->launch.attr.first = s[3], t->launch.attr.width = s[4];
    for (int r = 0; r < s[0]; r++)
        for (int c = 0; c < y->view.cols; c++) {
            int from = inverse ? c % s[2] - s[3] : s[3] + c % s[4];
            AT(y, r, c) = PRESENT(acc) ? AT(acc, r, c) : 0;
            if (!inverse) AT(y, r, c) += AT(x, r, c / s[4] * s[2] + from);
            else if (from >= 0 && from < s[4]) AT(y, r, c) += AT(x, r, c / s[2] * s[4] + from);
        }
}
#endif
