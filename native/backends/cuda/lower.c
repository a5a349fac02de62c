/* lower.c - which kernels a launch is on this device: this folder's own where they are for it, else the portable ones.
 *
 * Products of 16-bit operands run on matrix units: on those of Hopper's warpgroups where output and reduction are large, else
 * on those of a warp. Weights in blocks are decoded a slab of rows at a time into scratch, unless the planner keeps them
 * decoded; of the gradient of the input, each slab adds to the sums of those before. Reductions with too few workgroups are
 * summed in parts. Launches whose operands are all F32 stay with the portable kernels, which multiply in F32, unless they may be
 * rounded. */
#include <stdarg.h>
#include <stdio.h>
#include "../../kernels/lower.h"
#include "cuda.h"

enum { FEW_ROWS = 16 /* for which weights are not decoded */, DEEP = 64 /* of a step of a reduction */ };
#ifndef FB_SLAB_BYTES
#define FB_SLAB_BYTES (64 << 20) /* of decoded weights at a time; tests want several slabs of small ones */
#endif
static const uint64_t SLAB = FB_SLAB_BYTES;

typedef struct lowering {
    const cuda *c;
    cu_lowered *out;
    int n;
    int failed;
    room left;
    uint64_t most; /* bytes of scratch, so far */
    const fb_mem *grids;
} lowering;

/* A matrix in the scratch; one without memory where it does not suffice. */
static fb_view space(lowering *s, int32_t type, uint64_t rows, uint64_t cols) {
    fb_view v = take(&s->left, type, rows, cols);
    if (s->left.used > s->most) s->most = s->left.used;
    return v;
}

/* ---- steps ---- */

static cu_view view_of(const fb_view *v) {
    if (!v->mem) return (cu_view){0};
    return (cu_view){cu_address(v), v->ld, v->rows, v->cols, v->count, v->factor, v->first, 1};
}

static int type_of(const fb_view *v) { return !v->mem ? CU_NONE : v->type == FB_BF16 ? CU_BF16 : CU_F32; }

/* One more step, on the kernel of a text with constants as options. */
static cu_lowered *step(lowering *s, uint64_t groups, uint32_t threads, uint32_t shared_bytes, const char *key, ...) {
    if (s->n == CU_MOST_STEPS || groups > INT32_MAX) {
        s->failed = fb_fail(FB_E_LIMIT, "A launch is too large for this device.");
        return NULL;
    }
    cu_lowered *l = &s->out[s->n++];
    va_list values;
    memset(l, 0, sizeof *l);
    va_start(values, key);
    vsnprintf(l->key, sizeof l->key, key, values);
    va_end(values);
    l->groups = (uint32_t)groups;
    l->threads = threads;
    l->shared_bytes = shared_bytes;
    l->args.parts = 1;
    return l;
}

static void portable(lowering *s, const fb_dispatch *d) {
    cu_lowered *l = step(s, d->groups, d->constant.at[0], 0, "");
    if (l) l->dispatch = *d;
}

static void lower(lowering *s, const fb_launch *launch);

/* ---- products ---- */

/* Rows of 16-bit floats that the copy engine and 16-byte accesses can read. */
static int in_halves(const fb_view *v) {
    return v->mem && v->type == FB_BF16 && v->offset % 16 == 0 && v->ld % 8 == 0;
}
static int is_whole(const fb_view *v) {
    return v->mem && v->cols % 8 == 0 && v->offset % 16 == 0 && v->ld % (v->type == FB_BF16 ? 8 : 4) == 0;
}
static int in_pairs(const fb_view *v) {
    return !v->mem || (v->cols % 2 == 0 && v->ld % 2 == 0 && v->offset % (v->type == FB_BF16 ? 4 : 8) == 0);
}

/* Rows, or columns, [first, first + n) of a matrix. */
static fb_view rows_from(fb_view v, uint32_t first, uint32_t n) {
    v.offset += fb_type_bytes(v.type, (int64_t)first * v.ld);
    v.rows = (int32_t)n;
    return v;
}
static fb_view cols_from(fb_view v, uint32_t first, uint32_t n) {
    v.offset += fb_type_bytes(v.type, first);
    v.cols = (int32_t)n;
    return v;
}

/* A map for the copy engine: boxes of 128 bytes, swizzled. */
static void map(lowering *s, cu_map *out, const fb_view *v, uint32_t box_rows) {
    const int wide = v->type == FB_F32;
    const uint64_t sizes[2] = {(uint64_t)v->cols, (uint64_t)v->rows}, strides[1] = {(uint64_t)v->ld * (wide ? 4 : 2)};
    const uint32_t box[2] = {wide ? 32 : 64, box_rows}, steps[2] = {1, 1};
    if (!v->mem->handle) return; /* asked for scratch alone */
    CUresult result = s->c->cu->cuTensorMapEncodeTiled(
        out, wide ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)cu_address(v),
        sizes, strides, box, steps, 0, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, 0);
    if (result) s->failed = cu_check(s->c, result, "describe an operand");
}

/* Parts of a reduction for `tiles` workgroups on a device with room for `wanted`, none shorter than `least`. */
static int parts_for(lowering *s, const fb_view *out, uint64_t tiles, uint32_t wanted, uint32_t depth, uint32_t least,
                     int32_t *each, fb_view *sums) {
    uint32_t parts = 1;
    *sums = (fb_view){0};
    *each = (int32_t)depth;
    if (tiles * 3 <= wanted * 2 && depth >= 2 * least) {
        parts = (uint32_t)(wanted / tiles);
        if (parts > depth / least) parts = depth / least;
        *each = (int32_t)(up(up(depth, parts), DEEP) * DEEP);
        parts = up(depth, (uint32_t)*each);
    }
    if (parts > 1) *sums = space(s, FB_F32, (uint64_t)parts * (uint64_t)out->rows, (uint64_t)out->cols);
    return (int)parts;
}

/* An output in whole tiles: what the workgroups that sum a part of it hold. */
static fb_view tiles_of(const fb_view *out, uint64_t rows, uint64_t cols) {
    fb_view v = *out;
    v.rows = (int32_t)rows, v.cols = (int32_t)cols;
    return v;
}

/* Those of a product, as a step's. */
static void operands(cu_lowered *l, const product *p, int parts, int32_t each, const fb_view *sums) {
    cu_view *v = l->args.v;
    v[CU_OUT] = view_of(&p->out), v[CU_X] = view_of(&p->x), v[CU_W] = view_of(&p->w), v[CU_U] = view_of(&p->u);
    v[CU_B] = view_of(&p->b), v[CU_ACC] = view_of(&p->acc), v[CU_BIAS] = view_of(&p->bias);
    v[CU_SUMS] = view_of(sums);
    l->args.scale = p->scale;
    l->args.parts = parts;
    l->args.depth = each;
}

/* Whether a matrix is what another is, in place. */
static int is_same(const fb_view *a, const fb_view *b) {
    return a->mem == b->mem && a->offset == b->offset && a->ld == b->ld && a->type == b->type;
}

/* On the units of warpgroups, the sum of products of one output: the width of a tile by what the last wave of workgroups wastes. */
static int on_warpgroups(lowering *s, const product *p, int terms, uint32_t m, uint32_t n, uint32_t k) {
    static const struct {
        uint32_t bn, cluster, stages;
        double cost;
    } SHAPES[] = {{256, 2, 4, 1}, {128, 2, 6, 0.58}, {64, 1, 8, 0.4}};
    const uint32_t processors = (uint32_t)s->c->processors;
    if (s->c->arch != 90 || m <= 64 || n < 64 || k < 64 || !in_halves(&p->x) || !in_halves(&p->w)) return 0;
    for (int i = 1; i < terms; i++)
        if (p[i].x.cols < 64 || !in_halves(&p[i].x) || !in_halves(&p[i].w)) return 0;
    if (!in_pairs(&p->out) || !in_pairs(&p->acc)) return 0;
    int best = 0;
    double least = 1e30;
    for (int i = 0; i < 3; i++) {
        const uint64_t tiles = (uint64_t)up(m, 128 * SHAPES[i].cluster) * SHAPES[i].cluster * up(n, SHAPES[i].bn);
        const double waves = tiles < processors ? (double)tiles / processors + 0.1 : up(tiles, processors);
        if (waves * SHAPES[i].cost < least) least = waves * SHAPES[i].cost, best = i;
    }
    const uint32_t bn = SHAPES[best].bn, cluster = SHAPES[best].cluster, stages = SHAPES[best].stages,
                   most = processors / cluster * cluster;
    uint64_t tiles = (uint64_t)up(m, 128 * cluster) * cluster * up(n, bn);
    int32_t each;
    fb_view sums;
    const int parts = parts_for(s, &p->out, tiles, processors, k, 256, &each, &sums), whole = parts == 1;
    if (terms > 1 && !whole) return 0;
    /* By the copy engine: what is written alone, or added to what is there. */
    const int engine = whole && p->out.offset % 16 == 0 && p->out.ld % (p->out.type == FB_F32 ? 4 : 8) == 0;
    const int adds = engine && p->acc.mem && p->out.type == FB_F32 && is_same(&p->acc, &p->out),
              store = adds ? 2 : engine && !p->acc.mem;
    tiles *= (uint64_t)parts;
    cu_lowered *l = step(
        s, tiles < most ? tiles : most, 384, stages * (16384 + bn * 128 + 16) + (store ? 32768 : 0),
        "product_sm90 -DOP=%u -DBN=%u -DCLUSTER=%u -DSTAGES=%u -DTERMS=%d -DOUT=%d -DACC=%d -DU=%d -DBIAS=%d -DSCALED=%d"
        " -DSTORE=%d",
        p->op, bn, cluster, stages, terms, whole ? type_of(&p->out) : CU_F32, whole && !adds ? type_of(&p->acc) : CU_NONE,
        type_of(&p->u), whole && p->bias.mem, p->scale != 1, store);
    if (!l) return 1;
    for (int i = 0; i < terms; i++) {
        map(s, &l->args.x_map[i], &p[i].x, p->op == 2 ? 64 : 128);
        map(s, &l->args.w_map[i], &p[i].w, p->op == 0 ? bn / cluster : 64);
        if (i == 0) continue;
        cu_view *more = &l->args.v[CU_MORE + 3 * (i - 1)];
        more[0] = view_of(&p[i].x), more[1] = view_of(&p[i].u), more[2] = view_of(&p[i].b);
    }
    if (store) map(s, &l->args.out_map, &p->out, 64);
    operands(l, p, parts, each, &sums);
    if (whole) return 1;
    const fb_view none = {0};
    l->args.v[CU_OUT] = view_of(&sums), l->args.v[CU_ACC] = l->args.v[CU_BIAS] = view_of(&none);
    cu_lowered *all = step(s, up((uint64_t)p->out.rows * (uint64_t)p->out.cols, 256), 256, 0,
                           "parts -DOUT=%d -DACC=%d -DBIAS=%d", type_of(&p->out), type_of(&p->acc), p->bias.mem != NULL);
    if (!all) return 1;
    operands(all, p, parts, each, &sums);
    all->args.v[CU_X] = view_of(&sums);
    return 1;
}

static void on_warps(lowering *s, product *p, uint32_t m, uint32_t n, uint32_t k) {
    static const struct { uint32_t m, n, bm, bn, wm, wn;
    } SHAPES[] = {/* for outputs of at most m x n */
                  {UINT32_MAX, 16, 64, 16, 16, 16},           {16, UINT32_MAX, 16, 64, 16, 16},
                  {UINT32_MAX, 32, 64, 32, 16, 32},           {32, UINT32_MAX, 32, 64, 16, 32},
                  {UINT32_MAX, UINT32_MAX, 128, 128, 64, 32}, {UINT32_MAX, UINT32_MAX, 64, 64, 32, 32}};
    const uint32_t processors = (uint32_t)s->c->processors;
    int i = 0;
    while (m > SHAPES[i].m || n > SHAPES[i].n) i++;
    if (i == 4 && (uint64_t)up(m, 128) * up(n, 128) < processors) i = 5;
    const uint32_t bm = SHAPES[i].bm, bn = SHAPES[i].bn, threads = bm / SHAPES[i].wm * (bn / SHAPES[i].wn) * 32;
    const uint64_t tiles = (uint64_t)up(m, bm) * up(n, bn);
    int32_t each = 0;
    fb_view sums = {0};
    const fb_view room = tiles_of(&p->out, (uint64_t)up(m, bm) * bm, (uint64_t)up(n, bn) * bn);
    const int parts = parts_for(s, &room, tiles, 2 * processors, k, 256, &each, &sums);
    /* Long and narrow products wait for memory: their operands come by themselves, in as many stages as leave room for two. */
    const int narrow = i < 4, x_whole = is_whole(&p->x), w_whole = is_whole(&p->w),
              x_raw = narrow && !p->u.mem && x_whole && p->x.type == FB_F32,
              w_raw = narrow && !p->u.mem && w_whole && p->w.type == FB_F32;
    const uint32_t stage = CU_SIDE_BYTES((uint32_t)x_raw, p->op == 2, bm) + CU_SIDE_BYTES((uint32_t)w_raw, p->op != 0, bn),
                   fit = (s->c->shared_bytes / 2 - 1024) / stage,
                   stages = !narrow ? (i == 4 ? 3 : 4) : fit < 3 ? 3 : fit > 8 ? 8 : fit;
    cu_lowered *l = step(
        s, tiles * (uint64_t)parts, threads, stages * stage + 16,
        "product_mma -DOP=%u -DBM=%u -DBN=%u -DWM=%u -DWN=%u -DSTAGES=%u -DX=%d -DW=%d -DU=%d -DOUT=%d -DACC=%d -DBIAS=%d -DSCALED=%d"
        " -DX_WHOLE=%d -DW_WHOLE=%d -DX_RAW=%d -DW_RAW=%d -DPAIRS=%d -DPARTS=%d",
        p->op, bm, bn, SHAPES[i].wm, SHAPES[i].wn, stages, type_of(&p->x), type_of(&p->w), type_of(&p->u), type_of(&p->out),
        type_of(&p->acc), p->bias.mem != NULL, p->scale != 1, x_whole, w_whole, x_raw, w_raw,
        in_pairs(&p->out) && in_pairs(&p->acc), parts > 1);
    if (!l) return;
    operands(l, p, parts, each, &sums);
    if (parts > 1) l->tiles = (uint32_t)tiles;
}

/* `out` = `from` in 16-bit floats: activations cast, weights decoded, if there is any row of the x that they are for. */
static void packed(lowering *s, const fb_view *from, const fb_view *x, fb_view *out) {
    if (from->type == FB_F32) {
        out->count = from->count, out->factor = from->factor, out->first = from->first;
        lower(s, &(fb_launch){.op = FB_OP_SCALE, .attr.scale = 1, .scale = {.y = *out, .x = *from}});
        return;
    }
    cu_lowered *l =
        step(s, up((uint64_t)out->rows * (uint64_t)(out->cols / 8), 256), 256, 0, "decode -DWTYPE=%du", (int)from->type);
    if (!l) return;
    l->args.v[CU_OUT] = view_of(out), l->args.v[CU_W] = view_of(from), l->args.v[CU_X] = view_of(x);
    if (s->grids) l->args.v[CU_GRIDS] = view_of(&(fb_view){.mem = s->grids});
    l->args.depth = (int)fb_type_bytes(from->type, from->ld);
}

/* An F32 operand as 16-bit floats, for the copy engine. */
static void cast(lowering *s, fb_view *v) {
    fb_view halves = {0};
    if (v->type == FB_F32) halves = space(s, FB_BF16, (uint64_t)v->rows, up((uint64_t)v->cols, 8) * 8);
    if (!halves.mem) return;
    halves.cols = v->cols;
    packed(s, v, v, &halves);
    *v = halves;
}

/* Of a product whose w is 16-bit floats or F32. */
static void dense(lowering *s, product *p) {
    const uint32_t m = (uint32_t)(p->op == 2 ? p->x.cols : p->x.rows), n = (uint32_t)p->out.cols,
                   k = (uint32_t)(p->op == 2 ? p->x.rows : p->x.cols);
    if (s->c->arch == 90 && m > 64 && n >= 64 && k >= 64) {
        cast(s, &p->x);
        cast(s, &p->w);
    }
    if (!on_warpgroups(s, p, 1, m, n, k)) on_warps(s, p, m, n, k);
}

/* Whether a product adds to the sum that the one before it leaves, and takes the same kernel. */
static int goes_on(const fb_launch *a, const fb_launch *b) {
    const struct fb_linear_dx_views *v = &a->linear_dx, *w = &b->linear_dx;
    return b->op == FB_OP_LINEAR_DX && w->acc.mem && is_same(&v->dx, &w->acc) && is_same(&w->acc, &w->dx) &&
           a->attr.scale == 1 && b->attr.scale == 1 && a->attr.rounded == b->attr.rounded && type_of(&v->u) == type_of(&w->u);
}

/* Gradients of the input of several layers as one product, whose sum never leaves the units. */
static int summed(lowering *s, const fb_launch *launches, int terms) {
    product p[CU_SUMMED];
    for (int i = 0; i < terms; i++) {
        const struct fb_linear_dx_views *v = &launches[i].linear_dx;
        p[i] = (product){v->dx, v->dy, v->w, v->u, v->a, launches->linear_dx.acc, {0}, 1, launches->attr.scale};
        cast(s, &p[i].x);
        cast(s, &p[i].w);
    }
    return on_warpgroups(s, p, terms, (uint32_t)p->x.rows, (uint32_t)p->out.cols, (uint32_t)p->x.cols);
}

/* A product with weights in blocks, decoded a slab of rows at a time: columns of y, or a stretch of the reduction of dx. */
static int slab_by_slab(lowering *s, const product *whole) {
    const uint32_t rows = (uint32_t)whole->w.rows, cols = (uint32_t)whole->w.cols,
                   fit = (uint32_t)(SLAB / (2 * (uint64_t)cols)) / 128 * 128;
    uint32_t slab = fit && fit < rows ? fit : rows;
    if (up(rows, slab) > 12) slab = up(up(rows, 12), 128) * 128;
    const int adding = whole->op == 1 && slab < rows;
    fb_view sums = {0}, decoded = space(s, FB_BF16, slab, cols);
    if (adding) sums = space(s, FB_F32, (uint64_t)whole->out.rows, (uint64_t)whole->out.cols);
    if (!decoded.mem || (adding && !sums.mem)) return 0;
    sums.count = whole->out.count, sums.factor = whole->out.factor, sums.first = whole->out.first;
    const uint64_t used = s->left.used;
    for (uint32_t first = 0; first < rows; first += slab) {
        const uint32_t here = rows - first < slab ? rows - first : slab;
        const fb_view w = rows_from(whole->w, first, here);
        product p = *whole;
        s->left.used = used;
        p.w = decoded;
        p.w.rows = (int32_t)here;
        packed(s, &w, &whole->x, &p.w);
        if (whole->op == 0) {
            p.out = cols_from(p.out, first, here);
            if (p.acc.mem) p.acc = cols_from(p.acc, first, here);
            if (p.bias.mem) p.bias = cols_from(p.bias, first, here);
            if (p.b.mem) p.b = rows_from(p.b, first, here);
        } else {
            p.x = cols_from(p.x, first, here);
            if (first > 0) p.acc = sums;
            if (first + here < rows) p.out = sums, p.u.mem = p.b.mem = NULL;
        }
        dense(s, &p);
    }
    return 1;
}

static int multiplied(lowering *s, product p, int rounded) {
    const int blocks = p.w.type != FB_F32 && p.w.type != FB_BF16;
    const int wide =
        p.x.type == FB_F32 && (p.w.type == FB_F32 || (p.op != 2 && p.out.type == FB_F32)); /* all but the blocks */
    if (!s->c->own || p.scale == 0 || (wide && !rounded)) return 0;
    if (p.op == 0 && p.x.rows <= FEW_ROWS / 2) return 0;
    if (!blocks) dense(s, &p);
    else if (p.x.rows <= FEW_ROWS) return 0;
    else return slab_by_slab(s, &p);
    return 1;
}

static int decode(lowering *s, const fb_launch *l) {
    const fb_view none = {0};
    fb_view y = l->decode.y;
    if (!s->c->own || !in_halves(&y) || y.cols % 8) return 0;
    packed(s, &l->decode.w, &none, &y);
    return 1;
}

static int linear(lowering *s, const fb_launch *l) {
    const struct fb_linear_views *v = &l->linear;
    return multiplied(s, (product){v->y, v->x, v->w, v->u, v->b, v->acc, v->bias, 0, l->attr.scale}, l->attr.rounded);
}
static int linear_dx(lowering *s, const fb_launch *l) {
    const struct fb_linear_dx_views *v = &l->linear_dx;
    return multiplied(s, (product){v->dx, v->dy, v->w, v->u, v->a, v->acc, {0}, 1, l->attr.scale}, l->attr.rounded);
}
static int linear_dw(lowering *s, const fb_launch *l) {
    const struct fb_linear_dw_views *v = &l->linear_dw;
    const fb_view none = {0};
    return multiplied(s, (product){v->dw, v->dy, v->x, none, none, v->dw, none, 2, l->attr.scale}, l->attr.rounded);
}

/* ---- attention ---- */

static int attend(lowering *s, const fb_launch *l, int kind, const fb_view *q, const fb_view *k, const fb_view *v,
                  const fb_view *o, const fb_view *dout) {
    const fb_attention_shape *shape = &l->attr.attention;
    const uint32_t hd = (uint32_t)shape->head_dim, own = kind == 0 ? 64 : 128, split = kind == 2 && hd > 128 ? 2 : 1;
    const uint32_t most =
        s->c->shared_bytes < 112 << 10 ? s->c->shared_bytes : 112 << 10; /* two workgroups on a large processor */
    const fb_view *const all[] = {q, k, v, o, dout};
    if (!s->c->own || hd % 16 || hd > 256 || q->rows <= FEW_ROWS || !in_pairs(&l->v[0])) return 0;
    for (int i = 0; i < 5; i++)
        if (all[i] && !(in_halves(all[i]) && all[i]->cols % 8 == 0)) return 0;
    const int group = s->c->arch == 90 && hd % 64 == 0;
    const uint32_t row = (hd + (group ? 0 : 8)) * 2, beside = group ? 1024 : 0;
    uint32_t block = hd <= 128 && (kind == 0 || (group && kind == 2)) ? 64 : 32;
    while (!group && block > 16 && (own + 4 * block) * row + 2048 > most) block /= 2;
    const uint32_t bytes = (own + 4 * block) * row + beside, rows = (uint32_t)(kind == 2 ? k->rows : q->rows);
    if (bytes + 2048 > s->c->shared_bytes) return 0;
    const uint64_t heads = (uint64_t)(kind == 2 ? shape->n_kv_head : shape->n_head);
    cu_lowered *step_ = step(s, heads * split * up(rows, 64), 128, bytes,
                             "attention -DKIND=%d -DHD=%u -DBLOCK=%u -DSPLIT=%u -DWARPGROUP=%d -DOUT=%d -DCAP=%d", kind, hd, block,
                             split, group, type_of(&l->v[0]), shape->softcap != 0);
    if (!step_) return 1;
    for (int i = 0; i < FB_MAX_OPERANDS; i++) step_->args.v[i] = view_of(&l->v[i]);
    step_->args.n_head = shape->n_head, step_->args.n_kv_head = shape->n_kv_head, step_->args.window = shape->window;
    step_->args.first = kind == 2 ? l->attr.first : 0;
    step_->args.attention_scale = shape->scale, step_->args.softcap = shape->softcap;
    return 1;
}
static int attention(lowering *s, const fb_launch *l) {
    const struct fb_attention_views *v = &l->attention;
    return attend(s, l, 0, &v->q, &v->k, &v->v, NULL, NULL);
}
static int attention_dq(lowering *s, const fb_launch *l) {
    const struct fb_attention_dq_views *v = &l->attention_dq;
    return attend(s, l, 1, &v->q, &v->k, &v->v, &v->o, &v->dout);
}
static int attention_dkv(lowering *s, const fb_launch *l) {
    const struct fb_attention_dkv_views *v = &l->attention_dkv;
    if (v->dk.type != v->dv.type || !in_pairs(&v->dv)) return 0;
    return attend(s, l, 2, &v->q, &v->k, &v->v, NULL, &v->dout);
}

/* ---- row by row ---- */

/* A step of the kernel for whole aligned rows, with the types of the first n operands; NULL where they are not. */
static cu_lowered *row_step(lowering *s, const fb_launch *l, int n, uint64_t threads, const char *options) {
    char types[64] = "";
    if (!s->c->own) return NULL;
    for (int i = 0; i < n; i++) {
        if (l->v[i].mem && !is_whole(&l->v[i])) return NULL;
        snprintf(types + strlen(types), sizeof types - strlen(types), " -DT%d=%d", i, type_of(&l->v[i]));
    }
    cu_lowered *r = step(s, up(threads, 256), 256, 0, "rows%s%s", options, types);
    if (!r) return NULL;
    for (int i = 0; i < FB_MAX_OPERANDS; i++) r->args.v[i] = view_of(&l->v[i]);
    r->args.scale = l->attr.scale, r->args.eps = l->attr.eps, r->args.softcap = l->attr.softcap,
    r->args.inverse = l->attr.inverse;
    return r;
}

static int normed(lowering *s, const fb_launch *l, int n, const fb_view *x, const fb_view *w, const char *op) {
    char options[64];
    const int team = w->cols <= 64 ? 8 : w->cols <= 128 ? 16 : w->cols <= 512 ? 32 : 256;
    if (w->cols % 8 || w->cols > 8192 || w->type != FB_F32) return 0;
    snprintf(options, sizeof options, " -DOP=%s -DG=%d -DTEAM=%d", op, (int)w->cols, team);
    return row_step(s, l, n, (uint64_t)x->rows * (uint64_t)(x->cols / w->cols) * (uint64_t)team, options) != NULL;
}
static int rms_norm(lowering *s, const fb_launch *l) { return normed(s, l, 3, &l->rms_norm.x, &l->rms_norm.w, "NORM"); }
static int rms_norm_dx(lowering *s, const fb_launch *l) {
    return normed(s, l, 5, &l->rms_norm_dx.x, &l->rms_norm_dx.w, "NORM_DX");
}

static int rope(lowering *s, const fb_launch *l) {
    char options[80];
    const struct fb_rope_views *v = &l->rope;
    const int halves = l->attr.layout == FB_ROPE_HALVES, head = l->attr.head_dim, n_rot = v->table.cols;
    if (head % 8 || (halves && n_rot % 16) || v->table.type != FB_F32 || !is_whole(&v->table)) return 0;
    snprintf(options, sizeof options, " -DOP=ROPE -DHALVES=%d -DHEAD=%d -DN_ROT=%d", halves, head, n_rot);
    const uint64_t each = (uint64_t)(halves ? n_rot / 16 + (head - n_rot) / 8 : head / 8);
    return row_step(s, l, 4, (uint64_t)v->y.rows * (uint64_t)(v->y.cols / head) * each, options) != NULL;
}

static int elements(lowering *s, const fb_launch *l, int n, const char *options) {
    return row_step(s, l, n, (uint64_t)l->v[0].rows * (uint64_t)(l->v[0].cols / 8), options) != NULL;
}
static int gated(lowering *s, const fb_launch *l, int n, const char *op) {
    char options[40];
    snprintf(options, sizeof options, " -DOP=%s -DKIND=%d", op, (int)l->attr.kind);
    return elements(s, l, n, options);
}
static int glu(lowering *s, const fb_launch *l) { return gated(s, l, 3, "GLU"); }
static int glu_grad(lowering *s, const fb_launch *l) { return gated(s, l, 5, "GLU_GRAD"); }
static int add(lowering *s, const fb_launch *l) { return elements(s, l, 3, " -DOP=ADD"); }
static int scale(lowering *s, const fb_launch *l) { return elements(s, l, 3, " -DOP=SCALE"); }

static int xent(lowering *s, const fb_launch *l) {
    char options[64];
    if (!is_whole(&l->xent.logits)) return 0;
    snprintf(options, sizeof options, " -DOP=XENT -DGRAD=%d -DCAP=%d", l->attr.grad, l->attr.softcap != 0);
    cu_lowered *r = row_step(s, l, 0, 256 * (uint64_t)l->xent.logits.rows, options);
    if (r) r->threads = 1024;
    return r != NULL;
}

/* ---- the table ---- */

static int (*const ROWS[FB_OP_COUNT])(lowering *, const fb_launch *) = {
    [FB_OP_DECODE] = decode,
    [FB_OP_LINEAR] = linear,
    [FB_OP_LINEAR_DX] = linear_dx,
    [FB_OP_LINEAR_DW] = linear_dw,
    [FB_OP_ATTENTION] = attention,
    [FB_OP_ATTENTION_DQ] = attention_dq,
    [FB_OP_ATTENTION_DKV] = attention_dkv,
    [FB_OP_RMS_NORM] = rms_norm,
    [FB_OP_RMS_NORM_DX] = rms_norm_dx,
    [FB_OP_ROPE] = rope,
    [FB_OP_GLU] = glu,
    [FB_OP_GLU_GRAD] = glu_grad,
    [FB_OP_ADD] = add,
    [FB_OP_SCALE] = scale,
    [FB_OP_XENT] = xent,
};

static void lower(lowering *s, const fb_launch *launch) {
    const int before = s->n;
    const room left = s->left;
    if ((unsigned)launch->op < FB_OP_COUNT && ROWS[launch->op] && ROWS[launch->op](s, launch)) return;
    s->n = before;
    s->left = left;
    fb_dispatch d[FB_MOST_DISPATCHES];
    const uint64_t bytes = s->left.mem->handle ? 0 : fb_lower_scratch(launch, &s->c->limits);
    const int count = fb_lower(launch, s->left.mem, &s->c->limits, d);
    if (!count) s->failed = FB_E_DEVICE;
    if (bytes > s->most) s->most = bytes;
    for (int i = 0; i < count; i++) portable(s, &d[i]);
}

/* Whether elements of all operands, and bytes of blocks, can be counted in 32 bits, as the portable kernels do it: what is
 * refused does not depend on which kernel a launch takes. */
static int reachable(const fb_launch *l) {
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        const fb_view *v = &l->v[k];
        const uint64_t ld = (uint64_t)v->ld, bytes = fb_type_bytes(v->type, v->ld), each = bytes < ld ? ld : bytes;
        if (!v->mem || v->rows < 1 || (each < UINT32_MAX && (uint64_t)v->rows * ld < UINT32_MAX - 1024)) continue;
        return fb_fail(
            FB_E_LIMIT,
            "An operand of %d rows, %lld elements apart, is larger than kernels of this device can address; use a smaller context.",
            (int)v->rows, (long long)v->ld);
    }
    return FB_OK;
}

int cu_terms(const cuda *c, const fb_launch *launches, int n) {
    int terms = 1;
    if (c->arch != 90 || !c->own || launches->op != FB_OP_LINEAR_DX || !launches->attr.rounded) return 1;
    while (terms < n && terms < CU_SUMMED && goes_on(&launches[terms - 1], &launches[terms])) terms++;
    return terms;
}

int cu_lower(const cuda *c, const fb_launch *launches, int terms, const fb_mem *scratch, cu_lowered *out, uint64_t *bytes) {
    const fb_mem any = {.bytes = UINT64_MAX / 2}, none = {0};
    const room whole = {bytes ? &any : scratch ? scratch : &none, 0, UINT64_MAX};
    lowering s = {.c = c, .out = out, .left = whole, .grids = launches->grids};
    for (int i = 0; i < terms && !s.failed; i++) s.failed = reachable(&launches[i]);
    const int as_one = terms > 1 && !s.failed && summed(&s, launches, terms);
    if (!as_one) s.n = 0;
    for (int i = 0; i < terms && !as_one && !s.failed; i++) {
        s.left = whole;
        lower(&s, &launches[i]);
    }
    if (bytes) *bytes = s.most;
    return s.failed ? -s.failed : s.n;
}
