/* lower.c - which portable kernel an op is, with which operands, constants, arguments and workgroups: one row an op. */
#include <stddef.h>
#include "lower.h"

enum { FEW = 8 /* rows for which kernels of their own spread what is read over the device */ };

#define LOWER(name) static int name(dispatch *d, const fb_launch *l, const fb_mem *scratch, const fb_kernel_limits *limits)
#define UNUSED (void)scratch, (void)limits

/* A kernel whose threads own `each` neighbours of a shape. */
static void spread(dispatch *d, fb_kernel_id kernel, const fb_view *shape, uint32_t each) {
    const uint64_t threads = (uint64_t)shape->rows * up((uint64_t)shape->cols, each);
    begin(d, kernel, 64);
    d->groups = up(threads, 64);
    d->work = 8.0 * (double)threads;
}

/* ---- products ---- */

/* Tiles of 64 x 64 with 4 x 4 a thread; narrow ones where the output is narrow, as beside a LoRA pair. */
static void tiles(dispatch *d, const fb_kernel_limits *limits, uint32_t m, uint32_t n) {
    struct fb_product_constants *c = &d->constant.product;
    c->BM = m <= 16 ? 16 : m <= 32 || limits->threads < 256 ? 32 : 64;
    c->BN = n <= 16 ? 16 : 64;
    if (limits->tile_rows && limits->tile_rows < c->BM) c->BM = limits->tile_rows;
    if (limits->tile_cols && limits->tile_cols < c->BN) c->BN = limits->tile_cols;
    c->TM = c->BM == 16 ? 2 : 4;
    c->TN = c->BN == 16 ? 2 : 4;
    c->PAD = 32 * 4 * (c->BM + c->BN + 2) <= limits->shared_bytes;
    c->THREADS = c->BM / c->TM * (c->BN / c->TN);
    d->groups = up(m, c->BM) * up(n, c->BN);
}

static int product_of_few(dispatch *d, const product *p, const struct fb_product_arguments *a) {
    const uint32_t m = a->M.most, most = m <= 2 ? m : m <= 4 ? 4 : 8, wide = a->N < 4096 ? 2 : 4;
    begin(d, FB_KERNEL_product_few, 256 / wide);
    d->operand.product_few = (struct fb_product_few_operands){.OUT = p->out, .X = p->x, .W = p->w, .U = p->u, .B = p->b,
                                                              .ACC = p->acc, .BIAS = p->bias};
    d->constant.product_few.WTYPE = (uint32_t)p->w.type;
    d->constant.product_few.WHOLE = a->K.most % 16 == 0 && p->x.offset % 4 == 0 && p->x.ld % 2 == 0;
    d->constant.product_few.MOST = most;
    d->constant.product_few.WIDE = wide;
    d->argument.product_few = (struct fb_product_few_arguments){.M = a->M, .N = a->N, .K = a->K.most, .R = a->R, .SCALE = a->SCALE};
    d->groups = up(a->N, wide);
    d->work = 2.0 * m * a->N * a->K.most;
    d->rounds = most * wide * (4.0 * (up(a->K.most, 1024) + 1) + up(a->R, 64)) + 256;
    return 1;
}

static int multiplied(dispatch *d, const product *p, const fb_mem *scratch, const fb_kernel_limits *limits) {
    const uint32_t m = (uint32_t)p->out.rows, n = (uint32_t)p->out.cols, k = (uint32_t)(p->op == 2 ? p->x.rows : p->x.cols);
    struct fb_product_arguments a = {.M = rows_of(&p->out), .N = n, .K = p->op == 2 ? rows_of(&p->x) : all_rows(k),
                                     .R = p->u.mem ? (uint32_t)p->u.cols : 0, .SCALE = p->scale, .PARTS = 1, .DEPTH = k};
    const int count = fb_lower_matrix_product(d, p, scratch, limits);
    if (count) return count;
    if (p->op == 0 && m <= FEW) return product_of_few(d, p, &a);
    begin(d, FB_KERNEL_product, 0);
    d->operand.product = (struct fb_product_operands){.OUT = p->out, .X = p->x, .W = p->w, .U = p->u, .B = p->b,
                                                      .ACC = p->acc, .BIAS = p->bias};
    d->constant.product.OP = p->op;
    d->constant.product.WTYPE = (uint32_t)p->w.type;
    tiles(d, limits, m, n);
    a.PARTS = parts_of(d->groups, 128, k, 256, &a.DEPTH);
    if (a.PARTS > 1) {
        struct fb_product_operands *v = &d->operand.product;
        room left = scratch_of(scratch, limits);
        fb_view sums = take(&left, FB_F32, (uint64_t)a.PARTS * m, n);
        if (sums.mem) {
            add_parts(&d[1], &v->OUT, sums, &v->ACC, &v->BIAS);
            v->OUT = sums;
            v->ACC.mem = v->BIAS.mem = NULL;
            d->groups *= a.PARTS;
        } else a.PARTS = 1, a.DEPTH = k;
    }
    d->argument.product = a;
    d->work = 2.0 * m * n * k;
    d->rounds = 42.0 * (up(a.DEPTH, 32) + up(a.R, 32));
    return a.PARTS > 1 ? 2 : 1;
}

LOWER(linear) {
    const struct fb_linear_views *v = &l->linear;
    const product p = {.out = v->y, .x = v->x, .w = v->w, .u = v->u, .b = v->b, .acc = v->acc, .bias = v->bias,
                       .scale = l->attr.scale};
    return multiplied(d, &p, scratch, limits);
}
LOWER(linear_dx) {
    const struct fb_linear_dx_views *v = &l->linear_dx;
    const product p = {.out = v->dx, .x = v->dy, .w = v->w, .u = v->u, .b = v->a, .acc = v->acc, .op = 1, .scale = l->attr.scale};
    return multiplied(d, &p, scratch, limits);
}
LOWER(linear_dw) {
    const struct fb_linear_dw_views *v = &l->linear_dw;
    const product p = {.out = v->dw, .x = v->dy, .w = v->x, .acc = v->dw, .op = 2, .scale = l->attr.scale};
    return multiplied(d, &p, scratch, limits);
}

/* ---- attention ---- */

/* Rounds of the loops of `dots` dot products and `sums` sums of a block, where a compiler unrolls none of them. */
static double block_rounds(const fb_attention_shape *s, int dots, int sums) {
    return up((uint64_t)s->head_dim, 32) * (49.0 * dots + 41.0 * sums) + 49;
}

/* What all kernels of attention have in common; the operands are there already. */
static void attend(dispatch *d, const fb_launch *l, const fb_view *q, const fb_view *k) {
    const fb_attention_shape *s = &l->attr.attention;
    const uint32_t t = (uint32_t)q->rows, keys = (uint32_t)k->rows;
    const int by_keys = d->kernel == FB_KERNEL_attention_dkv;
    d->constant.attention.HD = (uint32_t)s->head_dim;
    d->argument.attention = (struct fb_attention_arguments){
        .T = rows_of(q), .S = rows_of(k), .HEADS = (uint32_t)s->n_head, .KV_HEADS = (uint32_t)s->n_kv_head,
        .WINDOW = (uint32_t)s->window, .SCALE = s->scale, .CAP = s->softcap, .FIRST = by_keys ? (uint32_t)l->attr.first : 0};
    d->groups = (uint32_t)(by_keys ? s->n_kv_head : s->n_head) * up(by_keys ? keys : t, 32);
    d->work = 8.0 * t * keys * (s->n_head * s->head_dim);
    d->rounds = (up(keys, 32) + 1) * block_rounds(s, d->kernel == FB_KERNEL_attention ? 1 : 2, 1);
}

static void attend_few(dispatch *d, const fb_kernel_limits *limits) {
    const struct fb_attention_arguments *a = &d->argument.attention;
    const struct fb_attention_operands *v = &d->operand.attention;
    const fb_view *const read[] = {&v->Q, &v->K, &v->V};
    const uint32_t hd = d->constant.attention.HD;
    struct fb_attention_few_constants *c = &d->constant.attention_few;
    d->kernel = FB_KERNEL_attention_few;
    while (c->THREADS < 1024 && c->THREADS * 2 <= limits->threads && 4 * (256 + 12 * c->THREADS) <= limits->shared_bytes)
        c->THREADS *= 2;
    c->WHOLE = hd % 4 == 0;
    for (int i = 0; i < 3; i++) c->WHOLE &= read[i]->offset % 4 == 0 && read[i]->ld % 2 == 0;
    d->groups = (uint64_t)a->HEADS * a->T.most;
    d->rounds = up(a->S.most, 32) * (16.0 + up(hd, 4)) + 2 * c->THREADS;
}

LOWER(attention) {
    (void)scratch;
    const struct fb_attention_views *v = &l->attention;
    begin(d, FB_KERNEL_attention, 128);
    d->operand.attention = (struct fb_attention_operands){.O = v->o, .STATS = v->stats, .Q = v->q, .K = v->k, .V = v->v,
                                                          .RANGE = v->range};
    attend(d, l, &v->q, &v->k);
    if (v->q.rows <= FEW && l->attr.attention.head_dim <= 256) attend_few(d, limits);
    else fb_lower_matrix_attention(d, limits);
    return 1;
}
LOWER(attention_dq) {
    (void)scratch;
    const struct fb_attention_dq_views *v = &l->attention_dq;
    begin(d, FB_KERNEL_attention_dq, 128);
    d->operand.attention_dq = (struct fb_attention_dq_operands){.DQ = v->dq, .STATS = v->stats, .Q = v->q, .K = v->k, .V = v->v,
                                                                .O = v->o, .DO = v->dout, .RANGE = v->range};
    attend(d, l, &v->q, &v->k);
    fb_lower_matrix_attention(d, limits);
    return 1;
}

/* With few key heads there are few workgroups, each with the queries of all heads of its group: those are summed in parts. */
LOWER(attention_dkv) {
    const struct fb_attention_dkv_views *v = &l->attention_dkv;
    begin(d, FB_KERNEL_attention_dkv, 128);
    d->operand.attention_dkv = (struct fb_attention_dkv_operands){.DK = v->dk, .DV = v->dv, .Q = v->q, .K = v->k, .V = v->v,
                                                                  .STATS = v->stats, .DO = v->dout, .RANGE = v->range};
    attend(d, l, &v->q, &v->k);
    d->argument.attention_dkv.PARTS = 1;
    if (fb_lower_matrix_attention(d, limits)) return 1;
    const fb_attention_shape *s = &l->attr.attention;
    const uint32_t t = (uint32_t)v->q.rows, blocks = (uint32_t)(s->n_head / s->n_kv_head) * up(t, 32);
    const double before = t / 128 + 256, each = block_rounds(s, 2, 2);
    uint32_t depth, parts = parts_of(d->groups, 128, 32 * blocks, 256, &depth);
    while (limits->rounds && parts < blocks && before + up(blocks, parts) * each > limits->rounds) parts++;
    if (parts > 1) {
        const fb_view none = {0};
        room left = scratch_of(scratch, limits);
        fb_view dk = take(&left, FB_F32, (uint64_t)parts * (uint64_t)v->dk.rows, (uint64_t)v->dk.cols);
        fb_view dv = take(&left, FB_F32, (uint64_t)parts * (uint64_t)v->dv.rows, (uint64_t)v->dv.cols);
        if (dk.mem && dv.mem) {
            add_parts(&d[1], &v->dk, dk, &none, &none);
            add_parts(&d[2], &v->dv, dv, &none, &none);
            d->operand.attention_dkv.DK = dk, d->operand.attention_dkv.DV = dv;
            d->argument.attention_dkv.PARTS = parts;
            d->groups *= parts;
        } else parts = 1;
    }
    d->rounds = before + up(blocks, parts) * each;
    return parts > 1 ? 3 : 1;
}

/* ---- ops of some architectures ---- */

#include "lower_delta.h"
#include "lower_experts.h"

/* ---- norms and sums down the rows ---- */

static int normed(dispatch *d, const fb_kernel_limits *limits, uint32_t op, struct fb_norm_operands v, int32_t group,
                  float eps) {
    const uint32_t most = limits->threads < 512 ? limits->threads : 512;
    const int few = v.X.rows <= FEW, small = group <= 256;
    begin(d, FB_KERNEL_norm, small ? 32 : 64);
    d->operand.norm = v;
    struct fb_norm_constants *c = &d->constant.norm;
    c->OP = op;
    while (few && c->THREADS * 2 <= most && 4 * c->THREADS < (uint32_t)group) c->THREADS *= 2;
    c->SHARE = c->THREADS;
    while (!few && small && c->THREADS < 256 && c->THREADS * 2 <= most) c->THREADS *= 2;
    d->argument.norm = (struct fb_norm_arguments){.ROWS = rows_of(&v.X), .COLS = (uint32_t)v.X.cols, .G = (uint32_t)group,
                                                  .EPS = eps};
    d->groups = up((uint64_t)v.X.rows * (uint64_t)(v.X.cols / group), c->THREADS / c->SHARE);
    d->work = 8.0 * v.X.rows * v.X.cols;
    d->rounds = 2.0 * up((uint64_t)group, 128) + 128;
    return 1;
}
LOWER(rms_norm) {
    (void)scratch;
    const struct fb_rms_norm_views *v = &l->rms_norm;
    return normed(d, limits, 0, (struct fb_norm_operands){.OUT = v->y, .X = v->x, .WEIGHT = v->w}, v->w.cols, l->attr.eps);
}
LOWER(rms_norm_dx) {
    (void)scratch;
    const struct fb_rms_norm_dx_views *v = &l->rms_norm_dx;
    const struct fb_norm_operands o = {.OUT = v->dx, .X = v->x, .WEIGHT = v->w, .DY = v->dy, .ACC = v->acc};
    return normed(d, limits, 1, o, v->w.cols, l->attr.eps);
}

static int summed(dispatch *d, uint32_t op, struct fb_columns_operands v, uint32_t groups) {
    begin(d, FB_KERNEL_columns, 64);
    d->operand.columns = v;
    d->constant.columns.OP = op;
    d->argument.columns = (struct fb_columns_arguments){.ROWS = rows_of(&v.DY), .COLS = (uint32_t)v.OUT.cols,
                                                        .GROUPS = groups, .TARGETS = rows_of(&v.OUT)};
    d->groups = up(up((uint64_t)v.OUT.cols, 2), 64);
    d->work = 2.0 * v.DY.rows * v.DY.cols;
    d->rounds = v.DY.rows;
    return 1;
}

/* All rows and groups added to one row, by few workgroups: in parts. */
static int totalled(dispatch *d, uint32_t op, struct fb_columns_operands v, uint32_t groups, room left) {
    const fb_view out = v.OUT, none = {0};
    struct fb_columns_arguments *a = &d->argument.columns;
    summed(d, op, v, groups);
    a->PARTS = parts_of(d->groups, 256, (uint32_t)v.DY.rows * groups, 64, &a->DEPTH);
    if (a->PARTS > 1) {
        fb_view sums = take(&left, FB_F32, a->PARTS, (uint64_t)out.cols);
        if (sums.mem) {
            add_parts(&d[1], &out, sums, &out, &none);
            d->operand.columns.OUT = sums;
            d->groups *= a->PARTS;
        } else a->PARTS = 1, a->DEPTH = (uint32_t)v.DY.rows * groups;
    }
    d->rounds = a->DEPTH;
    return a->PARTS > 1 ? 2 : 1;
}

/* The norms of all groups first, into scratch. */
LOWER(rms_norm_dw) {
    const struct fb_rms_norm_dw_views *v = &l->rms_norm_dw;
    const int32_t groups = v->x.cols / v->dw.cols;
    const fb_view inv = {.mem = scratch, .type = FB_F32, .rows = v->x.rows, .cols = groups, .ld = groups};
    const struct fb_columns_operands o = {.OUT = v->dw, .DY = v->dy, .X = v->x, .INV = inv};
    room left = scratch_of(scratch, limits);
    left.used = up(4 * (uint64_t)inv.rows * (uint64_t)groups, 256) * 256;
    normed(&d[0], limits, 2, (struct fb_norm_operands){.OUT = inv, .X = v->x}, v->dw.cols, l->attr.eps);
    return 1 + totalled(&d[1], 1, o, (uint32_t)groups, left);
}
LOWER(bias_db) {
    const struct fb_columns_operands o = {.OUT = l->bias_db.db, .DY = l->bias_db.dy};
    return totalled(d, 0, o, 1, scratch_of(scratch, limits));
}

/* Rows are added in order by each destination, so destinations are dealt to 16 times as many threads. */
static int scattered(dispatch *d, fb_view out, fb_view in, fb_view index, int32_t stride, int32_t first, float scale) {
    summed(d, 2, (struct fb_columns_operands){.OUT = out, .DY = in, .INDEX = index}, 1);
    d->groups *= 16;
    d->argument.columns.STRIDE = (uint32_t)stride;
    d->argument.columns.FIRST = (uint32_t)first;
    d->argument.columns.SCALE = scale;
    return 1;
}
LOWER(scatter) { UNUSED; return scattered(d, l->scatter.y, l->scatter.x, l->scatter.index, 1, 0, 1); }
LOWER(embed_dw) {
    UNUSED;
    return scattered(d, l->embed_dw.dw, l->embed_dw.dy, l->embed_dw.ids, l->attr.stride, l->attr.first, l->attr.scale);
}

LOWER(sumsq) {
    UNUSED;
    const uint32_t n = (uint32_t)l->sumsq.x.cols, pieces = (uint32_t)l->sumsq.partial.cols, piece = up(n, pieces);
    begin(d, FB_KERNEL_sumsq, 128);
    d->operand.sumsq = (struct fb_sumsq_operands){.PARTIAL = l->sumsq.partial, .X = l->sumsq.x};
    d->argument.sumsq = (struct fb_sumsq_arguments){.PIECES = pieces, .COUNT = n, .PIECE = piece};
    d->groups = pieces;
    d->work = 2.0 * n;
    d->rounds = up(piece, 128) + 64;
    return 1;
}

_Static_assert(HYPER_LR == FB_HYPER_LR && HYPER_CORRECT1 == FB_HYPER_CORRECT1 && HYPER_CORRECT2 == FB_HYPER_CORRECT2 &&
                   HYPER_CLIP == FB_HYPER_CLIP && RECORD_LOSS == FB_RECORD_LOSS && RECORD_TRAINED == FB_RECORD_TRAINED &&
                   RECORD_NORM == FB_RECORD_NORM && RECORD_SCALE == FB_RECORD_SCALE && RECORD_FINITE == FB_RECORD_FINITE,
               "places in RECORD and HYPER");

/* One workgroup adds up all. */
static int tallied(dispatch *d, uint32_t op, struct fb_tally_operands v, fb_rows count) {
    begin(d, FB_KERNEL_tally, 128);
    d->operand.tally = v;
    d->constant.tally.OP = op;
    d->argument.tally.COUNT = count;
    d->groups = 1;
    d->work = 2.0 * count.most;
    d->rounds = up(count.most, 128) + 64;
    return 1;
}
LOWER(tally) {
    UNUSED;
    return tallied(d, 0, (struct fb_tally_operands){.RECORD = l->tally.record, .X = l->tally.nll}, rows_of(&l->tally.nll));
}
LOWER(norm) {
    UNUSED;
    const struct fb_norm_views *v = &l->norm;
    const struct fb_tally_operands o = {.RECORD = v->record, .X = v->partial, .HYPER = v->hyper};
    return tallied(d, 1, o, all_rows((uint32_t)v->partial.cols));
}

LOWER(xent) {
    (void)scratch;
    const fb_view *x = &l->xent.logits;
    begin(d, FB_KERNEL_xent, limits->threads < 512 || x->cols < 1 << 14 ? 128 : 512);
    d->operand.xent = (struct fb_xent_operands){.NLL = l->xent.nll, .LOGITS = *x, .TARGETS = l->xent.targets};
    d->constant.xent.GRAD = (uint32_t)l->attr.grad;
    d->argument.xent = (struct fb_xent_arguments){.ROWS = rows_of(x), .COLS = (uint32_t)x->cols, .CAP = l->attr.softcap};
    d->groups = (uint32_t)x->rows;
    d->work = 32.0 * x->rows * x->cols;
    d->rounds = 4.0 * up((uint64_t)x->cols, d->constant.at[0]) + 192;
    return 1;
}

/* ---- element by element, and rows by number ---- */

static int elements(dispatch *d, uint32_t op, struct fb_elements_operands v, float scale) {
    spread(d, FB_KERNEL_elements, &v.OUT, 2);
    d->operand.elements = v;
    d->constant.elements.OP = op;
    d->argument.elements = (struct fb_elements_arguments){.ROWS = rows_of(&v.OUT), .COLS = (uint32_t)v.OUT.cols,
                                                          .SCALE = scale};
    return 1;
}
#define ELEMENTS(...) ((struct fb_elements_operands){__VA_ARGS__})
LOWER(add) { UNUSED; return elements(d, 0, ELEMENTS(.OUT = l->add.y, .A = l->add.a, .B = l->add.b), 0); }
LOWER(zero) { UNUSED; return elements(d, 4, ELEMENTS(.OUT = l->zero.y), 0); }
LOWER(scale) {
    UNUSED;
    return elements(d, 1, ELEMENTS(.OUT = l->scale.y, .A = l->scale.x, .ACC = l->scale.acc), l->attr.scale);
}
LOWER(softcap) { UNUSED; return elements(d, 2, ELEMENTS(.OUT = l->softcap.y, .A = l->softcap.x), l->attr.softcap); }
LOWER(softcap_grad) {
    UNUSED;
    const struct fb_softcap_grad_views *v = &l->softcap_grad;
    return elements(d, 3, ELEMENTS(.OUT = v->dx, .A = v->dy, .B = v->y, .ACC = v->acc), l->attr.softcap);
}
LOWER(dropout) {
    UNUSED;
    const struct fb_dropout_views *v = &l->dropout;
    elements(d, 5, ELEMENTS(.OUT = v->y, .A = v->x, .B = v->keys, .ACC = v->acc), l->attr.scale);
    d->argument.elements.THRESHOLD = l->attr.threshold;
    d->argument.elements.SALT = l->attr.salt;
    return 1;
}

static void convolved(dispatch *d, uint32_t op, struct fb_conv_operands v, const fb_view *shape, int32_t taps) {
    spread(d, FB_KERNEL_conv, shape, 2);
    d->operand.conv = v;
    d->constant.conv.OP = op;
    d->constant.conv.TAPS = (uint32_t)taps;
    d->argument.conv = (struct fb_conv_arguments){.ROWS = rows_of(shape), .COLS = (uint32_t)shape->cols, .S = rows_of(&v.X)};
}
LOWER(conv) {
    UNUSED;
    const struct fb_conv_views *v = &l->conv;
    const struct fb_conv_operands o = {.OUT = v->y, .X = v->x, .W = v->w, .BIAS = v->bias, .RANGE = v->range};
    convolved(d, 0, o, &v->y, v->w.cols);
    return 1;
}
LOWER(conv_dx) {
    UNUSED;
    const struct fb_conv_dx_views *v = &l->conv_dx;
    convolved(d, 1, (struct fb_conv_operands){.OUT = v->dx, .X = v->dy, .W = v->w, .RANGE = v->range}, &v->dx, v->w.cols);
    d->argument.conv.FIRST = (uint32_t)l->attr.first;
    return 1;
}
LOWER(conv_dw) {
    const struct fb_conv_dw_views *v = &l->conv_dw;
    const fb_view none = {0};
    room left = scratch_of(scratch, limits);
    struct fb_conv_arguments *a = &d->argument.conv;
    convolved(d, 2, (struct fb_conv_operands){.OUT = v->dw, .X = v->x, .RANGE = v->range, .DY = v->dy}, &v->dy, v->dw.cols);
    d->groups = up((uint64_t)v->dy.cols, 64);
    a->PARTS = parts_of(d->groups, 256, (uint32_t)v->dy.rows, 64, &a->DEPTH);
    fb_view sums = a->PARTS > 1 ? take(&left, FB_F32, (uint64_t)a->PARTS * (uint64_t)v->dw.rows, (uint64_t)v->dw.cols) : none;
    if (sums.mem) {
        add_parts(&d[1], &v->dw, sums, &v->dw, &none);
        d->operand.conv.OUT = sums;
        d->groups *= a->PARTS;
    } else a->PARTS = 1, a->DEPTH = (uint32_t)v->dy.rows;
    d->rounds = (double)a->DEPTH * (v->dw.cols + 1);
    return a->PARTS > 1 ? 2 : 1;
}

LOWER(part) {
    UNUSED;
    elements(d, l->attr.inverse ? 7 : 6, ELEMENTS(.OUT = l->part.y, .A = l->part.x, .ACC = l->part.acc), 0);
    struct fb_elements_arguments *a = &d->argument.elements;
    a->HEAD = (uint32_t)l->attr.head_dim, a->FIRST = (uint32_t)l->attr.first, a->WIDTH = (uint32_t)l->attr.width;
    return 1;
}

static int gated(dispatch *d, const fb_launch *l, uint32_t grad, struct fb_gate_operands v) {
    spread(d, FB_KERNEL_gate, &v.OUT, 2);
    d->operand.gate = v;
    d->constant.gate.GRAD = grad;
    d->constant.gate.KIND = (uint32_t)l->attr.kind;
    d->argument.gate = (struct fb_gate_arguments){.ROWS = rows_of(&v.OUT), .COLS = (uint32_t)v.OUT.cols};
    return 1;
}
LOWER(glu) {
    UNUSED;
    return gated(d, l, 0, (struct fb_gate_operands){.OUT = l->glu.y, .GATE = l->glu.gate, .UP = l->glu.up});
}
LOWER(glu_grad) {
    UNUSED;
    const struct fb_glu_grad_views *v = &l->glu_grad;
    const struct fb_gate_operands o = {.OUT = v->dgate, .OUT_UP = v->dup, .DY = v->dy, .GATE = v->gate, .UP = v->up};
    return gated(d, l, 1, o);
}

static int updated(dispatch *d, uint32_t op, struct fb_update_operands v, struct fb_update_arguments a) {
    spread(d, FB_KERNEL_update, &v.P, 1);
    d->operand.update = v;
    d->constant.update.OP = op;
    d->argument.update = a;
    d->argument.update.COUNT = (uint32_t)v.P.cols;
    return 1;
}
LOWER(adamw) {
    UNUSED;
    const fb_attr *a = &l->attr;
    const struct fb_adamw_views *v = &l->adamw;
    return updated(d, 0, (struct fb_update_operands){.P = v->p, .M = v->m, .V = v->v, .G = v->g, .HYPER = v->hyper, .RECORD = v->record},
                   (struct fb_update_arguments){.LR_SCALE = a->lr_scale, .DECAY = a->decay, .EPS = a->eps, .BETA1 = a->beta1,
                                                .REST1 = 1 - a->beta1, .BETA2 = a->beta2, .REST2 = 1 - a->beta2});
}
LOWER(sgd) {
    UNUSED;
    const fb_attr *a = &l->attr;
    const struct fb_sgd_views *v = &l->sgd;
    return updated(d, 1, (struct fb_update_operands){.P = v->p, .M = v->m, .G = v->g, .HYPER = v->hyper, .RECORD = v->record},
                   (struct fb_update_arguments){.LR_SCALE = a->lr_scale, .DECAY = a->decay, .BETA1 = a->momentum});
}

static int moved(dispatch *d, uint32_t op, struct fb_rows_operands v, int32_t stride, int32_t first, float scale) {
    const fb_view *shape = op == 1 ? &v.W : &v.OUT;
    spread(d, FB_KERNEL_rows, shape, 4);
    d->operand.rows = v;
    d->constant.rows.OP = op;
    d->constant.rows.WTYPE = (uint32_t)v.W.type;
    d->argument.rows = (struct fb_rows_arguments){.ROWS = rows_of(shape), .COLS = (uint32_t)shape->cols,
                                                  .CHOICE = rows_of(&v.W), .STRIDE = (uint32_t)stride,
                                                  .FIRST = (uint32_t)first, .SCALE = scale};
    return 1;
}
LOWER(embed) {
    UNUSED;
    const struct fb_rows_operands v = {.OUT = l->embed.y, .W = l->embed.w, .IDS = l->embed.ids};
    return moved(d, 0, v, l->attr.stride, l->attr.first, l->attr.scale);
}
LOWER(gather) {
    UNUSED;
    return moved(d, 0, (struct fb_rows_operands){.OUT = l->gather.y, .W = l->gather.x, .IDS = l->gather.index}, 1, 0, 1);
}
LOWER(append) {
    UNUSED;
    return moved(d, 1, (struct fb_rows_operands){.OUT = l->append.cache, .W = l->append.x, .IDS = l->append.slots}, 1, 0, 1);
}

LOWER(decode) { UNUSED; return moved(d, 2, (struct fb_rows_operands){.OUT = l->decode.y, .W = l->decode.w}, 1, 0, 1); }

static int turned(dispatch *d, uint32_t op, struct fb_rope_operands v, struct fb_rope_arguments a) {
    fb_view shape = v.OUT;
    if (op == 1) shape.cols = shape.cols / (int32_t)a.HEAD * (int32_t)(up(a.N_ROT / 2, 2) + up(a.HEAD - a.N_ROT, 4));
    spread(d, FB_KERNEL_rope, &shape, op == 1 ? 1 : 2);
    d->operand.rope = v;
    d->constant.rope.OP = op;
    a.ROWS = rows_of(&v.OUT);
    a.COLS = (uint32_t)v.OUT.cols;
    d->argument.rope = a;
    return 1;
}
LOWER(rope_table) {
    UNUSED;
    const struct fb_rope_table_views *v = &l->rope_table;
    return turned(d, 0, (struct fb_rope_operands){.OUT = v->table, .X = v->pos, .TABLE = v->inv_freq},
                  (struct fb_rope_arguments){.SCALE = l->attr.scale});
}
LOWER(rope) {
    UNUSED;
    const struct fb_rope_views *v = &l->rope;
    return turned(d, 1, (struct fb_rope_operands){.OUT = v->y, .X = v->x, .TABLE = v->table, .ACC = v->acc},
                  (struct fb_rope_arguments){.HEAD = (uint32_t)l->attr.head_dim, .N_ROT = (uint32_t)v->table.cols,
                                             .HALVES = l->attr.layout == FB_ROPE_PAIRS ? 0 : 1,
                                             .SCALE = l->attr.inverse ? -1.0f : 1.0f});
}

/* ---- what is known of a kernel ---- */

/* Lists stand in the order of their numbers, and no kernel has more of anything than there is room for. */
#define IN_ORDER(n, name, kind, role) name##_is,
#define ASSERT_ORDER(n, name, kind, role) _Static_assert(name##_is == n, "binding of " #name);
#define SPEC_IN_ORDER(n, name) name##_is,
#define TILE_IN_ORDER(n, name, most) name##_is,
#define ASSERT_SPEC(n, name) _Static_assert(name##_is + 3 == n, "number of constant " #name);
#define ASSERT_TILE(n, name, most) ASSERT_SPEC(n, name)
#define CHECKED(kernel)                                                                                               \
    {                                                                                                                 \
        enum { kernel##_OPERANDS(IN_ORDER) operands };                                                                \
        kernel##_OPERANDS(ASSERT_ORDER)                                                                               \
        _Static_assert((int)operands <= FB_BINDINGS, "bindings of " #kernel);                                         \
        _Static_assert(8 * operands + sizeof(struct fb_##kernel##_arguments) <= 4 * FB_PUSH_WORDS, "words of " #kernel); \
    }                                                                                                                 \
    {                                                                                                                 \
        enum { kernel##_CONSTANTS(SPEC_IN_ORDER, TILE_IN_ORDER) constants };                                          \
        kernel##_CONSTANTS(ASSERT_SPEC, ASSERT_TILE)                                                                  \
        _Static_assert(constants + 3 <= FB_SPECS, "constants of " #kernel);                                           \
    }
static void lists_are_in_order(void) { FB_KERNEL_NAMES(CHECKED) FB_MATRIX_KERNEL_NAMES(CHECKED) }

enum { IS_READ = 0, IS_WRITTEN = 1, IS_ACT = 0, IS_WORDS = 0, IS_BLOCKS = 1, IS_HALVES = 2, IS_GRIDS = 3 };
#define ONE(n, name, kind, role) +1
#define WRITTEN_BIT(n, name, kind, role) | (uint32_t)IS_##role << n
#define BLOCKS_BIT(n, name, kind, role) | (uint32_t)(IS_##kind == IS_BLOCKS) << n
#define HALVES_BIT(n, name, kind, role) | (uint32_t)(IS_##kind == IS_HALVES) << n
#define GRIDS_BIT(n, name, kind, role) | (uint32_t)(IS_##kind == IS_GRIDS) << n
#define NO_BIT(n, name)
#define TILE_BIT(n, name, most) | 1u << n
#define LISTED(list, kernel)                                                                                            \
    [FB_KERNEL_##kernel] = {#kernel, 0 list##_OPERANDS(ONE), sizeof(struct fb_##list##_arguments) / 4,                  \
                            0 list##_OPERANDS(WRITTEN_BIT), 0 list##_OPERANDS(BLOCKS_BIT), 0 list##_OPERANDS(HALVES_BIT), \
                            0 list##_OPERANDS(GRIDS_BIT), 0 list##_CONSTANTS(NO_BIT, TILE_BIT)},
#define KERNEL(name) LISTED(name, name)
#define F16_KERNEL(name) LISTED(name, name##_f16)
const fb_kernel fb_kernels[FB_KERNEL_COUNT] = {
    FB_KERNEL_NAMES(KERNEL) FB_MATRIX_KERNEL_NAMES(KERNEL) FB_F16_KERNEL_NAMES(F16_KERNEL)
};

void fb_place(const fb_dispatch *d, int operand, uint64_t bytes_before, uint32_t words[FB_PUSH_WORDS]) {
    const fb_view *v = &d->operand.at[operand];
    const int in_bytes = (int)(fb_kernels[d->kernel].blocks >> operand & 1u), unit = in_bytes ? 1 : v->type == FB_BF16 ? 2 : 4;
    words[2 * operand] = (uint32_t)(bytes_before / (uint64_t)unit);
    words[2 * operand + 1] = (uint32_t)(in_bytes ? fb_type_bytes(v->type, v->ld) : (uint64_t)v->ld);
}

uint32_t fb_arguments(const fb_dispatch *d, uint32_t first_group, uint32_t words[FB_PUSH_WORDS]) {
    const fb_kernel *kernel = &fb_kernels[d->kernel];
    const uint32_t before = 2 * kernel->operands, n = kernel->arguments;
    memcpy(words + before, d->argument.at, (n - 1) * sizeof *words);
    words[before + n - 1] = first_group;
    return before + n;
}

/* ---- the table ---- */

typedef int lowering(dispatch *, const fb_launch *, const fb_mem *, const fb_kernel_limits *);

static lowering *const ROWS[FB_OP_COUNT] = {
    [FB_OP_EMBED] = embed, [FB_OP_DECODE] = decode, [FB_OP_RMS_NORM] = rms_norm, [FB_OP_RMS_NORM_DX] = rms_norm_dx,
    [FB_OP_RMS_NORM_DW] = rms_norm_dw, [FB_OP_LINEAR] = linear, [FB_OP_LINEAR_DX] = linear_dx,
    [FB_OP_LINEAR_DW] = linear_dw, [FB_OP_BIAS_DB] = bias_db, [FB_OP_EMBED_DW] = embed_dw,
    [FB_OP_ROPE_TABLE] = rope_table, [FB_OP_ROPE] = rope, [FB_OP_ATTENTION] = attention,
    [FB_OP_ATTENTION_DQ] = attention_dq, [FB_OP_ATTENTION_DKV] = attention_dkv, [FB_OP_CONV] = conv, [FB_OP_CONV_DX] = conv_dx,
    [FB_OP_CONV_DW] = conv_dw, [FB_OP_DELTA_GATES] = delta_gates, [FB_OP_DELTA_GATES_GRAD] = delta_gates_grad,
    [FB_OP_DELTA] = delta, [FB_OP_DELTA_GRAD] = delta_grad, [FB_OP_PART] = part, [FB_OP_GLU] = glu,
    [FB_OP_GLU_GRAD] = glu_grad, [FB_OP_ADD] = add, [FB_OP_SCALE] = scale, [FB_OP_SOFTCAP] = softcap,
    [FB_OP_SOFTCAP_GRAD] = softcap_grad, [FB_OP_DROPOUT] = dropout,
    [FB_OP_GATHER] = gather, [FB_OP_SCATTER] = scatter, [FB_OP_XENT] = xent,
    [FB_OP_ROUTE] = route, [FB_OP_ROUTE_GRAD] = route_grad, [FB_OP_ORDER] = order, [FB_OP_EXPERTS] = experts,
    [FB_OP_EXPERTS_DX] = experts_dx, [FB_OP_EXPERTS_DW] = experts_dw, [FB_OP_COMBINE] = combine, [FB_OP_COMBINE_GRAD] = combine_grad,
    [FB_OP_APPEND] = append, [FB_OP_ZERO] = zero, [FB_OP_TALLY] = tally, [FB_OP_SUMSQ] = sumsq,
    [FB_OP_NORM] = norm, [FB_OP_ADAMW] = adamw, [FB_OP_SGD] = sgd,
};

static int alone(fb_kernel_id kernel) {
    return kernel == FB_KERNEL_elements || kernel == FB_KERNEL_delta_gates || kernel == FB_KERNEL_gate || kernel == FB_KERNEL_update || kernel == FB_KERNEL_rope ||
           kernel == FB_KERNEL_rows || kernel == FB_KERNEL_parts || kernel == FB_KERNEL_matrix_pack;
}

/* Kernels count elements, or bytes of blocks, in 32 bits, from the start of a binding on, which is aligned and so lies before
 * the operand; and they read four neighbours at a time. */
static int reachable(const fb_view *v, int blocks) {
    const uint64_t most = UINT32_MAX - 1024, ld = (uint64_t)v->ld, between = blocks ? fb_type_bytes(v->type, v->ld) : ld;
    const uint64_t row = blocks ? fb_type_bytes(v->type, v->cols) : (uint64_t)v->cols;
    if (ld <= most && between <= most && (v->rows < 2 || (uint64_t)(v->rows - 1) * between <= most - row)) return FB_OK;
    return fb_fail(FB_E_LIMIT, "An operand of %d rows, %lld elements apart, is larger than kernels of this device can address, which "
                   "is 4 Gi%s; lower max_binding_bytes in the device's profile.", (int)v->rows, (long long)v->ld,
                   blocks ? "B" : " elements");
}

/* Fills in the grids, and the constants that say which operands there are and of which types. */
static int describe(dispatch *d, const fb_mem *grids) {
    uint32_t *types = &d->constant.at[1], *has = &d->constant.at[2];
    const fb_kernel *kernel = &fb_kernels[d->kernel];
    int needed = 0;
    for (uint32_t k = 0; k < kernel->operands; k++) needed |= kernel->blocks >> k & 1u && fb_has_grid(d->operand.at[k].type);
    for (uint32_t k = 0; k < kernel->operands && needed; k++)
        if (kernel->grids >> k & 1u)
            d->operand.at[k] = (fb_view){.mem = grids, .rows = 1, .cols = FB_GRID_ENTRIES / 2, .ld = FB_GRID_ENTRIES / 2};
    for (uint32_t k = 0; k < kernel->operands; k++) {
        const fb_view *v = &d->operand.at[k];
        const int blocks = (int)(kernel->blocks >> k & 1u), code = v->mem ? reachable(v, blocks) : FB_OK;
        if (code) return code;
        if (!v->mem) continue;
        *has |= 1u << k;
        if (!blocks && v->type == FB_BF16) *types |= 1u << k;
    }
    return FB_OK;
}

int fb_lower(const fb_launch *launch, const fb_mem *scratch, const fb_kernel_limits *limits,
             fb_dispatch out[FB_MOST_DISPATCHES]) {
    if ((unsigned)launch->op >= FB_OP_COUNT || !ROWS[launch->op]) {
        fb_fail(FB_E_INTERNAL, "there is no kernel for op %d", (int)launch->op);
        return 0;
    }
    lists_are_in_order(); /* which the compiler has found out: this is no code */
    int n = ROWS[launch->op](out, launch, scratch, limits);
    for (int i = 0; i < n; i++) {
        dispatch *d = &out[i];
        /* Where threads need not meet, large workgroups are started sooner than many. */
        if (alone(d->kernel) && limits->threads >= 256) d->constant.at[0] = 256, d->groups = up(d->groups, 4);
        if (describe(d, launch->grids)) return 0;
        if (d->groups * d->constant.at[0] > UINT32_MAX) {
            fb_fail(FB_E_LIMIT, "A launch of %s needs %.0f threads, and kernels count them in 32 bits; use a smaller context.",
                    fb_kernels[d->kernel].name, (double)d->groups * d->constant.at[0]);
            return 0;
        }
        if (limits->rounds && d->rounds > limits->rounds) {
            fb_fail(FB_E_LIMIT, "A thread of %s may take %.0f rounds through its loops here, and this driver ends them after %u; "
                    "use a smaller context.", fb_kernels[d->kernel].name, d->rounds, limits->rounds);
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
            const fb_view *v = &d[i].operand.at[k];
            uint64_t end = v->offset + (uint64_t)v->rows * (uint64_t)v->ld * (v->type == FB_F32 ? 4 : 2);
            if (v->mem == &any && end > most) most = end;
        }
    return most;
}
