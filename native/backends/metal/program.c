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

static void retire(metal *m, mtl_slot *slot) {
    if (!slot->commands) return;
    SEND(wait, slot->commands);
    if (SEND(status, slot->commands) == MTLCommandBufferStatusError) note_failure(m, SEND(error, slot->commands));
    else {
        const double took = SEND(ended, slot->commands) - SEND(began, slot->commands);
        m->worked += took;
        fb_pace_learn(&m->pace, &slot->load, took, 1);
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
    int there = k; /* what is absent is never read, but must be bound: to another operand */
    while (!d->operand.at[there].mem) there = (there + 1) % FB_BINDINGS;
    const fb_view *v = &d->operand.at[there];
    const mtl_id buffer = t->buffers[k] = (mtl_id)v->mem->handle;
    const uint64_t at = (uint64_t)((const char *)v->mem->host - (const char *)SEND(contents, buffer)) + v->offset;
    if (d->operand.at[k].mem) fb_place(d, k, at % 16, t->words);
    t->at[k] = at / 16 * 16;
}

static int add(void *self, void *program, fb_dispatch *d, int launch, const fb_view *counted) {
    metal *m = self;
    mtl_program *p = program;
    mtl_step *grown = fb_grown(p->steps, p->n, &p->room, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    p->steps = grown;
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
    mtl_program *p = calloc(1, sizeof *p);
    if (!p) return fb_fail(FB_E_MEMORY, "out of memory");
    void *pool = mtl.objc_autoreleasePoolPush();
    const int code = fb_lower_all(launches, n, workspace, &m->limits, add, m, p);
    mtl.objc_autoreleasePoolPop(pool);
    p->launches = n;
    if (code) mtl_release(m, p);
    else *out = p;
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
    fb_load_add(&m->pace, &slot->load, t->kernel, work);
    return FB_OK;
}

/* A step in parts that should take submit_s at most (but for a single workgroup), each in a command buffer that is not yet
 * full; workgroups beyond the rows in use end at once. */
static int run_step(metal *m, mtl_step *t, const int32_t counts[FB_COUNTS]) {
    const double each = t->work / (double)t->groups, pace = m->pace.each[t->kernel], submit_s = m->pace.submit_s;
    const double used = fb_groups_in_use(&t->counted, t->groups, counts);
    const double groups = used * each * pace > submit_s ? submit_s / (each * pace) : (double)t->groups;
    const uint32_t part = groups < 1 ? 1 : groups > INT32_MAX ? INT32_MAX : (uint32_t)groups;
    int code = FB_OK;
    for (uint64_t at = 0; at < t->groups && used > 0 && code == FB_OK; at += part) {
        const uint32_t n = t->groups - at < part ? (uint32_t)(t->groups - at) : part;
        const double work = (double)at + n <= used ? each * n : (double)at < used ? each * (used - (double)at) : 0;
        const mtl_slot *slot = &m->slots[m->slot];
        if (slot->commands && slot->load.expected + work * pace > submit_s) flush(m);
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

static int timed(void *self, fb_dispatch *d, uint32_t times, double *seconds) {
    static const int32_t counts[FB_COUNTS];
    void *pool = mtl.objc_autoreleasePoolPush();
    mtl_program p = {.launches = 1};
    int code = add(self, &p, d, 0, NULL);
    if (code == FB_OK) code = mtl_wait_all(self);
    const double before = fb_os_seconds();
    for (uint32_t i = 0; i < times && code == FB_OK; i++) code = run_step(self, p.steps, counts);
    if (code == FB_OK) code = mtl_wait_all(self);
    *seconds = fb_os_seconds() - before;
    drop(self, &p);
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

/* Simdgroup matrices multiply F32, at the speed of all other F32. */
int mtl_peak(void *self, int kind, double seconds, double *per_second) {
    const metal *m = self;
    const uint64_t most = (uint64_t)256 << 20, bytes = m->memory_bytes / 16 < most ? m->memory_bytes / 16 : most;
    return fb_measure(&fb_backend_metal, self, &m->limits, bytes, timed, kind, seconds, per_second);
}
