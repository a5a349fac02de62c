/* tiles.c - nodes whose operands span more than one launch may bind become several nodes over parts of them.
 *
 * Every operand is cut along its rows, and rows of operands run along named axes (fb_ops[].row_axes). The size of a
 * tile is the largest that fits every operand of its axis. A cut of "m" or of an output's own rows only lays work out;
 * a cut of "n" in linear_dx is a cut of the reduction, and its parts are summed in order in the F32 output. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

enum { UNIT = 32 /* cuts fall on multiples of the unit of decoding, where a tile is that large */ };

/* Whether axis 'n' is a column axis of that operand, which then is cut along its columns too. */
static const char *column_axes(fb_op op) {
    switch (op) {
    case FB_OP_LINEAR: return "n..n..n"; /* y, bias, acc */
    case FB_OP_LINEAR_DX: return ".n....";
    case FB_OP_LINEAR_DW: return ".n.";
    default: return "";
    }
}

/* Rows that stay together: those of an expert's matrix. */
static int32_t together(const fb_program *p, const fb_node *n, char axis) {
    const int dy = n->op != FB_OP_EXPERTS;
    if (axis != 'n' || (dy && n->op != FB_OP_EXPERTS_DX && n->op != FB_OP_EXPERTS_DW)) return 1;
    return p->tensors[n->v[dy].tensor].cols / n->attr.slots;
}

static uint64_t span(const fb_program *p, const fb_operand *v) {
    const fb_tensor_info *t = &p->tensors[v->tensor];
    return fb_type_bytes(t->type, (int64_t)v->rows * t->cols);
}

/* Rows of `axis` a tile may have; INT32_MAX where nothing needs to be cut, 0 where one row is too large. */
static int32_t tile_rows(const fb_program *p, const fb_node *n, char axis, uint64_t limit, int32_t *extent) {
    const char *axes = fb_ops[n->op].row_axes;
    int32_t tile = INT32_MAX;
    if (n->op == FB_OP_LINEAR_DX && axis == 'n' && p->max_reduction && p->tensors[n->v[2].tensor].rows > p->max_reduction)
        tile = p->max_reduction;
    for (int k = 0; axes[k]; k++) {
        if (n->v[k].tensor < 0 || axes[k] != axis) continue;
        *extent = n->v[k].rows;
        const fb_tensor_info *t = &p->tensors[n->v[k].tensor];
        if (span(p, &n->v[k]) <= limit) continue;
        uint64_t fit = limit / fb_type_bytes(t->type, t->cols);
        if (fit < (uint64_t)tile) tile = (int32_t)fit;
    }
    const int32_t whole = together(p, n, axis), unit = whole > 1 ? whole : tile > UNIT ? UNIT : 1;
    return tile < INT32_MAX ? tile / unit * unit : tile;
}

/* The first row after `row` that lies in another allocation of the device; INT32_MAX where there is none. */
static int32_t next_part(const fb_program *p, fb_tensor tensor, int32_t row) {
    const fb_tensor_info *t = &p->tensors[tensor];
    if (t->place == FB_IN_INPUTS || t->place == FB_IN_RECORD) return INT32_MAX;
    if (t->place == FB_IN_ARENA) {
        int32_t at = t->base >= 0 ? t->base_row + row : row, rows = t->base >= 0 ? p->tensors[t->base].part_rows : t->part_rows;
        return rows ? row + rows - at % rows : INT32_MAX;
    }
    uint64_t row_bytes = fb_type_bytes(t->type, t->cols);
    int64_t part = fb_buffer_part(t->buffer, t->offset + (uint64_t)row * row_bytes);
    uint64_t rows = part + 1 < t->buffer->n_parts ? (t->buffer->starts[part + 1] - t->offset) / row_bytes : INT32_MAX;
    return rows < INT32_MAX ? (int32_t)rows : INT32_MAX;
}

/* The same of all operands whose rows run along an axis. */
static int32_t next_cut(const fb_program *p, const fb_node *n, char axis, int32_t at) {
    const char *axes = fb_ops[n->op].row_axes;
    int32_t cut = INT32_MAX;
    for (int k = 0; axes[k]; k++) {
        if (n->v[k].tensor < 0 || axes[k] != axis) continue;
        int32_t next = next_part(p, n->v[k].tensor, n->v[k].row + at);
        if (next < INT32_MAX && next - n->v[k].row < cut) cut = next - n->v[k].row;
    }
    return cut;
}

/* The first operand, from 1 on, that is never cut and had to be; 0: none. */
static int out_of_reach(const fb_program *p, const fb_node *n, uint64_t limit) {
    const char *axes = fb_ops[n->op].row_axes;
    for (int k = 0; axes[k]; k++) {
        const fb_operand *v = &n->v[k];
        if (v->tensor < 0 || axes[k] != '.') continue;
        if (span(p, v) > limit || next_part(p, v->tensor, v->row) < v->row + v->rows) return k + 1;
    }
    return 0;
}

static void emit_tile(fb_program *p, const fb_node *whole, int32_t m, int32_t ms, int32_t n, int32_t ns) {
    const char *rows = fb_ops[whole->op].row_axes, *cols = column_axes(whole->op);
    fb_node *tile = fb_program_node(p, whole->op, 0, NULL);
    *tile = *whole;
    tile->tiled = 1;
    for (int k = 0; rows[k]; k++) {
        fb_operand *v = &tile->v[k];
        if (v->tensor < 0) continue;
        if (rows[k] == 'm') v->row = m, v->rows = ms;
        if (rows[k] == 'n') v->row = n, v->rows = ns;
        if (*cols && cols[k] == 'n') v->col = n, v->cols = ns;
    }
    switch (whole->op) {
    case FB_OP_EMBED: case FB_OP_EMBED_DW: case FB_OP_ATTENTION_DKV: case FB_OP_CONV_DX: tile->attr.first += n; break;
    case FB_OP_EXPERTS: case FB_OP_EXPERTS_DX: case FB_OP_EXPERTS_DW:
        tile->attr.first += n / together(p, whole, 'n'), tile->attr.token += m;
        break;
    case FB_OP_LINEAR_DX:
        if (n == 0) break;
        tile->v[3].tensor = tile->v[4].tensor = FB_NONE; /* the low-rank term is in the first part */
        tile->v[5] = tile->v[0];                         /* and each part adds to those before it */
        break;
    default: break;
    }
}

/* A gradient whose reduction is cut is summed in F32; that is settled before any tile is sized, for it takes more room. */
static void widen_partial_sums(fb_program *p, uint64_t limit) {
    for (int32_t i = 0; i < p->n_nodes; i++) {
        const fb_node *node = &p->nodes[i];
        int32_t n = 1;
        if (node->op == FB_OP_LINEAR_DX && (tile_rows(p, node, 'n', limit, &n) < n || next_cut(p, node, 'n', 0) < n))
            p->tensors[node->v[0].tensor].type = FB_F32;
    }
}

/* Notes that a node was cut into `tiles`, because of the largest operand that did not fit. */
static void note(fb_program *p, const fb_node *n, uint64_t limit, int32_t tiles) {
    const char *axes = fb_ops[n->op].row_axes;
    fb_tiling told = {.op = fb_ops[n->op].name, .tensor = FB_NONE, .tiles = tiles};
    const int sum = n->op == FB_OP_LINEAR_DX && p->max_reduction && n->v[2].rows > p->max_reduction;
    for (int k = 0; axes[k]; k++) {
        const fb_operand *v = &n->v[k];
        if (v->tensor < 0) continue;
        const fb_tensor_info *t = &p->tensors[v->tensor];
        const int parted = next_part(p, v->tensor, v->row) < v->row + v->rows, summed = sum && k == 2;
        uint64_t bytes = span(p, v);
        if ((bytes <= limit && !parted && !summed) || bytes <= told.bytes) continue;
        told.limit_of = bytes <= limit || p->part_bytes < limit ? FB_LIMIT_ALLOCATION : FB_LIMIT_BINDING;
        told.limit = told.limit_of == FB_LIMIT_ALLOCATION ? p->part_bytes : limit;
        if (summed && bytes / (uint64_t)v->rows * (uint64_t)p->max_reduction <= told.limit) {
            told.limit_of = FB_LIMIT_REDUCTION;
            told.limit = (uint64_t)p->max_reduction;
        }
        told.what = t->place == FB_IN_GRADS ? FB_OF_GRADIENT : t->place == FB_IN_BUFFER ? FB_OF_WEIGHT : FB_OF_ACTIVATION;
        told.bytes = bytes;
        told.rows = v->rows;
        told.cols = t->cols;
        for (told.tensor = 0; told.what == FB_OF_GRADIENT; told.tensor++) { /* it lies as its leaf does */
            const fb_tensor_info *leaf = &p->tensors[told.tensor];
            if (leaf->place == FB_IN_BUFFER && leaf->buffer == t->buffer && leaf->offset == t->offset) break;
        }
        if (told.what != FB_OF_GRADIENT) told.tensor = v->tensor;
    }
    fb_tiling *grown = realloc(p->tilings, sizeof *grown * (size_t)(p->n_tilings + 1));
    if (grown) {
        p->tilings = grown;
        grown[p->n_tilings++] = told;
    } else p->failed = 1;
}

/* Tensors of the arena that are larger than an allocation are parted by rows. */
static int part_tensors(fb_program *p) {
    for (int32_t i = 0; i < p->n_tensors; i++) {
        fb_tensor_info *t = &p->tensors[i];
        if (t->place != FB_IN_ARENA || t->base >= 0 || fb_tensor_bytes(t) <= p->part_bytes) continue;
        uint64_t rows = p->part_bytes / fb_type_bytes(t->type, t->cols);
        if (!rows)
            return fb_fail(FB_E_LIMIT, "a row of %llu bytes is larger than this device's largest allocation, %llu",
                           (unsigned long long)fb_type_bytes(t->type, t->cols), (unsigned long long)p->part_bytes);
        t->part_rows = (int32_t)rows;
    }
    return FB_OK;
}

/* Rows of a tile that starts at row `at` of an axis. */
static int32_t step(const fb_program *p, const fb_node *n, char axis, int32_t at, int32_t extent, int32_t tile) {
    int32_t cut = next_cut(p, n, axis, at), end = tile < extent - at ? at + tile : extent;
    const int32_t rows = (cut < end ? cut : end) - at, whole = together(p, n, axis);
    return rows / whole * whole;
}

int fb_tile_program(fb_program *p, const fb_device_info *limits) {
    const uint64_t limit = limits->max_binding_bytes;
    p->max_reduction = (int32_t)(limits->max_reduction < INT32_MAX ? limits->max_reduction : INT32_MAX);
    p->part_bytes = limits->max_allocation_bytes / FB_ALIGN * FB_ALIGN;
    widen_partial_sums(p, limit);
    if (part_tensors(p)) return FB_E_LIMIT;
    fb_node *nodes = p->nodes;
    int32_t count = p->n_nodes;
    p->nodes = NULL;
    p->n_nodes = p->room_nodes = 0;
    int code = FB_OK;
    for (int32_t i = 0; i < count && code == FB_OK; i++) {
        const fb_node *node = &nodes[i];
        int32_t m = 1, n = 1;
        int32_t tile_m = tile_rows(p, node, 'm', limit, &m), tile_n = tile_rows(p, node, 'n', limit, &n);
        int stuck = out_of_reach(p, node, limit);
        for (int32_t at = 0, ns; at < n && tile_n && !stuck; at += ns) {
            ns = step(p, node, 'n', at, n, tile_n);
            if (!ns) tile_n = 0, ns = n; /* an expert lies across two allocations */
        }
        if (stuck || tile_m == 0 || tile_n == 0) {
            const int bound = limit <= p->part_bytes;
            code = fb_fail(FB_E_LIMIT, "operand %d of %s does not fit this device's limit of %llu bytes %s", stuck,
                           fb_ops[node->op].name, (unsigned long long)(bound ? limit : p->part_bytes),
                           bound ? "a binding" : "an allocation");
            break;
        }
        if (step(p, node, 'm', 0, m, tile_m) == m && step(p, node, 'n', 0, n, tile_n) == n) {
            fb_node *copy = fb_program_node(p, node->op, 0, NULL);
            *copy = *node;
            continue;
        }
        int32_t before = p->n_nodes;
        for (int32_t at_n = 0, ns; at_n < n; at_n += ns) {
            ns = step(p, node, 'n', at_n, n, tile_n);
            for (int32_t at_m = 0, ms; at_m < m; at_m += ms) {
                ms = step(p, node, 'm', at_m, m, tile_m);
                emit_tile(p, node, at_m, ms, at_n, ns);
            }
        }
        note(p, node, limit, p->n_nodes - before);
    }
    free(nodes);
    return code ? code : p->failed ? fb_fail(FB_E_MEMORY, "out of memory while planning") : FB_OK;
}
