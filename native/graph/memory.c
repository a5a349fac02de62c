/* memory.c - one arena for all tensors of a program, by liveness: a tensor's bytes are another's before its first and
 * after its last node. Large ones are placed first, each at the lowest offset that is free for its whole life. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

typedef struct slot {
    uint64_t bytes, offset;
    int32_t first, last; /* nodes */
} slot;

/* Orders of pointers to slots of one array. */
static int by_size(const void *a, const void *b) {
    const slot *x = *(slot *const *)a, *y = *(slot *const *)b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x < y ? -1 : x > y;
}

static int by_offset(const void *a, const void *b) {
    const slot *x = *(slot *const *)a, *y = *(slot *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x < y ? -1 : x > y;
}

uint64_t fb_row_offset(const fb_program *p, const fb_tensor_info *t, int32_t row) {
    if (t->base >= 0) return fb_row_offset(p, &p->tensors[t->base], t->base_row + row);
    if (!t->part_rows) return t->offset + fb_type_bytes(t->type, (int64_t)row * t->cols);
    return t->offset + (uint64_t)(row / t->part_rows) * p->part_bytes +
           fb_type_bytes(t->type, (int64_t)(row % t->part_rows) * t->cols);
}

/* The lowest offset from `at` on where a tensor lies in one part of the arena, or (parted) begins one. */
static uint64_t whole_from(const fb_program *p, const slot *s, uint64_t at) {
    uint64_t into = at % p->part_bytes;
    return into && into + s->bytes > p->part_bytes ? at - into + p->part_bytes : at;
}

/* Whether a node uses the memory of its operand `acc` through another one too, be it through a slice. */
static int used_twice(const fb_program *p, const fb_node *n, const int32_t *home, int acc) {
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        fb_tensor t = n->v[k].tensor;
        if (t >= 0 && p->tensors[t].base >= 0) t = p->tensors[t].base;
        if (k != acc && t >= 0 && home[t] == home[n->v[acc].tensor]) return 1;
    }
    return 0;
}

int fb_plan_memory(fb_program *p, uint64_t *arena_bytes) {
    size_t n = (size_t)p->n_tensors + 1;
    slot *slots = calloc(n, sizeof *slots), **order = malloc(n * sizeof *order), **near = malloc(n * sizeof *near);
    int32_t *home = malloc(n * sizeof *home);
    int code = FB_E_MEMORY;
    *arena_bytes = 0;
    if (!slots || !home || !order || !near) goto done;
    for (int32_t t = 0; t < p->n_tensors; t++) {
        home[t] = p->tensors[t].base >= 0 ? p->tensors[t].base : t;
        slots[t] = (slot){.first = INT32_MAX, .last = -1};
        const fb_tensor_info *info = &p->tensors[t];
        if (info->place != FB_IN_ARENA || home[t] != t) continue;
        if (info->part_rows) slots[t].bytes = (uint64_t)((info->rows - 1) / info->part_rows + 1) * p->part_bytes;
        else slots[t].bytes = (fb_tensor_bytes(info) + FB_ALIGN - 1) / FB_ALIGN * FB_ALIGN;
    }
    for (int32_t i = 0; i < p->n_nodes; i++)
        for (int k = 0; k < FB_MAX_OPERANDS; k++) {
            fb_tensor t = p->nodes[i].v[k].tensor;
            if (t < 0 || p->tensors[t].place != FB_IN_ARENA) continue;
            slot *s = &slots[home[t]];
            if (i < s->first) s->first = i;
            if (i > s->last) s->last = p->tensors[home[t]].keep ? p->n_nodes : i;
        }
    /* An output takes over the memory of the term added to it, where that term ends there and is as large. */
    for (int32_t i = 0; i < p->n_nodes; i++) {
        int acc = fb_ops[p->nodes[i].op].acc;
        fb_tensor from = acc ? p->nodes[i].v[acc].tensor : FB_NONE, to = p->nodes[i].v[0].tensor;
        if (from < 0 || p->tensors[from].place != FB_IN_ARENA || p->tensors[to].place != FB_IN_ARENA) continue;
        if (p->tensors[from].base >= 0 || p->tensors[to].base >= 0 || home[to] != to) continue;
        if (p->tensors[from].type != p->tensors[to].type) continue;
        slot *s = &slots[home[from]], *taken = &slots[to];
        if (from == to || s->last != i || taken->first != i || s->bytes != taken->bytes) continue;
        if (used_twice(p, &p->nodes[i], home, acc)) continue;
        s->last = taken->last;
        taken->bytes = 0;
        home[to] = home[from];
    }
    int32_t count = 0;
    for (int32_t t = 0; t < p->n_tensors; t++)
        if (slots[t].bytes && slots[t].last >= 0) order[count++] = &slots[t];
    qsort(order, (size_t)count, sizeof *order, by_size);
    for (int32_t i = 0; i < count; i++) {
        slot *s = order[i];
        int32_t n_near = 0;
        for (int32_t j = 0; j < i; j++)
            if (order[j]->first <= s->last && s->first <= order[j]->last) near[n_near++] = order[j];
        qsort(near, (size_t)n_near, sizeof *near, by_offset);
        for (int32_t j = 0; j < n_near; j++) {
            const slot *o = near[j];
            s->offset = whole_from(p, s, s->offset);
            if (s->offset + s->bytes <= o->offset) break;
            if (o->offset + o->bytes > s->offset) s->offset = o->offset + o->bytes;
        }
        s->offset = whole_from(p, s, s->offset);
        if (s->offset + s->bytes > *arena_bytes) *arena_bytes = s->offset + s->bytes;
        if (*arena_bytes > FB_MOST_BYTES) goto done;
    }
    for (int32_t t = 0; t < p->n_tensors; t++) {
        fb_tensor_info *info = &p->tensors[t];
        if (info->place == FB_IN_ARENA && info->base < 0) info->offset = slots[home[t]].offset;
    }
    code = FB_OK;
done:
    if (code) fb_fail(code, "out of memory while planning");
    free(slots);
    free(home);
    free(order);
    free(near);
    return code;
}
