/* share.c - share.h: what backends that run portable kernels have in common. */
#include "share.h"
#include <stdlib.h>

void *fb_grown(void *array, int n, int *room, size_t each) {
    if (n < *room) return array;
    const int more = *room ? 2 * *room : 64;
    void *grown = realloc(array, (size_t)more * each);
    if (grown) *room = more;
    else fb_fail(FB_E_MEMORY, "out of memory");
    return grown;
}

/* ---- paces ---- */

void fb_pace_start(fb_pace *pace, uint32_t submit_ms, double first) {
    enum { SUBMIT_MS = 100 }; /* unless told; drivers kill what runs for seconds */
    pace->submit_s = (submit_ms ? submit_ms : SUBMIT_MS) / 1000.0;
    for (int i = 0; i < FB_KERNEL_COUNT; i++) pace->each[i] = first;
}

void fb_load_add(const fb_pace *pace, fb_load *load, fb_kernel_id kernel, double work) {
    load->work[kernel] += work;
    load->seconds[kernel] += work * pace->each[kernel];
    load->expected += work * pace->each[kernel];
}

void fb_pace_learn(fb_pace *pace, const fb_load *load, double took, int exact) {
    double ratio = load->expected > 0 && took > 0 ? took / load->expected : 1;
    if (ratio > 1 && (!exact || took < pace->submit_s / 2)) return;
    ratio = ratio < 0.25 ? 0.25 : ratio > 8 ? 8 : ratio;
    for (int i = 0; i < FB_KERNEL_COUNT; i++) {
        if (load->work[i] <= 0) continue;
        const double told = load->seconds[i] / load->work[i] * ratio, share = load->seconds[i] / load->expected;
        pace->each[i] += share * (told - pace->each[i]);
    }
}

/* ---- programs ---- */

const fb_view *fb_counted(const fb_launch *launch) {
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (launch->v[k].mem && launch->v[k].count != FB_COUNT_NONE) return &launch->v[k];
    return NULL;
}

double fb_groups_in_use(const fb_view *counted, uint64_t groups, const int32_t counts[FB_COUNTS]) {
    return counted->count ? (double)groups * fb_rows_in_use(counted, counts) / counted->rows : (double)groups;
}

int fb_lower_all(const fb_launch *launches, int n, const fb_mem *workspace, const fb_kernel_limits *limits, fb_take *add,
                 void *self, void *program) {
    fb_dispatch *parts = malloc(FB_MOST_DISPATCHES * sizeof *parts);
    int code = parts ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    for (int i = 0; i < n && code == FB_OK; i++) {
        const int count = fb_lower(&launches[i], workspace, limits, parts);
        if (count == 0) code = FB_E_DEVICE;
        for (int k = 0; k < count && code == FB_OK; k++) code = add(self, program, &parts[k], i, fb_counted(&launches[i]));
    }
    free(parts);
    return code;
}

/* ---- peaks ---- */

/* One dispatch, and how many operations, or bytes, a workgroup of it has. */
static int peak_dispatch(int kind, const fb_mem *memory, const fb_mem *partial, const fb_kernel_limits *limits, fb_dispatch *d,
                         double *each) {
    const uint32_t rounds = 1000, threads = 128;
    const int32_t n = (int32_t)(memory->bytes / 4);
    const fb_view out = {.mem = partial, .type = FB_F32, .rows = 1, .cols = 4096, .ld = 4096};
    const fb_launch sum = {.op = FB_OP_SUMSQ, .sumsq = {out, {.mem = memory, .type = FB_F32, .rows = 1, .cols = n, .ld = n}}};
    if (kind == FB_PEAK_READ) {
        const int count = fb_lower(&sum, NULL, limits, d);
        *each = count ? (double)memory->bytes / (double)d->groups : 0;
        return count ? FB_OK : FB_E_INTERNAL;
    }
    *d = (fb_dispatch){.kernel = FB_KERNEL_peak, .groups = 64};
    d->constant.peak.THREADS = threads;
    d->argument.peak.ROUNDS = rounds;
    const double on_units = kind == FB_PEAK_BF16 ? fb_matrix_peak(d, limits) : 0;
    *each = on_units > 0 ? on_units : 2.0 * 16 * threads * rounds;
    d->operand.at[0] = out;
    return FB_OK;
}

int fb_measure(const fb_backend *backend, void *self, const fb_kernel_limits *limits, uint64_t read_bytes, fb_timed *timed, int kind,
               double seconds, double *per_second) {
    fb_mem memory = {0}, partial = {0};
    fb_dispatch *d = malloc(FB_MOST_DISPATCHES * sizeof *d);
    double each = 0, best = 0, took = 0, spent = 0;
    int code = d ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    if (kind < FB_PEAK_F32 || kind > FB_PEAK_READ) code = fb_fail(FB_E_ARGUMENT, "There is no peak number %d.", kind);
    if (code == FB_OK) code = backend->alloc(self, kind == FB_PEAK_READ ? read_bytes / 4 * 4 : 4096, &memory);
    if (code == FB_OK) code = backend->alloc(self, 4096 * 4, &partial);
    if (code == FB_OK) code = peak_dispatch(kind, &memory, &partial, limits, d, &each);
    for (uint32_t times = 1; code == FB_OK && (spent < seconds || best == 0);) {
        if (kind != FB_PEAK_READ) d->work = each * (double)d->groups;
        code = timed(self, d, times, &took);
        spent += took;
        const double done = times * each * (double)d->groups;
        if (took > 0 && done / took > best) best = done / took;
        if (took > seconds / 8) continue;
        if (kind != FB_PEAK_READ && d->groups < 1u << 12) d->groups *= 2;
        else times *= 2;
    }
    backend->free(self, &memory);
    backend->free(self, &partial);
    free(d);
    *per_second = best;
    return code;
}
