/* optimizer.c - the end of a step over the flat parameters: one norm, one clip, one update. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "graph.h"

enum { PIECE = 1 << 16 /* elements summed into one partial of the norm */ };

static fb_view part(const fb_buffer *buffer, uint64_t first, uint64_t count) {
    if (!buffer) return (fb_view){0};
    int64_t i = fb_buffer_part(buffer, first * 4);
    return (fb_view){.mem = &buffer->parts[i], .offset = first * 4 - buffer->starts[i], .type = FB_F32, .rows = 1, .cols = (int32_t)count,
                     .ld = (int64_t)count};
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

/* The sum of squares, in pieces of a fixed size added up in order. */
static int sum_squares(fb_device *device, fb_buffer *grads, uint64_t count, double *sum) {
    const fb_backend *backend = device->backend;
    uint64_t pieces = segment(grads, 0, count) / PIECE + 1;
    for (int64_t i = 0; i < grads->n_parts; i++) { /* of the longest stretch */
        uint64_t most = segment(grads, grads->starts[i] / 4, count) / PIECE + 1;
        if (most > pieces) pieces = most;
    }
    float *host = malloc(sizeof *host * pieces);
    fb_buffer *partial = fb_buffer_new(device, pieces * 4, NULL, 0);
    int code = host && partial ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    *sum = 0;
    for (uint64_t at = 0, n; at < count && code == FB_OK; at += n) {
        n = segment(grads, at, count);
        uint64_t p = (n + PIECE - 1) / PIECE;
        fb_launch launch = {.op = FB_OP_SUMSQ, .v = {part(partial, 0, p), part(grads, at, n)}};
        code = fb_run_once(device, &launch);
        if (code == FB_OK) code = backend->wait(device->self);
        if (code == FB_OK) code = fb_buffer_read(partial, 0, host, p * 4);
        for (uint64_t i = 0; i < p && code == FB_OK; i++) *sum += host[i];
    }
    fb_buffer_free(partial);
    free(host);
    return code;
}

int fb_buffers_alike(const fb_buffer *a, const fb_buffer *b) {
    return a->bytes == b->bytes && a->n_parts == b->n_parts &&
           memcmp(a->starts, b->starts, sizeof *a->starts * (size_t)a->n_parts) == 0;
}

static int is_state(const fb_buffer *state, const fb_buffer *params) {
    return state->parts && state->device == params->device && !state->wrapped && fb_buffers_alike(state, params);
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

int fb_optimizer_update(fb_device *device, fb_buffer *params, fb_buffer *grads, const fb_optimizer *o,
                        double denominator, double *grad_norm, int *finite) {
    uint64_t count = params->bytes / 4;
    double squares;
    int code = sum_squares(device, grads, count, &squares);
    if (code) return code;
    *grad_norm = sqrt(squares) / denominator;
    *finite = isfinite(*grad_norm);
    if (!*finite) return FB_OK;
    double scale = 1.0 / denominator;
    if (o->clip > 0 && *grad_norm > o->clip) scale *= o->clip / (*grad_norm + 1e-6);
    for (int32_t r = 0; r < o->n_ranges; r++) {
        const fb_range *range = &o->ranges[r];
        for (uint64_t at = range->first, n; at < range->first + range->count; at += n) {
            n = segment(params, at, range->first + range->count);
            fb_launch launch = {.op = o->kind == FB_ADAMW ? FB_OP_ADAMW : FB_OP_SGD};
            launch.attr = (fb_attr){.lr = o->lr * range->lr_scale, .beta1 = o->beta1, .beta2 = o->beta2,
                                    .eps = o->eps, .decay = o->weight_decay * range->decay_scale,
                                    .grad_scale = (float)scale, .momentum = o->momentum,
                                    .correct1 = (float)(1.0 - pow(o->beta1, (double)o->t)),
                                    .correct2 = (float)(1.0 - pow(o->beta2, (double)o->t))};
            launch.v[0] = part(params, at, n);
            launch.v[1] = part(o->m, at, n);
            launch.v[2] = o->kind == FB_ADAMW ? part(o->v, at, n) : part(grads, at, n);
            if (o->kind == FB_ADAMW) launch.v[3] = part(grads, at, n);
            code = fb_run_once(device, &launch);
            if (code) return code;
        }
    }
    return device->backend->wait(device->self);
}
