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

static uint64_t span(const fb_program *p, const fb_operand *v) {
    const fb_tensor_info *t = &p->tensors[v->tensor];
    return fb_type_bytes(t->type, (int64_t)v->rows * t->cols);
}

/* Rows of `axis` a tile may have; INT32_MAX where nothing needs to be cut, 0 where one row is too large. */
static int32_t tile_rows(const fb_program *p, const fb_node *n, char axis, uint64_t limit, int32_t *extent) {
    const char *axes = fb_ops[n->op].row_axes;
    int32_t tile = INT32_MAX;
    for (int k = 0; axes[k]; k++) {
        if (n->v[k].tensor < 0 || axes[k] != axis) continue;
        *extent = n->v[k].rows;
        const fb_tensor_info *t = &p->tensors[n->v[k].tensor];
        if (span(p, &n->v[k]) <= limit) continue;
        uint64_t fit = limit / fb_type_bytes(t->type, t->cols);
        if (fit < (uint64_t)tile) tile = (int32_t)fit;
    }
    return tile < INT32_MAX && tile > UNIT ? tile / UNIT * UNIT : tile;
}

static int out_of_reach(const fb_program *p, const fb_node *n, uint64_t limit) {
    const char *axes = fb_ops[n->op].row_axes;
    for (int k = 0; axes[k]; k++)
        if (n->v[k].tensor >= 0 && axes[k] == '.' && span(p, &n->v[k]) > limit) return k + 1;
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
    case FB_OP_EMBED: case FB_OP_EMBED_DW: case FB_OP_ATTENTION_DKV: tile->attr.first += n; break;
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
        if (node->op == FB_OP_LINEAR_DX && tile_rows(p, node, 'n', limit, &n) < n)
            p->tensors[node->v[0].tensor].type = FB_F32;
    }
}

int fb_tile_program(fb_program *p, uint64_t limit) {
    if (!limit) return FB_OK;
    widen_partial_sums(p, limit);
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
        if (stuck || tile_m == 0 || tile_n == 0) {
            code = fb_fail(FB_E_LIMIT, "operand %d of %s does not fit this device's limit of %llu bytes a binding",
                           stuck, fb_ops[node->op].name, (unsigned long long)limit);
            break;
        }
        if (tile_m == INT32_MAX && tile_n == INT32_MAX) {
            fb_node *copy = fb_program_node(p, node->op, 0, NULL);
            *copy = *node;
            continue;
        }
        for (int32_t at_n = 0; at_n < n; at_n += tile_n < n ? tile_n : n)
            for (int32_t at_m = 0; at_m < m; at_m += tile_m < m ? tile_m : m)
                emit_tile(p, node, at_m, tile_m < m - at_m ? tile_m : m - at_m, at_n,
                          tile_n < n - at_n ? tile_n : n - at_n);
    }
    free(nodes);
    return code ? code : p->failed ? fb_fail(FB_E_MEMORY, "out of memory while planning") : FB_OK;
}
