/* lower.h - what lowering to portable kernels and to those of matrix units share. */
#ifndef FB_LOWER_H
#define FB_LOWER_H
#include <string.h>
#include "kernels.h"

typedef fb_dispatch dispatch;

static inline uint32_t bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static inline uint32_t up(uint64_t n, uint32_t by) { return (uint32_t)((n + by - 1) / by); }

/* Fills what all have in common; bindings are the launch's operands named by `order`, '-' where there is none. */
static inline void begin(dispatch *d, const fb_launch *l, fb_kernel_id kernel, const char *order, uint32_t threads, uint32_t op) {
    memset(d, 0, sizeof *d);
    d->kernel = kernel;
    d->blocks = -1;
    d->spec[0] = threads;
    d->spec[3] = op;
    for (int k = 0; order[k]; k++)
        if (order[k] != '-') d->b[k] = l->v[order[k] - '0'];
}

static inline void args(dispatch *d, uint64_t work, uint32_t a, uint32_t b, uint32_t c, uint32_t e) {
    const uint32_t first[4] = {a, b, c, e};
    memcpy(d->arg, first, sizeof first);
    d->work = (double)work;
}

/* Weights are read as bytes; F32 and BF16 are formats like any other. */
static inline void weights_at(dispatch *d, int binding) {
    d->blocks = binding;
    d->spec[4] = (uint32_t)d->b[binding].type;
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

static inline room scratch_of(const fb_mem *mem, const fb_kernel_limits *limits) {
    return (room){mem, 0, limits->binding_bytes ? limits->binding_bytes : UINT64_MAX};
}

/* Parts of a reduction of `depth` for `tiles` workgroups that would not fill a device, none shorter than `least`; the
 * depth of each is a multiple of 32. */
static inline uint32_t parts_of(uint32_t tiles, uint32_t wanted, uint32_t depth, uint32_t least, uint32_t *each) {
    uint32_t parts = tiles * 3 > wanted * 2 ? 1 : up(wanted, tiles), most = depth / least;
    if (parts > most) parts = most ? most : 1;
    *each = up(up(depth, parts), 32) * 32;
    return up(depth, *each);
}

/* The dispatch that adds up such parts. */
static inline void add_parts(dispatch *d, const fb_view *out, fb_view sums, const fb_view *acc, const fb_view *bias) {
    memset(d, 0, sizeof *d);
    uint32_t parts = (uint32_t)(sums.rows / out->rows);
    *d = (dispatch){.kernel = FB_KERNEL_parts, .blocks = -1, .spec = {64}};
    d->b[0] = *out, d->b[1] = sums, d->b[5] = *acc, d->b[6] = *bias;
    d->groups = up((uint64_t)out->rows * up((uint64_t)out->cols, 2), 64);
    args(d, 2 * (uint64_t)sums.rows * (uint64_t)sums.cols, (uint32_t)out->rows, (uint32_t)out->cols, parts, 0);
}

/* matrix.c: products and attention on matrix units; 0 where they are not for this launch. `order` as for `begin`. */
int fb_lower_matrix_product(dispatch *d, const fb_launch *l, const fb_mem *scratch, const fb_kernel_limits *limits,
                            const char *order, uint32_t op);
int fb_lower_matrix_attention(dispatch *d, const fb_launch *l, const fb_kernel_limits *limits, fb_kernel_id kernel,
                              const char *order);
#endif
