/* program.c - launches made into dispatches once, for as many rows as there is room for, and those into one command buffer after
 * another at each replay, beside the counts of the feed. A command buffer should take no longer than submit_ms, since a phone
 * ends those that do, and its screen stands still meanwhile. */
#include "metal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

/* ---- command buffers ---- */

static int tell(metal *m) {
    const int code = m->failed;
    m->failed = FB_OK;
    return code ? fb_fail(code, "%s", m->reason) : FB_OK;
}

/* What became of a command buffer that did not end well. */
static void note_failure(metal *m, mtl_id error) {
    const mtl_int why = error ? SEND(code, error) : 0;
    char words[160];
    mtl_reason(error, "it does not say why", words, sizeof words);
    if (m->failed) return;
    m->failed = why == MTLCommandBufferErrorOutOfMemory ? FB_E_MEMORY : FB_E_DEVICE;
    if (why == MTLCommandBufferErrorNotPermitted)
        snprintf(m->reason, sizeof m->reason, "The system lets no app in the background use the GPU; bring it to the front and resume the run.");
    else if (why == MTLCommandBufferErrorOutOfMemory)
        snprintf(m->reason, sizeof m->reason, "The GPU ran out of memory while it worked; use a smaller context, batch or model.");
    else if (why == MTLCommandBufferErrorTimeout)
        snprintf(m->reason, sizeof m->reason, "The system ended work that took the GPU too long; lower submit_ms in a profile.");
    else if (why == MTLCommandBufferErrorAccessRevoked || why == MTLCommandBufferErrorDeviceRemoved)
        snprintf(m->reason, sizeof m->reason, "The GPU is gone: %s.", why == MTLCommandBufferErrorDeviceRemoved
                     ? "it was removed" : "the system took it from this process after too many commands that hung");
    else snprintf(m->reason, sizeof m->reason, "The GPU failed at its work (%ld): %s", why, words);
}

/* Moves the pace of each kernel of a command buffer towards what it took, by its share. What short ones take is not operations. */
static void learn(metal *m, const mtl_slot *slot, double took) {
    if (slot->expected <= 0 || took <= 0) return;
    double ratio = took / slot->expected;
    if (ratio > 1 && took < m->submit_s / 2) return;
    ratio = ratio < 0.25 ? 0.25 : ratio > 8 ? 8 : ratio;
    for (int i = 0; i < FB_KERNEL_COUNT; i++) {
        if (slot->work[i] <= 0) continue;
        const double told = slot->seconds[i] / slot->work[i] * ratio, share = slot->seconds[i] / slot->expected;
        m->pace[i] += share * (told - m->pace[i]);
    }
}

static void retire(metal *m, mtl_slot *slot) {
    if (!slot->commands) return;
    SEND(wait, slot->commands);
    if (SEND(status, slot->commands) == MTLCommandBufferStatusError) note_failure(m, SEND(error, slot->commands));
    else {
        const double took = SEND(ended, slot->commands) - SEND(began, slot->commands);
        m->worked += took;
        learn(m, slot, took);
    }
    SEND(release, slot->commands);
    memset(slot, 0, sizeof *slot);
}

static void end_encoder(metal *m) {
    if (!m->encoder) return;
    SEND(end, m->encoder);
    SEND(release, m->encoder);
    m->encoder = NULL;
}

/* Hands what was recorded to the GPU. */
static void flush(metal *m) {
    mtl_slot *slot = &m->slots[m->slot];
    end_encoder(m);
    if (!slot->commands) return;
    SEND(commit, slot->commands);
    m->slot = (m->slot + 1) % MTL_SLOTS;
    retire(m, &m->slots[m->slot]); /* the oldest, so that there is room to record */
}

int mtl_is_busy(const metal *m) {
    for (int i = 0; i < MTL_SLOTS; i++)
        if (m->slots[i].commands) return 1;
    return 0;
}

void mtl_finish(metal *m) {
    flush(m);
    for (int i = 1; i < MTL_SLOTS; i++) retire(m, &m->slots[(m->slot + i) % MTL_SLOTS]);
}

int mtl_wait_all(metal *m) {
    mtl_finish(m);
    return tell(m);
}

/* A command buffer that is being recorded. */
static int begin(metal *m, mtl_slot **slot) {
    *slot = &m->slots[m->slot];
    if (m->failed) return tell(m);
    if (!(*slot)->commands) {
        const mtl_id commands = SEND(command_buffer, m->queue);
        if (!commands) return fb_fail(FB_E_DEVICE, "Metal gave no command buffer.");
        (*slot)->commands = SEND(retain, commands);
    }
    return FB_OK;
}

int mtl_write_ordered(metal *m, const fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    mtl_slot *slot;
    int code = begin(m, &slot);
    if (code) return code;
    end_encoder(m);
    const mtl_id copy = SEND(new_copy, m->device, src, bytes, MTLResourceStorageModeShared);
    const mtl_id blit = copy ? SEND(blit, slot->commands) : NULL;
    if (blit) {
        SEND(copy, blit, copy, 0ul, (mtl_id)mem->handle, offset, bytes);
        SEND(end, blit);
    } else code = fb_fail(FB_E_MEMORY, "The GPU has no memory left for %.1f MiB of what is to be copied to it.", (double)bytes / 1048576);
    if (copy) SEND(release, copy); /* the command buffer holds it */
    return code;
}

/* ---- programs: dispatches of all launches, bound and with their kernels compiled; each replay encodes them as they are ---- */

/* A dispatch; the last of its words is the first workgroup. */
typedef struct mtl_step {
    fb_kernel_id kernel;
    int launch;
    mtl_id state, buffers[FB_BINDINGS];
    uint64_t at[FB_BINDINGS], groups;
    uint32_t threads, n_words, words[FB_PUSH_WORDS];
    double work;     /* operations, roughly, of all rows */
    fb_view counted; /* by whose rows in use they go down */
} mtl_step;

typedef struct mtl_program {
    mtl_step *steps;
    int n, room, launches;
} mtl_program;

static void bind(mtl_step *t, const fb_dispatch *d, int k) {
    const fb_view *v = &d->operand.at[d->operand.at[k].mem ? k : 0]; /* what is absent is never read, but must be bound */
    const mtl_id buffer = t->buffers[k] = (mtl_id)v->mem->handle;
    const uint64_t at = (uint64_t)((const char *)v->mem->host - (const char *)SEND(contents, buffer)) + v->offset;
    if (d->operand.at[k].mem) fb_place(d, k, at % 16, t->words);
    t->at[k] = at / 16 * 16;
}

static int add(metal *m, mtl_program *p, fb_dispatch *d, int launch, const fb_view *counted) {
    if (p->n == p->room) {
        const int room = p->room ? 2 * p->room : 256;
        mtl_step *grown = realloc(p->steps, (size_t)room * sizeof *grown);
        if (!grown) return fb_fail(FB_E_MEMORY, "out of memory");
        p->steps = grown;
        p->room = room;
    }
    if (mtl_on_simdgroups(m, d->kernel)) d->constant.at[0] = 128; /* four simdgroups to a workgroup */
    mtl_step *t = &p->steps[p->n];
    *t = (mtl_step){.kernel = d->kernel, .launch = launch, .groups = d->groups, .threads = d->constant.at[0], .work = d->work};
    int code = mtl_pipeline_of(m, d, &t->state);
    for (uint32_t k = 0; k < fb_kernels[d->kernel].operands && code == FB_OK; k++) bind(t, d, (int)k);
    t->n_words = fb_arguments(d, 0, t->words);
    if (counted) t->counted = *counted;
    p->n += code == FB_OK;
    return code;
}

static void drop(metal *m, mtl_program *p) {
    void *pool = mtl.objc_autoreleasePoolPush();
    mtl_finish(m);
    mtl.objc_autoreleasePoolPop(pool);
    free(p->steps);
}

void mtl_release(void *self, void *program) {
    drop(self, program);
    free(program);
}

int mtl_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **out) {
    metal *m = self;
    fb_dispatch *parts = malloc(FB_MOST_DISPATCHES * sizeof *parts);
    mtl_program *p = calloc(1, sizeof *p);
    int code = p && parts ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    void *pool = mtl.objc_autoreleasePoolPush();
    for (int i = 0; i < n && code == FB_OK; i++) {
        const int count = fb_lower(&launches[i], workspace, &m->limits, parts);
        if (!count) code = FB_E_DEVICE;
        for (int k = 0; k < count && code == FB_OK; k++) code = add(m, p, &parts[k], i, fb_counted(&launches[i]));
    }
    mtl.objc_autoreleasePoolPop(pool);
    free(parts);
    if (code && p) mtl_release(m, p);
    else if (p) p->launches = n, *out = p;
    return code;
}

/* ---- replaying ---- */

/* Workgroups first .. first + n of a step, in a grid that the device takes; its rest does nothing. */
static int encode(metal *m, mtl_step *t, const int32_t counts[FB_COUNTS], uint32_t first, uint32_t n, double work) {
    mtl_slot *slot;
    int code = begin(m, &slot);
    if (code) return code;
    if (!m->encoder) {
        const mtl_id encoder = SEND(compute, slot->commands);
        if (!encoder) return fb_fail(FB_E_DEVICE, "Metal gave no command encoder.");
        m->encoder = SEND(retain, encoder);
        SEND(set_bytes, encoder, counts, (mtl_uint)(FB_COUNTS * sizeof *counts), (mtl_uint)(FB_BINDINGS + 1));
    }
    SEND(set_pipeline, m->encoder, t->state);
    for (uint32_t k = 0; k < fb_kernels[t->kernel].operands; k++) SEND(set_buffer, m->encoder, t->buffers[k], t->at[k], (mtl_uint)k);
    const uint32_t wide = n < m->most_groups ? n : m->most_groups;
    t->words[t->n_words - 1] = first;
    SEND(set_bytes, m->encoder, t->words, (mtl_uint)(4 * t->n_words), (mtl_uint)FB_BINDINGS);
    SEND(dispatch, m->encoder, (mtl_size){wide, (n + wide - 1) / wide, 1}, (mtl_size){t->threads, 1, 1});
    slot->work[t->kernel] += work;
    slot->seconds[t->kernel] += work * m->pace[t->kernel];
    slot->expected += work * m->pace[t->kernel];
    return FB_OK;
}

/* A step in parts that should take submit_s at most (but for a single workgroup), each in a command buffer that is not yet
 * full; workgroups beyond the rows in use end at once. */
static int run_step(metal *m, mtl_step *t, const int32_t counts[FB_COUNTS]) {
    const double share = t->counted.rows ? (double)fb_rows_in_use(&t->counted, counts) / t->counted.rows : 1;
    const double each = t->work / (double)t->groups, pace = m->pace[t->kernel], whole = t->work * share * pace;
    const double groups = whole > m->submit_s ? m->submit_s / (each * pace) : (double)t->groups, used = (double)t->groups * share;
    const uint32_t part = groups < 1 ? 1 : groups > INT32_MAX ? INT32_MAX : (uint32_t)groups;
    int code = FB_OK;
    for (uint64_t at = 0; at < t->groups && share > 0 && code == FB_OK; at += part) {
        const uint32_t n = t->groups - at < part ? (uint32_t)(t->groups - at) : part;
        const double work = (double)at + n <= used ? each * n : (double)at < used ? each * (used - (double)at) : 0;
        const mtl_slot *slot = &m->slots[m->slot];
        if (slot->commands && slot->expected + work * pace > m->submit_s) flush(m);
        if (!m->slots[m->slot].commands && m->cancel && *m->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        code = encode(m, t, counts, (uint32_t)at, n, work);
    }
    return code;
}

/* Steps of launches [from, to), from number *at on, with the time of each where it is asked for: then each is in command buffers
 * of its own. */
static int replay_some(metal *m, const mtl_program *p, int *at, int from, int to, const int32_t counts[FB_COUNTS], const fb_run *run) {
    int code = run->seconds ? mtl_wait_all(m) : FB_OK;
    for (int i = from; i < to && code == FB_OK; i++) {
        const double before = m->worked;
        if (run->cancel && *run->cancel) code = fb_fail(FB_E_CANCELLED, "cancelled");
        for (; *at < p->n && p->steps[*at].launch == i && code == FB_OK; ++*at) code = run_step(m, &p->steps[*at], counts);
        if (code == FB_OK && run->seconds) code = mtl_wait_all(m);
        if (run->seconds) run->seconds[i] = m->worked - before;
        if (run->done) ++*run->done;
    }
    return code;
}

int mtl_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run) {
    enum { POOLED = 256, RESTED = 8 }; /* launches whose leftovers are kept at once, and those between two rests */
    metal *m = self;
    const mtl_program *p = program;
    const int step = run->duty < 1 ? RESTED : POOLED;
    int code = FB_OK, at = 0;
    m->cancel = run->cancel;
    end_encoder(m); /* which holds the counts of the feed before */
    for (int i = 0; i < p->launches && code == FB_OK; i += step) {
        void *pool = mtl.objc_autoreleasePoolPush();
        const double before = fb_os_seconds();
        code = replay_some(m, p, &at, i, i + step < p->launches ? i + step : p->launches, counts, run);
        if (code == FB_OK && run->duty < 1) {
            code = mtl_wait_all(m);
            fb_os_rest((fb_os_seconds() - before) * (1 / run->duty - 1), run->cancel);
        }
        mtl.objc_autoreleasePoolPop(pool);
    }
    m->cancel = NULL;
    void *pool = mtl.objc_autoreleasePoolPush();
    flush(m);
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

uint64_t mtl_scratch(void *self, const fb_launch *launch) {
    const metal *m = self;
    return fb_lower_scratch(launch, &m->limits);
}

/* ---- peaks ---- */

static int timed(metal *m, fb_dispatch *d, uint32_t times, double *seconds) {
    static const int32_t counts[FB_COUNTS];
    void *pool = mtl.objc_autoreleasePoolPush();
    mtl_program p = {.launches = 1};
    int code = add(m, &p, d, 0, NULL);
    if (code == FB_OK) code = mtl_wait_all(m);
    const double before = fb_os_seconds();
    for (uint32_t i = 0; i < times && code == FB_OK; i++) code = run_step(m, p.steps, counts);
    if (code == FB_OK) code = mtl_wait_all(m);
    *seconds = fb_os_seconds() - before;
    drop(m, &p);
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

/* Multiply-adds in registers, which are all that simdgroup matrices have too, or sums over memory, in growing portions until one
 * takes long enough to be measured. */
int mtl_peak(void *self, int kind, double seconds, double *per_second) {
    metal *m = self;
    const int read = kind == FB_PEAK_READ;
    const uint64_t most = m->memory_bytes / 16 / 4 * 4, bytes = !read ? 4096 : most < (uint64_t)256 << 20 ? most : (uint64_t)256 << 20;
    fb_mem memory = {0}, partial = {0};
    int code = kind < FB_PEAK_F32 || kind > FB_PEAK_READ ? fb_fail(FB_E_ARGUMENT, "There is no peak number %d.", kind) : FB_OK;
    if (code == FB_OK) code = fb_backend_metal.alloc(m, bytes, &memory);
    if (code == FB_OK) code = fb_backend_metal.alloc(m, 4096 * 4, &partial);
    const int32_t n = (int32_t)(bytes / 4);
    const fb_launch sum = {.op = FB_OP_SUMSQ,
                           .sumsq = {{.mem = &partial, .type = FB_F32, .rows = 1, .cols = 4096, .ld = 4096},
                                     {.mem = &memory, .type = FB_F32, .rows = 1, .cols = n, .ld = n}}};
    fb_dispatch d[FB_MOST_DISPATCHES] = {{.kernel = FB_KERNEL_peak, .groups = 64}};
    d->constant.peak.THREADS = 128;
    d->argument.peak.ROUNDS = 1000;
    d->operand.at[0] = sum.v[0];
    const double each = 2.0 * 16 * 128 * d->argument.peak.ROUNDS; /* of a workgroup */
    if (code == FB_OK && read && !fb_lower(&sum, NULL, &m->limits, d)) code = FB_E_INTERNAL;
    double best = 0, took = 0, spent = 0;
    for (uint32_t times = 1; code == FB_OK && (spent < seconds || best == 0);) {
        if (!read) d->work = each * (double)d->groups;
        code = timed(m, d, times, &took);
        spent += took;
        const double done = times * (read ? (double)bytes : d->work);
        if (took > 0 && done / took > best) best = done / took;
        if (took > seconds / 8) continue;
        if (!read && d->groups < 1u << 12) d->groups *= 2;
        else times *= 2;
    }
    fb_backend_metal.free(m, &memory);
    fb_backend_metal.free(m, &partial);
    *per_second = best;
    return code;
}
