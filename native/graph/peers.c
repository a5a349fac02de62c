/* peers.c - sums over the devices of other processes. The flat gradients travel in stretches, from the last to the first, which is
 * the order in which the backward pass finishes them: each begins when it and those behind it are final. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

static const uint64_t LEAST_BYTES = (uint64_t)16 << 20;
enum { MOST_STRETCHES = 8 };

/* By the size alone: all processes part their gradients alike, whatever their devices make of the plan. */
static uint64_t stretch_bytes(const fb_plan *plan) {
    const uint64_t share = (plan->options.grads->bytes / MOST_STRETCHES + FB_ALIGN) / FB_ALIGN * FB_ALIGN;
    return share > LEAST_BYTES ? share : LEAST_BYTES;
}

int fb_find_stretches(fb_plan *plan) {
    const fb_program *p = &plan->program;
    const uint64_t stretch = stretch_bytes(plan);
    plan->n_stretches = (int32_t)((plan->options.grads->bytes + stretch - 1) / stretch);
    plan->final = calloc((size_t)plan->n_stretches + 1, sizeof *plan->final);
    if (!plan->final) return fb_fail(FB_E_MEMORY, "out of memory while planning");
    int32_t launches = 0;
    for (int32_t i = 0; i < p->n_nodes; i++) {
        fb_launch launch;
        launches += fb_plan_launch(plan, p, &p->nodes[i], &launch);
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            const fb_operand *v = &p->nodes[i].v[k];
            const fb_tensor_info *t = v->tensor < 0 ? NULL : &p->tensors[v->tensor];
            if (!t || !v->rows || t->place != FB_IN_GRADS || !fb_is_written(p->nodes[i].op, k)) continue;
            const uint64_t first = fb_row_offset(p, t, v->row), bytes = fb_type_bytes(FB_F32, (int64_t)v->rows * t->cols);
            for (uint64_t s = first / stretch; s <= (first + bytes - 1) / stretch; s++)
                plan->final[plan->n_stretches - 1 - (int32_t)s] = launches;
        }
    }
    return FB_OK;
}

/* What is begun together, as one message. */
typedef struct batch {
    fb_device *device;
    int mean, n;
    fb_view views[2 * MOST_STRETCHES];
} batch;

static int begin(batch *b) {
    const int code = b->n ? b->device->backend->sum(b->device->self, b->views, b->n, b->mean) : FB_OK;
    b->n = 0;
    return code;
}

/* Bytes [from, to) of a buffer, part after part. */
static int add(batch *b, const fb_buffer *buffer, uint64_t from, uint64_t to) {
    const uint64_t most = (uint64_t)1 << 32;
    int code = FB_OK;
    for (uint64_t at = from, end; at < to && code == FB_OK; at = end) {
        const int64_t part = fb_buffer_part(buffer, at);
        end = buffer->starts[part + 1] < to ? buffer->starts[part + 1] : to;
        if (end - at > most) end = at + most;
        const int32_t count = (int32_t)((end - at) / 4);
        b->views[b->n++] = (fb_view){.mem = &buffer->parts[part], .offset = at - buffer->starts[part], .type = FB_F32,
                                     .rows = 1, .cols = count, .ld = count};
        if (b->n == 2 * MOST_STRETCHES) code = begin(b);
    }
    return code;
}

static int has_peers(const fb_device *device) {
    if (!device || device->closed) return fb_fail(FB_E_ARGUMENT, "the device is closed");
    if (device->backend->join) return FB_OK;
    return fb_fail(FB_E_DEVICE, "devices of %s add nothing up by themselves", device->backend->name);
}

static int add_final(batch *b, fb_plan *plan, int launches) {
    const fb_buffer *grads = plan->options.grads;
    const uint64_t stretch = stretch_bytes(plan);
    int code = FB_OK;
    for (; code == FB_OK && plan->summed < plan->n_stretches && plan->final[plan->summed] <= launches; plan->summed++) {
        const uint64_t from = (uint64_t)(plan->n_stretches - 1 - plan->summed) * stretch;
        code = add(b, grads, from, grads->bytes - from < stretch ? grads->bytes : from + stretch);
    }
    return code;
}

int fb_sum_final(void *context, int launches) {
    fb_plan *plan = context;
    batch b = {.device = plan->device};
    int code = has_peers(plan->device);
    if (code == FB_OK) code = add_final(&b, plan, launches);
    return code ? code : begin(&b);
}

int fb_plan_sum(fb_plan *plan, fb_buffer *more) {
    int code = plan && plan->options.train && plan->ready ? has_peers(plan->device)
                                                           : fb_fail(FB_E_ARGUMENT, "a sum needs a training plan that ran");
    if (code == FB_OK && (!more || !more->parts || more->device != plan->device || !plan->options.grads->parts))
        code = fb_fail(FB_E_ARGUMENT, "what is summed with the gradients must lie on their device");
    batch b = {.device = code ? NULL : plan->device};
    if (code == FB_OK) code = add_final(&b, plan, plan->feed.n);
    if (code == FB_OK) code = add(&b, more, 0, more->bytes);
    return code ? code : begin(&b);
}

int fb_buffer_sum(fb_buffer *buffer, int mean) {
    if (!buffer || !buffer->parts || buffer->host) return fb_fail(FB_E_ARGUMENT, "the buffer is closed");
    batch b = {.device = buffer->device, .mean = mean};
    int code = has_peers(buffer->device);
    if (code == FB_OK) code = add(&b, buffer, 0, buffer->bytes);
    return code ? code : begin(&b);
}

int fb_device_summed(fb_device *device, int32_t *done) {
    int all = 1, code = has_peers(device);
    if (code == FB_OK) code = device->backend->summed(device->self, &all);
    if (done) *done = all;
    return code;
}

int fb_device_card(fb_device *device, char card[FB_CARD]) {
    memset(card, 0, FB_CARD);
    if (!device || device->closed) return fb_fail(FB_E_ARGUMENT, "the device is closed");
    return device->backend->card ? device->backend->card(device->self, card) : FB_OK;
}

int fb_peers_id(const char *backend, const char *library, char *id) {
    for (int i = 0; backend && fb_backends[i]; i++)
        if (!strcmp(fb_backends[i]->name, backend) && fb_backends[i]->peers_id) return fb_backends[i]->peers_id(library, id);
    return fb_fail(FB_E_DEVICE, "devices of %s add nothing up by themselves", backend ? backend : "no backend");
}

int fb_device_join(fb_device *device, const char *library, const char id[FB_PEERS_ID], int32_t rank, int32_t size) {
    int code = has_peers(device);
    if (code == FB_OK && (!id || size < 1 || rank < 0 || rank >= size))
        code = fb_fail(FB_E_ARGUMENT, "there is no rank %d of %d", (int)rank, (int)size);
    return code ? code : device->backend->join(device->self, library, id, rank, size);
}

void fb_device_leave(fb_device *device) {
    if (device && !device->closed && device->backend->leave) device->backend->leave(device->self);
}
