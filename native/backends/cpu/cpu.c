/* cpu.c - the CPU as a backend: memory is the host's own, a program is replayed in one run of the pool, and the kernels
 * are those of the best instruction set there is. Which one is fixed by the processor's kind, never by timing, so bits
 * stay the same from run to run. */
#include "cpu.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { MOST_THREADS = 512 };
static const double LEAST_REST = 0.01; /* seconds: shorter ones add up first */

typedef struct cpu {
    fb_pool *pool;
    const fb_kernels *kernels;
} cpu;

/* ---- which kernels run here ---- */

/* Best last; returns how many. */
static int usable(const fb_kernels *found[4]) {
    int n = 0;
    found[n++] = &fb_kernels_generic;
#if defined(__aarch64__)
    found[n++] = &fb_kernels_neon;
#if defined(FB_HAS_NEON_BF16)
    if (fb_os_arm_bf16()) found[n++] = &fb_kernels_neon_bf16;
#endif
#elif defined(__x86_64__)
    unsigned a, b, c, d, vendor, leaf1_c, leaf7_b, leaf7_a = 0, kept, high;
    if (!__get_cpuid(0, &a, &vendor, &c, &d)) return n;
    if (!__get_cpuid(1, &a, &b, &leaf1_c, &d) || !(leaf1_c & bit_OSXSAVE)) return n;
    __asm__ volatile("xgetbv" : "=a"(kept), "=d"(high) : "c"(0)); /* registers that the system saves */
    if ((kept & 0x6) != 0x6 || !(leaf1_c & bit_FMA) || !(leaf1_c & bit_F16C)) return n;
    if (!__get_cpuid_count(7, 0, &a, &leaf7_b, &c, &d) || !(leaf7_b & bit_AVX2)) return n;
    found[n++] = &fb_kernels_avx2;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((kept & 0xe0) != 0xe0 || (leaf7_b & needed) != needed) return n;
    found[n++] = &fb_kernels_avx512;
    if (a >= 1) __get_cpuid_count(7, 1, &leaf7_a, &b, &c, &d);
    if (!(leaf7_a & 1u << 5)) return n;
    found[n++] = &fb_kernels_avx512_bf16;
    if (vendor == signature_INTEL_ebx) { /* its bf16 products run at half the rate of f32: not the best */
        found[2] = &fb_kernels_avx512_bf16;
        found[3] = &fb_kernels_avx512;
    }
#endif
    return n;
}

static const fb_kernels *choose(const char *isa) {
    const fb_kernels *found[4];
    int n = usable(found);
    if (!isa) return found[n - 1];
    for (int i = 0; i < n; i++)
        if (!strcmp(found[i]->isa, isa)) return found[i];
    char names[96] = "";
    for (int i = 0; i < n; i++) snprintf(names + strlen(names), sizeof names - strlen(names), " %s", found[i]->isa);
    fb_fail(FB_E_DEVICE, "This processor cannot run the instruction set \"%s\"; it has:%s.", isa, names);
    return NULL;
}

static void fill_info(fb_device_info *info, const fb_kernels *kernels, int threads) {
    memset(info, 0, sizeof *info);
    snprintf(info->backend, sizeof info->backend, "cpu");
    snprintf(info->isa, sizeof info->isa, "%s", kernels->isa);
    fb_os_cpu_name(info->name, sizeof info->name);
    info->cores = fb_os_cpu_count();
    info->threads = threads;
    info->in_place = 1;
    info->bf16 = kernels != &fb_kernels_generic;
    info->memory_bytes = fb_os_memory_bytes();
    info->max_binding_bytes = info->max_allocation_bytes = UINT64_MAX;
}

/* ---- device and memory ---- */

static int cpu_count(void) { return 1; }

static int cpu_describe(int index, fb_device_info *info) {
    if (index != 0) return fb_fail(FB_E_ARGUMENT, "There is one CPU device, number 0, not %d.", index);
    fill_info(info, choose(NULL), fb_os_cpu_count());
    return FB_OK;
}

static void cpu_close(void *self) {
    cpu *device = self;
    if (!device) return;
    fb_pool_free(device->pool);
    free(device);
}

static int cpu_open(int index, const fb_device_options *options, void **self, fb_device_info *info) {
    int threads = options && options->threads ? options->threads : fb_os_cpu_count();
    if (index != 0) return fb_fail(FB_E_DEVICE, "There is one CPU device, number 0, not %d.", index);
    if (threads < 1 || threads > MOST_THREADS)
        return fb_fail(FB_E_ARGUMENT, "The number of threads must be 1 to %d, not %d.", MOST_THREADS, threads);
    const fb_kernels *kernels = choose(options ? options->isa : NULL);
    if (!kernels) return FB_E_DEVICE;
    cpu *device = calloc(1, sizeof *device);
    if (device) device->pool = fb_pool_new(threads);
    if (!device || !device->pool) {
        cpu_close(device);
        return fb_fail(FB_E_MEMORY, "Could not start %d threads; ask for fewer.", threads);
    }
    device->kernels = kernels;
    fill_info(info, kernels, threads);
    if (options && options->max_binding_bytes) info->max_binding_bytes = options->max_binding_bytes;
    *self = device;
    return FB_OK;
}

static int cpu_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    (void)self;
    void *host = fb_os_alloc(bytes);
    if (!host)
        return fb_fail(FB_E_MEMORY, "Could not allocate %.1f MiB of memory; use a smaller context, batch or model.",
                       (double)bytes / 1048576);
    *mem = (fb_mem){.host = host, .handle = host, .bytes = bytes};
    return FB_OK;
}

static int cpu_wrap(void *self, const void *host, uint64_t bytes, fb_mem *mem) {
    (void)self;
    *mem = (fb_mem){.host = (void *)(uintptr_t)host, .handle = NULL, .bytes = bytes};
    return FB_OK;
}

static void cpu_free(void *self, fb_mem *mem) {
    (void)self;
    if (mem->handle) fb_os_free(mem->handle, mem->bytes);
    *mem = (fb_mem){0};
}

static int cpu_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    (void)self;
    int code = fb_inside(mem, offset, bytes);
    if (code == FB_OK && bytes) memcpy((char *)mem->host + offset, src, (size_t)bytes);
    return code;
}

static int cpu_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    (void)self;
    int code = fb_inside(mem, offset, bytes);
    if (code == FB_OK && bytes) memcpy(dst, (const char *)mem->host + offset, (size_t)bytes);
    return code;
}

/* ---- running ---- */

static uint64_t cpu_scratch(void *self, const fb_launch *launch) {
    cpu *device = self;
    return device->kernels->scratch(launch, fb_pool_threads(device->pool));
}

/* Launches made ready: their memory and scratch, the same for all counts. */
typedef struct cpu_program {
    char *scratch;
    int n;
    fb_launch launches[];
} cpu_program;

static int cpu_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **out) {
    for (int i = 0; i < n; i++) {
        if ((unsigned)launches[i].op >= FB_OP_COUNT)
            return fb_fail(FB_E_INTERNAL, "Launch %d is of an op (%d) that the CPU does not know.", i, (int)launches[i].op);
        if (cpu_scratch(self, &launches[i]) > workspace->bytes)
            return fb_fail(FB_E_INTERNAL, "Launch %d needs more scratch than was planned.", i);
    }
    cpu_program *p = malloc(sizeof *p + (size_t)n * sizeof *launches);
    if (!p) return fb_fail(FB_E_MEMORY, "out of memory");
    p->scratch = workspace->host;
    p->n = n;
    memcpy(p->launches, launches, (size_t)n * sizeof *launches);
    *out = p;
    return FB_OK;
}

static void cpu_release(void *self, void *p) {
    (void)self;
    free(p);
}

/* One replay. Thread 0 looks at the clock and at what was asked for, between two launches; the others only see `end`. */
typedef struct pass {
    const cpu_program *program;
    const fb_kernels *kernels;
    const int32_t *counts;
    const fb_run *run;
    double before, owed; /* when the last launch ended; seconds of rest */
    atomic_int end;      /* launches to run. In launch i it may become i + 1, which all see after they have met */
} pass;

static void note_time(pass *p, int i) {
    double now = fb_os_seconds(), took = now - p->before;
    if (p->run->seconds) p->run->seconds[i] = took;
    p->owed += took * (1 / p->run->duty - 1);
    if (p->owed > LEAST_REST || (i + 1 == p->program->n && p->owed > 0)) {
        fb_os_rest(p->owed, p->run->cancel);
        p->owed = 0;
        now = fb_os_seconds();
    }
    p->before = now;
}

static void run_pass(fb_worker *w, void *arg) {
    pass *p = arg;
    const fb_run *run = p->run;
    const int first = w->index == 0, timed = run->seconds || run->duty < 1;
    fb_launch launch;
    for (int i = 0; i < atomic_load_explicit(&p->end, memory_order_relaxed); i++) {
        const int busy = fb_launch_in_use(&p->program->launches[i], p->counts, &launch);
        if (first && run->done) ++*run->done;
        if (first && run->seconds) run->seconds[i] = 0;
        if (!busy) continue;
        p->kernels->run[launch.op](w, &launch, p->program->scratch);
        if (timed) fb_sync(w);
        if (timed && first) note_time(p, i);
        if (first && run->cancel && *run->cancel) atomic_store_explicit(&p->end, i + 1, memory_order_relaxed);
        fb_sync(w);
    }
}

static int cpu_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run) {
    cpu *device = self;
    const volatile int32_t *cancel = run->cancel;
    pass p = {program, device->kernels, counts, run, fb_os_seconds(), 0, ((cpu_program *)program)->n};
    if (!cancel || !*cancel) fb_pool_run(device->pool, run_pass, &p, cancel);
    return cancel && *cancel ? fb_fail(FB_E_CANCELLED, "cancelled") : FB_OK;
}

static int cpu_wait(void *self) {
    (void)self;
    return FB_OK;
}

/* ---- peaks ---- */

enum { PEAK_ITEMS = 64 };

typedef struct measure {
    const fb_kernels *kernels;
    int kind, rounds;
    const float *memory;
    int64_t floats; /* an item */
    double *done;   /* by each thread */
} measure;

static void run_measure(fb_worker *w, void *arg) {
    const measure *m = arg;
    double done = 0;
    float kept = 0;
    for (int64_t i; (i = fb_next(w)) < PEAK_ITEMS;) {
        if (m->kind != FB_PEAK_READ) done += m->kernels->peak(m->kind, m->rounds);
        else {
            kept += m->kernels->read(m->memory + i * m->floats, m->floats);
            done += (double)m->floats * sizeof(float);
        }
    }
    m->done[w->index * 8] = done + 0 * (double)kept;
}

static int cpu_peak(void *self, int kind, double seconds, double *per_second) {
    cpu *device = self;
    uint64_t bytes = kind == FB_PEAK_READ ? (uint64_t)256 << 20 : 0;
    int threads = fb_pool_threads(device->pool), code = FB_OK;
    if (kind < FB_PEAK_F32 || kind > FB_PEAK_READ) return fb_fail(FB_E_ARGUMENT, "There is no peak number %d.", kind);
    double *done = calloc((size_t)threads * 8, sizeof *done), best = 0;
    float *memory = bytes ? fb_os_alloc(bytes) : NULL;
    if (!done || (bytes && !memory)) {
        code = fb_fail(FB_E_MEMORY, "Could not allocate the 256 MiB that measuring needs.");
        goto end;
    }
    if (memory) memset(memory, 0, (size_t)bytes); /* pages never written are all one page, and would stay in cache */
    measure m = {device->kernels, kind, 2000, memory, (int64_t)(bytes / sizeof(float) / PEAK_ITEMS), done};
    for (double start = fb_os_seconds(), now = start; now - start < seconds || best == 0;) {
        double before = now, sum = 0;
        fb_pool_run(device->pool, run_measure, &m, NULL);
        now = fb_os_seconds();
        for (int i = 0; i < threads; i++) sum += done[i * 8];
        if (sum / (now - before) > best) best = sum / (now - before);
    }
    *per_second = best;
end:
    if (memory) fb_os_free(memory, bytes);
    free(done);
    return code;
}

const fb_backend fb_backend_cpu = {
    .name = "cpu",
    .count = cpu_count,
    .describe = cpu_describe,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .wrap = cpu_wrap,
    .free = cpu_free,
    .write = cpu_write,
    .read = cpu_read,
    .scratch = cpu_scratch,
    .prepare = cpu_prepare,
    .replay = cpu_replay,
    .release = cpu_release,
    .wait = cpu_wait,
    .peak = cpu_peak,
};
