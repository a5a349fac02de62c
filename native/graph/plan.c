/* plan.c - a program bound to memory, and running it: feeds in, launches out, kept rows back. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph.h"
#include "../os.h"

/* Launches handed to the backend at once; progress and cancel act between such groups. */
enum { GROUP = 8 };

struct fb_plan {
    fb_device *device;
    fb_program program;
    fb_plan_options options;
    int32_t tokens, trained, n_inputs;
    fb_tensor *inputs;
    fb_tensor nll;
    uint64_t arena_bytes, scratch_bytes, input_bytes;
    fb_buffer *arena;
    fb_mem scratch, staged;
    int ready;
    int32_t *bounds; /* (n_inputs,) I32 values of an input must lie in 0 .. bounds - 1; 0: any */
    char *text;
    fb_op_stats ops[FB_OP_COUNT];
};

/* ---- launches ---- */

static int32_t rows_in_use(const fb_tensor_info *t, const fb_operand *v, int32_t tokens, int32_t trained) {
    if (!t->symbol) return v->rows;
    int32_t count = (t->symbol == FB_ROWS_TOKENS ? tokens : trained) - t->first - v->row;
    return count < 0 ? 0 : count < v->rows ? count : v->rows;
}

/* What a tensor lies in; NULL: the inputs, which are staged in one piece. */
static fb_buffer *buffer_of(const fb_plan *plan, const fb_tensor_info *t) {
    switch (t->place) {
    case FB_IN_ARENA: return plan->arena;
    case FB_IN_INPUTS: return NULL;
    case FB_IN_GRADS: return plan->options.grads;
    default: return t->buffer;
    }
}

/* The memory of a row, and where in it the row begins. Before the first run the arena has none. */
static const fb_mem *locate(const fb_plan *plan, const fb_tensor_info *t, int32_t row, uint64_t *offset) {
    static const fb_mem none;
    const fb_buffer *buffer = buffer_of(plan, t);
    *offset = fb_row_offset(&plan->program, t, row);
    if (!buffer) return t->place == FB_IN_INPUTS ? &plan->staged : &none;
    int64_t part = fb_buffer_part(buffer, *offset);
    *offset -= buffer->starts[part];
    return &buffer->parts[part];
}

/* Returns 0 when some operand has no row in use: nothing to do then. */
static int make_launch(const fb_plan *plan, const fb_node *n, int32_t tokens, int32_t trained, fb_launch *out) {
    out->op = n->op;
    out->attr = n->attr;
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        const fb_operand *v = &n->v[k];
        fb_view *view = &out->v[k];
        memset(view, 0, sizeof *view);
        if (v->tensor < 0) continue;
        const fb_tensor_info *t = &plan->program.tensors[v->tensor];
        view->mem = locate(plan, t, v->row, &view->offset);
        view->type = t->type;
        view->rows = rows_in_use(t, v, tokens, trained);
        view->cols = v->cols;
        view->ld = t->cols;
        view->offset += fb_type_bytes(t->type, v->col);
        if (view->rows == 0) return 0;
    }
    return 1;
}

/* Multiply-adds count 2; only products are counted, attention as if every key before a query were seen. */
static double flops_of(const fb_launch *l) {
    const fb_view *v = l->v;
    double pairs, dim = (double)l->attr.attention.n_head * l->attr.attention.head_dim;
    switch (l->op) {
    case FB_OP_LINEAR:
        return 2.0 * v[1].rows * v[0].cols * ((double)v[1].cols + (v[4].mem ? v[4].cols : 0));
    case FB_OP_LINEAR_DX:
        return 2.0 * v[1].rows * v[0].cols * ((double)v[1].cols + (v[3].mem ? v[3].cols : 0));
    case FB_OP_LINEAR_DW: return 2.0 * v[1].rows * (double)v[0].rows * v[0].cols;
    case FB_OP_ATTENTION: pairs = (double)v[2].rows * v[3].rows / 2; return 4 * pairs * dim;
    case FB_OP_ATTENTION_DQ: pairs = (double)v[2].rows * v[3].rows / 2; return 6 * pairs * dim;
    case FB_OP_ATTENTION_DKV: pairs = (double)v[2].rows * v[3].rows / 2; return 8 * pairs * dim;
    default: return 0;
    }
}

static double bytes_of(const fb_launch *l) {
    double bytes = 0;
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (l->v[k].mem) bytes += (double)fb_type_bytes(l->v[k].type, (int64_t)l->v[k].rows * l->v[k].cols);
    return bytes;
}

/* ---- planning ---- */

static void bound(fb_plan *plan, fb_tensor t, int32_t limit) {
    if (t >= 0 && plan->program.tensors[t].base >= 0) t = plan->program.tensors[t].base;
    for (int32_t i = 0; i < plan->n_inputs; i++)
        if (plan->inputs[i] == t && (!plan->bounds[i] || limit < plan->bounds[i])) plan->bounds[i] = limit;
}

/* What the ids, row numbers and key ranges of a feed may be, so that no feed can reach beyond a matrix. */
static void bound_inputs(fb_plan *plan) {
    for (int32_t i = 0; i < plan->program.n_nodes; i++) {
        const fb_operand *v = plan->program.nodes[i].v;
        switch (plan->program.nodes[i].op) {
        case FB_OP_EMBED: case FB_OP_GATHER: bound(plan, v[2].tensor, v[1].rows); break;
        case FB_OP_APPEND: bound(plan, v[2].tensor, v[0].rows); break;
        case FB_OP_XENT: bound(plan, v[2].tensor, v[1].cols); break;
        case FB_OP_ATTENTION:
            bound(plan, v[5].tensor, v[3].rows + 1);
            bound(plan, v[6].tensor, v[3].rows + 1);
            break;
        default: break;
        }
    }
}

/* Parameters, their gradients and the optimizer's state lie alike, in whole elements, in memory that may be written. */
static int check_flat(const fb_graph *g, const fb_buffer *params, const fb_buffer *grads) {
    if (!params || !grads || !params->parts || !grads->parts || params->device != g->device || grads->device != g->device)
        return fb_fail(FB_E_ARGUMENT, "a training plan needs parameters and gradients on the device of its graph");
    if (!fb_buffers_alike(grads, params) || params->wrapped || grads->wrapped)
        return fb_fail(FB_E_ARGUMENT, "gradients must be as large as the parameters, both in memory of the device");
    for (int64_t i = 0; i <= params->n_parts; i++)
        if (params->starts[i] % 4) return fb_fail(FB_E_ARGUMENT, "parameters are whole F32 elements");
    for (int32_t i = 0; i < g->program.n_tensors; i++) {
        const fb_tensor_info *t = &g->program.tensors[i];
        if (t->place == FB_IN_BUFFER && t->kind == FB_PARAM && t->buffer != params)
            return fb_fail(FB_E_ARGUMENT, "a matrix that trains lies outside the parameters");
    }
    return FB_OK;
}

fb_plan *fb_plan_new(fb_graph *g, const fb_plan_options *options) {
    if (!g || !options || g->device->closed) {
        fb_fail(FB_E_ARGUMENT, "a plan needs a graph on an open device, and options");
        return NULL;
    }
    if (options->train && !g->has_loss) {
        fb_fail(FB_E_ARGUMENT, "a training plan needs a loss");
        return NULL;
    }
    if (options->train && check_flat(g, options->params, options->grads)) return NULL;
    fb_plan *plan = calloc(1, sizeof *plan);
    if (!plan) {
        fb_fail(FB_E_MEMORY, "out of memory while planning");
        return NULL;
    }
    plan->device = fb_device_hold(g->device);
    plan->options = *options;
    if (!options->train) plan->options.params = plan->options.grads = NULL;
    if (plan->options.params) fb_buffer_hold(plan->options.params);
    if (plan->options.grads) fb_buffer_hold(plan->options.grads);
    plan->tokens = g->tokens;
    plan->trained = g->trained;
    plan->nll = g->has_loss ? g->loss.nll : FB_NONE;
    plan->n_inputs = g->n_inputs;
    plan->input_bytes = g->input_bytes;
    plan->inputs = malloc(sizeof *plan->inputs * (size_t)(g->n_inputs + 1));
    plan->bounds = calloc((size_t)g->n_inputs + 1, sizeof *plan->bounds);
    if (!plan->inputs || !plan->bounds) {
        fb_fail(FB_E_MEMORY, "out of memory while planning");
        goto fail;
    }
    memcpy(plan->inputs, g->inputs, sizeof *plan->inputs * (size_t)g->n_inputs);
    if (fb_build_program(g, options, &plan->program)) goto fail;
    fb_program_hold(&plan->program);
    bound_inputs(plan);
    if (fb_tile_program(&plan->program, &g->device->info)) goto fail;
    if (fb_plan_memory(&plan->program, &plan->arena_bytes)) goto fail;
    for (int32_t i = 0; i < plan->program.n_nodes; i++) {
        fb_launch launch;
        if (!make_launch(plan, &plan->program.nodes[i], plan->tokens, plan->trained, &launch)) continue;
        uint64_t bytes = g->device->backend->scratch(g->device->self, &launch);
        if (bytes == UINT64_MAX) goto fail;
        if (bytes > plan->scratch_bytes) plan->scratch_bytes = bytes;
    }
    for (int i = 0; i < FB_OP_COUNT; i++) plan->ops[i].name = fb_ops[i].name;
    return plan;
fail:
    fb_plan_free(plan);
    return NULL;
}

static void release(fb_plan *plan) {
    fb_mem *all[] = {&plan->scratch, &plan->staged};
    fb_buffer_free(plan->arena);
    plan->arena = NULL;
    for (int i = 0; i < 2; i++) {
        if (all[i]->bytes) plan->device->backend->free(plan->device->self, all[i]);
        memset(all[i], 0, sizeof *all[i]);
    }
}

static uint64_t arena_there(const fb_plan *plan) {
    uint64_t bytes = 0;
    for (int64_t i = 0; plan->arena_bytes && plan->arena && i < plan->arena->n_parts; i++) bytes += plan->arena->parts[i].bytes;
    return bytes;
}

/* Parts of the arena end at every part_bytes, across which no tensor lies. */
static int allocate_arena(fb_plan *plan) {
    uint64_t part = plan->program.part_bytes, n = plan->arena_bytes ? (plan->arena_bytes - 1) / part : 0;
    uint64_t *seams = malloc(sizeof *seams * (size_t)(n + 1));
    if (!seams) return fb_fail(FB_E_MEMORY, "out of memory");
    for (uint64_t i = 0; i < n; i++) seams[i] = (i + 1) * part;
    plan->arena = fb_buffer_new(plan->device, plan->arena_bytes, seams, (int64_t)n);
    free(seams);
    if (!plan->arena) return FB_E_MEMORY;
    uint64_t there = arena_there(plan);
    if (!plan->arena_bytes || there == plan->arena_bytes) return FB_OK;
    return fb_fail(FB_E_INTERNAL, "planned %llu bytes but allocated %llu", (unsigned long long)plan->arena_bytes,
                   (unsigned long long)there);
}

static int allocate(fb_plan *plan) {
    if (plan->ready) return FB_OK;
    fb_mem *all[] = {&plan->scratch, &plan->staged};
    uint64_t bytes[] = {plan->scratch_bytes, plan->input_bytes};
    int failed = allocate_arena(plan);
    if (failed) {
        release(plan);
        return failed;
    }
    for (int i = 0; i < 2; i++) {
        if (!bytes[i]) continue;
        int code = plan->device->backend->alloc(plan->device->self, bytes[i], all[i]);
        if (code == FB_OK && all[i]->bytes != bytes[i])
            code = fb_fail(FB_E_INTERNAL, "planned %llu bytes but allocated %llu", (unsigned long long)bytes[i],
                           (unsigned long long)all[i]->bytes);
        if (code) {
            release(plan);
            return code;
        }
    }
    plan->ready = 1;
    return FB_OK;
}

void fb_plan_free(fb_plan *plan) {
    if (!plan) return;
    release(plan);
    fb_program_release(&plan->program);
    fb_program_free(&plan->program);
    if (plan->options.params) fb_buffer_release(plan->options.params);
    if (plan->options.grads) fb_buffer_release(plan->options.grads);
    fb_device_release(plan->device);
    free(plan->inputs);
    free(plan->bounds);
    free(plan->text);
    free(plan);
}

int fb_plan_get_stats(const fb_plan *plan, fb_plan_stats *stats) {
    if (!plan || !stats) return fb_fail(FB_E_ARGUMENT, "the plan is closed");
    memset(stats, 0, sizeof *stats);
    stats->arena_bytes = plan->arena_bytes;
    stats->scratch_bytes = plan->scratch_bytes;
    stats->input_bytes = plan->input_bytes;
    stats->allocated_bytes = arena_there(plan) + plan->scratch.bytes + plan->staged.bytes;
    stats->launches = plan->program.n_nodes;
    for (int32_t i = 0; i < plan->program.n_nodes; i++) {
        const fb_node *n = &plan->program.nodes[i];
        fb_launch launch;
        stats->tiled += n->tiled;
        if (!make_launch(plan, n, plan->tokens, plan->trained, &launch)) continue;
        /* The head's nodes run over trained positions, all others over tokens. */
        const fb_operand *counted = n->op == FB_OP_LINEAR_DW ? &n->v[1] : &n->v[0];
        if (plan->program.tensors[counted->tensor].symbol == FB_ROWS_TRAINED)
            stats->flops_per_trained += flops_of(&launch) / plan->trained;
        else
            stats->flops_per_token += flops_of(&launch) / plan->tokens;
    }
    return FB_OK;
}

const char *fb_plan_describe(fb_plan *plan) {
    if (!plan) {
        fb_fail(FB_E_ARGUMENT, "the plan is closed");
        return NULL;
    }
    size_t room = (size_t)plan->program.n_nodes * 256 + 1, used = 0;
    free(plan->text);
    plan->text = malloc(room);
    if (!plan->text) {
        fb_fail(FB_E_MEMORY, "out of memory");
        return NULL;
    }
    plan->text[0] = 0;
    for (int32_t i = 0; i < plan->program.n_nodes; i++) {
        const fb_node *n = &plan->program.nodes[i];
        char line[256];
        int at = snprintf(line, sizeof line, "%s%s", fb_ops[n->op].name, n->tiled ? " (tile)" : "");
        for (int k = 0; k < FB_MAX_OPERANDS && at < (int)sizeof line - 48; k++) {
            const fb_operand *v = &n->v[k];
            if (v->tensor < 0) continue;
            const fb_format *format = fb_format_get(plan->program.tensors[v->tensor].type);
            at += snprintf(line + at, sizeof line - (size_t)at, " t%d:%s[%d+%d,%d+%d]", (int)v->tensor,
                           format ? format->name : "I32", (int)v->row, (int)v->rows, (int)v->col, (int)v->cols);
        }
        used += (size_t)snprintf(plan->text + used, room - used, "%s\n", line);
    }
    return plan->text;
}

int32_t fb_plan_tilings(const fb_plan *plan, fb_tiling *out, int32_t capacity) {
    if (!plan) return 0;
    for (int32_t i = 0; i < plan->program.n_tilings && i < capacity; i++) out[i] = plan->program.tilings[i];
    return plan->program.n_tilings;
}

int fb_plan_op_stats(fb_plan *plan, fb_op_stats *out, int capacity) {
    int filled = 0;
    for (int i = 0; plan && i < FB_OP_COUNT && filled < capacity; i++)
        if (plan->ops[i].launches) out[filled++] = plan->ops[i];
    return filled;
}

/* ---- running ---- */

static uint64_t input_bytes(const fb_plan *plan, int32_t input, const fb_feed *feed) {
    const fb_tensor_info *t = &plan->program.tensors[plan->inputs[input]];
    fb_operand whole = fb_whole(&plan->program, plan->inputs[input]);
    return fb_type_bytes(t->type, (int64_t)rows_in_use(t, &whole, feed->tokens, feed->trained) * t->cols);
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

/* Lets the device cool for as long as its duty asks after `worked` seconds; a cancel ends that. */
static void rest(const fb_plan *plan, double worked, const fb_progress *progress) {
    double end = fb_os_seconds() + worked * (1 / plan->device->duty - 1);
    for (double left; (left = end - fb_os_seconds()) > 0 && !(progress && progress->cancel);)
        fb_os_sleep(left < 0.05 ? left : 0.05);
}

static int submit(fb_plan *plan, const fb_launch *group, int n, double *seconds, const fb_progress *progress) {
    const fb_backend *backend = plan->device->backend;
    void *self = plan->device->self;
    double before = fb_os_seconds();
    int code = backend->submit(self, group, n, &plan->scratch, plan->device->profile ? seconds : NULL);
    if (plan->device->duty == 1) return code;
    if (code == FB_OK) code = backend->wait(self);
    rest(plan, fb_os_seconds() - before, progress);
    return code;
}

static int run_feed(fb_plan *plan, const fb_feed *feed, fb_progress *progress) {
    const fb_backend *backend = plan->device->backend;
    int code = stage(plan, feed);
    fb_launch group[GROUP];
    double seconds[GROUP];
    int n = 0;
    if (backend->watch) backend->watch(plan->device->self, progress ? &progress->cancel : NULL);
    for (int32_t i = 0; i < plan->program.n_nodes && code == FB_OK; i++) {
        n += make_launch(plan, &plan->program.nodes[i], feed->tokens, feed->trained, &group[n]);
        if (n < GROUP && i + 1 < plan->program.n_nodes) continue;
        if (progress && progress->cancel) code = fb_fail(FB_E_CANCELLED, "cancelled");
        else if (n) code = submit(plan, group, n, seconds, progress);
        for (int k = 0; plan->device->profile && k < n && code == FB_OK; k++) {
            fb_op_stats *stats = &plan->ops[group[k].op];
            stats->launches++;
            stats->seconds += seconds[k];
            stats->flops += flops_of(&group[k]);
            stats->bytes += bytes_of(&group[k]);
        }
        n = 0;
        if (progress) progress->done += (i + 1 < plan->program.n_nodes) ? GROUP : 0;
    }
    if (backend->watch) backend->watch(plan->device->self, NULL);
    if (code == FB_E_CANCELLED) backend->wait(plan->device->self);
    return code == FB_E_CANCELLED ? fb_fail(code, "cancelled") : code;
}

int fb_plan_run(fb_plan *plan, const fb_feed *feed, fb_progress *progress) {
    int code = check_open(plan);
    if (code == FB_OK) code = feed ? check_feed(plan, feed) : fb_fail(FB_E_ARGUMENT, "a run needs a feed");
    if (code == FB_OK) code = allocate(plan);
    if (code) return code;
    if (progress) progress->total = plan->program.n_nodes;
    code = run_feed(plan, feed, progress);
    if (code == FB_OK) code = plan->device->backend->wait(plan->device->self);
    if (progress && code == FB_OK) progress->done = progress->total;
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
        const fb_mem *mem = locate(plan, info, first_row + row, &offset);
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
            int code = plan->device->backend->submit(plan->device->self, &zero, 1, &plan->scratch, NULL);
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
    if (code == FB_OK) code = allocate(plan);
    if (code == FB_OK) code = zero_gradients(plan);
    if (progress) {
        progress->done = 0;
        progress->total = plan->program.n_nodes * n_feeds;
    }
    for (int32_t i = 0; i < n_feeds && code == FB_OK; i++) {
        code = run_feed(plan, &feeds[i], progress);
        if (progress) progress->done = plan->program.n_nodes * (i + 1);
        if (code == FB_OK) code = plan->device->backend->wait(plan->device->self);
        if (code == FB_OK) code = sum_loss(plan, &feeds[i], &result->loss_sum);
    }
    if (code) return code;
    if (!isfinite(result->loss_sum)) return FB_OK;
    return fb_optimizer_update(plan->device, plan->options.params, plan->options.grads, optimizer,
                               (double)result->trained, &result->grad_norm, &result->finite);
}
