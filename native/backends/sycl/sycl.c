/* sycl.c - SYCL as a backend: Intel's GPUs, and whatever else a oneAPI runtime drives. What speaks C++ with it is a shim
 * (shim.h) that is opened at run time; what runs are the portable kernels of native/kernels, built by SYCL's own compiler. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../kernels/share.h"
#include "../../os.h"
#include "shim.h"

enum { LEAST_THREADS = 128, LEAST_SHARED = 16 << 10, UNITS_SHARED = 40 << 10 /* for products of joint matrices */,
       PART = 64 /* kernels between two marks */ };
_Static_assert((int)SHIM_BUFFERS == (int)FB_BINDINGS && (int)SHIM_SPECS == (int)FB_SPECS && (int)SHIM_WORDS > (int)FB_PUSH_WORDS &&
                   (int)SHIM_COUNTS >= (int)FB_COUNTS, "arguments of kernels");

#define POINTER(result, name, arguments) result(*name) arguments;
static struct {
    void *library;
    SHIM_FUNCTIONS(POINTER)
} shim;
static char shim_path[1024], shim_missing[512] = "no SYCL: Intel's runtime is not installed; pip install 'fabric-llm[sycl]'";

extern const fb_backend fb_backend_sycl;

typedef struct kernel {
    fb_kernel_id id;
    uint32_t constant[FB_SPECS];
    int number; /* the shim's; -1: not built yet */
} kernel;

typedef struct sycl {
    shim_device *device;
    fb_kernel_limits limits;
    shim_facts facts;
    uint32_t most_groups; /* of a launch */
    int few;              /* kernels read their constants from their arguments */
    kernel *kernels;
    int n_kernels, room_kernels;
} sycl;

/* One kernel that runs. */
typedef struct step {
    int kernel, launch;
    uint64_t groups;
    uint32_t threads;
    uint32_t first_group; /* which of shim_args.words says the first one */
    fb_view counted;      /* without whose rows it has nothing to do */
    shim_args args;
} step;

typedef struct program {
    step *steps;
    int n, room, launches;
} program;

static int check(int result, const char *what) {
    if (result == SHIM_OK) return FB_OK;
    if (result == SHIM_MEMORY)
        return fb_fail(FB_E_MEMORY, "The device ran out of memory when told to %s; use a smaller context, batch or model.", what);
    return fb_fail(FB_E_DEVICE, "The SYCL device failed to %s: %s.", what, shim.shim_error());
}

/* ---- the shim and its devices ---- */

static void sycl_find(const char *library, const char *missing) {
    if (shim.library) return;
    snprintf(shim_path, sizeof shim_path, "%s", library ? library : "");
    if (missing) snprintf(shim_missing, sizeof shim_missing, "%s", missing);
}

/* The shim stays open once it was: SYCL does not bear to be unloaded. */
#define FROM_SHIM(result, name, arguments)                                      \
    shim.name = (result(*) arguments)fb_os_function(library, #name);            \
    if (!shim.name) lacking = #name;

static int shim_open_once(void) {
    const char *const names[] = {shim_path, NULL}, *lacking = NULL;
    if (shim.library) return FB_OK;
    if (!*shim_path) return fb_fail(FB_E_DEVICE, "%s", shim_missing);
    void *library = fb_os_library(names);
    if (!library)
        return fb_fail(FB_E_DEVICE, "no SYCL: %s does not load; remove it, and install intel-sycl-rt anew", shim_path);
    SHIM_FUNCTIONS(FROM_SHIM)
    if (lacking) {
        fb_os_library_close(library);
        return fb_fail(FB_E_DEVICE, "no SYCL: %s has no function %s; remove it", shim_path, lacking);
    }
    shim.library = library;
    return FB_OK;
}

static int sycl_count(void) {
    if (shim_open_once()) return 0;
    const int n = shim.shim_count();
    if (n < 0) fb_fail(FB_E_DEVICE, "no SYCL: its runtime does not start: %s", shim.shim_error());
    if (n == 0)
        fb_fail(FB_E_DEVICE, "no SYCL: its runtime shows no device; a GPU needs Intel's compute driver (intel-opencl-icd or "
                             "libze-intel-gpu1), a processor pip install intel-opencl-rt");
    return n > 0 ? n : 0;
}

static int look(int index, shim_facts *facts, fb_device_info *info) {
    if (index >= sycl_count()) return fb_fail(FB_E_DEVICE, "there is no SYCL device %d", index);
    const int code = check(shim.shim_describe(index, facts), "say what it is");
    if (code) return code;
    memset(info, 0, sizeof *info);
    snprintf(info->backend, sizeof info->backend, "sycl");
    snprintf(info->name, sizeof info->name, "%s", facts->name);
    snprintf(info->driver, sizeof info->driver, "%s %.60s", facts->api, facts->driver);
    snprintf(info->isa, sizeof info->isa, facts->unit_n ? "sycl, bf16 matrix units" : "sycl");
    info->cores = facts->cores;
    info->bf16 = facts->kind != SHIM_PROCESSOR || facts->unit_n;
    info->software = facts->kind == SHIM_PROCESSOR;
    info->own_memory = facts->own_memory;
    info->memory_bytes = facts->memory_bytes;
    info->max_binding_bytes = ((uint64_t)4 << 30) - 256; /* kernels count elements, and bytes of blocks, in 32 bits */
    info->max_allocation_bytes = facts->allocation_bytes;
    info->workgroup_bytes = facts->workgroup_bytes;
    info->workgroup_threads = facts->workgroup_threads;
    info->workgroups = INT32_MAX / 1024; /* all work-items are counted in 31 bits */
    return FB_OK;
}

static int sycl_describe(int index, fb_device_info *info) {
    shim_facts facts;
    return look(index, &facts, info);
}

static void sycl_close(void *self) {
    sycl *s = self;
    if (s->device) shim.shim_close(s->device);
    free(s->kernels);
    free(s);
}

static int sycl_open(int index, const fb_device_options *options, void **self, fb_device_info *info) {
    shim_facts facts;
    int code = look(index, &facts, info);
    if (code == FB_OK && (facts.workgroup_threads < LEAST_THREADS || facts.workgroup_bytes < LEAST_SHARED))
        code = fb_fail(FB_E_DEVICE, "%s has workgroups of %u threads and %u bytes, and kernels need %d and %d", info->name,
                       facts.workgroup_threads, facts.workgroup_bytes, LEAST_THREADS, LEAST_SHARED);
    sycl *s = code == FB_OK ? calloc(1, sizeof *s) : NULL;
    if (!s) return code ? code : fb_fail(FB_E_MEMORY, "out of memory");
    fb_lower_limit(&info->workgroup_bytes, options->workgroup_bytes);
    fb_lower_limit(&info->workgroup_threads, options->workgroup_threads);
    fb_lower_limit(&info->workgroups, options->workgroups);
    s->limits = (fb_kernel_limits){.threads = info->workgroup_threads < 1024 ? info->workgroup_threads : 1024,
                                   .shared_bytes = info->workgroup_bytes,
                                   .binding_bytes = options->max_binding_bytes,
                                   .tile_rows = options->tile_rows,
                                   .tile_cols = options->tile_cols};
    s->most_groups = info->workgroups;
    s->few = facts.kind == SHIM_PROCESSOR; /* whose compiler takes longer than most kernels run */
    s->facts = facts;
    if (info->workgroup_bytes >= UNITS_SHARED) s->limits.subgroup = facts.unit_n, s->limits.products_alone = 1;
    code = check(shim.shim_open(index, &s->device), "open");
    if (code) sycl_close(s);
    else *self = s;
    return code;
}

/* ---- memory ---- */

static void sycl_free(void *self, fb_mem *mem) {
    sycl *s = self;
    if (mem->handle) shim.shim_free(s->device, mem->handle);
    *mem = (fb_mem){0};
}

static int allocate(sycl *s, uint64_t bytes, fb_mem *mem) {
    const uint64_t padded = bytes <= UINT64_MAX - 512 ? (bytes + 511) / 256 * 256 : 0; /* reads of a last word stay inside */
    void *at = NULL;
    if (!padded || shim.shim_alloc(s->device, padded, &at) != SHIM_OK)
        return fb_fail(FB_E_MEMORY, "The device could not allocate %.1f MiB; use a smaller context, batch or model.",
                       (double)bytes / 1048576);
    *mem = (fb_mem){.handle = at, .bytes = bytes};
    return FB_OK;
}

static int sycl_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    sycl *s = self;
    int code = allocate(s, bytes, mem);
    if (code) return code;
    code = check(shim.shim_zero(s->device, mem->handle, (bytes + 511) / 256 * 256), "clear memory");
    if (code) sycl_free(s, mem);
    return code;
}

static int sycl_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    sycl *s = self;
    const int code = fb_inside(mem, offset, bytes);
    return code ? code : check(shim.shim_write(s->device, (char *)mem->handle + offset, src, bytes), "copy to its memory");
}

static int sycl_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    sycl *s = self;
    const int code = fb_inside(mem, offset, bytes);
    return code ? code : check(shim.shim_read(s->device, (char *)mem->handle + offset, dst, bytes), "finish its work");
}

/* Read-only memory of the host: uploaded at once. */
static int sycl_wrap(void *self, const void *host, uint64_t bytes, fb_mem *mem) {
    int code = allocate(self, bytes, mem);
    if (code) return code;
    code = sycl_write(self, mem, 0, host, bytes);
    if (code) sycl_free(self, mem);
    return code;
}

static int sycl_wait(void *self) { return check(shim.shim_wait(((sycl *)self)->device), "finish its work"); }

/* ---- kernels ---- */

/* The number of a dispatch's kernel, built or not; -1 after fb_fail. */
static int kernel_of(sycl *s, const fb_dispatch *d) {
    kernel wanted = {.id = d->kernel, .number = -1};
    for (uint32_t i = 0; i < FB_SPECS; i++)
        if (!s->few || i == 0 || fb_kernels[d->kernel].tiles >> i & 1u) wanted.constant[i] = d->constant.at[i];
    for (int i = 0; i < s->n_kernels; i++)
        if (s->kernels[i].id == wanted.id && !memcmp(s->kernels[i].constant, wanted.constant, sizeof wanted.constant)) return i;
    kernel *grown = fb_grown(s->kernels, s->n_kernels, &s->room_kernels, sizeof *grown);
    if (!grown) return -1;
    s->kernels = grown;
    s->kernels[s->n_kernels] = wanted;
    return s->n_kernels++;
}

/* Builds kernels [first, n_kernels) as one text, since reading SYCL's headers takes longer than a kernel does. */
static int build(sycl *s, int first) {
    enum { HEAD = 384, EACH = 768, NAME = 24 };
    const int n = s->n_kernels - first;
    if (n == 0) return FB_OK;
    char *text = malloc(HEAD + (size_t)n * EACH), *names = malloc((size_t)n * NAME);
    const char **name = malloc((size_t)n * sizeof *name), **files = malloc(2 * (size_t)fb_text_count * sizeof *files);
    int code = text && names && name && files ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory"), number = 0;
    if (code == FB_OK) {
        size_t at = (size_t)snprintf(text, HEAD, "%s", s->few ? "#define FEW_KERNELS\n" : "");
        if (s->limits.subgroup)
            at += (size_t)snprintf(text + at, HEAD - at, "#define UNIT_M %uu\n#define UNIT_N %uu\n#define UNIT_K %uu\n",
                                   s->facts.unit_m, s->facts.unit_n, s->facts.unit_k);
        at += (size_t)snprintf(text + at, HEAD - at, "#include \"sycl.prelude\"\n#include \"common.prelude\"\n");
        for (int i = 0; i < n; i++) {
            const kernel *k = &s->kernels[first + i];
            name[i] = names + i * NAME;
            snprintf(names + i * NAME, NAME, "run_%d", i);
            for (int c = 0; c < FB_SPECS; c++)
                at += (size_t)snprintf(text + at, 64, "#undef SPEC_%d\n#define SPEC_%d %uu\n", c, c, k->constant[c]);
            /* PARTS: a macro of some kernels, an argument of others. */
            at += (size_t)snprintf(text + at, 256, "#undef RUN\n#undef PARTS\n#undef TEAMS\n#define RUN run_%d\n#define TEAMS %s\n"
                                   "namespace k%d {\n#include \"%.32s.kernel\"\n}\n", i,
                                   k->id >= FB_FIRST_MATRIX_KERNEL ? "OF_UNITS" : "", i, fb_kernels[k->id].name);
        }
        for (int i = 0; i < fb_text_count; i++) files[2 * i] = fb_text_names[i], files[2 * i + 1] = fb_texts[i];
        code = check(shim.shim_build(s->device, text, files, fb_text_count, name, n, &number), "build its kernels");
    }
    for (int i = 0; i < n && code == FB_OK; i++) s->kernels[first + i].number = number + i;
    if (code) s->n_kernels = first;
    free(text);
    free(names);
    free(name);
    free(files);
    return code;
}

/* ---- programs ---- */

static int add(void *self, void *prepared, fb_dispatch *d, int launch, const fb_view *counted) {
    sycl *s = self;
    program *p = prepared;
    step *grown = fb_grown(p->steps, p->n, &p->room, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    p->steps = grown;
    step *t = &p->steps[p->n];
    *t = (step){.kernel = kernel_of(s, d), .launch = launch, .groups = d->groups, .threads = d->constant.at[0]};
    if (t->kernel < 0) return FB_E_MEMORY;
    for (uint32_t k = 0; k < fb_kernels[d->kernel].operands; k++) {
        const fb_view *v = &d->operand.at[k];
        if (!v->mem) continue;
        const uint64_t at = (uint64_t)(uintptr_t)v->mem->handle + v->offset;
        t->args.buffer[k] = at / 16 * 16;
        fb_place(d, (int)k, at % 16, t->args.words);
    }
    if (counted) t->counted = *counted;
    memcpy(t->args.spec, d->constant.at, sizeof t->args.spec);
    t->first_group = fb_arguments(d, 0, t->args.words) - 1;
    p->n++;
    return FB_OK;
}

static int start(sycl *s, step *t, const int32_t counts[FB_COUNTS]) {
    int code = FB_OK;
    memcpy(t->args.counts, counts, FB_COUNTS * sizeof *counts);
    for (uint64_t first = 0; first < t->groups && code == FB_OK; first += s->most_groups) {
        const uint64_t left = t->groups - first;
        t->args.words[t->first_group] = (uint32_t)first;
        code = check(shim.shim_run(s->device, s->kernels[t->kernel].number, &t->args,
                                   left < s->most_groups ? left : s->most_groups, t->threads),
                     "run a kernel");
    }
    return code;
}

static void sycl_release(void *self, void *prepared) {
    sycl *s = self;
    program *p = prepared;
    if (!p) return;
    shim.shim_wait(s->device);
    free(p->steps);
    free(p);
}

static int sycl_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **prepared) {
    sycl *s = self;
    const int first = s->n_kernels;
    program *p = calloc(1, sizeof *p);
    if (!p) return fb_fail(FB_E_MEMORY, "out of memory");
    p->launches = n;
    int code = fb_lower_all(launches, n, workspace, &s->limits, add, s, p);
    if (code) s->n_kernels = first; /* what was not built is not there */
    else code = build(s, first);
    if (code) sycl_release(self, p);
    else *prepared = p;
    return code;
}

static uint64_t sycl_scratch(void *self, const fb_launch *launch) {
    return fb_lower_scratch(launch, &((sycl *)self)->limits);
}

/* Until all before a mark has run; a cancel is seen meanwhile. */
static int wait_for(sycl *s, int mark, const fb_run *run) {
    for (int result; (result = shim.shim_passed(s->device, mark)) != SHIM_OK; fb_os_sleep(1e-4)) {
        if (result != SHIM_BUSY) return check(result, "finish its work");
        if (run->cancel && *run->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
    }
    return FB_OK;
}

/* One part of kernels runs while the next is handed over; more is not on its way when a cancel comes. */
static int sycl_replay(void *self, void *prepared, const int32_t counts[FB_COUNTS], const fb_run *run) {
    sycl *s = self;
    program *p = prepared;
    int code = FB_OK, part = 0;
    double before = fb_os_seconds();
    for (int i = 0; run->seconds && i < p->launches; i++) run->seconds[i] = 0;
    for (int i = 0; i < p->n && code == FB_OK; i++) {
        step *t = &p->steps[i];
        const int ends = i + 1 == p->n || p->steps[i + 1].launch != t->launch;
        if (run->cancel && *run->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        if (fb_is_used(&t->counted, counts)) code = start(s, t, counts);
        if (run->seconds && code == FB_OK && ends) {
            code = sycl_wait(s);
            const double now = fb_os_seconds();
            run->seconds[t->launch] = now - before;
            before = now;
        }
        if (run->done && ends) ++*run->done;
        if ((i + 1) % PART || code || run->seconds) continue;
        code = check(shim.shim_mark(s->device, part % 2), "mark its work");
        if (code == FB_OK && run->duty < 1) {
            code = wait_for(s, part % 2, run);
            fb_os_rest((fb_os_seconds() - before) * (1 / run->duty - 1), run->cancel);
            before = fb_os_seconds();
        } else if (code == FB_OK && part) code = wait_for(s, (part + 1) % 2, run);
        part++;
    }
    return code;
}

/* ---- peaks ---- */

static int timed(void *self, fb_dispatch *d, uint32_t times, double *seconds) {
    static const int32_t counts[FB_COUNTS];
    sycl *s = self;
    program p = {.launches = 1};
    const int first = s->n_kernels;
    int code = add(s, &p, d, 0, NULL);
    if (code == FB_OK) code = build(s, first);
    const double before = fb_os_seconds();
    for (uint32_t i = 0; i < times && code == FB_OK; i++) code = start(s, p.steps, counts);
    if (code == FB_OK) code = sycl_wait(s);
    *seconds = fb_os_seconds() - before;
    free(p.steps);
    return code;
}

static int sycl_peak(void *self, int kind, double seconds, double *per_second) {
    const sycl *s = self;
    const uint64_t most = (uint64_t)256 << 20, bytes = s->facts.memory_bytes / 16 < most ? s->facts.memory_bytes / 16 : most;
    return fb_measure(&fb_backend_sycl, self, &s->limits, bytes, timed, kind, seconds, per_second);
}

const fb_backend fb_backend_sycl = {
    .name = "sycl",
    .find = sycl_find,
    .count = sycl_count,
    .describe = sycl_describe,
    .open = sycl_open,
    .close = sycl_close,
    .alloc = sycl_alloc,
    .wrap = sycl_wrap,
    .free = sycl_free,
    .write = sycl_write,
    .read = sycl_read,
    .scratch = sycl_scratch,
    .prepare = sycl_prepare,
    .replay = sycl_replay,
    .release = sycl_release,
    .wait = sycl_wait,
    .peak = sycl_peak,
};
