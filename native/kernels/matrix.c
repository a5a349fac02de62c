/* matrix.c - products and attention as launches of the kernels that use matrix units. Those multiply 16-bit floats, so
 * operands of other types are packed into scratch first: activations rounded, weights decoded, the low-rank factor put
 * behind them. Units for F16 alone serve products that sum along rows: each row of activations is packed over a power of
 * two of its own, for gradients would leave the range of F16. Launches whose operands are all F32 stay with the portable
 * kernels, which multiply in F32. */
#include "lower.h"

enum { ENOUGH = 256 /* workgroups that fill a large device */, FEW_ROWS = 16 /* for which weights are not decoded */ };
#ifndef FB_SLAB_BYTES
#define FB_SLAB_BYTES (64 << 20) /* of decoded weights at a time; tests want several slabs of small ones */
#endif
static const uint64_t SLAB = FB_SLAB_BYTES;

/* Rows of 16-bit floats that start at 16 bytes. */
static int in_halves(const fb_view *v) {
    return v->type == FB_BF16 && v->offset % 16 == 0 && v->ld % 8 == 0 && v->cols % 8 == 0;
}

/* Packs `w`, and `b` over the scale behind it: as columns, or as rows; for `x`, if that has rows in use. */
static int pack(dispatch *d, const fb_view *w, const fb_view *b, const fb_view *x, int as_rows, float scale, int f16, fb_view out) {
    if (!out.mem) return 0;
    const uint64_t threads = (uint64_t)out.rows * (uint64_t)out.cols / 8;
    begin(d, FB_KERNEL_matrix_pack, 64);
    d->operand.matrix_pack = (struct fb_matrix_pack_operands){.OUT = out, .W = *w};
    d->constant.matrix_pack.AS_ROWS = (uint32_t)as_rows;
    d->constant.matrix_pack.WTYPE = (uint32_t)w->type;
    d->constant.matrix_pack.F16 = (uint32_t)f16;
    d->argument.matrix_pack = (struct fb_matrix_pack_arguments){.ROWS = rows_of(w), .COLS = (uint32_t)w->cols,
                                                                .WIDE = (uint32_t)out.cols, .OUT_ROWS = rows_of(&out),
                                                                .SCALE = 1 / scale, .USED = rows_of(x)};
    if (b && b->mem) {
        d->operand.matrix_pack.B = *b;
        d->argument.matrix_pack.R = (uint32_t)(as_rows ? b->rows : b->cols);
    }
    d->groups = up(threads, 64);
    d->work = 64.0 * (double)threads;
    return 1;
}

/* An activation in 16-bit floats: itself, or packed by one more dispatch. */
static int halves(dispatch *d, int *count, room *left, fb_view *x, uint32_t cols) {
    if (in_halves(x) && (uint32_t)x->cols == cols) return 1;
    fb_view packed = take(left, FB_BF16, (uint64_t)x->rows, cols);
    count_like(&packed, x);
    if (!pack(&d[*count], x, NULL, x, 0, 1, 0, packed)) return 0;
    (*count)++;
    *x = packed;
    return 1;
}

static void matrix_tiles(dispatch *d, const fb_kernel_limits *limits, uint32_t m, uint32_t n) {
    uint32_t bm = 64, bn = 64, wm = 32, wn = 32;
    if (n <= 16) bm = 128, bn = 16, wm = 32, wn = 16;
    else if (m <= 16) bm = 16, bn = 128, wm = 16, wn = 32;
    else if (m > 64 && n > 64 && up(m, 128) * up(n, 128) >= ENOUGH / 4 && limits->threads >= 256) bm = bn = 128, wm = wn = 64;
    while (wm * wn > limits->subgroup * (limits->subgroup < 32 ? 64 : 128)) /* sums that lie in registers */
        if (wm >= wn) wm /= 2;
        else wn /= 2;
    struct fb_matrix_product_constants *c = &d->constant.matrix_product;
    c->THREADS = bm / wm * (bn / wn) * limits->subgroup;
    c->BM = bm, c->BN = bn, c->WM = wm, c->WN = wn;
    d->groups = up(m, bm) * up(n, bn);
}

/* Rows [first, first + rows) of a matrix of whole blocks. */
static fb_view rows_from(fb_view v, uint32_t first, uint32_t rows) {
    v.offset += fb_type_bytes(v.type, (int64_t)first * v.ld);
    v.rows = (int32_t)rows;
    return v;
}
static fb_view cols_from(fb_view v, uint32_t first, uint32_t cols) {
    v.offset += fb_type_bytes(v.type, first);
    v.cols = (int32_t)cols;
    return v;
}

typedef struct operands {
    fb_view out, x, w, u, b, acc, bias, scales; /* scales: of the rows of x and u, where those are F16 */
    uint32_t m, n, k, rank; /* of the output, the reduction, and the low-rank term in multiples of 32 */
} operands;

/* Whether products run on matrix units at all. */
static int there(const fb_kernel_limits *limits) {
    return limits->subgroup && limits->threads >= 4 * limits->subgroup && !limits->tile_rows && !limits->tile_cols;
}

static int fits(const operands *o, float scale, const fb_kernel_limits *limits, uint32_t op) {
    if (!there(limits) || scale == 0) return 0;
    if (op == 2) return !limits->f16 && !(o->x.type == FB_F32 && o->w.type == FB_F32) && o->m % 8 == 0 && o->n % 8 == 0;
    if (o->x.type == FB_F32 && o->out.type == FB_F32) return 0;
    return o->m > FEW_ROWS && o->k % 32 == 0 && (op == 0 || o->n % 8 == 0);
}

/* x, and u behind it, in F16, and the scales of their rows, by the first dispatch. */
static int scaled_rows(dispatch *d, operands *o, room *left) {
    const uint32_t k = (uint32_t)o->x.cols;
    fb_view packed = take(left, FB_BF16, o->m, k + o->rank);
    count_like(&packed, &o->x);
    o->scales = take(left, FB_F32, o->m, 1);
    if (!packed.mem || !o->scales.mem) return 0;
    begin(d, FB_KERNEL_matrix_rows, 128);
    d->operand.matrix_rows = (struct fb_matrix_rows_operands){.OUT = packed, .X = o->x, .U = o->u, .ROW_SCALE = o->scales};
    d->argument.matrix_rows = (struct fb_matrix_rows_arguments){
        .ROWS = rows_of(&o->x), .K = k, .RANK = o->u.mem ? (uint32_t)o->u.cols : 0, .R = o->rank};
    d->groups = o->m;
    d->work = 2.0 * o->m * (k + o->rank);
    o->x = cols_from(packed, 0, k);
    if (o->rank) o->u = cols_from(packed, k, o->rank);
    return 1;
}

/* One dispatch over packed operands, of a reduction in `parts` of depth `each`. */
static void multiply(dispatch *d, const operands *o, const fb_kernel_limits *limits, uint32_t op, float scale,
                     uint32_t parts, uint32_t each) {
    begin(d, limits->f16 ? FB_KERNEL_matrix_product_f16 : FB_KERNEL_matrix_product, 0);
    d->operand.matrix_product = (struct fb_matrix_product_operands){.OUT = o->out, .X = o->x, .W = o->w, .U = o->u, .ACC = o->acc,
                                                                    .BIAS = o->bias, .ROW_SCALE = o->scales};
    d->constant.matrix_product.OP = op;
    d->constant.matrix_product.F16 = (uint32_t)limits->f16;
    d->argument.matrix_product = (struct fb_matrix_product_arguments){
        .M = rows_of(&o->x), .N = o->n, .K = all_rows(o->k), .R = o->rank, .SCALE = scale, .PARTS = parts, .DEPTH = each};
    if (op == 2) d->argument.matrix_product.M = all_rows(o->m), d->argument.matrix_product.K = rows_of(&o->x);
    matrix_tiles(d, limits, o->m, o->n);
    d->groups *= parts;
    d->work = 2.0 * o->m * o->n * (o->k + o->rank);
}

/* How a product is laid out: weights are decoded a slab of rows at a time (columns of y, or a stretch of the reduction of
 * dx), and the reduction, or that of each slab, is summed in parts where the output has too few tiles. */
typedef struct layout {
    int ready; /* w is 16-bit floats as it is */
    uint32_t rows, slab, slabs, parts, each, total;
    fb_view decoded, sums;
} layout;

static int lay_out(layout *p, const operands *o, room *left, const fb_kernel_limits *limits, uint32_t op) {
    const int as_rows = op == 1;
    const uint32_t cols = (uint32_t)o->w.cols + (as_rows ? 0 : o->rank), fit = (uint32_t)(SLAB / (2 * (uint64_t)cols)) / 128 * 128;
    p->ready = op == 2 || (!limits->f16 && in_halves(&o->w) && !o->rank);
    p->rows = (uint32_t)o->w.rows;
    p->slab = p->ready ? p->rows : fit < p->rows / 24 ? up(p->rows, 24 * 128) * 128 : fit;
    if (p->slab > p->rows || p->slab == 0) p->slab = p->rows;
    p->slabs = up(p->rows, p->slab);
    p->decoded = p->ready ? o->w : take(left, FB_BF16, (uint64_t)p->slab + (as_rows ? o->rank : 0), cols);
    dispatch shape = {0};
    matrix_tiles(&shape, limits, o->m, op == 0 ? p->slab : o->n);
    const uint32_t depth = (op == 1 ? p->slab : o->k) + o->rank, least = op == 2 || o->m <= 16 || o->n <= 16 ? 128 : 512;
    const uint32_t sums_a_part = op == 1 ? p->slabs : 1;
    p->parts = parts_of(op == 0 && p->slabs > 1 ? ENOUGH : shape.groups, ENOUGH, depth, least, &p->each);
    p->total = p->parts * sums_a_part;
    if (p->total > 1) p->sums = take(left, FB_F32, (uint64_t)p->total * o->m, o->n);
    if (!p->sums.mem && p->parts > 1) { /* more than an operand may have */
        p->parts = 1, p->total = sums_a_part, p->each = up(depth, 32) * 32;
        if (p->total > 1) p->sums = take(left, FB_F32, (uint64_t)p->total * o->m, o->n);
    }
    return p->decoded.mem && (p->sums.mem || p->total == 1);
}

int fb_lower_matrix_product(dispatch *d, const product *given, const fb_mem *scratch, const fb_kernel_limits *limits) {
    const uint32_t op = given->op;
    const float scale = given->scale;
    operands o = {.out = given->out, .x = given->x, .w = given->w, .u = given->u, .b = given->b, .acc = given->acc,
                  .bias = given->bias};
    layout p = {0};
    o.m = (uint32_t)o.out.rows, o.n = (uint32_t)o.out.cols, o.k = (uint32_t)(op == 2 ? o.x.rows : o.x.cols);
    o.rank = o.u.mem ? up((uint64_t)o.u.cols, 32) * 32 : 0;
    room left = scratch_of(scratch, limits);
    int count = 0;
    if (!fits(&o, scale, limits, op)) return 0;
    if (limits->f16) {
        if (!scaled_rows(&d[count++], &o, &left)) return 0;
    } else {
        if (!halves(d, &count, &left, &o.x, (uint32_t)o.x.cols)) return 0;
        if (op == 2 && !halves(d, &count, &left, &o.w, o.n)) return 0;
        if (o.rank && !halves(d, &count, &left, &o.u, o.rank)) return 0;
    }
    if (!lay_out(&p, &o, &left, limits, op)) return 0;
    uint32_t done = 0;
    for (uint32_t first = 0; first < p.rows; first += p.slab) {
        operands s = o;
        const uint32_t here = p.rows - first < p.slab ? p.rows - first : p.slab, last = first + here == p.rows;
        uint32_t now = p.parts;
        if (!p.ready) {
            const fb_view w = rows_from(o.w, first, here), b = op == 1 || !o.b.mem ? o.b : rows_from(o.b, first, here);
            s.w = p.decoded;
            s.w.rows = (int32_t)(here + (op == 1 && last ? o.rank : 0));
            if (!pack(&d[count], &w, op == 1 && !last ? NULL : &b, &o.x, op == 1, scale, limits->f16, s.w)) return 0;
            count++;
        }
        if (op == 0 && p.slabs > 1) {
            s.n = here;
            s.out = cols_from(o.out, first, here);
            if (o.acc.mem) s.acc = cols_from(o.acc, first, here);
            if (o.bias.mem) s.bias = cols_from(o.bias, first, here);
        } else if (op == 1) {
            s.k = here;
            s.x = cols_from(o.x, first, here);
            if (!last) s.rank = 0, s.u.mem = NULL;
            now = up(s.k + s.rank, p.each);
        }
        if (p.total > 1) {
            s.out = rows_from(p.sums, done * o.m, now * o.m);
            s.acc.mem = s.bias.mem = NULL;
            done += now;
        }
        multiply(&d[count++], &s, limits, op, scale, now, p.each);
    }
    if (p.total > 1) {
        p.sums.rows = (int32_t)(done * o.m);
        add_parts(&d[count++], &o.out, p.sums, &o.acc, &o.bias);
    }
    return count;
}

/* Rows of a block that a workgroup of attention walks over; 0: none fits into the shared memory. */
static uint32_t block_rows(const fb_kernel_limits *limits, uint32_t head_dim) {
    for (uint32_t block = 32; block >= 16; block /= 2) {
        uint32_t eighths = 2 * block * (head_dim / 8 + 1) + 2 * 64 * (block / 4 + 1) + 2 * 64 * (block / 8 + 1);
        uint32_t bytes = 16 * (eighths + block);
        if (bytes <= limits->shared_bytes && block * 64 >= 4 * 8 * limits->subgroup) return block;
    }
    return 0;
}

int fb_lower_matrix_attention(dispatch *d, const fb_kernel_limits *limits) {
    const uint32_t threads = 8 * limits->subgroup, hd = d->constant.attention.HD;
    const struct fb_attention_arguments *a = &d->argument.attention;
    const struct fb_attention_operands *forward = &d->operand.attention;
    const struct fb_attention_dq_operands *dq = &d->operand.attention_dq;
    const struct fb_attention_dkv_operands *dkv = &d->operand.attention_dkv;
    const int by_keys = d->kernel == FB_KERNEL_attention_dkv;
    if (!limits->subgroup || limits->f16 || limits->products_alone || limits->threads < threads || hd % 32 || hd > 256 || a->T.most <= FEW_ROWS) return 0;
    const uint32_t block = block_rows(limits, hd);
    int halves = block > 0;
    if (by_keys) halves = halves && in_halves(&dkv->Q) && in_halves(&dkv->K) && in_halves(&dkv->V) && in_halves(&dkv->DO);
    else if (d->kernel == FB_KERNEL_attention_dq)
        halves = halves && in_halves(&dq->Q) && in_halves(&dq->K) && in_halves(&dq->V) && in_halves(&dq->DO);
    else halves = halves && in_halves(&forward->Q) && in_halves(&forward->K) && in_halves(&forward->V);
    if (!halves) return 0;
    d->kernel = by_keys                              ? FB_KERNEL_matrix_attention_dkv
                : d->kernel == FB_KERNEL_attention_dq ? FB_KERNEL_matrix_attention_dq
                                                      : FB_KERNEL_matrix_attention;
    d->constant.matrix_attention.THREADS = threads;
    d->constant.matrix_attention.BLOCK = block;
    d->groups = (by_keys ? a->KV_HEADS : a->HEADS) * up(by_keys ? a->S.most : a->T.most, 64);
    d->rounds = 0;
    return 1;
}

double fb_matrix_peak(fb_dispatch *d, const fb_kernel_limits *limits) {
    const uint32_t subgroups = 4, rounds = limits->rounds ? 8 : 256, products = 8; /* of 16 x 16 x 16, a round and subgroup */
    if (!there(limits)) return 0;
    begin(d, limits->f16 ? FB_KERNEL_matrix_peak_f16 : FB_KERNEL_matrix_peak, subgroups * limits->subgroup);
    d->constant.matrix_peak.F16 = (uint32_t)limits->f16;
    d->argument.matrix_peak.ROUNDS = rounds;
    d->groups = 64;
    return 2.0 * 16 * 16 * 16 * products * rounds * subgroups;
}
