/* lower.h - what lowering to portable kernels and to those of matrix units share. */
#ifndef FB_LOWER_H
#define FB_LOWER_H
#include <string.h>
#include "kernels.h"

typedef fb_dispatch dispatch;

static inline uint64_t up(uint64_t n, uint64_t by) { return (n + by - 1) / by; }

/* Rows of an operand, as a kernel is told them; or a number that no feed changes. */
static inline fb_rows rows_of(const fb_view *v) {
    return (fb_rows){(uint32_t)v->rows, (uint32_t)v->count | (uint32_t)v->factor << 2, (uint32_t)v->first};
}
static inline fb_rows all_rows(uint32_t n) { return (fb_rows){.most = n}; }

static inline void begin(dispatch *d, fb_kernel_id kernel, uint32_t threads) {
    memset(d, 0, sizeof *d);
    d->kernel = kernel;
    d->constant.at[0] = threads;
}

/* What is left of the scratch. */
typedef struct room {
    const fb_mem *mem;
    uint64_t used, most; /* most: bytes of one operand */
} room;

/* A matrix in its next bytes; one without memory where they do not suffice. */
static inline fb_view take(room *r, int32_t type, uint64_t rows, uint64_t cols) {
    uint64_t bytes = rows * cols * (type == FB_F32 ? 4 : 2);
    fb_view v = {.type = type, .rows = (int32_t)rows, .cols = (int32_t)cols, .ld = (int64_t)cols, .offset = r->used};
    if (bytes > r->most || bytes > r->mem->bytes || r->used > r->mem->bytes - bytes) return v;
    v.mem = r->mem;
    r->used += (bytes + 255) / 256 * 256;
    return v;
}

/* Has as many rows in use as another. */
static inline void count_like(fb_view *v, const fb_view *other) {
    v->count = other->count, v->factor = other->factor, v->first = other->first;
}

static inline room scratch_of(const fb_mem *mem, const fb_kernel_limits *limits) {
    return (room){mem, 0, limits->binding_bytes ? limits->binding_bytes : UINT64_MAX};
}

/* Parts of a reduction of `depth` for `tiles` workgroups that would not fill a device, none shorter than `least`; the
 * depth of each is a multiple of 32. */
static inline uint32_t parts_of(uint64_t tiles, uint32_t wanted, uint32_t depth, uint32_t least, uint32_t *each) {
    uint32_t parts = tiles * 3 > wanted * 2 ? 1 : (uint32_t)up(wanted, tiles), most = depth / least;
    if (parts > most) parts = most ? most : 1;
    *each = (uint32_t)up(up(depth, parts), 32) * 32;
    return (uint32_t)up(depth, *each);
}

/* The dispatch that adds up such parts. */
static inline void add_parts(dispatch *d, const fb_view *out, fb_view sums, const fb_view *acc, const fb_view *bias) {
    begin(d, FB_KERNEL_parts, 64);
    d->operand.parts = (struct fb_parts_operands){.OUT = *out, .PART = sums, .ACC = *acc, .BIAS = *bias};
    d->argument.parts = (struct fb_parts_arguments){.ROWS = rows_of(out), .COLS = (uint32_t)out->cols,
                                                    .PARTS = (uint32_t)(sums.rows / out->rows)};
    d->groups = up((uint64_t)out->rows * up((uint64_t)out->cols, 2), 64);
    d->work = 2.0 * sums.rows * sums.cols;
}

/* A product: 0 y = scale x w^T + u b^T + bias + acc; 1 dx = scale dy w + u a + acc, with dy as x and a as b; 2 dw += scale
 * dy^T x, with dy as x and x as w. */
typedef struct product {
    fb_view out, x, w, u, b, acc, bias;
    uint32_t op;
    float scale;
} product;

/* matrix.c: products and attention on matrix units; 0 where they are not for this launch. Of attention a dispatch of the
 * portable kernel becomes one of the matrix kernel that has the same operands and arguments. */
int fb_lower_matrix_product(dispatch *d, const product *p, const fb_mem *scratch, const fb_kernel_limits *limits);
int fb_lower_matrix_attention(dispatch *d, const fb_kernel_limits *limits);
#endif
