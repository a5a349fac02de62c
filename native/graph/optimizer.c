/* optimizer.c - the beginning and the end of a step over the flat parameters: gradients zeroed; one norm, one clip, one
 * update. All of it is launches, so the host waits for none of them. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

enum { PIECE = 1 << 16 /* elements summed into one partial of the norm */ };

/* Launches one after another; without `items` they are only counted. */
typedef struct list {
    fb_launch *items;
    int32_t n;
} list;

static void add(list *l, fb_op op, fb_attr attr, int n, const fb_view *views) {
    fb_launch *launch = l->items ? &l->items[l->n] : NULL;
    l->n++;
    if (!launch) return;
    *launch = (fb_launch){.op = op, .attr = attr};
    memcpy(launch->v, views, sizeof *views * (size_t)n);
}
#define ADD(l, op, attr, ...) \
    add(l, op, attr, (int)(sizeof((fb_view[]){__VA_ARGS__}) / sizeof(fb_view)), (fb_view[]){__VA_ARGS__})

static fb_view row(const fb_mem *mem, uint64_t offset, uint64_t n) {
    return (fb_view){.mem = mem, .offset = offset, .type = FB_F32, .rows = 1, .cols = (int32_t)n, .ld = (int64_t)n};
}

static fb_view part(const fb_buffer *buffer, uint64_t first, uint64_t n) {
    if (!buffer) return (fb_view){0};
    int64_t i = fb_buffer_part(buffer, first * 4);
    return row(&buffer->parts[i], first * 4 - buffer->starts[i], n);
}

/* Elements from `first` on that one launch may touch, up to `end`: all in one part of the buffer. */
static uint64_t segment(const fb_buffer *buffer, uint64_t first, uint64_t end) {
    uint64_t limit = buffer->device->info.max_binding_bytes / 4, most = (uint64_t)1 << 28;
    if (limit < most) most = limit;
    if (most > PIECE) most = most / PIECE * PIECE;
    uint64_t here = buffer->starts[fb_buffer_part(buffer, first * 4) + 1] / 4;
    if (end > here) end = here;
    return most < end - first ? most : end - first;
}

static uint64_t pieces(uint64_t n) { return (n + PIECE - 1) / PIECE; }

uint64_t fb_step_bytes(const fb_buffer *grads) {
    uint64_t count = grads->bytes / 4, partials = 0;
    for (uint64_t at = 0, n; at < count; at += n) partials += pieces(n = segment(grads, at, count));
    return FB_ALIGN + partials * 4;
}

static int prepare(fb_plan *plan, void (*make)(const fb_plan *, list *), fb_prepared *out) {
    list l = {0};
    make(plan, &l);
    l.items = malloc(sizeof *l.items * (size_t)(l.n + 1));
    if (!l.items) return fb_fail(FB_E_MEMORY, "out of memory");
    l.n = 0;
    make(plan, &l);
    int code = fb_prepare(plan->device, l.items, l.n, &plan->scratch, out);
    free(l.items);
    return code;
}

static void begin(const fb_plan *plan, list *l) {
    const fb_buffer *grads = plan->options.grads;
    ADD(l, FB_OP_ZERO, (fb_attr){0}, part(plan->record, 0, FB_RECORD));
    for (uint64_t at = 0, n; at < grads->bytes / 4; at += n) {
        n = segment(grads, at, grads->bytes / 4);
        ADD(l, FB_OP_ZERO, (fb_attr){0}, part(grads, at, n));
    }
}

static void update(const fb_plan *plan, list *l) {
    const fb_optimizer *o = &plan->optimizer;
    const fb_buffer *grads = plan->options.grads, *params = plan->options.params;
    const fb_view hyper = row(&plan->step, 0, FB_HYPER), record = part(plan->record, 0, FB_RECORD);
    uint64_t partials = 0;
    for (uint64_t at = 0, n; at < grads->bytes / 4; at += n) {
        n = segment(grads, at, grads->bytes / 4);
        ADD(l, FB_OP_SUMSQ, (fb_attr){0}, row(&plan->step, FB_ALIGN + partials * 4, pieces(n)), part(grads, at, n));
        partials += pieces(n);
    }
    ADD(l, FB_OP_NORM, (fb_attr){0}, record, row(&plan->step, FB_ALIGN, partials), hyper);
    for (const fb_range *range = plan->ranges; range < plan->ranges + o->n_ranges; range++)
        for (uint64_t at = range->first, n; at < range->first + range->count; at += n) {
            const fb_attr attr = {.lr_scale = range->lr_scale, .decay = o->weight_decay * range->decay_scale,
                                  .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps, .momentum = o->momentum};
            n = segment(params, at, range->first + range->count);
            const fb_view p = part(params, at, n), m = part(o->m, at, n), g = part(grads, at, n);
            if (o->kind == FB_ADAMW) ADD(l, FB_OP_ADAMW, attr, p, m, part(o->v, at, n), g, hyper, record);
            else ADD(l, FB_OP_SGD, attr, p, m, g, hyper, record);
        }
}

int fb_prepare_begin(fb_plan *plan) { return prepare(plan, begin, &plan->begin); }

int fb_buffers_alike(const fb_buffer *a, const fb_buffer *b) {
    return a->bytes == b->bytes && a->n_parts == b->n_parts &&
           memcmp(a->starts, b->starts, sizeof *a->starts * (size_t)a->n_parts) == 0;
}

static int is_state(const fb_buffer *state, const fb_buffer *params) {
    return state->parts && state->device == params->device && !state->host && fb_buffers_alike(state, params);
}

int fb_optimizer_check(const fb_buffer *params, const fb_optimizer *o) {
    uint64_t count = params->bytes / 4;
    if (o->kind != FB_ADAMW && o->kind != FB_SGD) return fb_fail(FB_E_ARGUMENT, "there is no optimizer %d", (int)o->kind);
    if ((o->kind == FB_ADAMW && (!o->m || !o->v)) || (o->m && !is_state(o->m, params)) || (o->v && !is_state(o->v, params)))
        return fb_fail(FB_E_ARGUMENT, "the optimizer's state must be as large as the parameters, in memory of their device");
    if (o->n_ranges < 0 || (o->n_ranges && !o->ranges)) return fb_fail(FB_E_ARGUMENT, "ranges of parameters are missing");
    for (int32_t i = 0; i < o->n_ranges; i++)
        if (o->ranges[i].first > count || o->ranges[i].count > count - o->ranges[i].first)
            return fb_fail(FB_E_ARGUMENT, "a range of parameters lies outside the flat space");
    return FB_OK;
}

/* Whether a program for `a` does for `b`: all but the numbers that `hyper` carries. */
static int same(const fb_optimizer *a, const fb_optimizer *b) {
    return a->kind == b->kind && a->beta1 == b->beta1 && a->beta2 == b->beta2 && a->eps == b->eps &&
           a->weight_decay == b->weight_decay && a->momentum == b->momentum && a->m == b->m && a->v == b->v &&
           a->n_ranges == b->n_ranges && memcmp(a->ranges, b->ranges, sizeof *a->ranges * (size_t)a->n_ranges) == 0;
}

/* The state is held, so that no other buffer can be taken for it. */
static void hold_state(const fb_plan *plan, void (*hold)(fb_buffer *)) {
    if (plan->optimizer.m) hold(plan->optimizer.m);
    if (plan->optimizer.v) hold(plan->optimizer.v);
}

void fb_release_update(fb_plan *plan) {
    fb_release(plan->device, &plan->update);
    hold_state(plan, fb_buffer_release);
    free(plan->ranges);
    plan->ranges = NULL;
    plan->optimizer = (fb_optimizer){0};
}

int fb_prepare_update(fb_plan *plan, const fb_optimizer *o) {
    if (plan->update.program && same(&plan->optimizer, o)) return FB_OK;
    fb_release_update(plan);
    const size_t bytes = sizeof *plan->ranges * (size_t)o->n_ranges;
    plan->ranges = malloc(bytes + 1);
    if (!plan->ranges) return fb_fail(FB_E_MEMORY, "out of memory");
    if (bytes) memcpy(plan->ranges, o->ranges, bytes);
    plan->optimizer = *o;
    plan->optimizer.ranges = plan->ranges;
    hold_state(plan, fb_buffer_hold);
    return prepare(plan, update, &plan->update);
}
