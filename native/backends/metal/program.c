/* program.c - launches made into commands: dispatches of one command buffer after another, each of which should take no longer
 * than submit_ms, since a phone ends those that do, and its screen stands still meanwhile. */
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

/* ---- dispatches ---- */

static void bind(const metal *m, const fb_dispatch *d, int k, uint32_t words[FB_PUSH_WORDS]) {
    const fb_view *v = &d->operand.at[d->operand.at[k].mem ? k : 0]; /* what is absent is never read, but must be bound */
    const mtl_id buffer = (mtl_id)v->mem->handle;
    const uint64_t at = (uint64_t)((const char *)v->mem->host - (const char *)SEND(contents, buffer)) + v->offset;
    if (d->operand.at[k].mem) fb_place(d, k, at % 16, words);
    SEND(set_buffer, m->encoder, buffer, at / 16 * 16, (mtl_uint)k);
}

/* Workgroups first .. first + n of a dispatch, in a grid that the device takes; its rest does nothing. */
static int record(metal *m, const fb_dispatch *d, uint32_t first, uint32_t n, double work) {
    uint32_t words[FB_PUSH_WORDS] = {0};
    mtl_id state;
    mtl_slot *slot;
    int code = mtl_pipeline_of(m, d, &state);
    if (code == FB_OK) code = begin(m, &slot);
    if (code) return code;
    if (!m->encoder) {
        const mtl_id encoder = SEND(compute, slot->commands);
        if (!encoder) return fb_fail(FB_E_DEVICE, "Metal gave no command encoder.");
        m->encoder = SEND(retain, encoder);
    }
    SEND(set_pipeline, m->encoder, state);
    for (uint32_t k = 0; k < fb_kernels[d->kernel].operands; k++) bind(m, d, (int)k, words);
    const uint32_t size = 4 * fb_arguments(d, first, words), wide = n < m->most_groups ? n : m->most_groups;
    SEND(set_bytes, m->encoder, words, (mtl_uint)size, (mtl_uint)FB_BINDINGS);
    SEND(dispatch, m->encoder, (mtl_size){wide, (n + wide - 1) / wide, 1}, (mtl_size){d->constant.at[0], 1, 1});
    slot->work[d->kernel] += work;
    slot->seconds[d->kernel] += work * m->pace[d->kernel];
    slot->expected += work * m->pace[d->kernel];
    return FB_OK;
}

/* A dispatch in parts that should take submit_s at most (but for a single workgroup), each in a command buffer that is not yet
 * full. */
static int run(metal *m, const fb_dispatch *d) {
    const double each = d->work / (double)d->groups, pace = m->pace[d->kernel], whole = d->work * pace;
    const double groups = whole > m->submit_s ? (double)d->groups * (m->submit_s / whole) : (double)d->groups;
    const uint32_t part = groups < 1 ? 1 : groups > INT32_MAX ? INT32_MAX : (uint32_t)groups;
    int code = FB_OK;
    for (uint64_t at = 0; at < d->groups && code == FB_OK; at += part) {
        const uint32_t n = d->groups - at < part ? (uint32_t)(d->groups - at) : part;
        const mtl_slot *slot = &m->slots[m->slot];
        if (slot->commands && slot->expected + each * n * pace > m->submit_s) flush(m);
        if (!m->slots[m->slot].commands && m->cancel && *m->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        code = record(m, d, (uint32_t)at, n, each * n);
    }
    return code;
}

/* The dispatches of a launch; those on simdgroup matrices have four simdgroups to a workgroup. */
static int lower(const metal *m, const fb_launch *launch, const fb_mem *scratch, fb_dispatch parts[FB_MOST_DISPATCHES]) {
    const int count = fb_lower(launch, scratch, &m->limits, parts);
    for (int k = 0; k < count; k++)
        if (mtl_on_simdgroups(m, parts[k].kernel)) parts[k].constant.at[0] = 128;
    return count;
}

static int run_launch(metal *m, const fb_launch *launch, const fb_mem *scratch) {
    fb_dispatch parts[FB_MOST_DISPATCHES];
    const int count = lower(m, launch, scratch, parts);
    int code = count ? FB_OK : FB_E_DEVICE;
    for (int k = 0; k < count && code == FB_OK; k++) code = run(m, &parts[k]);
    return code;
}

/* ---- programs: launches as they were given, whose kernels are compiled; each replay records them with the rows in use ---- */

typedef struct mtl_program {
    const fb_mem *scratch;
    int n;
    fb_launch launches[];
} mtl_program;

int mtl_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **out) {
    metal *m = self;
    fb_dispatch parts[FB_MOST_DISPATCHES];
    mtl_program *p = malloc(sizeof *p + (size_t)n * sizeof *launches);
    if (!p) return fb_fail(FB_E_MEMORY, "out of memory");
    void *pool = mtl.objc_autoreleasePoolPush();
    p->scratch = workspace;
    p->n = n;
    memcpy(p->launches, launches, (size_t)n * sizeof *launches);
    int code = FB_OK;
    for (int i = 0; i < n && code == FB_OK; i++) {
        const int count = lower(m, &launches[i], workspace, parts);
        mtl_id state;
        if (!count) code = FB_E_DEVICE;
        for (int k = 0; k < count && code == FB_OK; k++) code = mtl_pipeline_of(m, &parts[k], &state);
    }
    mtl.objc_autoreleasePoolPop(pool);
    if (code) free(p);
    else *out = p;
    return code;
}

void mtl_release(void *self, void *program) {
    void *pool = mtl.objc_autoreleasePoolPush();
    mtl_finish(self);
    mtl.objc_autoreleasePoolPop(pool);
    free(program);
}

/* Launches [from, to), with the time of each where it is asked for: then each is in command buffers of its own. */
static int replay_some(metal *m, const mtl_program *p, int from, int to, const int32_t counts[FB_COUNTS], const fb_run *run) {
    int code = run->seconds ? mtl_wait_all(m) : FB_OK;
    for (int i = from; i < to && code == FB_OK; i++) {
        fb_launch launch;
        const double before = m->worked;
        if (run->cancel && *run->cancel) code = fb_fail(FB_E_CANCELLED, "cancelled");
        else if (fb_launch_in_use(&p->launches[i], counts, &launch)) code = run_launch(m, &launch, p->scratch);
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
    int code = FB_OK;
    m->cancel = run->cancel;
    for (int i = 0; i < p->n && code == FB_OK; i += step) {
        void *pool = mtl.objc_autoreleasePoolPush();
        const double before = fb_os_seconds();
        code = replay_some(m, p, i, i + step < p->n ? i + step : p->n, counts, run);
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

static int timed(metal *m, const fb_dispatch *d, uint32_t times, double *seconds) {
    void *pool = mtl.objc_autoreleasePoolPush();
    int code = mtl_wait_all(m);
    const double before = fb_os_seconds();
    for (uint32_t i = 0; i < times && code == FB_OK; i++) code = run(m, d);
    if (code == FB_OK) code = mtl_wait_all(m);
    *seconds = fb_os_seconds() - before;
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
