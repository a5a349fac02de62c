/* optimizer.c - the end of a step over the flat parameters: one norm, one clip, one update. */
#include <math.h>
#include <stdlib.h>
#include "graph.h"

enum { PIECE = 1 << 16 /* elements summed into one partial of the norm */ };

static fb_view part(const fb_buffer *buffer, uint64_t first, uint64_t count) {
    if (!buffer) return (fb_view){0};
    return (fb_view){.mem = &buffer->mem, .offset = first * 4, .type = FB_F32, .rows = 1, .cols = (int32_t)count,
                     .ld = (int64_t)count};
}

/* Most elements one launch may touch. */
static uint64_t segment(const fb_device *device) {
    uint64_t limit = device->info.max_binding_bytes / 4;
    uint64_t most = (uint64_t)1 << 28;
    if (limit && limit < most) most = limit;
    return most > PIECE ? most / PIECE * PIECE : most;
}

/* The sum of squares, in pieces of a fixed size added up in order. */
static int sum_squares(fb_device *device, fb_buffer *grads, uint64_t count, double *sum) {
    const fb_backend *backend = device->backend;
    uint64_t most = segment(device), pieces = most / PIECE + 1;
    float *host = malloc(sizeof *host * pieces);
    fb_buffer *partial = fb_buffer_new(device, pieces * 4);
    int code = host && partial ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    *sum = 0;
    for (uint64_t at = 0; at < count && code == FB_OK; at += most) {
        uint64_t n = count - at < most ? count - at : most, p = (n + PIECE - 1) / PIECE;
        fb_launch launch = {.op = FB_OP_SUMSQ, .v = {part(partial, 0, p), part(grads, at, n)}};
        code = backend->submit(device->self, &launch, 1, &(fb_mem){0}, NULL);
        if (code == FB_OK) code = backend->wait(device->self);
        if (code == FB_OK) code = fb_buffer_read(partial, 0, host, p * 4);
        for (uint64_t i = 0; i < p && code == FB_OK; i++) *sum += host[i];
    }
    fb_buffer_free(partial);
    free(host);
    return code;
}

int fb_optimizer_update(fb_device *device, fb_buffer *params, fb_buffer *grads, const fb_optimizer *o,
                        double denominator, double *grad_norm, int *finite) {
    uint64_t count = params->mem.bytes / 4;
    if (grads->mem.bytes != params->mem.bytes || (o->kind == FB_ADAMW && (!o->m || !o->v)) ||
        (o->m && o->m->mem.bytes != params->mem.bytes) || (o->v && o->v->mem.bytes != params->mem.bytes))
        return fb_fail(FB_E_ARGUMENT, "gradients and optimizer state must be as large as the parameters");
    for (int32_t i = 0; i < o->n_ranges; i++)
        if (o->ranges[i].first > count || o->ranges[i].count > count - o->ranges[i].first)
            return fb_fail(FB_E_ARGUMENT, "a range of parameters lies outside the flat space");
    double squares;
    int code = sum_squares(device, grads, count, &squares);
    if (code) return code;
    *grad_norm = sqrt(squares) / denominator;
    *finite = isfinite(*grad_norm);
    if (!*finite) return FB_OK;
    double scale = 1.0 / denominator;
    if (o->clip > 0 && *grad_norm > o->clip) scale *= o->clip / (*grad_norm + 1e-6);
    uint64_t most = segment(device);
    for (int32_t r = 0; r < o->n_ranges; r++) {
        const fb_range *range = &o->ranges[r];
        for (uint64_t at = range->first; at < range->first + range->count; at += most) {
            uint64_t end = range->first + range->count, n = end - at < most ? end - at : most;
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
            code = device->backend->submit(device->self, &launch, 1, &(fb_mem){0}, NULL);
            if (code) return code;
        }
    }
    return device->backend->wait(device->self);
}
