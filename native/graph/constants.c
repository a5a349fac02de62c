/* constants.c - values computed from read-only leaves alone: computed once, before the first feed, and shared by all plans of
 * a device that need the same. Frozen weights decoded to 16 bits are such values. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

struct fb_constant {
    fb_node node;       /* that computes it, as it was recorded, of the tensors of */
    fb_program program; /* its own, in which it may be cut into tiles */
    fb_buffer *buffer;  /* its memory; none until it is computed */
    int64_t users;      /* plans */
    int computed;
    fb_constant *next;  /* of the device */
};

/* ---- one constant ---- */

static int same_tensor(const fb_tensor_info *a, const fb_tensor_info *b, int in_buffer) {
    return a->type == b->type && a->rows == b->rows && a->cols == b->cols &&
           (!in_buffer || (a->buffer == b->buffer && a->offset == b->offset));
}

static int computes(const fb_constant *c, const fb_program *p, const fb_node *n) {
    int same = c->node.op == n->op && !memcmp(&c->node.attr, &n->attr, sizeof n->attr);
    for (int k = 0; k < FB_MAX_OPERANDS && same; k++) {
        const fb_tensor a = c->node.v[k].tensor, b = n->v[k].tensor;
        same = (a < 0) == (b < 0) && (a < 0 || same_tensor(&c->program.tensors[a], &p->tensors[b], k > 0));
    }
    return same;
}

static void dismiss(fb_constant *c) {
    if (c->buffer) {
        fb_program_release(&c->program);
        fb_buffer_free(c->buffer);
    }
    fb_program_free(&c->program);
    free(c);
}

/* Memory for rows, each of which may be the last one of an allocation; not yet there. */
static fb_buffer *room_for(fb_device *device, const fb_tensor_info *y) {
    const uint64_t row_bytes = fb_type_bytes(y->type, y->cols);
    uint64_t *seams = malloc(sizeof *seams * (size_t)y->rows);
    if (!seams) {
        fb_fail(FB_E_MEMORY, "out of memory while planning");
        return NULL;
    }
    for (int32_t r = 1; r < y->rows; r++) seams[r - 1] = (uint64_t)r * row_bytes;
    fb_buffer *buffer = fb_buffer_later(device, NULL, row_bytes * (uint64_t)y->rows, seams, y->rows - 1);
    free(seams);
    return buffer;
}

static fb_constant *new_constant(fb_device *device, const fb_program *p, const fb_node *n) {
    fb_constant *c = calloc(1, sizeof *c);
    if (!c) {
        fb_fail(FB_E_MEMORY, "out of memory while planning");
        return NULL;
    }
    c->node = *n;
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (n->v[k].tensor >= 0) c->node.v[k].tensor = fb_program_tensor(&c->program, p->tensors[n->v[k].tensor]);
    *fb_program_node(&c->program, n->op, 0, NULL) = c->node;
    if (c->program.failed) fb_fail(FB_E_MEMORY, "out of memory while planning");
    else c->buffer = room_for(device, &p->tensors[n->v[0].tensor]);
    if (c->buffer) {
        fb_tensor_info *y = &c->program.tensors[c->node.v[0].tensor];
        y->place = FB_IN_BUFFER;
        y->kind = FB_FROZEN;
        y->buffer = c->buffer;
        fb_program_hold(&c->program);
    }
    if (!c->buffer || fb_tile_program(&c->program, &device->info)) {
        dismiss(c);
        return NULL;
    }
    c->next = device->constants;
    device->constants = c;
    return c;
}

static fb_constant *constant_of(fb_device *device, const fb_program *p, const fb_node *n) {
    fb_constant *c = device->constants;
    while (c && !computes(c, p, n)) c = c->next;
    if (!c) c = new_constant(device, p, n);
    if (c) c->users++;
    return c;
}

static void let_go(fb_device *device, fb_constant *c) {
    if (--c->users) return;
    fb_constant **link = &device->constants;
    while (*link != c) link = &(*link)->next;
    *link = c->next;
    dismiss(c);
}

/* Its launches, run to their end over scratch of their own. */
static int run_once(const fb_plan *plan, const fb_constant *c) {
    static const int32_t counts[FB_COUNTS];
    const fb_backend *backend = plan->device->backend;
    void *self = plan->device->self, *program = NULL;
    const fb_run run = {.duty = plan->device->duty};
    fb_launch *launches = malloc(sizeof *launches * (size_t)c->program.n_nodes);
    fb_mem scratch = {0};
    uint64_t most = 0;
    int32_t n = 0;
    int code = launches ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    for (int32_t i = 0; i < c->program.n_nodes && code == FB_OK; i++) {
        if (!fb_plan_launch(plan, &c->program, &c->program.nodes[i], &launches[n])) continue;
        const uint64_t bytes = backend->scratch(self, &launches[n++]);
        if (bytes == UINT64_MAX) code = FB_E_DEVICE;
        else if (bytes > most) most = bytes;
    }
    if (code == FB_OK && most) code = backend->alloc(self, most, &scratch);
    if (code == FB_OK) code = backend->prepare(self, launches, n, &scratch, &program);
    if (code == FB_OK) code = backend->replay(self, program, counts, &run);
    if (code == FB_OK) code = backend->wait(self);
    if (program) backend->release(self, program);
    if (scratch.bytes) backend->free(self, &scratch);
    free(launches);
    return code;
}

/* What it is computed from is on the device for as long as that takes, unless it was there before. */
static int compute(const fb_plan *plan, fb_constant *c) {
    fb_buffer *lent[FB_MAX_OPERANDS];
    int n_lent = 0, code = c->computed ? FB_OK : fb_buffer_fill(c->buffer);
    for (int32_t t = 0; t < c->program.n_tensors && code == FB_OK && !c->computed; t++) {
        fb_buffer *source = c->program.tensors[t].buffer;
        if (fb_buffer_there(source)) continue;
        lent[n_lent++] = source;
        code = fb_buffer_fill(source);
    }
    if (code == FB_OK && !c->computed) code = run_once(plan, c);
    for (int i = 0; i < n_lent; i++) fb_buffer_drop(lent[i]);
    c->computed = code == FB_OK;
    return code;
}

/* ---- those of a plan ---- */

/* A product's frozen weight that its units do not read as it is. */
static fb_tensor to_decode(const fb_program *p, const fb_node *n) {
    if (n->op != FB_OP_LINEAR && n->op != FB_OP_LINEAR_DX) return FB_NONE;
    const fb_tensor_info *w = &p->tensors[n->v[2].tensor];
    const int floats = w->type == FB_F32 || w->type == FB_BF16;
    return w->place == FB_IN_BUFFER && w->buffer->host && w->base < 0 && !floats ? n->v[2].tensor : FB_NONE;
}

int fb_decode_weights(fb_program *p) {
    const int32_t count = p->n_nodes, n_tensors = p->n_tensors;
    fb_tensor *decoded = malloc(sizeof *decoded * ((size_t)n_tensors + 1));
    fb_node *nodes = p->nodes;
    if (!decoded) return fb_fail(FB_E_MEMORY, "out of memory while planning");
    for (int32_t t = 0; t < n_tensors; t++) decoded[t] = FB_NONE;
    p->nodes = NULL;
    p->n_nodes = p->room_nodes = 0;
    for (int32_t i = 0; i < count && !p->failed; i++) {
        const fb_tensor w = to_decode(p, &nodes[i]);
        if (w >= 0 && decoded[w] < 0) {
            const fb_tensor_info *t = &p->tensors[w];
            decoded[w] = fb_program_tensor(p, (fb_tensor_info){.type = FB_BF16, .rows = t->rows, .cols = t->cols,
                                                               .place = FB_IN_ARENA, .base = FB_NONE});
            fb_program_node(p, FB_OP_DECODE, 2, (fb_tensor[]){decoded[w], w});
        }
        fb_node *copy = fb_program_node(p, nodes[i].op, 0, NULL);
        *copy = nodes[i];
        if (w >= 0) copy->v[2].tensor = decoded[w];
    }
    free(nodes);
    free(decoded);
    return p->failed ? fb_fail(FB_E_MEMORY, "out of memory while planning") : FB_OK;
}

/* Whether a node writes one whole tensor of the arena that nothing else writes, from what never changes. */
static int is_constant(const fb_program *p, const fb_node *n, const char *fixed, const int32_t *writers) {
    const char *roles = fb_ops[n->op].roles;
    const fb_tensor_info *y = &p->tensors[n->v[0].tensor];
    int reads = 0;
    if (roles[0] != 'o' || y->place != FB_IN_ARENA || y->count || y->base >= 0 || y->keep || writers[n->v[0].tensor] != 1) return 0;
    for (int k = 1; roles[k]; k++) {
        if (n->v[k].tensor < 0) continue;
        if (roles[k] != 'i' || !fixed[n->v[k].tensor]) return 0;
        reads++;
    }
    return reads > 0;
}

static int fold(fb_plan *plan, char *fixed, int32_t *writers) {
    fb_program *p = &plan->program;
    int32_t kept = 0;
    for (fb_tensor t = 0; t < p->n_tensors; t++) {
        const fb_tensor_info *info = &p->tensors[t];
        fixed[t] = info->place == FB_IN_BUFFER && info->base < 0 && info->buffer->host;
        if (info->base >= 0) writers[info->base] = 2; /* slices stay in the arena, and so does what they are of */
    }
    for (int32_t i = 0; i < p->n_nodes; i++)
        for (int k = 0; k < FB_MAX_OPERANDS; k++)
            if (p->nodes[i].v[k].tensor >= 0 && fb_is_written(p->nodes[i].op, k)) writers[p->nodes[i].v[k].tensor]++;
    for (int32_t i = 0; i < p->n_nodes; i++) {
        const fb_node n = p->nodes[i];
        if (!is_constant(p, &n, fixed, writers)) {
            p->nodes[kept++] = n;
            continue;
        }
        fb_constant *c = constant_of(plan->device, p, &n);
        if (!c) return FB_E_MEMORY;
        plan->constants[plan->n_constants++] = (fb_folded){c, n.v[0].tensor, n.v[1].tensor};
        fb_tensor_info *y = &p->tensors[n.v[0].tensor];
        y->place = FB_IN_BUFFER;
        y->kind = FB_FROZEN;
        y->buffer = c->buffer;
        fb_buffer_hold(c->buffer);
        fixed[n.v[0].tensor] = 1;
    }
    p->n_nodes = kept;
    return FB_OK;
}

int fb_fold_constants(fb_plan *plan) {
    const size_t n = (size_t)plan->program.n_tensors + 1;
    char *fixed = calloc(n, 1);
    int32_t *writers = calloc(n, sizeof *writers);
    plan->constants = malloc(sizeof *plan->constants * ((size_t)plan->program.n_nodes + 1));
    int code = fixed && writers && plan->constants ? fold(plan, fixed, writers)
                                                   : fb_fail(FB_E_MEMORY, "out of memory while planning");
    free(fixed);
    free(writers);
    return code;
}

int fb_compute_constants(const fb_plan *plan) {
    int code = FB_OK;
    for (int32_t i = 0; i < plan->n_constants && code == FB_OK; i++) code = compute(plan, plan->constants[i].constant);
    return code;
}

uint64_t fb_constant_bytes(const fb_plan *plan, int there) {
    uint64_t bytes = 0;
    for (int32_t i = 0; i < plan->n_constants; i++) {
        const fb_buffer *buffer = plan->constants[i].constant->buffer;
        if (!there) bytes += buffer->bytes;
        for (int64_t k = 0; there && k < buffer->n_parts; k++) bytes += buffer->parts[k].bytes;
    }
    return bytes;
}

void fb_release_constants(fb_plan *plan) {
    for (int32_t i = 0; i < plan->n_constants; i++) let_go(plan->device, plan->constants[i].constant);
    free(plan->constants);
    plan->constants = NULL;
    plan->n_constants = 0;
}
