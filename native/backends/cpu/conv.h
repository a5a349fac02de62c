/* conv.h - a causal convolution of each column, and its gradients: an item owns some columns of some rows. */
#ifndef FB_CPU_CONV_H
#define FB_CPU_CONV_H
#include "rows.h"

enum { CONV_ROWS = 128 /* of an item */ };

/* Of y, or of dx in rows from `first` on: row r is the bias and for each k tap L-1-k times a row of `in`. */
static inline void convolve(fb_worker *w, const fb_view *out, const fb_view *in, const fb_view *taps, const fb_view *bias,
                            const fb_view *range, int back, int64_t first) {
    const int64_t n = out->cols, across = (n + COLUMNS - 1) / COLUMNS, size = taps->cols;
    const int64_t items = across * ((out->rows + CONV_ROWS - 1) / CONV_ROWS);
    float tap[FB_MOST_TAPS][COLUMNS], start[COLUMNS];
    for (int64_t i; (i = fb_next(w)) < items;) {
        const int64_t c0 = i % across * COLUMNS, c1 = at_most(c0 + COLUMNS, n), r0 = i / across * CONV_ROWS;
        for (int64_t c = c0; c < c1; c++) {
            start[c - c0] = bias && fb_has(bias) ? ((const float *)fb_row(bias, 0))[c] : 0;
            for (int64_t k = 0; k < size; k++) tap[k][c - c0] = ((const float *)fb_row(taps, c))[size - 1 - k];
        }
        for (int64_t r = r0; r < at_most(r0 + CONV_ROWS, out->rows); r++) {
            const char *from[FB_MOST_TAPS];
            for (int64_t k = 0; k < size; k++) {
                int32_t keys[2] = {0, 0};
                int64_t t = back ? first + r + k : r, row = t;
                if (t < range->rows) memcpy(keys, fb_row(range, t), sizeof keys);
                if (!back) row = keys[1] - 1 - k;
                const int seen = back ? t < range->rows && keys[0] <= first + r && keys[1] == t + 1 : keys[0] <= row;
                from[k] = seen ? fb_row(in, row) : NULL;
            }
            for (int64_t c = c0; c < c1; c += VW) {
                vf sum = a_load(start, FB_F32, c - c0, c1 - c);
                for (int64_t k = 0; k < size; k++)
                    if (from[k]) sum = v_fma(a_load(tap[k], FB_F32, c - c0, c1 - c), a_load(from[k], in->type, c, c1 - c), sum);
                a_store(fb_row(out, r), out->type, c, c1 - c, sum);
            }
        }
    }
}

static void run_conv(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    convolve(w, &v[0], &v[1], &v[2], &v[3], &v[4], 0, 0);
}

static void run_conv_dx(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    convolve(w, &v[0], &v[1], &v[2], NULL, &v[3], 1, l->attr.first);
}

static void run_conv_dw(fb_worker *w, const fb_launch *l, char *scratch) {
    OPERANDS(l);
    const int64_t n = v[0].rows, size = v[0].cols;
    for (int64_t c0; (c0 = fb_next(w) * COLUMNS) < n;) {
        float sums[FB_MOST_TAPS][COLUMNS] = {{0}};
        const int64_t c1 = at_most(c0 + COLUMNS, n);
        for (int64_t t = 0; t < v[1].rows; t++) {
            int32_t keys[2];
            memcpy(keys, fb_row(&v[3], t), sizeof keys);
            for (int64_t k = 0; k < size && keys[1] - 1 - k >= keys[0]; k++)
                for (int64_t c = c0; c < c1; c += VW) {
                    vf x = a_load(fb_row(&v[2], keys[1] - 1 - k), v[2].type, c, c1 - c);
                    vf dy = a_load(fb_row(&v[1], t), v[1].type, c, c1 - c), sum = a_load(sums[k], FB_F32, c - c0, c1 - c);
                    a_store(sums[k], FB_F32, c - c0, c1 - c, v_fma(dy, x, sum));
                }
        }
        for (int64_t c = c0; c < c1; c++)
            for (int64_t k = 0; k < size; k++) ((float *)fb_row(&v[0], c))[size - 1 - k] += sums[k][c - c0];
    }
}
#endif
