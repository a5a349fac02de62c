/* emulated.c - a backend that runs the portable kernels' CUDA text on the host: a workgroup is a ring of fibers that change at
 * barriers. The kernels are compiled beside it (test_portable.py). */
#define _XOPEN_SOURCE 700
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include "../../../native/kernels/kernels.h"

enum { MOST_THREADS = 256, STACK = 1 << 17, ALIGN = 64, SHARED_BYTES = 32 << 10 };

typedef struct three { unsigned x, y, z; } three;
uint32_t emulated_spec[FB_SPECS];
three emulated_thread, emulated_group, emulated_threads, emulated_groups;
float shared[SHARED_BYTES / 4];

/* What the kernels' own structures come to: they are called by value. */
#define PLACE(n, name, kind, role) uint32_t off_##name, ld_##name;
#define MEMBER(type, name) MEMBER_##type(name)
#define MEMBER_uint(name) uint32_t name;
#define MEMBER_float(name) float name;
#define MEMBER_rows(name) fb_rows name;
#define PUSH(name) struct push_##name { name##_OPERANDS(PLACE) name##_ARGUMENTS(MEMBER) uint32_t first; };
FB_KERNEL_NAMES(PUSH)

#define ENTRY(name)                                                                        \
    struct args_##name { uint32_t *buffer[FB_BINDINGS]; const int32_t *counts; struct push_##name push; }; \
    void emulated_##name(struct args_##name);
#define CALL(name)                                               \
    case FB_KERNEL_##name: {                                     \
        struct args_##name args;                                 \
        memcpy(args.buffer, current.buffer, sizeof args.buffer); \
        args.counts = current.counts;                            \
        memcpy(&args.push, current.words, sizeof args.push);     \
        emulated_##name(args);                                   \
        break;                                                   \
    }
struct args {
    uint32_t *buffer[FB_BINDINGS];
    const int32_t *counts;
    uint32_t words[FB_PUSH_WORDS];
};
FB_KERNEL_NAMES(ENTRY)

static struct args current;
static fb_kernel_id kernel;
static ucontext_t scheduler, fibers[MOST_THREADS];
static char *stacks;
static int ended[MOST_THREADS];

void emulated_barrier(void) { swapcontext(&fibers[emulated_thread.x], &scheduler); }

static void body(void) {
    switch (kernel) {
        FB_KERNEL_NAMES(CALL)
    default: break;
    }
    ended[emulated_thread.x] = 1;
}

static void start_fiber(unsigned t) {
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
    fibers[t].uc_stack.ss_size = STACK;
    fibers[t].uc_link = &scheduler;
    makecontext(&fibers[t], body, 0);
    ended[t] = 0;
}

static void run_group(void) {
    unsigned left = emulated_threads.x;
    for (unsigned t = 0; t < left; t++) start_fiber(t);
    memset(shared, 0xff, sizeof shared);
    while (left > 0)
        for (unsigned t = 0; t < emulated_threads.x; t++) {
            if (ended[t]) continue;
            emulated_thread.x = t;
            swapcontext(&scheduler, &fibers[t]);
            left -= (unsigned)ended[t];
        }
}

static int run(const fb_dispatch *d, const int32_t counts[FB_COUNTS]) {
    memset(&current, 0, sizeof current);
    current.counts = counts;
    for (int k = 0; k < FB_BINDINGS; k++) {
        const fb_view *v = &d->operand.at[k];
        if (!v->mem) continue;
        const uint64_t aligned = v->offset / ALIGN * ALIGN;
        current.buffer[k] = (uint32_t *)((char *)v->mem->host + aligned);
        fb_place(d, k, v->offset - aligned, current.words);
    }
    fb_arguments(d, 0, current.words);
    memcpy(emulated_spec, d->constant.at, sizeof emulated_spec);
    kernel = d->kernel;
    emulated_threads = (three){d->constant.at[0], 1, 1};
    emulated_groups = (three){d->groups < 7 ? d->groups : 7, (d->groups + 6) / 7, 1}; /* a grid with a rest */
    for (emulated_group.y = 0; emulated_group.y < emulated_groups.y; emulated_group.y++)
        for (emulated_group.x = 0; emulated_group.x < emulated_groups.x; emulated_group.x++) run_group();
    return FB_OK;
}

static const fb_kernel_limits LIMITS = {.threads = MOST_THREADS, .shared_bytes = SHARED_BYTES};

static int emulated_open(int index, const fb_device_options *options, void **self, fb_device_info *info) {
    (void)index, (void)options;
    *self = stacks = malloc((size_t)MOST_THREADS * STACK);
    memset(info, 0, sizeof *info);
    return stacks ? FB_OK : FB_E_MEMORY;
}
static void emulated_close(void *self) { free(self); }

static int emulated_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    (void)self;
    *mem = (fb_mem){.host = aligned_alloc(ALIGN, (bytes + ALIGN - 1) / ALIGN * ALIGN), .bytes = bytes};
    return mem->host ? FB_OK : FB_E_MEMORY;
}
static void emulated_free(void *self, fb_mem *mem) {
    (void)self;
    free(mem->host);
}
static int emulated_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    (void)self;
    memcpy((char *)mem->host + offset, src, bytes);
    return FB_OK;
}
static int emulated_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    (void)self;
    memcpy(dst, (const char *)mem->host + offset, bytes);
    return FB_OK;
}
static uint64_t emulated_scratch(void *self, const fb_launch *launch) {
    (void)self;
    return fb_lower_scratch(launch, &LIMITS);
}
/* A program is one launch here, which is all that the op test makes. */
typedef struct emulated_program {
    fb_launch launch;
    const fb_mem *workspace;
} emulated_program;

static int emulated_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **program) {
    (void)self;
    emulated_program *p = *program = malloc(sizeof *p);
    *p = (emulated_program){*launches, workspace};
    return n == 1 ? FB_OK : FB_E_ARGUMENT;
}
static int emulated_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *how) {
    const emulated_program *p = program;
    fb_dispatch parts[FB_MOST_DISPATCHES];
    (void)self, (void)how;
    const int count = fb_lower(&p->launch, p->workspace, &LIMITS, parts);
    for (int k = 0; k < count; k++) run(&parts[k], counts);
    return count ? FB_OK : FB_E_DEVICE;
}
static void emulated_release(void *self, void *program) {
    (void)self;
    free(program);
}
static int emulated_wait(void *self) {
    (void)self;
    return FB_OK;
}

const fb_backend fb_backend_emulated = {
    .name = "emulated", .open = emulated_open, .close = emulated_close, .alloc = emulated_alloc, .free = emulated_free,
    .write = emulated_write, .read = emulated_read, .scratch = emulated_scratch, .prepare = emulated_prepare,
    .replay = emulated_replay, .release = emulated_release, .wait = emulated_wait,
};
