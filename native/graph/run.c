/* run.c - running a plan: feeds in, whole optimizer steps, kept rows back. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "graph.h"

static uint64_t input_bytes(const fb_plan *plan, int32_t input, const fb_feed *feed) {
    const int32_t counts[FB_COUNTS] = {[FB_COUNT_TOKENS] = feed->tokens, [FB_COUNT_TRAINED] = feed->trained};
    const fb_tensor_info *t = &plan->program.tensors[plan->inputs[input]];
    const fb_view whole = {.rows = t->rows, .count = t->count, .factor = 1};
    return fb_type_bytes(t->type, (int64_t)fb_rows_in_use(&whole, counts) * t->cols);
}

/* Whether all that the plan reaches is still open. */
static int check_open(const fb_plan *plan) {
    if (!plan || plan->device->closed) return fb_fail(FB_E_ARGUMENT, "the plan or its device is closed");
    int open = (!plan->options.params || plan->options.params->parts) && (!plan->options.grads || plan->options.grads->parts);
    for (int32_t i = 0; i < plan->program.n_tensors && open; i++) {
        const fb_buffer *buffer = plan->program.tensors[i].buffer;
        open = !buffer || buffer->parts;
    }
    return open ? FB_OK : fb_fail(FB_E_ARGUMENT, "a buffer of this plan is closed");
}

static int check_feed(const fb_plan *plan, const fb_feed *feed) {
    if (feed->tokens < 1 || feed->tokens > plan->tokens || feed->trained < 0 || feed->trained > plan->trained)
        return fb_fail(FB_E_ARGUMENT, "a feed of %d tokens, %d trained, where the plan has room for %d and %d",
                       (int)feed->tokens, (int)feed->trained, (int)plan->tokens, (int)plan->trained);
    if (feed->n_inputs != plan->n_inputs || (plan->n_inputs && (!feed->inputs || !feed->bytes)))
        return fb_fail(FB_E_ARGUMENT, "a feed of %d inputs for a graph of %d", (int)feed->n_inputs, (int)plan->n_inputs);
    for (int32_t i = 0; i < plan->n_inputs; i++) {
        uint64_t bytes = input_bytes(plan, i, feed);
        if (feed->bytes[i] != bytes || (bytes && !feed->inputs[i]))
            return fb_fail(FB_E_ARGUMENT, "input %d of a feed has %llu bytes, not the %llu of its rows", (int)i,
                           (unsigned long long)feed->bytes[i], (unsigned long long)bytes);
    }
    return FB_OK;
}

static int stage(fb_plan *plan, const fb_feed *feed) {
    for (int32_t i = 0; i < plan->n_inputs; i++) {
        const fb_tensor_info *t = &plan->program.tensors[plan->inputs[i]];
        uint64_t bytes = input_bytes(plan, i, feed);
        if (!bytes) continue;
        const int32_t *values = feed->inputs[i];
        for (uint64_t k = 0; plan->bounds[i] && k < bytes / 4; k++)
            if (values[k] < 0 || values[k] >= plan->bounds[i])
                return fb_fail(FB_E_ARGUMENT, "input %d of a feed holds %d, which is not in 0 .. %d", (int)i,
                               (int)values[k], (int)plan->bounds[i] - 1);
        int code = plan->device->backend->write(plan->device->self, &plan->staged, t->offset, feed->inputs[i], bytes);
        if (code) return code;
    }
    return FB_OK;
}

/* Runs a prepared program; with progress, it counts the launches and can be cancelled. */
static int replay(fb_plan *plan, const fb_prepared *p, const int32_t counts[FB_COUNTS], fb_progress *progress) {
    const fb_run run = {.cancel = progress ? &progress->cancel : NULL, .done = progress ? &progress->done : NULL,
                        .seconds = p->seconds, .duty = plan->device->duty};
    int code = plan->device->backend->replay(plan->device->self, p->program, counts, &run);
    for (int32_t i = 0; p->seconds && i < p->n && code == FB_OK; i++) {
        fb_launch launch;
        if (fb_launch_in_use(&p->launches[i], counts, &launch)) fb_count_launch(&plan->ops[launch.op], &launch, p->seconds[i]);
    }
    return code;
}

static int run_feed(fb_plan *plan, const fb_feed *feed, fb_progress *progress) {
    const int32_t counts[FB_COUNTS] = {[FB_COUNT_TOKENS] = feed->tokens, [FB_COUNT_TRAINED] = feed->trained};
    int code = stage(plan, feed);
    if (code == FB_OK) code = replay(plan, &plan->feed, counts, progress);
    if (code == FB_E_CANCELLED) plan->device->backend->wait(plan->device->self);
    return code == FB_E_CANCELLED ? fb_fail(code, "cancelled") : code;
}

int fb_plan_run(fb_plan *plan, const fb_feed *feed, fb_progress *progress) {
    int code = check_open(plan);
    if (code == FB_OK) code = feed ? check_feed(plan, feed) : fb_fail(FB_E_ARGUMENT, "a run needs a feed");
    if (code == FB_OK) code = fb_plan_allocate(plan);
    if (code) return code;
    if (progress) progress->done = 0, progress->total = plan->feed.n;
    code = run_feed(plan, feed, progress);
    if (code == FB_OK) code = plan->device->backend->wait(plan->device->self);
    return code;
}

int fb_plan_read(fb_plan *plan, fb_tensor t, int32_t first_row, int32_t rows, float *dst, uint64_t bytes) {
    int code = check_open(plan);
    if (code) return code;
    const fb_tensor_info *info = t >= 0 && t < plan->program.n_tensors ? &plan->program.tensors[t] : NULL;
    if (!info || !info->keep || !plan->ready || first_row < 0 || rows < 0 || first_row > info->rows - rows)
        return fb_fail(FB_E_ARGUMENT, "%d rows from %d on of a tensor that has none such to read", (int)rows, (int)first_row);
    if (bytes / 4 != (uint64_t)rows * (uint64_t)info->cols || bytes % 4 || (bytes && !dst))
        return fb_fail(FB_E_ARGUMENT, "%d rows of %d columns are not %llu bytes", (int)rows, (int)info->cols,
                       (unsigned long long)bytes);
    uint64_t row_bytes = fb_type_bytes(info->type, info->cols);
    char *raw = info->type == FB_F32 ? (char *)dst : malloc((size_t)rows * row_bytes + 1);
    if (!raw) return fb_fail(FB_E_MEMORY, "out of memory");
    for (int32_t row = 0, n; row < rows && code == FB_OK; row += n) {
        uint64_t offset;
        const fb_mem *mem = fb_plan_locate(plan, info, first_row + row, &offset);
        n = rows - row;
        if (info->part_rows && n > info->part_rows - (first_row + row) % info->part_rows)
            n = info->part_rows - (first_row + row) % info->part_rows;
        code = plan->device->backend->read(plan->device->self, mem, offset, raw + (uint64_t)row * row_bytes,
                                           (uint64_t)n * row_bytes);
    }
    if (info->type == FB_F32) return code;
    if (code == FB_OK) code = fb_decode(info->type, raw, (uint64_t)rows * row_bytes, dst, (int64_t)rows * info->cols);
    free(raw);
    return code;
}

static int sum_loss(fb_plan *plan, const fb_feed *feed, double *sum) {
    if (!feed->trained) return FB_OK;
    float *nll = malloc(sizeof *nll * (size_t)feed->trained);
    if (!nll) return fb_fail(FB_E_MEMORY, "out of memory");
    int code = fb_plan_read(plan, plan->nll, 0, feed->trained, nll, sizeof *nll * (uint64_t)feed->trained);
    for (int32_t i = 0; i < feed->trained && code == FB_OK; i++) *sum += nll[i];
    free(nll);
    return code;
}

static int zero_gradients(fb_plan *plan) {
    fb_buffer *grads = plan->options.grads;
    uint64_t most = plan->device->info.max_binding_bytes < 1u << 30 ? plan->device->info.max_binding_bytes : 1u << 30;
    for (int64_t i = 0; i < grads->n_parts; i++)
        for (uint64_t at = 0, bytes = grads->parts[i].bytes / 4 * 4; at < bytes; at += most / 4 * 4) {
            int32_t n = (int32_t)((bytes - at < most ? bytes - at : most) / 4);
            fb_launch zero = {.op = FB_OP_ZERO};
            zero.v[0] = (fb_view){.mem = &grads->parts[i], .offset = at, .type = FB_F32, .rows = 1, .cols = n, .ld = n};
            int code = fb_run_once(plan->device, &zero);
            if (code) return code;
        }
    return FB_OK;
}

int fb_plan_step(fb_plan *plan, const fb_feed *feeds, int32_t n_feeds, const fb_optimizer *optimizer,
                 fb_result *result, fb_progress *progress) {
    int code = check_open(plan);
    if (code) return code;
    if (!result || !optimizer || !feeds || !plan->options.train || n_feeds < 1 ||
        n_feeds > INT32_MAX / (plan->program.n_nodes + 1))
        return fb_fail(FB_E_ARGUMENT, "a step needs a training plan, feeds, an optimizer and a place for its result");
    memset(result, 0, sizeof *result);
    code = fb_optimizer_check(plan->options.params, optimizer);
    for (int32_t i = 0; i < n_feeds && code == FB_OK; i++) {
        code = check_feed(plan, &feeds[i]);
        result->trained += feeds[i].trained;
    }
    if (code == FB_OK && !result->trained) code = fb_fail(FB_E_ARGUMENT, "a step without a trained token");
    if (code == FB_OK) code = fb_plan_allocate(plan);
    if (code == FB_OK) code = zero_gradients(plan);
    if (progress) {
        progress->done = 0;
        progress->total = plan->feed.n * n_feeds;
    }
    for (int32_t i = 0; i < n_feeds && code == FB_OK; i++) {
        code = run_feed(plan, &feeds[i], progress);
        if (code == FB_OK) code = plan->device->backend->wait(plan->device->self);
        if (code == FB_OK) code = sum_loss(plan, &feeds[i], &result->loss_sum);
    }
    if (code) return code;
    if (!isfinite(result->loss_sum)) return FB_OK;
    return fb_optimizer_update(plan->device, plan->options.params, plan->options.grads, optimizer,
                               (double)result->trained, &result->grad_norm, &result->finite);
}
