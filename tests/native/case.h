/* case.h - one launch under test: operands with their values in doubles beside the bytes that a device gets.
 * A `make` function of ops.h fills a case and overwrites the doubles of its outputs with what must come out. */
#ifndef FB_TEST_CASE_H
#define FB_TEST_CASE_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../native/graph/backend.h"

enum { ACT = -2, OUT = 1, CHECK_SKIP = 2, FINE = 3 };

typedef struct operand {
    fb_view view;
    int out;
    uint64_t bytes;
    char *image; /* as written to the device before the launch */
    double *d;   /* (rows, cols); of an output: what is expected */
} operand;

typedef struct test_case {
    fb_launch launch;
    operand o[FB_MAX_OPERANDS];
    int n;
    int variant; /* of activations: 0 all F32, 1 all BF16, 2 mixed */
    int weight;  /* type of block operands */
    double coarse; /* of the largest: what outputs that are not FINE may be off where 16-bit products may occur */
    int by_row;  /* 1: of the largest of each row */
    int in_pairs; /* 1: only the sums of two neighbours count */
    int equal;   /* 1: outputs are single weights, which must come out bit for bit */
} test_case;

static uint64_t seed = 1;

static uint32_t random_bits(void) { /* splitmix64 */
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 16);
}
static double uniform(double lo, double hi) { return lo + (hi - lo) * (random_bits() / 4294967296.0); }
static int below(int n) { return (int)(random_bits() % (uint32_t)n); }

/* `cols` elements of a row. */
static int encode_row(int type, const float *row, void *bytes, int cols) {
    return fb_encode(type, row, bytes, fb_type_bytes(type, cols), 1, cols, NULL);
}
static int decode_row(int type, const void *bytes, float *row, int cols) {
    for (int c = 0; c < cols && type == FB_I32; c++) row[c] = (float)((const int32_t *)bytes)[c];
    if (type == FB_I32) return 0;
    return fb_decode(type, bytes, fb_type_bytes(type, cols), row, cols);
}

/* Blocks of any bytes but for the scales, which keep values near 1, in every other row of formats that are encoded too;
 * 0 for formats of which tests only encode. */
static int random_blocks(int type, const float *row, char *bytes, int cols) {
    static const struct {
        int type, at, also;
        float scale;
    } rows[] = {{FB_Q2_K, 80, 82, 0.02f}, {FB_Q3_K, 108, 108, 0.01f}, {FB_Q4_K, 0, 2, 0.001f}, {FB_Q5_K, 0, 2, 0.0005f},
                {FB_Q6_K, 208, 208, 0.0003f}, {FB_IQ4_NL, 0, 0, 0.008f}, {FB_TQ1_0, 52, 52, 1}, {FB_TQ2_0, 64, 64, 1},
                {FB_MXFP4, 0, 0, 0}, {FB_NVFP4, 0, 0, 0}, {FB_Q1_0, 0, 0, 1}, {FB_IQ4_XS, 0, 0, 0.0003f},
                {FB_IQ2_XXS, 0, 0, 0.006f}, {FB_IQ2_XS, 0, 0, 0.006f}, {FB_IQ2_S, 0, 0, 0.006f}, {FB_IQ3_XXS, 0, 0, 0.002f},
                {FB_IQ3_S, 0, 0, 0.002f}, {FB_IQ1_S, 0, 0, 0.06f}, {FB_IQ1_M, 48, 50, 0.06f}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].type != type) continue;
        if (below(2) && !encode_row(type, row, bytes, cols)) return 1;
        for (uint64_t k = 0; k < fb_type_bytes(type, cols); k++) bytes[k] = (char)random_bits();
        for (int c = 0; c < cols; c += fb_format_get(type)->block) {
            char *block = bytes + fb_type_bytes(type, c);
            float d = (float)uniform(-rows[i].scale, rows[i].scale), dmin = (float)uniform(-rows[i].scale, rows[i].scale);
            encode_row(FB_F16, &dmin, block + rows[i].also, 1), encode_row(FB_F16, &d, block + rows[i].at, 1);
            if (type == FB_MXFP4) block[0] = (char)(120 + below(6)), block[1] = (char)random_bits();
            for (int i = 0; type == FB_NVFP4 && i < 4; i++) block[i] = (char)(below(2) ? 12 + below(16) : below(8) ? below(8) : 127);
            uint16_t bits;
            memcpy(&bits, block + rows[i].at, 2);
            for (int i = 0; type == FB_IQ1_M && i < 4; i++) block[49 + 2 * i] = (char)((bits >> 4 * i & 15) << 4 | below(16));
        }
        return 1;
    }
    return 0;
}

/* The next operand, of random values in [-1, 1]; type ACT picks F32 or BF16 by the variant. Rows are `ld` apart. */
static operand *add(test_case *t, int type, int rows, int cols, int out) {
    operand *o = &t->o[t->n];
    int act = type == ACT;
    if (act) type = t->variant == 0 || (t->variant == 2 && below(2)) ? FB_F32 : FB_BF16;
    int64_t ld = cols;
    if (act && t->variant == 2) ld += 8 * below(3);
    o->view = (fb_view){.type = type, .rows = rows, .cols = cols, .ld = ld};
    o->out = out;
    o->bytes = fb_type_bytes(type, ld * rows);
    o->image = calloc(o->bytes + 64, 1);
    o->d = calloc((size_t)rows * cols + 1, sizeof(double));
    for (int r = 0; r < rows && type != FB_I32; r++) {
        float *row = calloc((size_t)cols, 4);
        char *bytes = o->image + fb_type_bytes(type, ld * r);
        for (int c = 0; c < cols; c++) row[c] = (float)uniform(-1, 1);
        if (!random_blocks(type, row, bytes, cols) && encode_row(type, row, bytes, cols)) abort();
        if (decode_row(type, bytes, row, cols)) abort();
        for (int c = 0; c < cols; c++) o->d[(size_t)r * cols + c] = row[c];
        free(row);
    }
    t->n++;
    return o;
}

static operand *absent(test_case *t) { return &t->o[t->n++]; }

static operand *add_maybe(test_case *t, int present, int type, int rows, int cols) {
    return present ? add(t, type, rows, cols, 0) : absent(t);
}

/* Overwrites an operand's values. */
static void set(operand *o, int r, int c, double x) {
    char *at = o->image + fb_type_bytes(o->view.type, r * o->view.ld + c);
    float f = (float)x;
    int32_t i = (int32_t)x;
    if (o->view.type == FB_I32) memcpy(at, &i, 4);
    else encode_row(o->view.type, &f, at, 1), decode_row(o->view.type, at, &f, 1), x = f;
    o->d[(size_t)r * o->view.cols + c] = x;
}

static operand *add_ids(test_case *t, int rows, int n) {
    operand *o = add(t, FB_I32, rows, 1, 0);
    for (int i = 0; i < rows; i++) set(o, i, 0, below(n));
    return o;
}

#define AT(o, r, c) ((o)->d[(size_t)(r) * (o)->view.cols + (c)])
#define PRESENT(o) ((o)->d != NULL)

static void free_case(test_case *t) {
    for (int i = 0; i < t->n; i++) free(t->o[i].image), free(t->o[i].d);
}
#endif
