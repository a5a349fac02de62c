/* run.c - running a plan: feeds in, whole optimizer steps, kept rows back. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph.h"

static const int32_t NO_COUNTS[FB_COUNTS];

static uint64_t input_bytes(const fb_plan *plan, int32_t input, const fb_feed *feed) {
    const int32_t counts[FB_COUNTS] = {[FB_COUNT_TOKENS] = feed->tokens, [FB_COUNT_TRAINED] = feed->trained};
    const fb_tensor_info *t = &plan->program.tensors[plan->inputs[input]];
    const fb_view whole = {.rows = t->rows, .count = t->count, .factor = 1};
    return fb_type_bytes(t->type, (int64_t)fb_rows_in_use(&whole, counts) * t->cols);
}

/* Whether all that the plan reaches is still open. */
static int check_open(const fb_plan *plan) {
    if (!plan || plan->device->closed) return fb_fail(FB_E_ARGUMENT, "the plan or its device is closed");
    const fb_buffer *own[] = {plan->options.params, plan->options.grads, plan->record};
    int open = 1;
    for (int i = 0; i < 3; i++) open &= !own[i] || own[i]->parts;
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
static int replay(fb_plan *plan, const fb_prepared *p, const int32_t counts[FB_COUNTS], int sum, fb_progress *progress) {
    const fb_run run = {.cancel = progress ? &progress->cancel : NULL, .done = progress ? &progress->done : NULL,
                        .seconds = p->seconds, .duty = plan->device->duty,
                        .reached = sum ? fb_sum_final : NULL, .context = plan};
    int code = plan->device->backend->replay(plan->device->self, p->program, counts, &run);
    for (int32_t i = 0; p->seconds && i < p->n && code == FB_OK; i++) {
        fb_launch launch;
        if (fb_launch_in_use(&p->launches[i], counts, &launch)) fb_count_launch(&plan->ops[launch.op], &launch, p->seconds[i]);
    }
    return code;
}

static int run_feed(fb_plan *plan, const fb_feed *feed, int sum, fb_progress *progress) {
    const int32_t counts[FB_COUNTS] = {[FB_COUNT_TOKENS] = feed->tokens, [FB_COUNT_TRAINED] = feed->trained};
    int code = stage(plan, feed);
    if (code == FB_OK) code = replay(plan, &plan->feed, counts, sum, progress);
    if (code == FB_E_CANCELLED) plan->device->backend->wait(plan->device->self);
    return code == FB_E_CANCELLED ? fb_fail(code, "cancelled") : code;
}

int fb_plan_run(fb_plan *plan, const fb_feed *feed, fb_progress *progress) {
    int code = check_open(plan);
    if (code == FB_OK) code = feed ? check_feed(plan, feed) : fb_fail(FB_E_ARGUMENT, "a run needs a feed");
    if (code == FB_OK) code = fb_plan_allocate(plan);
    if (code) return code;
    if (progress) progress->done = 0, progress->total = plan->feed.n;
    code = run_feed(plan, feed, 0, progress);
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

/* ---- steps ---- */

static int check_train(const fb_plan *plan) {
    int code = check_open(plan);
    return code || plan->options.train ? code : fb_fail(FB_E_ARGUMENT, "a step needs a training plan");
}

static int check_feeds(const fb_plan *plan, const fb_feed *feeds, int32_t n_feeds) {
    int code = check_train(plan);
    if (code == FB_OK && ((n_feeds && !feeds) || n_feeds < 0 || n_feeds > INT32_MAX / (plan->program.n_nodes + 1)))
        code = fb_fail(FB_E_ARGUMENT, "a step needs feeds");
    for (int32_t i = 0; i < n_feeds && code == FB_OK; i++) code = check_feed(plan, &feeds[i]);
    return code;
}

static int check_update(const fb_plan *plan, const fb_optimizer *o, const fb_result *result) {
    int code = check_train(plan);
    if (code == FB_OK && (!o || !result)) code = fb_fail(FB_E_ARGUMENT, "a step needs an optimizer and a place for its result");
    return code ? code : fb_optimizer_check(plan->options.params, o);
}

int fb_plan_accumulate(fb_plan *plan, const fb_feed *feeds, int32_t n_feeds, int sum, fb_progress *progress) {
    int code = check_feeds(plan, feeds, n_feeds);
    if (code == FB_OK) code = fb_plan_allocate(plan);
    if (code) return code;
    if (progress) progress->done = 0, progress->total = plan->feed.n * n_feeds;
    plan->summed = 0;
    code = replay(plan, &plan->begin, NO_COUNTS, 0, NULL);
    for (int32_t i = 0; i < n_feeds && code == FB_OK; i++) code = run_feed(plan, &feeds[i], sum && i == n_feeds - 1, progress);
    return code;
}

fb_buffer *fb_plan_record(fb_plan *plan) {
    return check_train(plan) || fb_plan_allocate(plan) ? NULL : plan->record;
}

/* From here on parameters change: nothing cancels it. */
static int update(fb_plan *plan, float record[FB_RECORD]) {
    int code = replay(plan, &plan->update, NO_COUNTS, 0, NULL);
    if (code == FB_OK) code = plan->device->backend->wait(plan->device->self);
    if (code == FB_OK) code = fb_buffer_read(plan->record, 0, record, FB_RECORD * sizeof *record);
    if (code == FB_OK) return FB_OK;
    char reason[400];
    snprintf(reason, sizeof reason, "%s", fb_error());
    return fb_fail(code, "the update of the parameters failed, which may have left it half done: %s", reason);
}

int fb_plan_update(fb_plan *plan, const fb_optimizer *o, fb_result *result, fb_progress *progress) {
    int code = check_update(plan, o, result);
    if (code == FB_OK) code = fb_plan_allocate(plan);
    if (code == FB_OK) code = fb_prepare_update(plan, o);
    if (code) return code;
    float record[FB_RECORD];
    const float hyper[FB_HYPER] = {[FB_HYPER_LR] = o->lr, [FB_HYPER_CLIP] = o->clip,
                                   [FB_HYPER_CORRECT1] = (float)(1.0 - pow(o->beta1, (double)o->t)),
                                   [FB_HYPER_CORRECT2] = (float)(1.0 - pow(o->beta2, (double)o->t))};
    memset(result, 0, sizeof *result);
    code = plan->device->backend->write(plan->device->self, &plan->step, 0, hyper, sizeof hyper);
    if (code == FB_OK && progress && progress->cancel) code = fb_fail(FB_E_CANCELLED, "cancelled");
    if (code == FB_OK) code = update(plan, record);
    if (code) return code;
    result->loss_sum = (double)record[FB_RECORD_LOSS] + (double)record[FB_RECORD_LOSS + 1];
    result->trained = (int64_t)((double)record[FB_RECORD_TRAINED] + (double)record[FB_RECORD_TRAINED + 1]);
    result->grad_norm = record[FB_RECORD_NORM];
    result->finite = record[FB_RECORD_FINITE] != 0;
    return FB_OK;
}

int fb_plan_step(fb_plan *plan, const fb_feed *feeds, int32_t n_feeds, const fb_optimizer *optimizer,
                 fb_result *result, fb_progress *progress) {
    int64_t trained = 0;
    int code = check_feeds(plan, feeds, n_feeds);
    if (code == FB_OK) code = check_update(plan, optimizer, result);
    for (int32_t i = 0; i < n_feeds && code == FB_OK; i++) trained += feeds[i].trained;
    if (code == FB_OK && !trained) code = fb_fail(FB_E_ARGUMENT, "a step without a trained token");
    if (code == FB_OK) code = fb_plan_accumulate(plan, feeds, n_feeds, 0, progress);
    return code ? code : fb_plan_update(plan, optimizer, result, progress);
}
