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

/* Packs `w`, and `b` over the scale behind it: as columns, or as rows. */
static int pack(dispatch *d, const fb_view *w, const fb_view *b, int as_rows, float scale, int f16, fb_view out) {
    if (!out.mem) return 0;
    memset(d, 0, sizeof *d);
    *d = (dispatch){.kernel = FB_KERNEL_matrix_pack, .spec = {64, 0, 0, (uint32_t)as_rows, [9] = (uint32_t)f16}};
    d->b[0] = out, d->b[2] = *w;
    if (b && b->mem) d->b[4] = *b;
    weights_at(d, 2);
    uint64_t threads = (uint64_t)out.rows * (uint64_t)out.cols / 8;
    d->groups = up(threads, 64);
    args(d, 64 * threads, (uint32_t)w->rows, (uint32_t)w->cols, b && b->mem ? (uint32_t)(as_rows ? b->rows : b->cols) : 0,
         (uint32_t)out.cols);
    d->arg[4] = bits(1 / scale);
    d->arg[5] = (uint32_t)out.rows;
    return 1;
}

/* An activation in 16-bit floats: itself, or packed by one more dispatch. */
static int halves(dispatch *d, int *count, room *left, fb_view *x, uint32_t cols) {
    if (in_halves(x) && (uint32_t)x->cols == cols) return 1;
    fb_view packed = take(left, FB_BF16, (uint64_t)x->rows, cols);
    if (!pack(&d[*count], x, NULL, 0, 1, 0, packed)) return 0;
    (*count)++;
    *x = packed;
    return 1;
}

static void matrix_tiles(dispatch *d, const fb_kernel_limits *limits, uint32_t m, uint32_t n) {
    uint32_t bm = 64, bn = 64, wm = 32, wn = 32;
    if (n <= 16) bm = 128, bn = 16, wm = 32, wn = 16;
    else if (m <= 16) bm = 16, bn = 128, wm = 16, wn = 32;
    else if (m > 64 && n > 64 && up(m, 128) * up(n, 128) >= ENOUGH / 4) bm = bn = 128, wm = wn = 64;
    d->spec[0] = bm / wm * (bn / wn) * limits->subgroup;
    d->spec[5] = bm, d->spec[6] = bn, d->spec[7] = wm, d->spec[8] = wn;
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

static int fits(const operands *o, const fb_launch *l, const fb_kernel_limits *limits, uint32_t op) {
    if (!there(limits) || l->attr.scale == 0) return 0;
    if (op == 2) return !limits->f16 && !(o->x.type == FB_F32 && o->w.type == FB_F32) && o->m % 8 == 0 && o->n % 8 == 0;
    if (o->x.type == FB_F32 && o->out.type == FB_F32) return 0;
    return o->m > FEW_ROWS && o->k % 32 == 0 && (op == 0 || o->n % 8 == 0);
}

/* x, and u behind it, in F16, and the scales of their rows, by the first dispatch. */
static int scaled_rows(dispatch *d, operands *o, room *left) {
    const uint32_t k = (uint32_t)o->x.cols;
    fb_view packed = take(left, FB_BF16, o->m, k + o->rank);
    o->scales = take(left, FB_F32, o->m, 1);
    if (!packed.mem || !o->scales.mem) return 0;
    *d = (dispatch){.kernel = FB_KERNEL_matrix_rows, .blocks = -1, .spec = {128}, .groups = o->m};
    d->b[0] = packed, d->b[1] = o->x, d->b[3] = o->u, d->b[7] = o->scales;
    args(d, 2 * (uint64_t)o->m * (k + o->rank), o->m, k, o->u.mem ? (uint32_t)o->u.cols : 0, o->rank);
    o->x = cols_from(packed, 0, k);
    if (o->rank) o->u = cols_from(packed, k, o->rank);
    return 1;
}

/* One dispatch over packed operands, of a reduction in `parts` of depth `each`. */
static void multiply(dispatch *d, const operands *o, const fb_kernel_limits *limits, uint32_t op, float scale,
                     uint32_t parts, uint32_t each) {
    *d = (dispatch){.kernel = limits->f16 ? FB_KERNEL_matrix_product_f16 : FB_KERNEL_matrix_product, .blocks = -1,
                    .spec = {0, 0, 0, op, [9] = (uint32_t)limits->f16}};
    d->b[0] = o->out, d->b[1] = o->x, d->b[2] = o->w, d->b[3] = o->u, d->b[5] = o->acc, d->b[6] = o->bias;
    d->b[7] = o->scales;
    matrix_tiles(d, limits, o->m, o->n);
    d->groups *= parts;
    args(d, 2 * (uint64_t)o->m * o->n * (o->k + o->rank), o->m, o->n, o->k, o->rank);
    d->arg[4] = bits(scale);
    d->arg[5] = parts;
    d->arg[6] = each;
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
    if (!p->sums.mem && p->parts > 1) { /* fewer rows than were planned for may want more room */
        p->parts = 1, p->total = sums_a_part, p->each = up(depth, 32) * 32;
        if (p->total > 1) p->sums = take(left, FB_F32, (uint64_t)p->total * o->m, o->n);
    }
    return p->decoded.mem && (p->sums.mem || p->total == 1);
}

int fb_lower_matrix_product(dispatch *d, const fb_launch *l, const fb_mem *scratch, const fb_kernel_limits *limits,
                            const char *order, uint32_t op) {
    operands o = {0};
    layout p = {0};
    fb_view *const all[] = {&o.out, &o.x, &o.w, &o.u, &o.b, &o.acc, &o.bias};
    for (int k = 0; order[k]; k++)
        if (order[k] != '-') *all[k] = l->v[order[k] - '0'];
    o.m = (uint32_t)o.out.rows, o.n = (uint32_t)o.out.cols, o.k = (uint32_t)(op == 2 ? o.x.rows : o.x.cols);
    o.rank = o.u.mem ? up((uint64_t)o.u.cols, 32) * 32 : 0;
    room left = scratch_of(scratch, limits);
    int count = 0;
    if (!fits(&o, l, limits, op)) return 0;
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
            if (!pack(&d[count], &w, op == 1 && !last ? NULL : &b, op == 1, l->attr.scale, limits->f16, s.w)) return 0;
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
        multiply(&d[count++], &s, limits, op, l->attr.scale, now, p.each);
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

int fb_lower_matrix_attention(dispatch *d, const fb_launch *l, const fb_kernel_limits *limits, fb_kernel_id kernel,
                              const char *order) {
    const fb_attention_shape *s = &l->attr.attention;
    const uint32_t threads = 8 * limits->subgroup, hd = (uint32_t)s->head_dim;
    const int by_keys = kernel == FB_KERNEL_matrix_attention_dkv;
    if (!limits->subgroup || limits->f16 || limits->threads < threads || hd % 32 || hd > 256 || l->v[2].rows <= FEW_ROWS) return 0;
    const uint32_t block = block_rows(limits, hd);
    if (!block || !in_halves(&l->v[2]) || !in_halves(&l->v[3]) || !in_halves(&l->v[4])) return 0;
    if (kernel != FB_KERNEL_matrix_attention && !in_halves(&l->v[7])) return 0;
    begin(d, l, kernel, order, threads, 0);
    d->spec[5] = hd;
    d->spec[6] = block;
    d->groups = (uint32_t)(by_keys ? s->n_kv_head : s->n_head) * up((uint64_t)l->v[by_keys ? 3 : 2].rows, 64);
    return 1;
}

double fb_matrix_peak(fb_dispatch *d, const fb_kernel_limits *limits) {
    const uint32_t subgroups = 4, rounds = limits->rounds ? 8 : 256, products = 8; /* of 16 x 16 x 16, a round and subgroup */
    if (!there(limits)) return 0;
    *d = (fb_dispatch){.kernel = limits->f16 ? FB_KERNEL_matrix_peak_f16 : FB_KERNEL_matrix_peak, .blocks = -1,
                       .spec = {subgroups * limits->subgroup, [9] = (uint32_t)limits->f16}, .groups = 64, .arg = {rounds}};
    return 2.0 * 16 * 16 * 16 * products * rounds * subgroups;
}
