/* autodiff.c - from a recording to a program: the forward pass, the loss lowered to chunks, and the backward pass from
 * one table of rules (fb_ops, below). A block that is checkpointed is recorded a second time before its backward pass;
 * what nobody reads is dropped at the end, so rules need not care. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

typedef struct fb_autodiff {
    const fb_graph *g;
    const fb_plan_options *options;
    fb_program *p;
    int32_t n_recorded; /* tensors of the recording; the map and the flags cover these */
    fb_tensor *map;     /* recorded tensor -> its tensor in the program (a recomputed one in backward) */
    fb_tensor *grads;   /* recorded tensor -> its gradient so far, or FB_NONE */
    char *needs;        /* recorded tensor: does a gradient flow through it */
    int32_t *readers;   /* recorded tensor: nodes that read it */
} fb_autodiff;

/* ---- helpers of the rules; x, w ... are recorded tensors ---- */

static int needs(const fb_autodiff *d, fb_tensor x) { return x >= 0 && d->needs[x]; }
static int trains(const fb_autodiff *d, fb_tensor x) {
    const fb_tensor_info *t = x >= 0 ? &d->p->tensors[x] : NULL;
    return t && t->place == FB_IN_BUFFER && t->kind == FB_PARAM;
}
static fb_tensor now(const fb_autodiff *d, fb_tensor x) { return x < 0 ? FB_NONE : d->map[x]; }

static fb_tensor fresh(fb_autodiff *d, fb_tensor like, int32_t cols, int32_t type) {
    fb_tensor_info from = d->p->tensors[like];
    return fb_program_tensor(d->p, (fb_tensor_info){.type = type, .rows = from.rows, .cols = cols,
                                                     .count = from.count, .first = from.first,
                                                     .place = FB_IN_ARENA, .base = FB_NONE});
}

/* The gradient of x: F32 where it is a sum of several, else of x's own type. */
static fb_tensor fresh_grad(fb_autodiff *d, fb_tensor x) {
    const fb_tensor_info *t = &d->p->tensors[x];
    return fresh(d, x, t->cols, d->readers[x] > 1 ? FB_F32 : t->type);
}

static fb_tensor grad_of_param(fb_autodiff *d, fb_tensor w) {
    fb_tensor_info info = d->p->tensors[w];
    info.place = FB_IN_GRADS;
    return fb_program_tensor(d->p, info);
}

#define EMIT(op, ...) \
    fb_program_node(d->p, op, (int)(sizeof((fb_tensor[]){__VA_ARGS__}) / sizeof(fb_tensor)), (fb_tensor[]){__VA_ARGS__})

/* Adds a finished contribution to the gradient of x. */
static void contribute(fb_autodiff *d, fb_tensor x, fb_tensor part) {
    if (!needs(d, x)) return;
    if (d->grads[x] < 0) {
        d->grads[x] = part;
        return;
    }
    fb_tensor sum = fresh(d, x, d->p->tensors[x].cols, FB_F32);
    EMIT(FB_OP_ADD, sum, d->grads[x], part);
    d->grads[x] = sum;
}

/* ---- the rules ---- */

static void grad_embed(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor w = n->v[1].tensor, ids = n->v[2].tensor;
    if (trains(d, w)) EMIT(FB_OP_EMBED_DW, grad_of_param(d, w), dy[0], ids)->attr = n->attr;
}

static void grad_rms_norm(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor, w = n->v[2].tensor;
    if (trains(d, w)) EMIT(FB_OP_RMS_NORM_DW, grad_of_param(d, w), dy[0], now(d, x))->attr.eps = n->attr.eps;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    EMIT(FB_OP_RMS_NORM_DX, dx, dy[0], now(d, x), w, d->grads[x])->attr.eps = n->attr.eps;
    d->grads[x] = dx;
}

static void drop(fb_autodiff *d, fb_attr attr, fb_tensor y, fb_tensor x, fb_tensor keys, fb_tensor acc) {
    EMIT(FB_OP_DROPOUT, y, x, keys, acc)->attr = attr;
}

/* What is dropped of x forward is dropped of its gradient. */
static void grad_dropout(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    drop(d, n->attr, dx, dy[0], n->v[2].tensor, d->grads[x]);
    d->grads[x] = dx;
}

/* What a pair's first matrix saw: x, dropped anew rather than kept. */
static fb_tensor seen_again(fb_autodiff *d, fb_tensor x, fb_tensor seen) {
    if (seen < 0) return now(d, x);
    const fb_node *n = d->g->program.nodes;
    while (n->v[0].tensor != seen) n++;
    fb_tensor y = fresh(d, seen, d->p->tensors[seen].cols, d->p->tensors[seen].type);
    drop(d, n->attr, y, now(d, x), n->v[2].tensor, FB_NONE);
    return y;
}

/* y = x w^T + u b^T + bias + residual, u = lora_scale * x a^T, or of x with dropout, which has a gradient of its own */
static void grad_linear(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor, w = n->v[2].tensor, bias = n->v[3].tensor, u = n->v[4].tensor, b = n->v[5].tensor;
    fb_tensor residual = n->v[6].tensor, a = n->lora_a, seen = n->lora_x, du = FB_NONE;
    if (u >= 0 && (needs(d, x) || trains(d, a))) {
        du = fresh(d, u, d->p->tensors[u].cols, FB_F32);
        EMIT(FB_OP_LINEAR_DX, du, dy[0], b)->attr.scale = n->lora_scale;
    }
    if (u >= 0 && trains(d, b)) EMIT(FB_OP_LINEAR_DW, grad_of_param(d, b), dy[0], now(d, u));
    if (u >= 0 && trains(d, a)) EMIT(FB_OP_LINEAR_DW, grad_of_param(d, a), du, seen_again(d, x, seen));
    if (trains(d, w)) EMIT(FB_OP_LINEAR_DW, grad_of_param(d, w), dy[0], now(d, x))->attr.scale = n->attr.scale;
    if (trains(d, bias)) EMIT(FB_OP_BIAS_DB, grad_of_param(d, bias), dy[0]);
    if (needs(d, x)) {
        fb_tensor dx = fresh_grad(d, x);
        if (u >= 0 && seen >= 0) {
            fb_tensor dseen = fresh_grad(d, seen);
            EMIT(FB_OP_LINEAR_DX, dseen, du, a, FB_NONE, FB_NONE, d->grads[seen]);
            d->grads[seen] = dseen;
            du = FB_NONE;
        }
        EMIT(FB_OP_LINEAR_DX, dx, dy[0], w, du, du < 0 ? FB_NONE : a, d->grads[x])->attr.scale = n->attr.scale;
        d->grads[x] = dx;
    }
    if (residual >= 0) contribute(d, residual, dy[0]);
}

static void grad_rope(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    fb_node *back = EMIT(FB_OP_ROPE, dx, dy[0], now(d, n->v[2].tensor), d->grads[x]);
    back->attr = n->attr;
    back->attr.inverse = 1;
    d->grads[x] = dx;
}

static void grad_attention(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor o = n->v[0].tensor, stats = n->v[1].tensor, q = n->v[2].tensor, k = n->v[3].tensor, v = n->v[4].tensor;
    fb_tensor range = n->v[5].tensor, dq = fresh_grad(d, q);
    EMIT(FB_OP_ATTENTION_DQ, dq, now(d, stats), now(d, q), now(d, k), now(d, v), now(d, o), dy[0], range)->attr = n->attr;
    contribute(d, q, dq);
    if (!needs(d, k) && !needs(d, v)) return;
    fb_tensor dk = fresh_grad(d, k), dv = fresh_grad(d, v);
    EMIT(FB_OP_ATTENTION_DKV, dk, dv, now(d, q), now(d, k), now(d, v), now(d, stats), dy[0], range)->attr = n->attr;
    contribute(d, k, dk);
    contribute(d, v, dv);
}

static void grad_conv(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor, w = n->v[2].tensor, bias = n->v[3].tensor, range = n->v[4].tensor;
    if (trains(d, w)) EMIT(FB_OP_CONV_DW, grad_of_param(d, w), dy[0], now(d, x), range);
    if (trains(d, bias)) EMIT(FB_OP_BIAS_DB, grad_of_param(d, bias), dy[0]);
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    EMIT(FB_OP_CONV_DX, dx, dy[0], w, range);
    contribute(d, x, dx);
}

static void grad_delta_gates(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor b = n->v[1].tensor, a = n->v[2].tensor, rate = n->v[3].tensor, db = fresh_grad(d, b), da = fresh_grad(d, a);
    EMIT(FB_OP_DELTA_GATES_GRAD, db, da, dy[0], now(d, b), now(d, a), rate);
    contribute(d, b, db);
    contribute(d, a, da);
}

/* The gradient of the gates lies in them, behind what it is of. */
static void grad_delta(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor states = n->v[1].tensor, q = n->v[2].tensor, k = n->v[3].tensor, v = n->v[4].tensor, gates = n->v[5].tensor;
    fb_tensor dq = fresh_grad(d, q), dk = fresh_grad(d, k), dv = fresh_grad(d, v);
    EMIT(FB_OP_DELTA_GRAD, dq, dk, dv, now(d, gates), now(d, q), now(d, k), now(d, v), now(d, states), dy[0])->attr = n->attr;
    contribute(d, q, dq);
    contribute(d, k, dk);
    contribute(d, v, dv);
    contribute(d, gates, now(d, gates));
}

static void grad_part(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    fb_node *back = EMIT(FB_OP_PART, dx, dy[0], d->grads[x]);
    back->attr = n->attr;
    back->attr.inverse = 1;
    d->grads[x] = dx;
}

static void grad_glu(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor gate = n->v[1].tensor, up = n->v[2].tensor;
    fb_tensor dgate = fresh_grad(d, gate), dup = fresh_grad(d, up);
    EMIT(FB_OP_GLU_GRAD, dgate, dup, dy[0], now(d, gate), now(d, up))->attr = n->attr;
    contribute(d, gate, dgate);
    contribute(d, up, dup);
}

static void grad_add(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    contribute(d, n->v[1].tensor, dy[0]);
    contribute(d, n->v[2].tensor, dy[0]);
}

static void grad_scale(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    EMIT(FB_OP_SCALE, dx, dy[0], d->grads[x])->attr.scale = n->attr.scale;
    d->grads[x] = dx;
}

static void grad_softcap(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor y = n->v[0].tensor, x = n->v[1].tensor;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh_grad(d, x);
    EMIT(FB_OP_SOFTCAP_GRAD, dx, dy[0], now(d, y), d->grads[x])->attr.softcap = n->attr.softcap;
    d->grads[x] = dx;
}

static void grad_gather(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor;
    if (!needs(d, x)) return;
    fb_tensor dx = fresh(d, x, d->p->tensors[x].cols, FB_F32);
    EMIT(FB_OP_ZERO, dx);
    EMIT(FB_OP_SCATTER, dx, dy[0], n->v[2].tensor);
    contribute(d, x, dx);
}

static void grad_route(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor logits = n->v[2].tensor;
    if (!needs(d, logits)) return;
    fb_tensor dlogits = fresh_grad(d, logits);
    EMIT(FB_OP_ROUTE_GRAD, dlogits, dy[0], now(d, n->v[0].tensor), now(d, n->v[1].tensor));
    contribute(d, logits, dlogits);
}

static fb_node *experts(fb_autodiff *d, fb_op op, const fb_node *like, fb_tensor out, fb_tensor a, fb_tensor b) {
    fb_node *n = EMIT(op, out, a, b, now(d, like->v[3].tensor));
    n->attr.slots = like->attr.slots;
    return n;
}

/* The gradient of x, slot by slot; of x that all slots of a token read, their sum. */
static void experts_dx(fb_autodiff *d, const fb_node *n, fb_tensor x, fb_tensor w, fb_tensor dy, float scale, fb_tensor u, fb_tensor a) {
    const int32_t k = n->attr.slots, each = d->p->tensors[w].cols, by_token = d->p->tensors[x].cols == each && k > 1;
    fb_tensor dx = fresh_grad(d, x), slots = by_token ? fresh(d, x, each * k, d->p->tensors[x].type) : dx;
    fb_node *back = experts(d, FB_OP_EXPERTS_DX, n, slots, dy, w);
    back->attr.scale = scale;
    back->v[4] = fb_whole(d->p, u), back->v[5] = fb_whole(d->p, a);
    if (by_token) EMIT(FB_OP_COMBINE, dx, slots, FB_NONE, d->grads[x]);
    else back->v[6] = fb_whole(d->p, d->grads[x]);
    d->grads[x] = dx;
}

/* As of a linear layer. The op that made u is the pair's: what flows through it is found here. */
static void grad_experts(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor, w = n->v[2].tensor, u = n->v[5].tensor, b = n->v[6].tensor, a = n->lora_a, seen = n->lora_x, du = FB_NONE;
    if (u >= 0 && (needs(d, x) || trains(d, a))) {
        du = fresh(d, u, d->p->tensors[u].cols, FB_F32);
        experts(d, FB_OP_EXPERTS_DX, n, du, dy[0], b)->attr.scale = n->lora_scale;
    }
    if (u >= 0 && trains(d, b)) experts(d, FB_OP_EXPERTS_DW, n, grad_of_param(d, b), dy[0], now(d, u));
    if (u >= 0 && trains(d, a)) experts(d, FB_OP_EXPERTS_DW, n, grad_of_param(d, a), du, seen_again(d, x, seen));
    if (trains(d, w)) experts(d, FB_OP_EXPERTS_DW, n, grad_of_param(d, w), dy[0], now(d, x))->attr.scale = n->attr.scale;
    if (!needs(d, x)) return;
    if (u >= 0 && seen >= 0) {
        experts_dx(d, n, seen, a, du, 1, FB_NONE, FB_NONE);
        du = FB_NONE;
    }
    experts_dx(d, n, x, w, dy[0], n->attr.scale, du, du < 0 ? FB_NONE : a);
}

static void grad_combine(fb_autodiff *d, const fb_node *n, const fb_tensor *dy) {
    fb_tensor x = n->v[1].tensor, weights = n->v[2].tensor, dx = fresh_grad(d, x), dweights = fresh_grad(d, weights);
    EMIT(FB_OP_COMBINE_GRAD, dx, dweights, dy[0], now(d, x), now(d, weights));
    contribute(d, x, dx);
    contribute(d, weights, dweights);
    contribute(d, n->v[3].tensor, dy[0]);
}

/*                                name             roles         row axes      acc  rule */
const fb_op_info fb_ops[FB_OP_COUNT] = {
    [FB_OP_EMBED]         = {"embed",         "xii",        "mnm",        0, grad_embed},
    [FB_OP_DECODE]        = {"decode",        "oi",         "mm",         0, NULL},
    [FB_OP_RMS_NORM]      = {"rms_norm",      "oii",        "mm.",        0, grad_rms_norm},
    [FB_OP_RMS_NORM_DX]   = {"rms_norm_dx",   "oiiii",      "mmm.m",      4, NULL},
    [FB_OP_RMS_NORM_DW]   = {"rms_norm_dw",   "xii",        ".mm",        0, NULL},
    [FB_OP_LINEAR]        = {"linear",        "oiiiiii",    "mmn.mnm",    6, grad_linear},
    [FB_OP_LINEAR_DX]     = {"linear_dx",     "oiiiii",     "mmnm.m",     5, NULL},
    [FB_OP_LINEAR_DW]     = {"linear_dw",     "xii",        "nmm",        0, NULL},
    [FB_OP_BIAS_DB]       = {"bias_db",       "xi",         ".m",         0, NULL},
    [FB_OP_EMBED_DW]      = {"embed_dw",      "xii",        "nmm",        0, NULL},
    [FB_OP_ROPE_TABLE]    = {"rope_table",    "oii",        "mm.",        0, NULL},
    [FB_OP_ROPE]          = {"rope",          "oiii",       "mmmm",       3, grad_rope},
    [FB_OP_ATTENTION]     = {"attention",     "ooiiii",     "mmm..m",     0, grad_attention},
    [FB_OP_ATTENTION_DQ]  = {"attention_dq",  "oxiiiiii",   "mmm..mmm",   0, NULL},
    [FB_OP_ATTENTION_DKV] = {"attention_dkv", "ooiiiiii",   "nn.nn...",   0, NULL},
    [FB_OP_CONV]          = {"conv",          "oiiii",      "m...m",      0, grad_conv},
    [FB_OP_CONV_DX]       = {"conv_dx",       "oiii",       "n...",       0, NULL},
    [FB_OP_CONV_DW]       = {"conv_dw",       "xiii",       ".m.m",       0, NULL},
    [FB_OP_DELTA_GATES]   = {"delta_gates",   "oiiii",      "mmm.m",      0, grad_delta_gates},
    [FB_OP_DELTA_GATES_GRAD] = {"delta_gates_grad", "ooiiii", "mmmmm.", 0, NULL},
    [FB_OP_DELTA]         = {"delta",         "ooiiiixi",   "........",   0, grad_delta},
    [FB_OP_DELTA_GRAD]    = {"delta_grad",    "oooxiiiii",  ".........",  0, NULL},
    [FB_OP_PART]          = {"part",          "oii",        "mmm",        2, grad_part},
    [FB_OP_GLU]           = {"glu",           "oii",        "mmm",        0, grad_glu},
    [FB_OP_GLU_GRAD]      = {"glu_grad",      "ooiii",      "mmmmm",      0, NULL},
    [FB_OP_ADD]           = {"add",           "oii",        "mmm",        0, grad_add},
    [FB_OP_SCALE]         = {"scale",         "oii",        "mmm",        2, grad_scale},
    [FB_OP_SOFTCAP]       = {"softcap",       "oi",         "mm",         0, grad_softcap},
    [FB_OP_SOFTCAP_GRAD]  = {"softcap_grad",  "oiii",       "mmmm",       3, NULL},
    [FB_OP_DROPOUT]       = {"dropout",       "oiii",       "mmmm",       3, grad_dropout},
    [FB_OP_GATHER]        = {"gather",        "oii",        "m.m",        0, grad_gather},
    [FB_OP_SCATTER]       = {"scatter",       "xii",        ".mm",        0, NULL},
    [FB_OP_XENT]          = {"xent",          "oxi",        "mmm",        0, NULL},
    [FB_OP_APPEND]        = {"append",        "xii",        ".mm",        0, NULL},
    [FB_OP_ZERO]          = {"zero",          "o",          "m",          0, NULL},
    [FB_OP_ROUTE]         = {"route",         "ooi",        "mmm",        0, grad_route},
    [FB_OP_ROUTE_GRAD]    = {"route_grad",    "oiii",       "mmmm",       0, NULL},
    [FB_OP_ORDER]         = {"order",         "oxi",        "...",        0, NULL},
    [FB_OP_EXPERTS]       = {"experts",       "oiiiiii",    "mmn..m.",    0, grad_experts},
    [FB_OP_EXPERTS_DX]    = {"experts_dx",    "oiiiiii",    "mmn.m.m",    6, NULL},
    [FB_OP_EXPERTS_DW]    = {"experts_dw",    "xiii",       "nmm.",       0, NULL},
    [FB_OP_COMBINE]       = {"combine",       "oiii",       "mmmm",       3, grad_combine},
    [FB_OP_COMBINE_GRAD]  = {"combine_grad",  "ooiii",      "mmmmm",      0, NULL},
    [FB_OP_TALLY]         = {"tally",         "xi",         ".m",         0, NULL},
    [FB_OP_SUMSQ]         = {"sumsq",         "oi",         "..",         0, NULL},
    [FB_OP_NORM]          = {"norm",          "xii",        "...",        0, NULL},
    [FB_OP_ADAMW]         = {"adamw",         "xxxiii",     "......",     0, NULL},
    [FB_OP_SGD]           = {"sgd",           "xxiii",      ".....",      0, NULL},
};

/* ---- the loss ---- */

static fb_tensor rows_of(fb_autodiff *d, fb_tensor base, int32_t first, int32_t rows) {
    fb_tensor_info info = d->p->tensors[base];
    info.first += first;
    info.rows = rows;
    info.base = base;
    info.base_row = first;
    info.keep = 0;
    return fb_program_tensor(d->p, info);
}

/* Head and cross-entropy, a chunk of trained positions at a time; leaves the gradient of x in grads[x]. */
static void lower_loss(fb_autodiff *d) {
    const fb_loss_spec *loss = &d->g->loss;
    fb_tensor x = loss->x, seen = now(d, loss->seen), w = loss->weight, a = loss->lora.a, b = loss->lora.b;
    int32_t vocab = d->p->tensors[w].rows, width = d->p->tensors[w].cols, trained = d->g->trained;
    int32_t rank = a >= 0 ? d->p->tensors[a].rows : 0;
    int back = d->options->train && needs(d, loss->nll);
    const fb_device_info *limits = &d->g->device->info;
    uint64_t room = d->options->logits_bytes ? d->options->logits_bytes : (uint64_t)(d->options->checkpoint ? 64 : 160) << 20;
    /* A large card wants many rows at once: its weights are decoded anew for each chunk. */
    if (!d->options->logits_bytes && limits->own_memory && room < limits->memory_bytes / 64)
        room = limits->memory_bytes / 64;
    if (room > limits->max_binding_bytes) room = limits->max_binding_bytes;
    if (room > limits->max_allocation_bytes) room = limits->max_allocation_bytes;
    uint64_t fit = room / ((uint64_t)vocab * 4);
    int32_t chunk = fit < 1 ? 1 : fit > (uint64_t)trained ? trained : (int32_t)fit, chunks = (trained + chunk - 1) / chunk;
    chunk = (trained + chunks - 1) / chunks;
    fb_tensor dx = FB_NONE, dseen = FB_NONE;
    if (back && needs(d, x)) EMIT(FB_OP_ZERO, dx = fresh(d, x, width, FB_F32));
    if (back && needs(d, x) && seen != x) EMIT(FB_OP_ZERO, dseen = fresh(d, x, width, FB_F32));
    for (int32_t first = 0; first < trained; first += chunk) {
        int32_t rows = trained - first < chunk ? trained - first : chunk;
        fb_tensor index = rows_of(d, loss->index, first, rows), targets = rows_of(d, loss->targets, first, rows);
        fb_tensor nll = rows_of(d, loss->nll, first, rows);
        fb_tensor xs = fresh(d, index, width, d->p->tensors[x].type), u = FB_NONE, du = FB_NONE;
        EMIT(FB_OP_GATHER, xs, x, index);
        fb_tensor seens = xs;
        if (seen != x) EMIT(FB_OP_GATHER, seens = fresh(d, index, width, d->p->tensors[x].type), seen, index);
        if (a >= 0) {
            u = fresh(d, index, rank, FB_F32);
            EMIT(FB_OP_LINEAR, u, seens, a)->attr.scale = loss->lora.scale;
        }
        fb_tensor logits = fresh(d, index, vocab, FB_F32);
        EMIT(FB_OP_LINEAR, logits, xs, w, FB_NONE, u, b < 0 ? FB_NONE : b);
        fb_node *xent = EMIT(FB_OP_XENT, nll, logits, targets);
        xent->attr.softcap = loss->softcap;
        xent->attr.grad = back;
        if (!back) continue;
        if (a >= 0) {
            du = fresh(d, index, rank, FB_F32);
            EMIT(FB_OP_LINEAR_DX, du, logits, b)->attr.scale = loss->lora.scale;
        }
        if (trains(d, b)) EMIT(FB_OP_LINEAR_DW, grad_of_param(d, b), logits, u);
        if (trains(d, a)) EMIT(FB_OP_LINEAR_DW, grad_of_param(d, a), du, seens);
        if (trains(d, w)) EMIT(FB_OP_LINEAR_DW, grad_of_param(d, w), logits, xs);
        if (dx < 0) continue;
        if (dseen >= 0) {
            fb_tensor part = fresh(d, index, width, d->p->tensors[x].type);
            EMIT(FB_OP_LINEAR_DX, part, du, a);
            EMIT(FB_OP_SCATTER, dseen, part, index);
            du = FB_NONE;
        }
        fb_tensor dxs = fresh(d, index, width, d->p->tensors[x].type);
        EMIT(FB_OP_LINEAR_DX, dxs, logits, w, du, du < 0 ? FB_NONE : a);
        EMIT(FB_OP_SCATTER, dx, dxs, index);
    }
    if (d->options->train) {
        const fb_tensor_info record = {.type = FB_F32, .rows = 1, .cols = FB_RECORD, .place = FB_IN_RECORD, .base = FB_NONE};
        EMIT(FB_OP_TALLY, fb_program_tensor(d->p, record), loss->nll);
    }
    if (dx >= 0) d->grads[x] = dx;
    if (dseen >= 0) d->grads[loss->seen] = dseen;
}

/* ---- the program ---- */

static void find_what_needs_gradients(fb_autodiff *d) {
    for (int32_t i = 0; i < d->n_recorded; i++) d->needs[i] = (char)trains(d, i);
    for (int32_t i = 0; i < d->g->program.n_nodes; i++) {
        const fb_node *n = &d->g->program.nodes[i];
        int any = 0;
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            if (n->v[k].tensor < 0 || fb_is_written(n->op, k)) continue;
            any |= d->needs[n->v[k].tensor];
            d->readers[n->v[k].tensor]++;
        }
        if (n->op == FB_OP_EXPERTS && n->v[5].tensor >= 0 && n->lora_x < 0) d->readers[n->v[1].tensor]--; /* as below */
        if (n->op == FB_OP_LINEAR && n->v[4].tensor >= 0) {
            const int first = d->readers[n->v[4].tensor] == 1; /* of the layers that share a u */
            if (first && n->lora_x < 0) d->readers[n->v[1].tensor]--; /* its u read x: one gradient */
            if (!first && n->lora_x >= 0) d->readers[n->lora_x]++; /* another share of that gradient */
        }
        for (int k = 0; k < FB_MAX_OPERANDS; k++)
            if (n->v[k].tensor >= 0 && fb_is_written(n->op, k)) d->needs[n->v[k].tensor] |= (char)any;
    }
    const fb_loss_spec *loss = &d->g->loss;
    if (!d->g->has_loss) return;
    d->readers[loss->x]++;
    d->needs[loss->nll] = d->needs[loss->x] || trains(d, loss->weight) || trains(d, loss->lora.a) ||
                          trains(d, loss->lora.b);
}

static void copy_node(fb_autodiff *d, const fb_node *n, const fb_tensor *map) {
    fb_tensor operands[FB_MAX_OPERANDS];
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        fb_tensor t = n->v[k].tensor;
        operands[k] = t >= 0 ? map[t] : t;
    }
    fb_node *copy = fb_program_node(d->p, n->op, FB_MAX_OPERANDS, operands);
    copy->attr = n->attr;
    copy->lora_a = n->lora_a;
    copy->lora_x = n->lora_x;
    copy->lora_scale = n->lora_scale;
    copy->block = n->block;
}

/* Costs less to compute again than to keep: one pass over operands that backward needs anyway. Those of a rotation are
 * among them when they are a norm's result. (Dropout has its own way.) */
static int is_cheap(const fb_autodiff *d, const fb_node *n) {
    fb_tensor x = n->v[1].tensor;
    return n->op == FB_OP_RMS_NORM || n->op == FB_OP_GLU || (n->op == FB_OP_ROPE && d->map[x] != x);
}

/* Records nodes [first, end) again, with fresh tensors for what only this block reads: all, or those that are cheap. */
static void recompute(fb_autodiff *d, int32_t first, int32_t end, const int32_t *last_reader) {
    for (int32_t i = first; i < end; i++) {
        const fb_node *n = &d->g->program.nodes[i];
        int again = 0;
        if (!d->options->checkpoint && !is_cheap(d, n)) continue;
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            fb_tensor t = n->v[k].tensor;
            if (t < 0 || !fb_is_written(n->op, k) || d->p->tensors[t].place != FB_IN_ARENA) continue;
            if (last_reader[t] >= end || d->p->tensors[t].keep) continue;
            d->map[t] = fresh(d, t, d->p->tensors[t].cols, d->p->tensors[t].type);
            again = 1;
        }
        if (again) copy_node(d, n, d->map);
    }
}

/* Those of a node's outputs, at the places of these operands; returns whether there is one. */
static int gradients_of(const fb_autodiff *d, const fb_node *n, fb_tensor dy[FB_MAX_OPERANDS]) {
    int any = 0;
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        dy[k] = n->v[k].tensor >= 0 && fb_is_written(n->op, k) ? d->grads[n->v[k].tensor] : FB_NONE;
        any |= dy[k] >= 0;
    }
    return any;
}

static void backward(fb_autodiff *d) {
    const fb_program *f = &d->g->program;
    int32_t *last_reader = calloc((size_t)d->n_recorded + 1, sizeof *last_reader);
    if (!last_reader) {
        d->p->failed = 1;
        return;
    }
    for (int32_t i = 0; i < f->n_nodes; i++)
        for (int k = 0; k < FB_MAX_OPERANDS; k++)
            if (f->nodes[i].v[k].tensor >= 0) last_reader[f->nodes[i].v[k].tensor] = i;
    last_reader[d->g->loss.x] = last_reader[d->g->loss.seen] = f->n_nodes;
    for (int32_t end = f->n_nodes; end > 0;) {
        int32_t first = end - 1, block = f->nodes[end - 1].block;
        while (first > 0 && f->nodes[first - 1].block == block) first--;
        if (end < f->n_nodes) recompute(d, first, end, last_reader);
        for (int32_t i = end - 1; i >= first; i--) {
            const fb_node *n = &f->nodes[i];
            fb_tensor dy[FB_MAX_OPERANDS];
            if (gradients_of(d, n, dy) && fb_ops[n->op].grad) fb_ops[n->op].grad(d, n, dy);
        }
        end = first;
    }
    /* A trained tensor that was used as data: its gradient goes where gradients go. */
    for (fb_tensor t = 0; t < d->n_recorded; t++)
        if (trains(d, t) && d->grads[t] >= 0) {
            fb_tensor into = grad_of_param(d, t);
            EMIT(FB_OP_SCALE, into, d->grads[t], into);
        }
    free(last_reader);
}

/* Drops nodes whose results nobody reads. */
static int drop_unread(fb_program *p) {
    char *read = calloc((size_t)p->n_tensors + 1, 1);
    char *used = calloc((size_t)p->n_nodes + 1, 1);
    if (!read || !used) {
        free(read);
        free(used);
        return fb_fail(FB_E_MEMORY, "out of memory while planning");
    }
    for (int32_t i = p->n_nodes - 1; i >= 0; i--) {
        const fb_node *n = &p->nodes[i];
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            fb_tensor t = n->v[k].tensor;
            if (t < 0 || !fb_is_written(n->op, k)) continue;
            fb_tensor root = p->tensors[t].base >= 0 ? p->tensors[t].base : t;
            used[i] |= p->tensors[root].place != FB_IN_ARENA || p->tensors[root].keep || read[root];
        }
        if (!used[i]) continue;
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            fb_tensor t = n->v[k].tensor;
            if (t < 0) continue;
            /* Whatever is read and whatever is written twice must have been written before. */
            if (fb_ops[n->op].roles[k] != 'o') read[p->tensors[t].base >= 0 ? p->tensors[t].base : t] = 1;
        }
    }
    int32_t kept = 0;
    for (int32_t i = 0; i < p->n_nodes; i++)
        if (used[i]) p->nodes[kept++] = p->nodes[i];
    p->n_nodes = kept;
    free(read);
    free(used);
    return FB_OK;
}

static int touches(const fb_node *n, fb_tensor t) {
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (n->v[k].tensor == t) return 1;
    return 0;
}
static int writes(const fb_node *n, fb_tensor t) {
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (n->v[k].tensor == t && fb_is_written(n->op, k)) return 1;
    return 0;
}

/* Puts products that add to each other's sums next to each other, behind whatever else stands between them: what does not read a
 * sum need not wait for it, and a device may make one product of them. */
static void gather_sums(fb_program *p) {
    for (int32_t i = p->n_nodes - 2; i >= 0; i--) {
        const fb_node n = p->nodes[i];
        int32_t to = i + 1;
        if (n.op != FB_OP_LINEAR_DX) continue;
        while (to < p->n_nodes && !touches(&p->nodes[to], n.v[0].tensor)) to++;
        if (to == p->n_nodes || p->nodes[to].op != FB_OP_LINEAR_DX || p->nodes[to].v[5].tensor != n.v[0].tensor) continue;
        int free = 1; /* nothing between writes what it reads */
        for (int32_t j = i + 1; j < to; j++)
            for (int k = 1; k < FB_MAX_OPERANDS; k++)
                if (n.v[k].tensor >= 0) free &= !writes(&p->nodes[j], n.v[k].tensor);
        if (!free) continue;
        memmove(&p->nodes[i], &p->nodes[i + 1], (size_t)(to - i - 1) * sizeof n);
        p->nodes[to - 1] = n;
    }
}

int fb_build_program(const fb_graph *g, const fb_plan_options *options, fb_program *out) {
    memset(out, 0, sizeof *out);
    size_t n = (size_t)g->program.n_tensors + 1;
    fb_autodiff d = {.g = g, .options = options, .p = out, .n_recorded = g->program.n_tensors,
                     .map = malloc(n * sizeof(fb_tensor)), .grads = malloc(n * sizeof(fb_tensor)),
                     .needs = calloc(n, 1), .readers = calloc(n, sizeof(int32_t))};
    int code = FB_E_MEMORY;
    if (!d.map || !d.grads || !d.needs || !d.readers) goto done;
    for (int32_t i = 0; i < g->program.n_tensors; i++) {
        fb_program_tensor(out, g->program.tensors[i]);
        d.map[i] = i;
        d.grads[i] = FB_NONE;
    }
    if (out->failed) goto done;
    find_what_needs_gradients(&d);
    for (int32_t i = 0; i < g->program.n_nodes; i++) {
        const fb_node *node = &g->program.nodes[i];
        if (node->op == FB_OP_DROPOUT && !options->train) d.map[node->v[0].tensor] = node->v[1].tensor;
        else copy_node(&d, node, d.map);
    }
    if (g->has_loss) lower_loss(&d);
    if (g->has_loss && options->train) backward(&d);
    for (int32_t i = 0; i < out->n_nodes; i++) out->nodes[i].attr.rounded = g->precision == FB_BF16;
    code = out->failed ? FB_E_MEMORY : drop_unread(out);
    if (code == FB_OK) gather_sums(out);
done:
    if (code == FB_E_MEMORY) fb_fail(code, "out of memory while planning");
    free(d.map);
    free(d.grads);
    free(d.needs);
    free(d.readers);
    if (code) fb_program_free(out);
    return code;
}
