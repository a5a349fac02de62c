/* graph.c - recording: tensors, nodes, and the shape of every op. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

/* ---- programs ---- */

static int grow(void **items, int32_t count, int32_t *room, size_t size) {
    if (count < *room) return 1;
    if (*room > INT32_MAX / 2) return 0;
    int32_t want = *room ? *room * 2 : 64;
    void *moved = realloc(*items, (size_t)want * size);
    if (!moved) return 0;
    *items = moved;
    *room = want;
    return 1;
}

fb_tensor fb_program_tensor(fb_program *p, fb_tensor_info info) {
    if (fb_tensor_bytes(&info) > FB_MOST_BYTES ||
        !grow((void **)&p->tensors, p->n_tensors, &p->room_tensors, sizeof *p->tensors)) {
        p->failed = 1;
        return FB_NONE;
    }
    p->tensors[p->n_tensors] = info;
    return p->n_tensors++;
}

fb_operand fb_whole(const fb_program *p, fb_tensor t) {
    if (t < 0) return (fb_operand){.tensor = FB_NONE};
    return (fb_operand){t, 0, p->tensors[t].rows, 0, p->tensors[t].cols};
}

fb_node *fb_program_node(fb_program *p, fb_op op, int n, const fb_tensor *operands) {
    if (p->failed || !grow((void **)&p->nodes, p->n_nodes, &p->room_nodes, sizeof *p->nodes)) {
        p->failed = 1;
        return &p->nowhere;
    }
    fb_node *node = &p->nodes[p->n_nodes++];
    memset(node, 0, sizeof *node);
    node->op = op;
    node->lora_a = node->lora_x = FB_NONE;
    node->attr.scale = 1.0f;
    for (int i = 0; i < FB_MAX_OPERANDS; i++) node->v[i] = fb_whole(p, i < n ? operands[i] : FB_NONE);
    return node;
}

void fb_program_hold(const fb_program *p) {
    for (int32_t i = 0; i < p->n_tensors; i++)
        if (p->tensors[i].buffer) fb_buffer_hold(p->tensors[i].buffer);
}

void fb_program_release(const fb_program *p) {
    for (int32_t i = 0; i < p->n_tensors; i++)
        if (p->tensors[i].buffer) fb_buffer_release(p->tensors[i].buffer);
}

void fb_program_free(fb_program *p) {
    free(p->tilings);
    free(p->tensors);
    free(p->nodes);
    memset(p, 0, sizeof *p);
}

uint64_t fb_tensor_bytes(const fb_tensor_info *t) { return fb_type_bytes(t->type, (int64_t)t->rows * t->cols); }

int fb_is_written(fb_op op, int operand) {
    const char *roles = fb_ops[op].roles;
    return operand < (int)strlen(roles) && roles[operand] != 'i';
}

/* ---- graphs ---- */

fb_graph *fb_graph_new(fb_device *device, int32_t tokens, int32_t trained, int32_t precision) {
    if (!device || device->closed || tokens < 1 || trained < 0 || (precision != FB_F32 && precision != FB_BF16)) {
        fb_fail(FB_E_ARGUMENT, "a graph needs an open device, at least one token and precision F32 or BF16");
        return NULL;
    }
    fb_graph *g = calloc(1, sizeof *g);
    if (!g) {
        fb_fail(FB_E_MEMORY, "out of memory");
        return NULL;
    }
    g->device = fb_device_hold(device);
    g->tokens = tokens;
    g->trained = trained;
    g->precision = precision;
    return g;
}

void fb_graph_free(fb_graph *g) {
    if (!g) return;
    fb_program_release(&g->program);
    fb_program_free(&g->program);
    fb_device_release(g->device);
    free(g->inputs);
    free(g);
}

static int32_t capacity(const fb_graph *g, int32_t rows) {
    return rows == FB_ROWS_TOKENS ? g->tokens : rows == FB_ROWS_TRAINED ? g->trained : rows;
}

static fb_tensor done(fb_graph *g, fb_tensor t) {
    return g->program.failed ? -fb_fail(FB_E_MEMORY, "a tensor is larger than the memory there is") : t;
}

fb_tensor fb_leaf(fb_graph *g, int kind, fb_buffer *buffer, uint64_t offset, int32_t type, int32_t rows, int32_t cols) {
    const fb_format *format = fb_format_get(type);
    if (!g || !buffer || !buffer->parts) return -fb_fail(FB_E_ARGUMENT, "a matrix needs a graph and an open buffer");
    if (!format) return -fb_fail(FB_E_ARGUMENT, "tensor type %d cannot be computed with", (int)type);
    if (kind < FB_FROZEN || kind > FB_STATE) return -fb_fail(FB_E_ARGUMENT, "there is no kind %d of matrix", kind);
    if (rows < 1 || cols < 1 || cols % format->block)
        return -fb_fail(FB_E_ARGUMENT, "a %s matrix of %d x %d has no whole blocks", format->name, (int)rows, (int)cols);
    if (kind == FB_PARAM && type != FB_F32) return -fb_fail(FB_E_ARGUMENT, "what trains must be F32");
    if (kind == FB_STATE && type != FB_F32 && type != FB_BF16) return -fb_fail(FB_E_ARGUMENT, "a cache must be F32 or BF16");
    if (kind != FB_FROZEN && buffer->host) return -fb_fail(FB_E_ARGUMENT, "memory of the caller is only read");
    if (offset % (type == FB_F32 ? 4 : format->block_bytes % 2 ? 1 : 2))
        return -fb_fail(FB_E_ARGUMENT, "a %s matrix cannot begin at byte %llu", format->name, (unsigned long long)offset);
    uint64_t bytes = fb_type_bytes(type, (int64_t)rows * cols);
    if (buffer->device != g->device || offset > buffer->bytes || bytes > buffer->bytes - offset)
        return -fb_fail(FB_E_ARGUMENT, "a %d x %d matrix does not lie inside its buffer", (int)rows, (int)cols);
    for (int64_t i = fb_buffer_part(buffer, offset) + 1; i < buffer->n_parts && buffer->starts[i] < offset + bytes; i++)
        if ((buffer->starts[i] - offset) % fb_type_bytes(type, cols))
            return -fb_fail(FB_E_ARGUMENT, "a row of a %d x %d matrix lies across two allocations", (int)rows, (int)cols);
    fb_tensor t = fb_program_tensor(&g->program, (fb_tensor_info){.type = type, .rows = rows, .cols = cols,
                                                            .place = FB_IN_BUFFER, .kind = kind, .base = FB_NONE,
                                                            .buffer = buffer, .offset = offset});
    if (t >= 0) fb_buffer_hold(buffer);
    return done(g, t);
}

fb_tensor fb_input(fb_graph *g, int32_t type, int32_t rows, int32_t cols) {
    int32_t most = g ? capacity(g, rows) : -1;
    if ((type != FB_I32 && type != FB_F32) || most < 0 || cols < 1)
        return -fb_fail(FB_E_ARGUMENT, "an input is I32 or F32 with a positive shape");
    fb_tensor *inputs = realloc(g->inputs, sizeof *inputs * (size_t)(g->n_inputs + 1));
    if (!inputs) return -fb_fail(FB_E_MEMORY, "out of memory");
    g->inputs = inputs;
    fb_tensor t = fb_program_tensor(&g->program, (fb_tensor_info){.type = type, .rows = most, .cols = cols,
                                                                   .count = rows < 0 ? -rows : FB_COUNT_NONE, .base = FB_NONE,
                                                                   .place = FB_IN_INPUTS, .offset = g->input_bytes});
    if (t < 0 || g->input_bytes > FB_MOST_BYTES) return -fb_fail(FB_E_MEMORY, "inputs larger than any memory");
    g->input_bytes += (fb_tensor_bytes(&g->program.tensors[t]) + 255) / 256 * 256;
    g->inputs[g->n_inputs++] = t;
    return t;
}

void fb_mark(fb_graph *g) {
    if (g) g->block++;
}

int fb_keep(fb_graph *g, fb_tensor t) {
    if (!g || t < 0 || t >= g->program.n_tensors) return fb_fail(FB_E_ARGUMENT, "no such tensor to keep");
    g->program.tensors[t].keep = 1;
    return FB_OK;
}

/* ---- ops: each checks its operands, names its output's shape, and adds one node ---- */

/* NULL, with the failure told, where t is no tensor of g, or none of what the op can compute with. */
static const fb_tensor_info *get(fb_graph *g, fb_tensor t, const char *what) {
    if (g && t >= 0 && t < g->program.n_tensors) return &g->program.tensors[t];
    fb_fail(FB_E_ARGUMENT, "%s is no tensor of this graph", what);
    return NULL;
}

static const fb_tensor_info *only(const fb_tensor_info *t, int fits, const char *what, const char *must_be) {
    if (!t || fits) return t;
    fb_fail(FB_E_ARGUMENT, "%s must be %s", what, must_be);
    return NULL;
}

static const fb_tensor_info *get_act(fb_graph *g, fb_tensor tensor, const char *what) {
    const fb_tensor_info *t = get(g, tensor, what);
    return only(t, t && (t->type == FB_F32 || t->type == FB_BF16), what, "F32 or BF16");
}

static const fb_tensor_info *get_weight(fb_graph *g, fb_tensor tensor, const char *what) {
    const fb_tensor_info *t = get(g, tensor, what);
    return only(t, t && t->type != FB_I32, what, "of numbers, not I32");
}

static const fb_tensor_info *get_f32(fb_graph *g, fb_tensor tensor, const char *what) {
    const fb_tensor_info *t = get(g, tensor, what);
    return only(t, t && t->type == FB_F32, what, "F32");
}

static const fb_tensor_info *get_ints(fb_graph *g, fb_tensor tensor, const char *what, int32_t cols) {
    const fb_tensor_info *t = get(g, tensor, what);
    return only(t, t && t->type == FB_I32 && t->cols == cols, what, cols == 1 ? "an I32 column" : "two I32 columns");
}

/* A fresh output with the rows of `like`. */
static fb_tensor output(fb_graph *g, fb_tensor like, int32_t cols, int32_t type) {
    fb_tensor_info from = g->program.tensors[like];
    return fb_program_tensor(&g->program, (fb_tensor_info){.type = type, .rows = from.rows, .cols = cols,
                                                            .count = from.count, .first = from.first,
                                                            .place = FB_IN_ARENA, .base = FB_NONE});
}

static fb_node *record(fb_graph *g, fb_op op, int n, const fb_tensor *operands) {
    fb_node *node = fb_program_node(&g->program, op, n, operands);
    node->block = g->block;
    return node;
}

/* A matrix of a fixed number of rows goes with a full feed. */
static int same_rows(const fb_tensor_info *a, const fb_tensor_info *b) {
    return a->rows == b->rows && (a->count == b->count || !a->count || !b->count);
}

#define REQUIRE(condition, ...)                                        \
    do {                                                               \
        if (!(condition)) return -fb_fail(FB_E_ARGUMENT, __VA_ARGS__); \
    } while (0)

fb_tensor fb_embed(fb_graph *g, fb_tensor weight, fb_tensor ids, float scale, int32_t stride, int32_t part) {
    const fb_tensor_info *w = get_weight(g, weight, "the embedding"), *i = get_ints(g, ids, "ids", 1);
    if (!w || !i) return -FB_E_ARGUMENT;
    REQUIRE(stride > 0 && part >= 0 && part < stride && w->rows % stride == 0, "an embedding of %d rows in parts of %d",
            (int)w->rows, (int)stride);
    fb_tensor y = output(g, ids, w->cols, FB_F32);
    fb_attr *attr = &record(g, FB_OP_EMBED, 3, (fb_tensor[]){y, weight, ids})->attr;
    attr->scale = scale, attr->stride = stride, attr->first = -part;
    return done(g, y);
}

fb_tensor fb_rms_norm(fb_graph *g, fb_tensor x, fb_tensor weight, float eps) {
    const fb_tensor_info *a = get_act(g, x, "x"), *w = get_f32(g, weight, "the norm's weight");
    if (!a || !w) return -FB_E_ARGUMENT;
    REQUIRE(w->rows == 1 && a->cols % w->cols == 0,
            "a norm over groups of %d does not divide rows of %d", (int)w->cols, (int)a->cols);
    fb_tensor y = output(g, x, a->cols, g->precision);
    record(g, FB_OP_RMS_NORM, 3, (fb_tensor[]){y, x, weight})->attr.eps = eps;
    return done(g, y);
}

/* x as a pair's first matrix sees it; x itself where nothing is dropped. The salt is the op's place in the recording. */
static fb_tensor dropped(fb_graph *g, fb_tensor x, fb_lora lora) {
    if (!(lora.dropout > 0)) return x;
    const fb_tensor_info *a = get_act(g, x, "x"), *k = get_ints(g, lora.keys, "dropout's keys", 1);
    if (!a || !k) return -FB_E_ARGUMENT;
    REQUIRE(lora.dropout < 1 && same_rows(a, k), "dropout takes a share below 1 and a key a row");
    fb_tensor y = output(g, x, a->cols, a->type);
    fb_attr *attr = &record(g, FB_OP_DROPOUT, 3, (fb_tensor[]){y, x, lora.keys})->attr;
    attr->scale = 1 / (1 - lora.dropout);
    attr->threshold = (uint32_t)((double)lora.dropout * 4294967296.0);
    attr->salt = (uint32_t)g->program.n_nodes;
    return done(g, y);
}

/* The layer of this block that computed the same x a^T, with the same elements dropped, as another one of rows of the same
 * matrix does; NULL: there is none. */
static const fb_node *same_pair(const fb_graph *g, fb_tensor x, fb_lora lora) {
    for (int32_t i = g->program.n_nodes - 1; i >= 0 && g->program.nodes[i].block == g->block && lora.a >= 0; i--) {
        const fb_node *n = &g->program.nodes[i];
        if (n->op == FB_OP_LINEAR && n->lora_a == lora.a && n->v[1].tensor == x && n->lora_scale == lora.scale &&
            (n->lora_x >= 0) == (lora.dropout > 0))
            return n;
    }
    return NULL;
}

static fb_tensor linear(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, fb_tensor residual,
                        int32_t type) {
    const fb_tensor_info *a = get_act(g, x, "x"), *w = get_weight(g, weight, "the weight");
    if (!a || !w) return -FB_E_ARGUMENT;
    REQUIRE(a->cols == w->cols, "a product of rows of %d with a weight of %d x %d", (int)a->cols, (int)w->rows,
            (int)w->cols);
    int32_t outputs = w->rows, inputs = w->cols;
    if (bias >= 0) {
        const fb_tensor_info *b = get_f32(g, bias, "the bias");
        if (!b) return -FB_E_ARGUMENT;
        REQUIRE(b->rows == 1 && b->cols == outputs, "a bias must be %d F32", (int)outputs);
    }
    if (residual >= 0) {
        const fb_tensor_info *r = get_act(g, residual, "the residual");
        if (!r) return -FB_E_ARGUMENT;
        REQUIRE(r->cols == outputs && same_rows(r, a), "a residual must have the output's shape");
    }
    fb_tensor u = FB_NONE, seen = x;
    const fb_node *before = same_pair(g, x, lora);
    if (lora.a >= 0 || lora.b >= 0) {
        const fb_tensor_info *la = get_f32(g, lora.a, "lora a"), *lb = get_f32(g, lora.b, "lora b");
        if (!la || !lb) return -FB_E_ARGUMENT;
        REQUIRE(la->cols == inputs && lb->rows == outputs && la->rows == lb->cols,
                "a LoRA pair of (%d, %d) and (%d, %d) beside a weight of %d x %d", (int)la->rows, (int)la->cols,
                (int)lb->rows, (int)lb->cols, (int)outputs, (int)inputs);
        int32_t rank = la->rows;
        if (before) {
            u = before->v[4].tensor;
            seen = before->lora_x < 0 ? x : before->lora_x;
        } else {
            seen = dropped(g, x, lora);
            if (seen < 0) return seen;
            u = output(g, x, rank, FB_F32);
            record(g, FB_OP_LINEAR, 3, (fb_tensor[]){u, seen, lora.a})->attr.scale = lora.scale;
        }
    }
    fb_tensor y = output(g, x, outputs, type);
    fb_node *node = record(g, FB_OP_LINEAR, 7,
                           (fb_tensor[]){y, x, weight, bias, u, u < 0 ? FB_NONE : lora.b, residual});
    node->lora_a = u < 0 ? FB_NONE : lora.a;
    node->lora_x = seen == x ? FB_NONE : seen;
    node->lora_scale = lora.scale;
    return done(g, y);
}

fb_tensor fb_linear(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, fb_tensor residual) {
    return linear(g, x, weight, bias, lora, residual, residual >= 0 ? FB_F32 : g->precision);
}

fb_tensor fb_rope_table(fb_graph *g, fb_tensor positions, fb_tensor inv_freq, float magnitude) {
    const fb_tensor_info *p = get_ints(g, positions, "positions", 1), *f = get_f32(g, inv_freq, "inv_freq");
    if (!p || !f) return -FB_E_ARGUMENT;
    REQUIRE(f->rows == 1 && f->cols <= INT32_MAX / 2, "a RoPE table needs a row of frequencies");
    fb_tensor y = output(g, positions, f->cols * 2, FB_F32);
    record(g, FB_OP_ROPE_TABLE, 3, (fb_tensor[]){y, positions, inv_freq})->attr.scale = magnitude;
    return done(g, y);
}

fb_tensor fb_rope(fb_graph *g, fb_tensor x, fb_tensor table, int32_t head_dim, int layout) {
    const fb_tensor_info *a = get_act(g, x, "x"), *t = get_f32(g, table, "the RoPE table");
    if (!a || !t) return -FB_E_ARGUMENT;
    REQUIRE(layout == FB_ROPE_PAIRS || layout == FB_ROPE_HALVES, "there is no layout %d of RoPE", layout);
    REQUIRE(head_dim > 0 && a->cols % head_dim == 0 && t->cols % 2 == 0 && t->cols <= head_dim && same_rows(a, t),
            "a RoPE table of %d columns over heads of %d in rows of %d", (int)t->cols, (int)head_dim, (int)a->cols);
    fb_tensor y = output(g, x, a->cols, a->type);
    fb_node *node = record(g, FB_OP_ROPE, 3, (fb_tensor[]){y, x, table});
    node->attr.head_dim = head_dim;
    node->attr.layout = layout;
    return done(g, y);
}

fb_tensor fb_attention(fb_graph *g, fb_tensor q, fb_tensor k, fb_tensor v, fb_tensor range, fb_attention_shape s) {
    const fb_tensor_info *tq = get_act(g, q, "q"), *tk = get_act(g, k, "k"), *tv = get_act(g, v, "v");
    const fb_tensor_info *tr = get_ints(g, range, "the range of keys", 2);
    if (!tq || !tk || !tv || !tr) return -FB_E_ARGUMENT;
    REQUIRE(s.n_head > 0 && s.n_head <= INT32_MAX / 2 && s.n_kv_head > 0 && s.n_head % s.n_kv_head == 0, "%d heads over %d key heads",
            (int)s.n_head, (int)s.n_kv_head);
    REQUIRE(s.head_dim > 0 && tq->cols == (int64_t)s.n_head * s.head_dim &&
                tk->cols == (int64_t)s.n_kv_head * s.head_dim && tv->cols == tk->cols && same_rows(tk, tv) &&
                same_rows(tq, tr),
            "attention's operands do not fit %d heads of %d", (int)s.n_head, (int)s.head_dim);
    fb_tensor y = output(g, q, tq->cols, g->precision);
    fb_tensor stats = output(g, q, 2 * s.n_head, FB_F32);
    record(g, FB_OP_ATTENTION, 6, (fb_tensor[]){y, stats, q, k, v, range})->attr.attention = s;
    return done(g, y);
}

fb_tensor fb_append(fb_graph *g, fb_tensor cache, fb_tensor x, fb_tensor slots) {
    const fb_tensor_info *c = get_act(g, cache, "the cache"), *a = get_act(g, x, "x"), *s = get_ints(g, slots, "slots", 1);
    if (!c || !a || !s) return -FB_E_ARGUMENT;
    REQUIRE(c->place == FB_IN_BUFFER && c->kind == FB_STATE && c->cols == a->cols && same_rows(a, s),
            "appending rows of %d to a cache of %d", (int)a->cols, (int)c->cols);
    record(g, FB_OP_APPEND, 3, (fb_tensor[]){cache, x, slots});
    return done(g, cache);
}

fb_tensor fb_conv(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_tensor range) {
    const fb_tensor_info *a = get_act(g, x, "x"), *w = get_f32(g, weight, "the convolution's weight");
    const fb_tensor_info *b = bias < 0 ? NULL : get_f32(g, bias, "the bias"), *r = get_ints(g, range, "the range of keys", 2);
    if (!a || !w || !r || (bias >= 0 && !b)) return -FB_E_ARGUMENT;
    REQUIRE(w->rows == a->cols && w->cols <= FB_MOST_TAPS && (!b || (b->rows == 1 && b->cols == a->cols)),
            "a convolution of %d columns with a weight of %d x %d", (int)a->cols, (int)w->rows, (int)w->cols);
    fb_tensor y = output(g, range, a->cols, g->precision);
    record(g, FB_OP_CONV, 5, (fb_tensor[]){y, x, weight, bias, range});
    return done(g, y);
}

fb_tensor fb_delta_gates(fb_graph *g, fb_tensor b, fb_tensor a, fb_tensor rate, fb_tensor range) {
    const fb_tensor_info *tb = get_act(g, b, "b"), *ta = get_act(g, a, "a"), *tr = get_f32(g, rate, "the rates");
    const fb_tensor_info *seen = get_ints(g, range, "the range of keys", 2);
    if (!tb || !ta || !tr || !seen) return -FB_E_ARGUMENT;
    REQUIRE(tb->cols == ta->cols && tr->rows == 1 && tr->cols == ta->cols && same_rows(tb, ta) && same_rows(tb, seen) &&
                tb->cols < INT32_MAX / 4, "gates of %d, %d and %d heads", (int)tb->cols, (int)ta->cols, (int)tr->cols);
    fb_tensor y = output(g, b, 4 * tb->cols, FB_F32);
    record(g, FB_OP_DELTA_GATES, 5, (fb_tensor[]){y, b, a, rate, range});
    return done(g, y);
}

fb_tensor fb_delta(fb_graph *g, fb_tensor q, fb_tensor k, fb_tensor v, fb_tensor gates, int32_t key_heads, fb_tensor cache,
                   fb_tensor at) {
    const fb_tensor_info *tq = get_act(g, q, "q"), *tk = get_act(g, k, "k"), *tv = get_act(g, v, "v");
    const fb_tensor_info *tg = get_f32(g, gates, "the gates");
    const fb_tensor_info *tc = cache < 0 ? NULL : get_f32(g, cache, "the cache"), *ta = cache < 0 ? NULL : get_ints(g, at, "at", 2);
    if (!tq || !tk || !tv || !tg || (cache >= 0 && (!tc || !ta))) return -FB_E_ARGUMENT;
    int32_t heads = tg->cols / 4;
    REQUIRE(key_heads > 0 && heads > 0 && heads % key_heads == 0 && tq->cols % key_heads == 0 && tk->cols == tq->cols &&
                tv->cols % heads == 0 && same_rows(tq, tk) && same_rows(tq, tv) && same_rows(tq, tg),
            "a delta rule of %d value heads over %d key heads of %d columns", (int)heads, (int)key_heads, (int)tq->cols);
    int64_t state = (int64_t)tv->cols * (tq->cols / key_heads);
    REQUIRE(state <= INT32_MAX && tq->cols / key_heads <= 256, "a state of %lld numbers", (long long)state);
    REQUIRE(!tc || (tc->place == FB_IN_BUFFER && tc->kind == FB_STATE && tc->cols == state && same_rows(ta, tq)),
            "a cache of states of %lld", (long long)state);
    fb_tensor y = output(g, q, tv->cols, g->precision);
    fb_tensor states = fb_program_tensor(&g->program, (fb_tensor_info){
        .type = FB_F32, .rows = (g->program.tensors[q].rows + FB_DELTA_CHUNK - 1) / FB_DELTA_CHUNK, .cols = (int32_t)state,
        .place = FB_IN_ARENA, .base = FB_NONE});
    record(g, FB_OP_DELTA, 8, (fb_tensor[]){y, states, q, k, v, gates, cache, cache < 0 ? FB_NONE : at})->attr.key_heads = key_heads;
    return done(g, y);
}

fb_tensor fb_part(fb_graph *g, fb_tensor x, int32_t head_dim, int32_t first, int32_t width) {
    const fb_tensor_info *a = get_act(g, x, "x");
    if (!a) return -FB_E_ARGUMENT;
    REQUIRE(head_dim > 0 && first >= 0 && width > 0 && width <= head_dim - first && a->cols % head_dim == 0,
            "columns %d to %d of heads of %d in rows of %d", (int)first, (int)(first + width), (int)head_dim, (int)a->cols);
    fb_tensor y = output(g, x, a->cols / head_dim * width, a->type);
    fb_attr *attr = &record(g, FB_OP_PART, 2, (fb_tensor[]){y, x})->attr;
    attr->head_dim = head_dim, attr->first = first, attr->width = width;
    return done(g, y);
}

fb_tensor fb_glu(fb_graph *g, fb_tensor gate, fb_tensor up, int kind) {
    const fb_tensor_info *a = get_act(g, gate, "gate"), *b = get_act(g, up, "up");
    if (!a || !b) return -FB_E_ARGUMENT;
    REQUIRE(kind >= FB_SILU && kind <= FB_SIGMOID, "there is no kind %d of gate", kind);
    REQUIRE(a->cols == b->cols && same_rows(a, b), "gate and up differ in shape");
    fb_tensor y = output(g, gate, a->cols, g->precision);
    record(g, FB_OP_GLU, 3, (fb_tensor[]){y, gate, up})->attr.kind = kind;
    return done(g, y);
}

fb_tensor fb_add(fb_graph *g, fb_tensor a, fb_tensor b) {
    const fb_tensor_info *x = get_act(g, a, "a"), *y = get_act(g, b, "b");
    if (!x || !y) return -FB_E_ARGUMENT;
    REQUIRE(x->cols == y->cols && same_rows(x, y), "adding tensors of different shapes");
    fb_tensor sum = output(g, a, x->cols, x->type == FB_F32 ? FB_F32 : y->type);
    record(g, FB_OP_ADD, 3, (fb_tensor[]){sum, a, b});
    return done(g, sum);
}

fb_tensor fb_scale(fb_graph *g, fb_tensor x, float scale) {
    const fb_tensor_info *a = get_act(g, x, "x");
    if (!a) return -FB_E_ARGUMENT;
    fb_tensor y = output(g, x, a->cols, a->type);
    record(g, FB_OP_SCALE, 2, (fb_tensor[]){y, x})->attr.scale = scale;
    return done(g, y);
}

fb_tensor fb_softcap(fb_graph *g, fb_tensor x, float cap) {
    const fb_tensor_info *a = get_act(g, x, "x");
    if (!a) return -FB_E_ARGUMENT;
    REQUIRE(cap > 0, "a soft-cap must be positive");
    fb_tensor y = output(g, x, a->cols, a->type);
    record(g, FB_OP_SOFTCAP, 2, (fb_tensor[]){y, x})->attr.softcap = cap;
    return done(g, y);
}

/* ---- a mixture of experts ---- */

int fb_route(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, int32_t used, fb_tensor load,
             fb_routing *routing) {
    fb_tensor logits = linear(g, x, weight, bias, lora, FB_NONE, FB_F32);
    if (logits < 0) return -logits;
    const fb_tensor_info t = g->program.tensors[logits], *l = load < 0 ? NULL : get_f32(g, load, "the load");
    const int64_t cols = t.cols + 1 + (int64_t)t.rows * used;
    if (used < 1 || used > t.cols || cols > INT32_MAX || (load >= 0 && (!l || l->kind != FB_STATE || l->cols != t.cols)))
        return fb_fail(FB_E_ARGUMENT, "%d of %d experts for each token", (int)used, (int)t.cols);
    fb_tensor weights = output(g, logits, used, FB_F32), chosen = output(g, logits, used, FB_I32);
    fb_tensor order = fb_program_tensor(&g->program, (fb_tensor_info){.type = FB_I32, .rows = 1, .cols = (int32_t)cols,
                                                                       .place = FB_IN_ARENA, .base = FB_NONE});
    record(g, FB_OP_ROUTE, 3, (fb_tensor[]){weights, chosen, logits});
    record(g, FB_OP_ORDER, 3, (fb_tensor[]){order, load, chosen})->attr.experts = t.cols;
    *routing = (fb_routing){weights, order, t.cols, used};
    return done(g, order) < 0 ? FB_E_MEMORY : FB_OK;
}

fb_tensor fb_experts(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, fb_routing to) {
    const fb_tensor_info *a = get_act(g, x, "x"), *w = get_weight(g, weight, "the experts"), *o = get(g, to.order, "the order");
    if (!a || !w || !o) return -FB_E_ARGUMENT;
    REQUIRE(to.used > 0 && to.experts > 0 && w->rows % to.experts == 0 && (a->cols == w->cols || a->cols == (int64_t)w->cols * to.used) &&
                o->cols == to.experts + 1 + (int64_t)a->rows * to.used,
            "rows of %d through %d of %d experts of %d x %d", (int)a->cols, (int)to.used, (int)to.experts, (int)w->rows, (int)w->cols);
    const int32_t outputs = w->rows / to.experts, inputs = w->cols;
    REQUIRE((int64_t)outputs * to.used <= INT32_MAX, "%d experts of %d rows", (int)to.used, (int)outputs);
    if (bias >= 0) {
        const fb_tensor_info *b = get_f32(g, bias, "the bias");
        if (!b) return -FB_E_ARGUMENT;
        REQUIRE(b->rows == to.experts && b->cols == outputs, "a bias must be %d x %d F32", (int)to.experts, (int)outputs);
    }
    fb_tensor u = FB_NONE, seen = x;
    if (lora.a >= 0 || lora.b >= 0) {
        const fb_tensor_info *la = get_f32(g, lora.a, "lora a"), *lb = get_f32(g, lora.b, "lora b");
        if (!la || !lb) return -FB_E_ARGUMENT;
        REQUIRE(la->cols == inputs && lb->rows == w->rows && la->rows == (int64_t)lb->cols * to.experts,
                "a LoRA pair of (%d, %d) and (%d, %d) beside %d experts of %d x %d", (int)la->rows, (int)la->cols, (int)lb->rows,
                (int)lb->cols, (int)to.experts, (int)outputs, (int)inputs);
        const int32_t rank = lb->cols;
        seen = dropped(g, x, lora);
        if (seen < 0) return seen;
        u = output(g, x, rank * to.used, FB_F32);
        fb_attr *attr = &record(g, FB_OP_EXPERTS, 4, (fb_tensor[]){u, seen, lora.a, to.order})->attr;
        attr->scale = lora.scale, attr->slots = to.used;
    }
    fb_tensor y = output(g, x, outputs * to.used, g->precision);
    fb_node *node = record(g, FB_OP_EXPERTS, 7, (fb_tensor[]){y, x, weight, to.order, bias, u, u < 0 ? FB_NONE : lora.b});
    node->attr.slots = to.used;
    node->lora_a = u < 0 ? FB_NONE : lora.a;
    node->lora_x = seen == x ? FB_NONE : seen;
    node->lora_scale = lora.scale;
    return done(g, y);
}

fb_tensor fb_combine(fb_graph *g, fb_tensor x, fb_routing to, fb_tensor residual) {
    const fb_tensor_info *a = get_act(g, x, "x"), *w = get_f32(g, to.weights, "weights"), *r = get_act(g, residual, "the residual");
    if (!a || !w || !r) return -FB_E_ARGUMENT;
    REQUIRE(w->cols == to.used && a->cols == (int64_t)r->cols * to.used && same_rows(a, w) && same_rows(a, r),
            "a sum of %d slots of rows of %d to rows of %d", (int)to.used, (int)a->cols, (int)r->cols);
    fb_tensor y = output(g, residual, r->cols, FB_F32);
    record(g, FB_OP_COMBINE, 4, (fb_tensor[]){y, x, to.weights, residual});
    return done(g, y);
}

fb_tensor fb_gather(fb_graph *g, fb_tensor x, fb_tensor index) {
    const fb_tensor_info *a = get_act(g, x, "x"), *i = get_ints(g, index, "index", 1);
    if (!a || !i) return -FB_E_ARGUMENT;
    fb_tensor y = output(g, index, a->cols, a->type);
    record(g, FB_OP_GATHER, 3, (fb_tensor[]){y, x, index});
    return done(g, y);
}

fb_tensor fb_logits(fb_graph *g, fb_tensor x, fb_tensor weight, fb_lora lora, fb_tensor index, float softcap) {
    fb_tensor picked = fb_gather(g, x, index);
    fb_tensor y = picked < 0 ? picked : linear(g, picked, weight, FB_NONE, lora, FB_NONE, FB_F32);
    if (y >= 0 && softcap > 0) y = fb_softcap(g, y, softcap);
    if (y >= 0) fb_keep(g, y);
    return y;
}

fb_tensor fb_loss(fb_graph *g, fb_tensor x, fb_tensor weight, fb_lora lora, fb_tensor index, fb_tensor targets,
                  float softcap) {
    const fb_tensor_info *a = get_act(g, x, "x"), *w = get_weight(g, weight, "the head");
    const fb_tensor_info *i = get_ints(g, index, "index", 1), *t = get_ints(g, targets, "targets", 1);
    if (!a || !w || !i || !t) return -FB_E_ARGUMENT;
    REQUIRE(!g->has_loss, "a graph has one loss");
    REQUIRE(a->cols == w->cols, "a head of %d x %d over rows of %d", (int)w->rows, (int)w->cols, (int)a->cols);
    REQUIRE(g->trained > 0, "a loss needs room for a trained position");
    REQUIRE(i->count == FB_COUNT_TRAINED && t->count == FB_COUNT_TRAINED,
            "trained positions and targets have FB_ROWS_TRAINED rows");
    if (lora.a >= 0 || lora.b >= 0) {
        const fb_tensor_info *la = get_f32(g, lora.a, "lora a"), *lb = get_f32(g, lora.b, "lora b");
        if (!la || !lb) return -FB_E_ARGUMENT;
        REQUIRE(la->cols == w->cols && lb->rows == w->rows && la->rows == lb->cols, "a LoRA pair that does not fit the head");
    }
    fb_tensor seen = lora.a >= 0 ? dropped(g, x, lora) : x;
    if (seen < 0) return seen;
    fb_tensor nll = output(g, index, 1, FB_F32);
    if (nll < 0) return -fb_fail(FB_E_MEMORY, "out of memory while recording");
    g->program.tensors[nll].keep = 1;
    g->loss = (fb_loss_spec){x, seen, weight, index, targets, nll, lora, softcap};
    g->has_loss = 1;
    return nll;
}
