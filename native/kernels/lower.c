/* lower.c - which portable kernel an op is, with which constants, arguments and workgroups: one row an op. */
#include "lower.h"

enum { FEW = 8 /* rows for which kernels of their own spread what is read over the device */ };

/* ---- products ---- */

/* Tiles of 64 x 64 with 4 x 4 a thread; narrow ones where the output is narrow, as beside a LoRA pair. */
static void tiles(dispatch *d, const fb_kernel_limits *limits, uint32_t m, uint32_t n) {
    uint32_t bm = m <= 16 ? 16 : m <= 32 || limits->threads < 256 ? 32 : 64, bn = n <= 16 ? 16 : 64;
    if (limits->tile_rows && limits->tile_rows < bm) bm = limits->tile_rows;
    if (limits->tile_cols && limits->tile_cols < bn) bn = limits->tile_cols;
    uint32_t tm = bm == 16 ? 2 : 4, tn = bn == 16 ? 2 : 4;
    uint32_t pad = 32 * 4 * (bm + bn + 2) <= limits->shared_bytes;
    const uint32_t spec[] = {bm / tm * (bn / tn), 0, 0, d->spec[3], d->spec[4], bm, bn, tm, tn, pad};
    memcpy(d->spec, spec, sizeof spec);
    d->groups = up(m, bm) * up(n, bn);
}

#define LOWER(name) static int name(dispatch *d, const fb_launch *l, const fb_mem *scratch, const fb_kernel_limits *limits)
#define UNUSED (void)scratch, (void)limits

static int product(dispatch *d, const fb_launch *l, const fb_mem *scratch, const fb_kernel_limits *limits, const char *order,
                   uint32_t op) {
    int count = fb_lower_matrix_product(d, l, scratch, limits, order, op);
    if (count) return count;
    begin(d, l, FB_KERNEL_product, order, 0, op);
    const fb_view *v = d->b;
    uint32_t m = (uint32_t)v[0].rows, n = (uint32_t)v[0].cols, k = (uint32_t)(op == 2 ? v[1].rows : v[1].cols), parts = 1, each = k;
    weights_at(d, 2);
    args(d, 2 * (uint64_t)m * n * k, m, n, k, v[3].mem ? (uint32_t)v[3].cols : 0);
    d->arg[4] = bits(l->attr.scale);
    if (op == 0 && m <= FEW) {
        const uint32_t most = m <= 2 ? m : m <= 4 ? 4 : 8, wide = n < 4096 ? 2 : 4;
        d->kernel = FB_KERNEL_product_few;
        d->rounds = most * wide * (4.0 * (up(k, 1024) + 1) + up(d->arg[3], 64)) + 256;
        d->spec[0] = 256 / wide;
        d->spec[3] = 0;
        d->spec[5] = most;
        d->spec[6] = wide;
        d->spec[7] = k % 16 == 0 && v[1].offset % 4 == 0 && v[1].ld % 2 == 0;
        d->groups = up(n, wide);
        return 1;
    }
    tiles(d, limits, m, n);
    parts = parts_of(d->groups, 128, k, 256, &each);
    if (parts > 1) {
        room left = scratch_of(scratch, limits);
        fb_view sums = take(&left, FB_F32, (uint64_t)parts * m, n);
        if (sums.mem) {
            add_parts(&d[1], &d->b[0], sums, &d->b[5], &d->b[6]);
            d->b[0] = sums;
            d->b[5].mem = d->b[6].mem = NULL;
            d->groups *= parts;
        } else parts = 1, each = k;
    }
    d->arg[5] = parts;
    d->arg[6] = each;
    d->rounds = 42.0 * (up(each, 32) + up(d->arg[3], 32));
    return parts > 1 ? 2 : 1;
}

LOWER(linear) { return product(d, l, scratch, limits, "0124563", 0); }
LOWER(linear_dx) { return product(d, l, scratch, limits, "012345", 1); }
LOWER(linear_dw) { return product(d, l, scratch, limits, "012--0", 2); }

/* ---- attention ---- */

/* Rounds of the loops of `dots` dot products and `sums` sums of a block, where a compiler unrolls none of them. */
static double block_rounds(const fb_attention_shape *s, int dots, int sums) {
    return up((uint64_t)s->head_dim, 32) * (49.0 * dots + 41.0 * sums) + 49;
}

static int attend(dispatch *d, const fb_launch *l, const fb_kernel_limits *limits, fb_kernel_id matrix, fb_kernel_id kernel,
                  const char *order) {
    const fb_attention_shape *s = &l->attr.attention;
    const int by_keys = kernel == FB_KERNEL_attention_dkv;
    uint32_t t = (uint32_t)l->v[2].rows, keys = (uint32_t)l->v[3].rows, heads = (uint32_t)(by_keys ? s->n_kv_head : s->n_head);
    if (kernel == FB_KERNEL_attention && t <= FEW && s->head_dim <= 256) {
        begin(d, l, FB_KERNEL_attention_few, order, 128, 0);
        d->spec[5] = (uint32_t)s->head_dim;
        d->groups = heads * t;
        while (d->spec[0] < 1024 && d->spec[0] * 2 <= limits->threads && 4 * (256 + 12 * d->spec[0]) <= limits->shared_bytes)
            d->spec[0] *= 2;
        d->spec[6] = s->head_dim % 4 == 0;
        for (int k = 2; k < 5; k++) d->spec[6] &= d->b[k].offset % 4 == 0 && d->b[k].ld % 2 == 0;
        d->rounds = up(keys, 32) * (16.0 + up(d->spec[5], 4)) + 2 * d->spec[0];
    } else if (!fb_lower_matrix_attention(d, l, limits, matrix, order)) {
        begin(d, l, kernel, order, 128, 0);
        d->spec[5] = (uint32_t)s->head_dim;
        d->groups = heads * up(by_keys ? keys : t, 32);
        d->rounds = (up(keys, 32) + 1) * block_rounds(s, kernel == FB_KERNEL_attention ? 1 : 2, 1);
    }
    args(d, 8 * (uint64_t)t * keys * (uint64_t)(s->n_head * s->head_dim), t, keys, (uint32_t)s->n_head, (uint32_t)s->n_kv_head);
    d->arg[4] = (uint32_t)s->window;
    d->arg[5] = bits(s->scale);
    d->arg[6] = bits(s->softcap);
    d->arg[7] = by_keys ? (uint32_t)l->attr.first : 0;
    return 1;
}

LOWER(attention) {
    (void)scratch;
    return attend(d, l, limits, FB_KERNEL_matrix_attention, FB_KERNEL_attention, "0123456");
}
LOWER(attention_dq) {
    (void)scratch;
    return attend(d, l, limits, FB_KERNEL_matrix_attention_dq, FB_KERNEL_attention_dq, "0123456789");
}

/* With few key heads there are few workgroups, each with the queries of all heads of its group: those are summed in parts. */
LOWER(attention_dkv) {
    attend(d, l, limits, FB_KERNEL_matrix_attention_dkv, FB_KERNEL_attention_dkv, "0123456789");
    if (d->kernel != FB_KERNEL_attention_dkv) return 1;
    const fb_attention_shape *s = &l->attr.attention;
    const uint32_t t = d->arg[0], blocks = (uint32_t)(s->n_head / s->n_kv_head) * up(t, 32);
    const double before = t / 128 + 256, each = block_rounds(s, 2, 2);
    uint32_t depth, parts = parts_of(d->groups, 128, 32 * blocks, 256, &depth);
    while (limits->rounds && parts < blocks && before + up(blocks, parts) * each > limits->rounds) parts++;
    d->arg[8] = 1;
    if (parts > 1) {
        const fb_view none = {0}, *out = l->v;
        room left = scratch_of(scratch, limits);
        fb_view dk = take(&left, FB_F32, (uint64_t)parts * (uint64_t)out[0].rows, (uint64_t)out[0].cols);
        fb_view dv = take(&left, FB_F32, (uint64_t)parts * (uint64_t)out[1].rows, (uint64_t)out[1].cols);
        if (dk.mem && dv.mem) {
            add_parts(&d[1], &out[0], dk, &none, &none);
            add_parts(&d[2], &out[1], dv, &none, &none);
            d->b[0] = dk, d->b[1] = dv;
            d->arg[8] = parts;
            d->groups *= parts;
        }
    }
    d->rounds = before + up(blocks, d->arg[8]) * each;
    return d->arg[8] > 1 ? 3 : 1;
}

/* ---- norms and sums down the rows ---- */

static int normed(dispatch *d, const fb_launch *l, const fb_kernel_limits *limits, const char *order, uint32_t op,
                  const fb_view *weight) {
    begin(d, l, FB_KERNEL_norm, order, weight->cols <= 256 ? 32 : 64, op);
    const fb_view *x = &d->b[1];
    d->groups = (uint32_t)x->rows * (uint32_t)(x->cols / weight->cols);
    while (x->rows <= FEW && d->spec[0] < 512 && d->spec[0] * 2 <= limits->threads && 4 * d->spec[0] < (uint32_t)weight->cols)
        d->spec[0] *= 2;
    args(d, 8 * (uint64_t)x->rows * (uint64_t)x->cols, (uint32_t)x->rows, (uint32_t)x->cols, (uint32_t)weight->cols,
         bits(l->attr.eps));
    d->rounds = 2.0 * up(d->arg[2], 128) + 128;
    return 1;
}
LOWER(rms_norm) { UNUSED; return normed(d, l, limits, "012", 0, &l->v[2]); }
LOWER(rms_norm_dx) { UNUSED; return normed(d, l, limits, "02314", 1, &l->v[3]); }

static int summed(dispatch *d, const fb_launch *l, const char *order, uint32_t op, uint32_t cols, uint32_t groups) {
    begin(d, l, FB_KERNEL_columns, order, 64, op);
    d->groups = up(up(cols, 2), 64);
    args(d, 2 * (uint64_t)l->v[1].rows * (uint64_t)l->v[1].cols, (uint32_t)l->v[1].rows, cols, groups, (uint32_t)l->v[0].rows);
    d->rounds = op == 2 ? l->v[1].rows : 2.0 * l->v[1].rows * (groups + 1);
    return 1;
}

/* The norms of all groups first, into scratch. */
LOWER(rms_norm_dw) {
    int32_t groups = l->v[2].cols / l->v[0].cols;
    fb_view inv = {.mem = scratch, .type = FB_F32, .rows = l->v[2].rows, .cols = groups, .ld = groups};
    normed(&d[0], l, limits, "-2", 2, &l->v[0]);
    summed(&d[1], l, "012", 1, (uint32_t)l->v[0].cols, (uint32_t)groups);
    d[0].b[0] = d[1].b[3] = inv;
    return 2;
}
LOWER(bias_db) { UNUSED; return summed(d, l, "01", 0, (uint32_t)l->v[0].cols, 1); }

/* Rows are added in order by each destination, so destinations are dealt to 16 times as many threads. */
static int scattered(dispatch *d, const fb_launch *l, int32_t first, float scale) {
    summed(d, l, "01--2", 2, (uint32_t)l->v[0].cols, 1);
    d->groups *= 16;
    d->arg[4] = (uint32_t)first;
    d->arg[5] = bits(scale);
    return 1;
}
LOWER(scatter) { UNUSED; return scattered(d, l, 0, 1); }
LOWER(embed_dw) { UNUSED; return scattered(d, l, l->attr.first, l->attr.scale); }

LOWER(sumsq) {
    UNUSED;
    uint32_t n = (uint32_t)l->v[1].cols, pieces = (uint32_t)l->v[0].cols;
    begin(d, l, FB_KERNEL_sumsq, "01", 128, 0);
    d->groups = pieces;
    args(d, 2 * (uint64_t)n, pieces, n, up(n, pieces), 0);
    d->rounds = up(d->arg[2], 128) + 64;
    return 1;
}

LOWER(xent) {
    UNUSED;
    begin(d, l, FB_KERNEL_xent, "012", 128, (uint32_t)l->attr.grad);
    d->groups = (uint32_t)l->v[1].rows;
    args(d, 32 * (uint64_t)l->v[1].rows * (uint64_t)l->v[1].cols, d->groups, (uint32_t)l->v[1].cols, bits(l->attr.softcap), 0);
    d->rounds = 3.0 * up(d->arg[1], 128) + 192;
    return 1;
}

/* ---- element by element, and rows by number ---- */

static int elements(dispatch *d, const fb_launch *l, fb_kernel_id kernel, const char *order, uint32_t op, uint32_t each) {
    const fb_view *shape = &l->v[kernel == FB_KERNEL_rows && op == 1 ? 1 : 0];
    begin(d, l, kernel, order, 64, op);
    uint64_t threads = (uint64_t)shape->rows * up((uint64_t)shape->cols, each);
    d->groups = up(threads, 64);
    args(d, 8 * threads, (uint32_t)shape->rows, (uint32_t)shape->cols, 0, 0);
    return 1;
}

LOWER(add) { UNUSED; return elements(d, l, FB_KERNEL_elements, "012", 0, 2); }
LOWER(zero) { UNUSED; return elements(d, l, FB_KERNEL_elements, "0", 6, 2); }
LOWER(scale) {
    UNUSED;
    elements(d, l, FB_KERNEL_elements, "012", 1, 2);
    d->arg[2] = bits(l->attr.scale);
    return 1;
}
LOWER(glu) {
    UNUSED;
    elements(d, l, FB_KERNEL_elements, "012", 2, 2);
    d->spec[4] = (uint32_t)l->attr.kind;
    return 1;
}
LOWER(glu_grad) {
    UNUSED;
    elements(d, l, FB_KERNEL_elements, "01234", 3, 2);
    d->spec[4] = (uint32_t)l->attr.kind;
    return 1;
}
LOWER(softcap) {
    UNUSED;
    elements(d, l, FB_KERNEL_elements, "01", 4, 2);
    d->arg[2] = bits(l->attr.softcap);
    return 1;
}
LOWER(softcap_grad) {
    UNUSED;
    elements(d, l, FB_KERNEL_elements, "0123", 5, 2);
    d->arg[2] = bits(l->attr.softcap);
    return 1;
}
LOWER(dropout) {
    UNUSED;
    elements(d, l, FB_KERNEL_elements, "0123", 9, 2);
    d->arg[2] = bits(l->attr.scale);
    d->arg[3] = l->attr.threshold;
    d->arg[4] = l->attr.salt;
    return 1;
}
LOWER(adamw) {
    UNUSED;
    const fb_attr *a = &l->attr;
    const float numbers[] = {a->beta1, a->beta2, 1 - a->lr * a->decay, a->lr / a->correct1, 1 / a->correct2,
                             a->eps, a->grad_scale, 1 - a->beta1, 1 - a->beta2};
    elements(d, l, FB_KERNEL_elements, "0123", 7, 2);
    memcpy(d->arg + 2, numbers, sizeof numbers);
    return 1;
}
LOWER(sgd) {
    UNUSED;
    const float numbers[] = {l->attr.lr, l->attr.momentum, 1 - l->attr.lr * l->attr.decay};
    elements(d, l, FB_KERNEL_elements, "012", 8, 2);
    memcpy(d->arg + 2, numbers, sizeof numbers);
    d->arg[8] = bits(l->attr.grad_scale);
    return 1;
}

static int moved(dispatch *d, const fb_launch *l, uint32_t op, uint32_t first, float scale) {
    elements(d, l, FB_KERNEL_rows, "012", op, 4);
    weights_at(d, 1);
    d->arg[2] = (uint32_t)l->v[1].rows;
    d->arg[3] = first;
    d->arg[4] = bits(scale);
    return 1;
}
LOWER(embed) { UNUSED; return moved(d, l, 0, (uint32_t)l->attr.first, l->attr.scale); }
LOWER(gather) { UNUSED; return moved(d, l, 0, 0, 1); }
LOWER(append) { UNUSED; return moved(d, l, 1, 0, 1); }

LOWER(rope_table) {
    UNUSED;
    elements(d, l, FB_KERNEL_rope, "012", 0, 2);
    d->arg[5] = bits(l->attr.scale);
    return 1;
}
LOWER(rope) {
    UNUSED;
    elements(d, l, FB_KERNEL_rope, "0123", 1, 2);
    d->arg[2] = (uint32_t)l->attr.head_dim;
    d->arg[3] = (uint32_t)l->v[2].cols;
    d->arg[4] = l->attr.layout == FB_ROPE_PAIRS ? 0 : 1;
    d->arg[5] = bits(l->attr.inverse ? -1.0f : 1.0f);
    return 1;
}

/* ---- the table ---- */

typedef int lowering(dispatch *, const fb_launch *, const fb_mem *, const fb_kernel_limits *);

static lowering *const ROWS[FB_OP_COUNT] = {
    [FB_OP_EMBED] = embed, [FB_OP_RMS_NORM] = rms_norm, [FB_OP_RMS_NORM_DX] = rms_norm_dx,
    [FB_OP_RMS_NORM_DW] = rms_norm_dw, [FB_OP_LINEAR] = linear, [FB_OP_LINEAR_DX] = linear_dx,
    [FB_OP_LINEAR_DW] = linear_dw, [FB_OP_BIAS_DB] = bias_db, [FB_OP_EMBED_DW] = embed_dw,
    [FB_OP_ROPE_TABLE] = rope_table, [FB_OP_ROPE] = rope, [FB_OP_ATTENTION] = attention,
    [FB_OP_ATTENTION_DQ] = attention_dq, [FB_OP_ATTENTION_DKV] = attention_dkv, [FB_OP_GLU] = glu,
    [FB_OP_GLU_GRAD] = glu_grad, [FB_OP_ADD] = add, [FB_OP_SCALE] = scale, [FB_OP_SOFTCAP] = softcap,
    [FB_OP_SOFTCAP_GRAD] = softcap_grad, [FB_OP_DROPOUT] = dropout,
    [FB_OP_GATHER] = gather, [FB_OP_SCATTER] = scatter, [FB_OP_XENT] = xent,
    [FB_OP_APPEND] = append, [FB_OP_ZERO] = zero, [FB_OP_SUMSQ] = sumsq, [FB_OP_ADAMW] = adamw, [FB_OP_SGD] = sgd,
};

#define NAME(name) [FB_KERNEL_##name] = #name,
static const char *const NAMES[] = {FB_KERNEL_NAMES(NAME) FB_MATRIX_KERNEL_NAMES(NAME)};

/* The formats that blocks.prelude decodes. */
static int decodable(int32_t type) {
    static const int32_t known[] = {FB_F32, FB_F16, FB_BF16, FB_Q4_0, FB_Q4_1, FB_Q5_0,
                                    FB_Q5_1, FB_Q8_0, FB_Q2_K, FB_Q3_K, FB_Q4_K, FB_Q5_K, FB_Q6_K,
                                    FB_IQ4_NL, FB_TQ1_0, FB_TQ2_0, FB_MXFP4};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i] == type) return 1;
    return 0;
}

/* The bindings that a kernel writes, a bit each. */
static uint32_t written(const dispatch *d) {
    switch (d->kernel) {
    case FB_KERNEL_attention: case FB_KERNEL_attention_dkv: case FB_KERNEL_attention_dq: case FB_KERNEL_attention_few:
    case FB_KERNEL_matrix_attention: case FB_KERNEL_matrix_attention_dkv: case FB_KERNEL_matrix_attention_dq:
    case FB_KERNEL_xent: return 3;
    case FB_KERNEL_matrix_rows: return 1 | 1 << 7;
    case FB_KERNEL_elements: return d->spec[3] == 7 ? 7 : d->spec[3] == 3 || d->spec[3] == 8 ? 3 : 1;
    default: return 1;
    }
}

int fb_lower(const fb_launch *launch, const fb_mem *scratch, const fb_kernel_limits *limits,
             fb_dispatch out[FB_MOST_DISPATCHES]) {
    if ((unsigned)launch->op >= FB_OP_COUNT || !ROWS[launch->op]) {
        fb_fail(FB_E_INTERNAL, "there is no kernel for op %d", (int)launch->op);
        return 0;
    }
    int n = ROWS[launch->op](out, launch, scratch, limits);
    for (int i = 0; i < n; i++) {
        dispatch *d = &out[i];
        /* Where threads need not meet, large workgroups are started sooner than many. */
        const int alone = d->kernel == FB_KERNEL_elements || d->kernel == FB_KERNEL_rope || d->kernel == FB_KERNEL_rows ||
                          d->kernel == FB_KERNEL_parts || d->kernel == FB_KERNEL_matrix_pack;
        if (alone && limits->threads >= 256) d->spec[0] = 256, d->groups = up(d->groups, 4);
        d->writes = written(d);
        for (int k = 0; k < FB_BINDINGS; k++) {
            if (!d->b[k].mem) continue;
            d->spec[2] |= 1u << k;
            if (k != d->blocks && d->b[k].type == FB_BF16) d->spec[1] |= 1u << k;
        }
        if (d->blocks >= 0 && !decodable(d->b[d->blocks].type)) {
            fb_fail(FB_E_DEVICE, "this device has no decoder for tensors of type %d yet", (int)d->b[d->blocks].type);
            return 0;
        }
        if (limits->rounds && d->rounds > limits->rounds) {
            fb_fail(FB_E_LIMIT, "A thread of %s may take %.0f rounds through its loops here, and this driver ends them after %u; "
                    "use a smaller context.", NAMES[d->kernel], d->rounds, limits->rounds);
            return 0;
        }
    }
    return n;
}

uint64_t fb_lower_scratch(const fb_launch *launch, const fb_kernel_limits *limits) {
    const fb_mem any = {.bytes = UINT64_MAX / 2};
    fb_dispatch d[FB_MOST_DISPATCHES];
    uint64_t most = 0;
    const int n = fb_lower(launch, &any, limits, d);
    if (!n) return UINT64_MAX;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < FB_BINDINGS; k++) {
            const fb_view *v = &d[i].b[k];
            uint64_t end = v->offset + (uint64_t)v->rows * (uint64_t)v->ld * (v->type == FB_F32 ? 4 : 2);
            if (v->mem == &any && end > most) most = end;
        }
    return most;
}
