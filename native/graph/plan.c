/* plan.c - a program bound to memory: what it takes, what it is, and its launches made ready. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "graph.h"

/* ---- launches ---- */

/* What a tensor lies in; NULL: the inputs, which are staged in one piece. */
static fb_buffer *buffer_of(const fb_plan *plan, const fb_tensor_info *t) {
    switch (t->place) {
    case FB_IN_ARENA: return plan->arena;
    case FB_IN_INPUTS: return NULL;
    case FB_IN_RECORD: return plan->record;
    case FB_IN_GRADS: return plan->options.grads;
    default: return t->buffer;
    }
}

/* Before the first run the arena has no memory. */
const fb_mem *fb_plan_locate(const fb_plan *plan, const fb_tensor_info *t, int32_t row, uint64_t *offset) {
    static const fb_mem none;
    const fb_buffer *buffer = buffer_of(plan, t);
    *offset = fb_row_offset(&plan->program, t, row);
    if (!buffer) return t->place == FB_IN_INPUTS ? &plan->staged : &none;
    int64_t part = fb_buffer_part(buffer, *offset);
    *offset -= buffer->starts[part];
    return &buffer->parts[part];
}

int fb_plan_launch(const fb_plan *plan, const fb_program *p, const fb_node *n, fb_launch *out) {
    memset(out, 0, sizeof *out);
    out->op = n->op;
    out->attr = n->attr;
    out->grids = plan->grids ? plan->grids->parts : NULL;
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        const fb_operand *v = &n->v[k];
        fb_view *view = &out->v[k];
        if (v->tensor < 0) continue;
        if (v->rows == 0) return 0;
        const fb_tensor_info *t = &p->tensors[v->tensor];
        *view = (fb_view){.type = t->type, .rows = v->rows, .cols = v->cols, .ld = t->cols,
                          .count = t->count, .factor = 1, .first = t->first + v->row};
        view->mem = fb_plan_locate(plan, t, v->row, &view->offset);
        view->offset += fb_type_bytes(t->type, v->col);
        out->written |= (uint32_t)fb_is_written(n->op, k) << k;
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
    case FB_OP_EXPERTS: return 2.0 * v[0].rows * v[0].cols * ((double)v[2].cols + (v[6].mem ? v[6].cols : 0));
    case FB_OP_EXPERTS_DX: return 2.0 * v[1].rows * v[1].cols * v[2].cols + (v[4].mem ? 2.0 * v[4].rows * v[4].cols * v[5].cols : 0);
    case FB_OP_EXPERTS_DW: return 2.0 * v[1].rows * v[1].cols * v[0].cols;
    case FB_OP_ATTENTION: pairs = (double)v[2].rows * v[3].rows / 2; return 4 * pairs * dim;
    case FB_OP_ATTENTION_DQ: pairs = (double)v[2].rows * v[3].rows / 2; return 6 * pairs * dim;
    case FB_OP_ATTENTION_DKV: pairs = (double)v[2].rows * v[3].rows / 2; return 8 * pairs * dim;
    case FB_OP_DELTA: return 6.0 * v[2].rows * v[1].cols;
    case FB_OP_DELTA_GRAD: return 16.0 * v[4].rows * v[7].cols;
    default: return 0;
    }
}

static double bytes_of(const fb_launch *l) {
    double bytes = 0;
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (l->v[k].mem) bytes += (double)fb_type_bytes(l->v[k].type, (int64_t)l->v[k].rows * l->v[k].cols);
    return bytes;
}

void fb_count_launch(fb_op_stats *stats, const fb_launch *launch, double seconds) {
    stats->launches++;
    stats->seconds += seconds;
    stats->flops += flops_of(launch);
    stats->bytes += bytes_of(launch);
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
        case FB_OP_EMBED: bound(plan, v[2].tensor, v[1].rows / plan->program.nodes[i].attr.stride); break;
        case FB_OP_GATHER: bound(plan, v[2].tensor, v[1].rows); break;
        case FB_OP_APPEND: bound(plan, v[2].tensor, v[0].rows); break;
        case FB_OP_XENT: bound(plan, v[2].tensor, v[1].cols); break;
        case FB_OP_ATTENTION:
            bound(plan, v[5].tensor, v[3].rows + 1);
            break;
        case FB_OP_CONV: bound(plan, v[4].tensor, v[1].rows + 1); break;
        case FB_OP_DELTA:
            if (v[7].tensor >= 0) bound(plan, v[7].tensor, v[6].rows + 1);
            break;
        default: break;
        }
    }
}

/* Parameters, their gradients and the optimizer's state lie alike, in whole elements, in memory that may be written. */
static int check_flat(const fb_graph *g, const fb_buffer *params, const fb_buffer *grads) {
    if (!params || !grads || !params->parts || !grads->parts || params->device != g->device || grads->device != g->device)
        return fb_fail(FB_E_ARGUMENT, "a training plan needs parameters and gradients on the device of its graph");
    if (!fb_buffers_alike(grads, params) || params->host || grads->host)
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

/* The grids, where some weight of the recorded program needs them: it may be decoded to a constant. */
static int find_grids(fb_plan *plan) {
    int needed = 0;
    for (int32_t t = 0; t < plan->program.n_tensors; t++) needed |= fb_has_grid(plan->program.tensors[t].type);
    if (needed) plan->grids = fb_buffer_wrap(plan->device, fb_grids, sizeof fb_grids, NULL, 0);
    return needed && !plan->grids;
}

/* The memory of the caller that the program reads, each buffer once. */
static int find_weights(fb_plan *plan) {
    const fb_program *p = &plan->program;
    plan->weights = malloc(sizeof *plan->weights * ((size_t)p->n_tensors + 2));
    if (!plan->weights) return fb_fail(FB_E_MEMORY, "out of memory while planning");
    if (plan->grids) plan->weights[plan->n_weights++] = plan->grids;
    for (int32_t i = 0; i < p->n_nodes; i++)
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            fb_buffer *buffer = p->nodes[i].v[k].tensor < 0 ? NULL : p->tensors[p->nodes[i].v[k].tensor].buffer;
            int32_t at = 0;
            while (buffer && at < plan->n_weights && plan->weights[at] != buffer) at++;
            if (buffer && buffer->host && at == plan->n_weights) plan->weights[plan->n_weights++] = buffer;
        }
    return FB_OK;
}

static uint64_t weight_bytes(const fb_plan *plan) {
    uint64_t bytes = 0;
    for (int32_t i = 0; i < plan->n_weights; i++) bytes += fb_buffer_in_place(plan->weights[i]) ? 0 : plan->weights[i]->bytes;
    return bytes;
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
    if (options->decode && fb_decode_weights(&plan->program)) goto fail;
    if (find_grids(plan) || fb_fold_constants(plan) || find_weights(plan)) goto fail;
    if (fb_tile_program(&plan->program, &g->device->info)) goto fail;
    if (fb_plan_memory(&plan->program, &plan->arena_bytes)) goto fail;
    for (int32_t i = 0; i < plan->program.n_nodes; i++) {
        fb_launch launch;
        if (!fb_plan_launch(plan, &plan->program, &plan->program.nodes[i], &launch)) continue;
        uint64_t bytes = g->device->backend->scratch(g->device->self, &launch);
        if (bytes == UINT64_MAX) goto fail;
        if (bytes > plan->scratch_bytes) plan->scratch_bytes = bytes;
    }
    if (options->train) plan->step_bytes = fb_step_bytes(options->grads);
    if (options->train && fb_find_stretches(plan)) goto fail;
    for (int i = 0; i < FB_OP_COUNT; i++) plan->ops[i].name = fb_ops[i].name;
    return plan;
fail:
    fb_plan_free(plan);
    return NULL;
}

static void release(fb_plan *plan) {
    fb_device *device = plan->device;
    fb_mem *pieces[] = {&plan->scratch, &plan->staged, &plan->step};
    fb_release(device, &plan->begin);
    fb_release(device, &plan->feed);
    fb_release_update(plan);
    for (int i = 0; i < 3; i++) {
        if (pieces[i]->bytes) device->backend->free(device->self, pieces[i]);
        memset(pieces[i], 0, sizeof *pieces[i]);
    }
    fb_buffer_free(plan->arena);
    fb_buffer_free(plan->record);
    plan->arena = plan->record = NULL;
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

static int prepare(fb_plan *plan) {
    fb_launch *launches = malloc(sizeof *launches * (size_t)(plan->program.n_nodes + 1));
    int32_t n = 0;
    if (!launches) return fb_fail(FB_E_MEMORY, "out of memory");
    for (int32_t i = 0; i < plan->program.n_nodes; i++) n += fb_plan_launch(plan, &plan->program, &plan->program.nodes[i], &launches[n]);
    int code = fb_prepare(plan->device, launches, n, &plan->scratch, &plan->feed);
    free(launches);
    return code;
}

static int allocate_piece(fb_plan *plan, uint64_t bytes, fb_mem *mem) {
    int code = bytes ? plan->device->backend->alloc(plan->device->self, bytes, mem) : FB_OK;
    if (code || mem->bytes == bytes) return code;
    return fb_fail(FB_E_INTERNAL, "planned %llu bytes but allocated %llu", (unsigned long long)bytes,
                   (unsigned long long)mem->bytes);
}

/* Weights and constants, which stay when the rest is released: others may use them. */
static int load(fb_plan *plan) {
    int code = FB_OK;
    for (int32_t i = 0; i < plan->n_weights && code == FB_OK; i++) code = fb_buffer_fill(plan->weights[i]);
    if (code == FB_OK) code = fb_compute_constants(plan);
    const uint64_t planned = fb_constant_bytes(plan, 0), there = fb_constant_bytes(plan, 1);
    if (code || there == planned) return code;
    return fb_fail(FB_E_INTERNAL, "planned %llu bytes of constants but allocated %llu", (unsigned long long)planned,
                   (unsigned long long)there);
}

int fb_plan_allocate(fb_plan *plan) {
    if (plan->ready) return FB_OK;
    int code = load(plan);
    if (code == FB_OK) code = allocate_arena(plan);
    if (code == FB_OK) code = allocate_piece(plan, plan->scratch_bytes, &plan->scratch);
    if (code == FB_OK) code = allocate_piece(plan, plan->input_bytes, &plan->staged);
    if (code == FB_OK) code = allocate_piece(plan, plan->step_bytes, &plan->step);
    if (code == FB_OK && plan->options.train) {
        plan->record = fb_buffer_new(plan->device, FB_RECORD * 4, NULL, 0);
        code = plan->record ? fb_prepare_begin(plan) : FB_E_MEMORY;
    }
    if (code == FB_OK) code = prepare(plan);
    if (code) release(plan);
    plan->ready = code == FB_OK;
    return code;
}

void fb_plan_free(fb_plan *plan) {
    if (!plan) return;
    release(plan);
    fb_release_constants(plan);
    fb_buffer_free(plan->grids);
    fb_program_release(&plan->program);
    fb_program_free(&plan->program);
    if (plan->options.params) fb_buffer_release(plan->options.params);
    if (plan->options.grads) fb_buffer_release(plan->options.grads);
    fb_device_release(plan->device);
    free(plan->inputs);
    free(plan->bounds);
    free(plan->weights);
    free(plan->text);
    free(plan->final);
    free(plan);
}

int fb_plan_get_stats(const fb_plan *plan, fb_plan_stats *stats) {
    if (!plan || !stats) return fb_fail(FB_E_ARGUMENT, "the plan is closed");
    memset(stats, 0, sizeof *stats);
    stats->arena_bytes = plan->arena_bytes;
    stats->scratch_bytes = plan->scratch_bytes;
    stats->input_bytes = plan->input_bytes + plan->step_bytes + (plan->options.train ? FB_RECORD * 4 : 0);
    stats->allocated_bytes = arena_there(plan) + plan->scratch.bytes + plan->staged.bytes + plan->step.bytes +
                             (plan->record ? plan->record->bytes : 0);
    stats->constant_bytes = fb_constant_bytes(plan, 0);
    stats->weight_bytes = weight_bytes(plan);
    stats->launches = plan->program.n_nodes;
    for (int32_t i = 0; i < plan->program.n_nodes; i++) {
        const fb_node *n = &plan->program.nodes[i];
        fb_launch launch;
        stats->tiled += n->tiled;
        if (!fb_plan_launch(plan, &plan->program, n, &launch)) continue;
        /* The head's nodes run over trained positions, all others over tokens. */
        const fb_operand *counted = n->op == FB_OP_LINEAR_DW || n->op == FB_OP_EXPERTS_DW ? &n->v[1] : &n->v[0];
        if (plan->program.tensors[counted->tensor].count == FB_COUNT_TRAINED)
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
    for (int32_t i = 0; i < plan->program.n_tilings && i < capacity; i++) {
        out[i] = plan->program.tilings[i];
        for (int32_t k = 0; k < plan->n_constants; k++) /* a constant is known by its leaf */
            if (plan->constants[k].value == out[i].tensor) out[i].tensor = plan->constants[k].from;
    }
    return plan->program.n_tilings;
}

int fb_plan_op_stats(fb_plan *plan, fb_op_stats *out, int capacity) {
    int filled = 0;
    for (int i = 0; plan && i < FB_OP_COUNT && filled < capacity; i++)
        if (plan->ops[i].launches) out[filled++] = plan->ops[i];
    return filled;
}

