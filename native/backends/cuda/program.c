/* program.c - launches made into graphs once, and their replay: what changes between two is the counts of a feed, which lie on
 * the card. */
#include "cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

enum {
    PART = 256, /* kernels of a graph: progress, cancel and rest act between two */
    SIDES = 4, SIDES_BYTES = 8 << 20 /* launches with as little scratch have it beside each other */
};

/* Addresses [from, to) that a launch reads, or writes too. */
typedef struct cu_range {
    CUdeviceptr from, to;
    int written;
} cu_range;

enum { RANGES = CU_SUMMED * FB_MAX_OPERANDS + 1 /* and the scratch */ };

typedef struct cu_reach {
    cu_range at[RANGES];
    int n;
} cu_reach;

typedef struct cu_program {
    cu_step *steps;
    int n, room, launches;
    cu_reach *reach;       /* of each launch */
    CUdeviceptr arrivals;  /* of parts of a reduction, at the tiles of every step that has such, zeros between two replays */
    uint32_t tiles;
    CUgraphExec *graphs; /* of PART steps each */
    int n_graphs;
    CUevent *times; /* before each launch, and behind the last; made when first asked for */
} cu_program;

/* ---- preparing ---- */

/* The argument of a kernel, in memory of its own: cu_args, or addresses and words as a portable kernel takes them. */
static void *argument_of(const cuda *c, const cu_lowered *l) {
    struct { uint64_t buffer[FB_BINDINGS], counts; uint32_t words[FB_PUSH_WORDS]; } portable = {.counts = c->counts};
    const fb_dispatch *d = &l->dispatch;
    for (uint32_t k = 0; !l->key[0] && k < fb_kernels[d->kernel].operands; k++) {
        if (!d->operand.at[k].mem) continue;
        const uint64_t at = cu_address(&d->operand.at[k]);
        portable.buffer[k] = at / 16 * 16;
        fb_place(d, (int)k, at % 16, portable.words);
    }
    if (!l->key[0]) fb_arguments(d, 0, portable.words);
    void *argument = malloc(l->key[0] ? sizeof l->args : sizeof portable);
    if (argument && l->key[0]) memcpy(argument, &l->args, sizeof l->args);
    else if (argument) memcpy(argument, &portable, sizeof portable);
    return argument;
}

static int add(cuda *c, cu_program *p, cu_lowered *l, int launch) {
    char key[CU_KEY];
    cu_step *grown = fb_grown(p->steps, p->n, &p->room, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    p->steps = grown;
    size_t at = (size_t)snprintf(key, sizeof key, "%s", l->key[0] ? l->key : fb_kernels[l->dispatch.kernel].name);
    if (!l->key[0]) {
        at += (size_t)snprintf(key + at, sizeof key - at, ".kernel");
        for (int i = 0; i < FB_SPECS; i++)
            at += (size_t)snprintf(key + at, sizeof key - at, " -DSPEC_%d=%uu", i, l->dispatch.constant.at[i]);
    }
    l->args.counts = c->counts;
    const int kernel = cu_kernel_of(c, key);
    if (kernel < 0) return -kernel;
    if (l->shared_bytes > c->kernels[kernel].shared_bytes) c->kernels[kernel].shared_bytes = l->shared_bytes;
    p->steps[p->n] = (cu_step){kernel, launch, l->groups, l->threads, l->shared_bytes, l->tiles, p->tiles, argument_of(c, l)};
    p->tiles += l->tiles;
    return p->steps[p->n++].argument ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
}

static int start(cuda *c, const cu_step *s) {
    void *arguments[] = {s->argument};
    return cu_check(c,
                    c->cu->cuLaunchKernel(c->kernels[s->kernel].function, s->groups, 1, 1, s->threads, 1, 1, s->shared_bytes,
                                          c->stream, arguments, NULL),
                    "run a kernel");
}

/* ---- which launches wait for which ---- */

static void reach(cu_reach *r, CUdeviceptr from, uint64_t bytes, int written) {
    if (bytes) r->at[r->n++] = (cu_range){from, from + bytes, written};
}

static void reach_of(const fb_launch *l, cu_reach *r) {
    for (int k = 0; k < FB_MAX_OPERANDS; k++)
        if (l->v[k].mem)
            reach(r, cu_address(&l->v[k]), fb_type_bytes(l->v[k].type, (int64_t)l->v[k].rows * l->v[k].ld),
                  !l->written || l->written >> k & 1);
}

static int meet(const cu_reach *a, const cu_reach *b) {
    for (int i = 0; i < a->n; i++)
        for (int j = 0; j < b->n; j++)
            if ((a->at[i].written || b->at[j].written) && a->at[i].from < b->at[j].to && b->at[j].from < a->at[i].to) return 1;
    return 0;
}

/* Steps [first, end) as one graph: the first step of a launch waits for the last one of every launch before it that writes what
 * it reads or writes, or reads what it writes; other launches may run side by side. */
static int record(cuda *c, cu_program *p, int first, int end) {
    CUgraph graph = NULL;
    CUgraphNode nodes[PART], before[PART];
    uint64_t behind[PART][PART / 64]; /* of a step, those that have ended when it begins */
    memset(behind, 0, sizeof behind);
    int code = cu_check(c, c->cu->cuGraphCreate(&graph, 0), "record kernels");
    for (int i = 0; i < end - first && code == FB_OK; i++) {
        const cu_step *s = &p->steps[first + i];
        size_t n = 0;
        for (int j = i - 1; j >= 0; j--) {
            const int launch = p->steps[first + j].launch;
            if (behind[i][j / 64] >> j % 64 & 1) continue;
            if (launch != s->launch && !meet(&p->reach[launch], &p->reach[s->launch])) continue;
            before[n++] = nodes[j];
            for (int w = 0; w < PART / 64; w++) behind[i][w] |= behind[j][w];
            behind[i][j / 64] |= 1ull << j % 64;
        }
        void *arguments[] = {s->argument};
        const CUkernelNode node = {c->kernels[s->kernel].function, {s->groups, 1, 1}, {s->threads, 1, 1}, s->shared_bytes, arguments, NULL, NULL, NULL};
        code = cu_check(c, c->cu->cuGraphAddKernelNode_v2(&nodes[i], graph, before, n, &node), "record kernels");
    }
    if (code == FB_OK)
        code = cu_check(c, c->cu->cuGraphInstantiateWithFlags(&p->graphs[p->n_graphs], graph, 0), "make a graph");
    if (code == FB_OK) p->n_graphs++;
    if (graph) c->cu->cuGraphDestroy(graph);
    return code;
}

void cu_release(void *self, void *program) {
    cuda *c = self;
    cu_program *p = program;
    if (!p) return;
    c->cu->cuCtxSetCurrent(c->context);
    c->cu->cuStreamSynchronize(c->stream);
    for (int i = 0; i < p->n_graphs; i++) c->cu->cuGraphExecDestroy(p->graphs[i]);
    for (int i = 0; p->times && i <= p->launches; i++)
        if (p->times[i]) c->cu->cuEventDestroy_v2(p->times[i]);
    for (int i = 0; i < p->n; i++) free(p->steps[i].argument);
    if (p->arrivals) c->cu->cuMemFree_v2(p->arrivals);
    free(p->steps);
    free(p->reach);
    free(p->graphs);
    free(p->times);
    free(p);
}

/* The steps of launches, with their kernels compiled. */
static int lower_all(cuda *c, cu_program *p, const fb_launch *launches, int n, const fb_mem *workspace) {
    const uint64_t bytes = CU_MOST_STEPS * sizeof(cu_lowered);
    cu_lowered *lowered = fb_os_alloc(bytes);
    const uint64_t bytes_of = workspace ? workspace->bytes : 0;
    uint64_t from = 0, need = 0;
    p->reach = calloc((size_t)n + 1, sizeof *p->reach);
    int code = lowered && p->reach ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    for (int i = 0, terms; i < n && code == FB_OK; i += terms) {
        terms = cu_terms(c, &launches[i], n - i);
        for (int k = 0; k < terms; k++) reach_of(&launches[i + k], &p->reach[i]);
        if (cu_lower(c, &launches[i], terms, NULL, lowered, &need) < 0) code = FB_E_DEVICE;
        if (from + need > bytes_of) from = 0;
        const fb_mem scratch = {.handle = workspace ? (char *)workspace->handle + from : NULL, .bytes = bytes_of - from};
        const int count = code ? 0 : cu_lower(c, &launches[i], terms, workspace ? &scratch : NULL, lowered, NULL);
        if (count < 0) code = -count;
        if (workspace) reach(&p->reach[i], (CUdeviceptr)(uintptr_t)scratch.handle, need, 1);
        from += (need + 255) / 256 * 256;
        for (int k = 0; k < count && code == FB_OK; k++) code = add(c, p, &lowered[k], i);
    }
    if (lowered) fb_os_free(lowered, bytes);
    if (code == FB_OK && p->tiles)
        code = cu_check(c, c->cu->cuMemAlloc_v2(&p->arrivals, 4 * (size_t)p->tiles), "allocate memory");
    if (code == FB_OK && p->tiles)
        code = cu_check(c, c->cu->cuMemsetD32Async(p->arrivals, 0, (size_t)p->tiles, c->stream), "clear memory");
    for (int i = 0; i < p->n && code == FB_OK; i++)
        if (p->steps[i].tiles) ((cu_args *)p->steps[i].argument)->arrivals = p->arrivals + 4 * (CUdeviceptr)p->steps[i].first_tile;
    return code ? code : cu_kernels_ready(c);
}

int cu_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **program) {
    cuda *c = self;
    cu_program *p = calloc(1, sizeof *p);
    c->cu->cuCtxSetCurrent(c->context);
    if (!p) return fb_fail(FB_E_MEMORY, "out of memory");
    p->launches = n;
    int code = lower_all(c, p, launches, n, workspace);
    if (code == FB_OK && !(p->graphs = calloc((size_t)p->n / PART + 1, sizeof *p->graphs)))
        code = fb_fail(FB_E_MEMORY, "out of memory");
    for (int i = 0; code == FB_OK && i < p->n; i += PART) code = record(c, p, i, i + PART < p->n ? i + PART : p->n);
    if (code) cu_release(c, p);
    else *program = p;
    return code;
}

uint64_t cu_scratch(void *self, const fb_launch *launch) {
    const uint64_t bytes = CU_MOST_STEPS * sizeof(cu_lowered);
    cu_lowered *lowered = fb_os_alloc(bytes);
    uint64_t need = 0;
    if (!lowered) {
        fb_fail(FB_E_MEMORY, "out of memory");
        return UINT64_MAX;
    }
    if (cu_lower(self, launch, 1, NULL, lowered, &need) < 0) need = UINT64_MAX;
    fb_os_free(lowered, bytes);
    for (int k = 0; k < FB_MAX_OPERANDS; k++) /* of decoded weights there is one copy at a time */
        if (launch->v[k].mem && launch->v[k].type != FB_F32 && launch->v[k].type != FB_BF16 && launch->v[k].type != FB_I32)
            return need;
    return need < SIDES_BYTES ? SIDES * need : need;
}

/* ---- replaying ---- */

/* Every launch by itself, with an event before it and one behind the last. */
static int replay_timed(cuda *c, cu_program *p, const fb_run *run) {
    int code = FB_OK, at = 0;
    if (!p->times && !(p->times = calloc((size_t)p->launches + 1, sizeof *p->times)))
        return fb_fail(FB_E_MEMORY, "out of memory");
    for (int i = 0; i <= p->launches && code == FB_OK; i++) {
        if (run->cancel && *run->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        if (!p->times[i]) code = cu_check(c, c->cu->cuEventCreate(&p->times[i], CU_EVENT_DEFAULT), "make an event");
        if (code == FB_OK) code = cu_check(c, c->cu->cuEventRecord(p->times[i], c->stream), "mark its work");
        for (; at < p->n && p->steps[at].launch == i && code == FB_OK; at++) code = start(c, &p->steps[at]);
        if (run->done && i < p->launches) ++*run->done;
    }
    if (code == FB_OK) code = cu_wait(c);
    for (int i = 0; i < p->launches && code == FB_OK; i++) {
        float ms = 0;
        code = cu_check(c, c->cu->cuEventElapsedTime(&ms, p->times[i], p->times[i + 1]), "tell the time");
        run->seconds[i] = ms * 1e-3;
    }
    return code;
}

/* Until a part of the replay has ended; a cancel is seen meanwhile. */
static int wait_for(cuda *c, CUevent mark, const fb_run *run) {
    for (;;) {
        const CUresult result = c->cu->cuEventQuery(mark);
        if (result != CUDA_ERROR_NOT_READY) return cu_check(c, result, "finish its work");
        if (run->cancel && *run->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        fb_os_sleep(1e-4);
    }
}

int cu_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run) {
    cuda *c = self;
    cu_program *p = program;
    int code = FB_OK;
    c->cu->cuCtxSetCurrent(c->context);
    for (int i = FB_COUNT_NONE + 1; i < FB_COUNTS && code == FB_OK; i++)
        code = cu_check(c, c->cu->cuMemsetD32Async(c->counts + 4 * (CUdeviceptr)i, (unsigned)counts[i], 1, c->stream),
                        "tell its rows");
    if (code == FB_OK && run->seconds) return replay_timed(c, p, run);
    for (int i = 0; i < p->n_graphs && code == FB_OK; i++) {
        const double before = fb_os_seconds();
        const int end = (i + 1) * PART < p->n ? p->steps[(i + 1) * PART].launch : p->launches;
        if (run->cancel && *run->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        if (i >= 2) code = wait_for(c, c->marks[i % 2], run); /* of the last but one: one runs, one waits its turn */
        if (code == FB_OK) code = cu_check(c, c->cu->cuGraphLaunch(p->graphs[i], c->stream), "run a graph");
        if (code == FB_OK) code = cu_check(c, c->cu->cuEventRecord(c->marks[i % 2], c->stream), "mark its work");
        if (code == FB_OK && run->done) *run->done += end - (i ? p->steps[i * PART].launch : 0);
        if (code == FB_OK && run->reached) code = run->reached(run->context, end);
        if (code == FB_OK && run->duty < 1) {
            code = wait_for(c, c->marks[i % 2], run);
            fb_os_rest((fb_os_seconds() - before) * (1 / run->duty - 1), run->cancel);
        }
    }
    return code;
}

/* ---- peaks ---- */

/* The kernel that a peak is measured by, and the operations or bytes of a run: multiply-adds in registers, products of one stage
 * of shared memory over and over, or a sum over memory. */
static int peak_of(cuda *c, int kind, const fb_mem *memory, fb_mem *partial, cu_lowered *l, double *each) {
    const uint32_t rounds = 1000, groups = (uint32_t)c->processors * 8;
    memset(l, 0, sizeof *l);
    if (kind == FB_PEAK_READ) {
        const int32_t n = (int32_t)(memory->bytes / 4);
        const fb_launch sum = {.op = FB_OP_SUMSQ,
                               .sumsq = {{.mem = partial, .type = FB_F32, .rows = 1, .cols = 4096, .ld = 4096},
                                         {.mem = memory, .type = FB_F32, .rows = 1, .cols = n, .ld = n}}};
        *each = (double)memory->bytes;
        return cu_lower(c, &sum, 1, NULL, l, NULL) == 1 ? FB_OK : FB_E_INTERNAL;
    }
    l->groups = groups;
    l->threads = l->dispatch.constant.at[0] = 256;
    l->dispatch.kernel = FB_KERNEL_peak;
    l->dispatch.operand.peak.OUT = (fb_view){.mem = partial, .type = FB_F32, .rows = 1, .cols = 4096, .ld = 4096};
    l->dispatch.argument.peak.ROUNDS = rounds;
    *each = 2.0 * 16 * 256 * rounds * groups;
    if (kind == FB_PEAK_F32 || !c->own) return FB_OK;
    l->args.depth = (int)rounds;
    l->args.v[0].at = cu_address(&l->dispatch.operand.peak.OUT);
    *each = 2.0 * 256 * 64 * 64 * rounds * groups;
    snprintf(l->key, sizeof l->key, c->arch == 90 ? "peak -DBN=256" : "peak -DBN=0");
    if (c->arch == 90) l->shared_bytes = 1024 + 256 * 128 + 128 * 128, *each *= 2;
    return FB_OK;
}

int cu_peak(void *self, int kind, double seconds, double *per_second) {
    cuda *c = self;
    const uint64_t most = c->memory_bytes / 16 < (uint64_t)1 << 30 ? c->memory_bytes / 16 : (uint64_t)1 << 30,
                   bytes = kind == FB_PEAK_READ ? most : 4096;
    fb_mem memory = {0}, partial = {0};
    cu_lowered *l = fb_os_alloc(sizeof *l);
    cu_program p = {.launches = 1};
    double each = 0, best = 0;
    int code =
        kind < FB_PEAK_F32 || kind > FB_PEAK_READ ? fb_fail(FB_E_ARGUMENT, "There is no peak number %d.", kind) : FB_OK;
    if (code == FB_OK && !l) code = fb_fail(FB_E_MEMORY, "out of memory");
    if (code == FB_OK) code = fb_backend_cuda.alloc(c, bytes, &memory);
    if (code == FB_OK) code = fb_backend_cuda.alloc(c, 4096 * 4, &partial);
    if (code == FB_OK) code = peak_of(c, kind, &memory, &partial, l, &each);
    if (code == FB_OK) code = add(c, &p, l, 0);
    if (code == FB_OK) code = cu_kernels_ready(c);
    int times = 1;
    for (double spent = 0; code == FB_OK && (spent < seconds || best == 0);) {
        const double before = fb_os_seconds();
        for (int i = 0; i < times && code == FB_OK; i++) code = start(c, p.steps);
        if (code == FB_OK) code = cu_wait(c);
        const double took = fb_os_seconds() - before;
        spent += took;
        if (took > 0 && times * each / took > best) best = times * each / took;
        if (took < seconds / 8 && times < 1 << 20) times *= 2;
    }
    fb_backend_cuda.free(c, &memory);
    fb_backend_cuda.free(c, &partial);
    if (p.n) free(p.steps[0].argument);
    free(p.steps);
    if (l) fb_os_free(l, sizeof *l);
    *per_second = best;
    return code;
}
