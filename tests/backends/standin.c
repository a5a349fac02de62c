/* standin.c - stands in for libcuda, NVRTC and NCCL where there is no card: memory is the host's, a stream runs at once, and a
 * graph is a list; processes add up in a file that all of them map, in a thread beside. With -DSTANDIN_EMULATED portable kernels run, as fibers (tests/native/emulated); others do nothing.
 *     STANDIN_ARCH=90                  compute capability of the card, 75 by default; 0: there is none
 *     STANDIN_MEMORY=BYTES             that it has
 *     STANDIN_CARDS=3                  how many there are, 1 by default
 *     STANDIN_NCCL=21400               version of NCCL
 *     STANDIN_HANG="cuGraphLaunch 9"   the 9th call never ends
 *     STANDIN_VERSION=12040            of CUDA that the driver knows
 *     STANDIN_FAIL="cuMemAlloc_v2 5 2" the 5th call and all later ones fail with 2
 *     STANDIN_LOG=FILE                 "compile KEY" for each kernel, "graph" for each that is made, "launch" for each kernel that
 *                                      runs by itself, "replay" and "sum COUNT" where cards add up, and at the end "alive N": what was made and not freed */
#define _GNU_SOURCE
#ifdef STANDIN_EMULATED
#include "../native/emulated/emulated.c"
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../../native/backends/cuda/cu.h"

int standin_alive, standin_calls; /* objects; calls of the function of STANDIN_FAIL */
const char *standin_fail;         /* takes the place of STANDIN_FAIL */

static long number(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }

static void tell(const char *format, ...) {
    const char *path = getenv("STANDIN_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    va_list values;
    if (!file) return;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fclose(file);
}

/* The result that a call of this name must have; 0: it may go on. */
static int fails(const char *name) {
    char which[64];
    int first, code;
    const char *what = standin_fail ? standin_fail : getenv("STANDIN_FAIL");
    if (!what || sscanf(what, "%63s %d %d", which, &first, &code) != 3 || strcmp(which, name) != 0) return 0;
    return ++standin_calls >= first ? code : 0;
}
static void hang_at(const char *name) {
    static int calls;
    char which[64];
    int first;
    const char *what = getenv("STANDIN_HANG");
    if (what && sscanf(what, "%63s %d", which, &first) == 2 && !strcmp(which, name) && ++calls == first)
        for (;;) pause();
}
#define REACHED                            \
    do {                                  \
        int code_ = fails(__func__);      \
        hang_at(__func__);                \
        if (code_) return code_;          \
    } while (0)

static void *made(size_t bytes) {
    standin_alive++;
    return calloc(1, bytes);
}
static int freed(void *object) {
    standin_alive--;
    free(object);
    return 0;
}

/* ---- the card ---- */

CUresult cuInit(unsigned flags) { (void)flags; REACHED; return number("STANDIN_ARCH", 75) ? 0 : CUDA_ERROR_NO_DEVICE; }
CUresult cuDriverGetVersion(int *version) { *version = (int)number("STANDIN_VERSION", 13000); return 0; }
CUresult cuGetErrorName(CUresult result, const char **name) { *name = result == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR"; return 0; }
CUresult cuDeviceGetCount(int *n) { REACHED; *n = (int)number("STANDIN_CARDS", 1); return 0; }
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) { REACHED; *uuid = (CUuuid){{(unsigned char)device}}; return 0; }
CUresult cuDeviceGet(CUdevice *device, int i) { REACHED; *device = i; return 0; }
CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) { (void)device; snprintf(name, (size_t)bytes, "NVIDIA Stand-in"); return 0; }
CUresult cuDeviceGetAttribute(int *value, int which, CUdevice device) {
    const int arch = (int)number("STANDIN_ARCH", 75);
    (void)device;
    *value = which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR   ? arch / 10
             : which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? arch % 10
             : which == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT     ? (arch == 90 ? 132 : 4)
             : which == CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK    ? 256
             : which == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? (arch == 90 ? 232448 : 65536)
                                                                              : 0;
    return 0;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { (void)device; *bytes = (size_t)number("STANDIN_MEMORY", 4l << 30); return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    static int context_;
    (void)device;
    REACHED;
    standin_alive++;
    *context = (CUcontext)&context_;
    return 0;
}
CUresult cuCtxSetCurrent(CUcontext context) { (void)context; return 0; }

/* NVIDIA's own compiler asks the driver for this, and does without. */
CUresult cuGetExportTable(const void **table, const void *id) { (void)id; *table = NULL; return 500; }

/* ---- memory ---- */

static size_t in_use;
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
    REACHED;
    if (in_use + bytes > (size_t)number("STANDIN_MEMORY", 4l << 30)) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t *memory = aligned_alloc(256, (bytes + 511) / 256 * 256);
    in_use += *memory = bytes;
    standin_alive++;
    *at = (CUdeviceptr)(uintptr_t)memory + 256;
    return 0;
}
CUresult cuMemFree_v2(CUdeviceptr at) {
    size_t *memory = (size_t *)(uintptr_t)(at - 256);
    in_use -= *memory;
    return freed(memory);
}
CUresult cuMemHostAlloc(void **host, size_t bytes, unsigned flags) { (void)flags; REACHED; *host = made(bytes); return 0; }
CUresult cuMemFreeHost(void *host) { return freed(host); }
CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t n, CUstream s) { (void)s; REACHED; memset((void *)(uintptr_t)at, value, n); return 0; }
CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t n, CUstream s) {
    (void)s;
    REACHED;
    for (size_t i = 0; i < n; i++) ((unsigned *)(uintptr_t)at)[i] = value;
    return 0;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream s) { (void)s; REACHED; memcpy((void *)(uintptr_t)to, from, n); return 0; }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) { (void)s; REACHED; memcpy(to, (void *)(uintptr_t)from, n); return 0; }

/* ---- kernels, streams and graphs ---- */

struct CUfunc_st { char key[512]; };
struct CUmod_st { struct CUfunc_st function; };
typedef struct one { CUfunction function; unsigned groups, threads; char argument[2048]; } one; /* a recorded launch */
struct CUgraphNode_st { one launch; int done; };
struct CUgraph_st { struct CUgraphNode_st *nodes; char (*waits)[256]; int n; }; /* waits[i][j]: node i for node j */
struct CUgraphExec_st { struct CUgraph_st graph; int told; };
static int joined; /* communicators */

#ifdef STANDIN_EMULATED
/* A key is the name of a text and its constants: "norm.kernel -DSPEC_0=64u -DSPEC_1=3u". */
static void run_kernel(const char *key, unsigned groups, unsigned threads, const void *argument) {
    const size_t length = strcspn(key, ".");
    for (kernel = 0; kernel < FB_KERNEL_COUNT; kernel++)
        if (strlen(fb_kernels[kernel].name) == length && !strncmp(fb_kernels[kernel].name, key, length)) break;
    for (const char *at = key; (at = strstr(at, "-DSPEC_")) != NULL; at++) {
        unsigned which, value;
        if (sscanf(at, "-DSPEC_%u=%u", &which, &value) == 2) emulated_spec[which] = value;
    }
    memcpy(&current, argument, sizeof current);
    if (!stacks) stacks = malloc((size_t)MOST_THREADS * STACK);
    emulated_threads = (three){threads, 1, 1};
    emulated_groups = (three){groups, 1, 1};
    emulated_group.y = 0;
    for (emulated_group.x = 0; emulated_group.x < groups; emulated_group.x++) run_group();
}
#else
static void run_kernel(const char *key, unsigned groups, unsigned threads, const void *argument) {
    (void)key, (void)groups, (void)threads, (void)argument;
}
#endif

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    REACHED;
    if (memcmp(image, "standin ", 8) != 0 && memcmp(image, "\177ELF", 4) != 0) return 200;
    *module = made(sizeof **module);
    snprintf((*module)->function.key, sizeof (*module)->function.key, "%s", *(const char *)image == 's' ? (const char *)image + 8 : "");
    return 0;
}
CUresult cuModuleUnload(CUmodule module) { return freed(module); }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) { (void)name; REACHED; *function = &module->function; return 0; }
CUresult cuFuncSetAttribute(CUfunction function, int which, int value) { (void)function, (void)which, (void)value; REACHED; return 0; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s,
                        void **arguments, void **extra) {
    (void)gy, (void)gz, (void)by, (void)bz, (void)shared, (void)s, (void)extra;
    REACHED;
    one launch = {.function = f, .groups = gx, .threads = bx};
    memcpy(launch.argument, arguments[0], strstr(f->key, ".kernel") ? 11 * 8 + 32 * 4 : 0);
    tell("launch\n");
    run_kernel(f->key, gx, bx, launch.argument);
    return 0;
}
CUresult cuStreamCreate(CUstream *stream, unsigned flags) { (void)flags; REACHED; *stream = made(1); return 0; }
CUresult cuStreamDestroy_v2(CUstream stream) { return freed(stream); }
CUresult cuStreamSynchronize(CUstream stream) { (void)stream; REACHED; return 0; }
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) { (void)stream, (void)event, (void)flags; REACHED; return 0; }
CUresult cuGraphCreate(CUgraph *graph, unsigned flags) { (void)flags; REACHED; *graph = made(sizeof **graph); return 0; }
/* A node is its number, plus 1. */
CUresult cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph g, const CUgraphNode *before, size_t n, const CUkernelNode *of) {
    REACHED;
    if (g->n == 256) return 1;
    g->nodes = realloc(g->nodes, sizeof *g->nodes * (size_t)(g->n + 1));
    g->waits = realloc(g->waits, 256 * (size_t)(g->n + 1));
    memset(g->waits[g->n], 0, 256);
    for (size_t i = 0; i < n; i++) g->waits[g->n][(uintptr_t)before[i] - 1] = 1;
    g->nodes[g->n] = (struct CUgraphNode_st){{.function = of->function, .groups = of->groups[0], .threads = of->threads[0]}, 0};
    memcpy(g->nodes[g->n].launch.argument, of->arguments[0], strstr(of->function->key, ".kernel") ? 11 * 8 + 32 * 4 : 0);
    *node = (CUgraphNode)(uintptr_t)++g->n;
    return 0;
}
static void *copied(const void *from, size_t bytes) { return memcpy(malloc(bytes + 1), from, bytes); }
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    (void)flags;
    REACHED;
    tell("graph\n");
    *exec = made(sizeof **exec);
    (*exec)->graph.n = graph->n;
    (*exec)->graph.nodes = copied(graph->nodes, sizeof *graph->nodes * (size_t)graph->n);
    (*exec)->graph.waits = copied(graph->waits, 256 * (size_t)graph->n);
    return 0;
}
/* Of the nodes that need not wait, the last one first: an order that a card might choose, and unlike the one they came in. */
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    struct CUgraph_st *g = &exec->graph;
    int moved = 0;
    (void)stream;
    REACHED;
    if (joined) tell("replay\n");
    for (int i = 0; i < g->n; i++) g->nodes[i].done = 0;
    for (int left = g->n; left > 0; left--) {
        int at = g->n;
        for (int free = 0; !free;) {
            free = !g->nodes[--at].done;
            for (int j = 0; j < g->n && free; j++) free = !g->waits[at][j] || g->nodes[j].done;
        }
        const one *l = &g->nodes[at].launch;
        moved += at != g->n - left;
        g->nodes[at].done = 1;
        run_kernel(l->function->key, l->groups, l->threads, l->argument);
    }
    if (!exec->told++) tell("%d of %d out of turn\n", moved, g->n);
    return 0;
}
CUresult cuGraphDestroy(CUgraph graph) { free(graph->nodes), free(graph->waits); return freed(graph); }
CUresult cuGraphExecDestroy(CUgraphExec exec) { free(exec->graph.nodes), free(exec->graph.waits); return freed(exec); }
struct CUevent_st { int due; }; /* sums that must be done before */
static CUstream summing;
static atomic_int asked_sums, done_sums;
CUresult cuEventCreate(CUevent *event, unsigned flags) { (void)flags; REACHED; *event = made(sizeof **event); return 0; }
CUresult cuEventDestroy_v2(CUevent event) { return freed(event); }
CUresult cuEventRecord(CUevent event, CUstream stream) { REACHED; event->due = stream == summing ? asked_sums : 0; return 0; }
CUresult cuEventQuery(CUevent event) { REACHED; return event->due > done_sums ? CUDA_ERROR_NOT_READY : 0; }
CUresult cuEventSynchronize(CUevent event) { (void)event; REACHED; return 0; }
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) { (void)a, (void)b; REACHED; *ms = 0.001f; return 0; }
CUresult cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *at, const uint64_t *sizes, const uint64_t *strides, const uint32_t *box,
                                const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
    (void)map, (void)type, (void)rank, (void)sizes, (void)steps, (void)interleave, (void)swizzle, (void)promotion, (void)fill;
    REACHED;
    return (uintptr_t)at % 16 || strides[0] % 16 || box[1] > 256 || (uintptr_t)map % 64 ? 1 : 0;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    (void)device;
    standin_alive--;
    tell("alive %d\n", standin_alive);
    return 0;
}

/* ---- NCCL: a file with a barrier, and a stretch for what each rank brings; its name is the id ---- */

enum { STRETCH = 1 << 16 /* floats */, MOST_RANKS = 8 };
typedef struct shared_sums {
    atomic_int arrived, round;
    float brought[MOST_RANKS][STRETCH];
} shared_sums;
struct ncclComm { int rank, size, asked; shared_sums *shared; pthread_t thread; atomic_int ended; };
enum { MOST_SUMS = 256 };
static int together, n_begun; /* inside a group; sums that it has */
static struct { float *at; size_t n; int op; } sums[MOST_SUMS]; /* in turn */

static void meet(ncclComm_t c) {
    const int round = c->shared->round;
    if (atomic_fetch_add(&c->shared->arrived, 1) == c->size - 1) {
        atomic_store(&c->shared->arrived, 0);
        atomic_fetch_add(&c->shared->round, 1);
    }
    while (c->shared->round == round && !c->ended) usleep(200);
}

static void add_up(ncclComm_t c, float *at, size_t n, int mean) {
    for (size_t first = 0; first < n; first += STRETCH) {
        const size_t count = n - first < STRETCH ? n - first : STRETCH;
        memcpy(c->shared->brought[c->rank], at + first, count * sizeof *at);
        meet(c);
        for (size_t i = 0; i < count; i++) {
            float total = 0;
            for (int r = 0; r < c->size; r++) total += c->shared->brought[r][i];
            at[first + i] = mean ? total / (float)c->size : total;
        }
        meet(c);
    }
}

static void *add_up_all(void *comm) {
    ncclComm_t c = comm;
    while (!c->ended) {
        if (done_sums == asked_sums) usleep(200);
        for (; done_sums < asked_sums && !c->ended; done_sums++) {
            const int i = done_sums % MOST_SUMS;
            add_up(c, sums[i].at, sums[i].n, sums[i].op == ncclAvg);
        }
    }
    return NULL;
}

const char *ncclGetLastError(ncclComm_t c) { (void)c; return "as the test wants it"; }
ncclResult_t ncclGetVersion(int *version) { REACHED; *version = (int)number("STANDIN_NCCL", 22000); return 0; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    REACHED;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/fabric-standin-%d", (int)getpid());
    return 0;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank, ncclConfig_t *config) {
    REACHED;
    if (config->magic != 0xcafebeef || config->blocking || size > MOST_RANKS) return 4;
    const int file = shm_open(id.internal, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(shared_sums))) return 2;
    ncclComm_t c = *comm = made(sizeof **comm);
    c->rank = rank, c->size = size;
    c->shared = mmap(NULL, sizeof(shared_sums), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    meet(c);
    shm_unlink(id.internal);
    joined++;
    asked_sums = done_sums = 0;
    if (pthread_create(&c->thread, NULL, add_up_all, c)) return 2;
    return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) { REACHED; *state = ++c->asked % 2 ? ncclInProgress : ncclSuccess; return 0; }
ncclResult_t ncclCommAbort(ncclComm_t c) {
    c->ended = 1;
    pthread_join(c->thread, NULL);
    munmap(c->shared, sizeof *c->shared);
    joined--;
    return freed(c);
}
ncclResult_t ncclGroupStart(void) { REACHED; together = 1, n_begun = 0; return 0; }
ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, int type, int op, ncclComm_t c, CUstream stream) {
    (void)c;
    REACHED;
    if (from != to || type != ncclFloat32 || !together) return 4;
    tell("sum %zu\n", n);
    const int i = (asked_sums + n_begun++) % MOST_SUMS;
    sums[i].at = to, sums[i].n = n, sums[i].op = op;
    summing = stream;
    return ncclInProgress;
}
ncclResult_t ncclGroupEnd(void) {
    REACHED;
    asked_sums += n_begun;
    together = 0;
    return n_begun ? ncclInProgress : ncclSuccess;
}

/* ---- the compiler: what it makes is the name of the kernel and its constants ---- */

struct nvrtcProgram_st { char image[512]; };
nvrtcResult nvrtcVersion(int *major, int *minor) { REACHED; *major = (int)number("STANDIN_NVRTC", 13), *minor = 5; return 0; }
nvrtcResult nvrtcCreateProgram(nvrtcProgram *p, const char *text, const char *name, int n, const char *const *headers, const char *const *names) {
    (void)name, (void)n, (void)headers, (void)names;
    REACHED;
    const char *last = strrchr(text, '#'), *quote = last ? strchr(last, '"') : NULL;
    *p = made(sizeof **p);
    snprintf((*p)->image, sizeof (*p)->image, "standin %.*s", quote ? (int)strcspn(quote + 1, "\"") : 0, quote ? quote + 1 : "");
    return 0;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *p) { return freed(*p); }
nvrtcResult nvrtcCompileProgram(nvrtcProgram p, int n, const char *const *options) {
    REACHED;
    for (int i = 0; i < n; i++)
        if (options[i][0] == '-' && options[i][1] == 'D') snprintf(p->image + strlen(p->image), sizeof p->image - strlen(p->image), " %s", options[i]);
    tell("compile %s\n", p->image + 8);
    return 0;
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram p, size_t *bytes) { REACHED; *bytes = strlen(p->image) + 1; return 0; }
nvrtcResult nvrtcGetCUBIN(nvrtcProgram p, char *out) { REACHED; strcpy(out, p->image); return 0; }
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram p, size_t *bytes) { (void)p; REACHED; *bytes = 20; return 0; }
nvrtcResult nvrtcGetProgramLog(nvrtcProgram p, char *out) { (void)p; REACHED; strcpy(out, "line 1: an error\n"); return 0; }
