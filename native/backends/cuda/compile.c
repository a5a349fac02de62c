/* compile.c - kernels compiled for the very device by NVIDIA's run-time compiler (NVRTC), with a launch's constants, and kept on
 * disk: a file a kernel, named after a hash of all that it comes from. */
#include "cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

enum { MOST_THREADS = 32, STATIC_BYTES = 48 << 10 /* of shared memory, that need not be asked for */ };

static uint64_t hash_of(uint64_t hash, const char *text) { /* FNV-1a */
    for (; *text; text++) hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash * 0x100000001b3u; /* and where it ends */
}

/* ---- the compiler ---- */

#define FROM_COMPILER(name, arguments)                                                         \
    n->name = (nvrtcResult (*) arguments)fb_os_function(n->library, #name);                     \
    if (!n->name) return fb_fail(FB_E_DEVICE, "CUDA's compiler has no function " #name "; install nvidia-cuda-nvrtc anew");

int cu_compiler_open(cuda *c, const char *path) {
    static const char *const names[] = {"libnvrtc.so.13",    "libnvrtc.so.12",    "libnvrtc.so",
                                        "nvrtc64_130_0.dll", "nvrtc64_120_0.dll", NULL};
    const char *const told[] = {path, NULL};
    nvrtc *n = &c->compiler;
    n->library = path ? fb_os_library(told) : NULL;
    if (!n->library) n->library = fb_os_library(names);
    if (!n->library)
        return fb_fail(
            FB_E_DEVICE,
            "There is a card, but not NVIDIA's run-time compiler: pip install 'fabric-llm[cuda]', or a CUDA toolkit.");
    NVRTC_FUNCTIONS(FROM_COMPILER)
    if (n->nvrtcVersion(&n->major, &n->minor)) n->major = 0;
    if (n->major < 12 || n->major > c->cu->version / 1000)
        return fb_fail(FB_E_DEVICE,
                       "CUDA's compiler is of version %d.%d and the driver of %d.%d, which does not load what it makes; %s.",
                       n->major, n->minor, c->cu->version / 1000, c->cu->version % 1000 / 10,
                       n->major < 12 ? "install nvidia-cuda-nvrtc 12 or newer"
                                     : "update the driver, or pip install nvidia-cuda-nvrtc-cu12");
    c->texts = 0xcbf29ce484222325u;
    for (int i = 0; i < fb_text_count; i++) c->texts = hash_of(hash_of(c->texts, fb_text_names[i]), fb_texts[i]);
    return FB_OK;
}

void cu_compiler_close(cuda *c) {
    if (c->compiler.library) fb_os_library_close(c->compiler.library);
}

static void architecture(const cuda *c, char out[16]) { snprintf(out, 16, "sm_%d%s", c->arch, c->arch == 90 ? "a" : ""); }

/* Runs in any thread: touches this kernel alone. */
static void compile(const cuda *c, cu_kernel *k) {
    const nvrtc *n = &c->compiler;
    enum { MOST_OPTIONS = 32 };
    char options[CU_KEY], text[256], arch[16], target[40];
    const char *given[MOST_OPTIONS] = {"-std=c++17", "--device-as-default-execution-space"};
    int count = 2;
    nvrtcProgram program = NULL;
    architecture(c, arch);
    snprintf(target, sizeof target, "--gpu-architecture=%s", arch);
    snprintf(options, sizeof options, "%s", k->key);
    given[count++] = target;
    char *at = strchr(options, ' ');
    for (; at && count < MOST_OPTIONS; at = strchr(at, ' ')) {
        *at++ = 0;
        given[count++] = at;
    }
    snprintf(text, sizeof text, "%s#include \"%.64s%s\"\n",
             strstr(options, ".kernel") ? "#include \"cuda.prelude\"\n#include \"common.prelude\"\n" : "", options,
             strstr(options, ".kernel") ? "" : ".cu");
    nvrtcResult result = n->nvrtcCreateProgram(&program, text, "kernel", fb_text_count, fb_texts, fb_text_names);
    if (!result) result = n->nvrtcCompileProgram(program, count, given);
    if (!result) result = n->nvrtcGetCUBINSize(program, &k->image_bytes);
    if (!result && (k->image = malloc(k->image_bytes + 1))) result = n->nvrtcGetCUBIN(program, k->image);
    if (result || !k->image) {
        size_t bytes = 0;
        char *log = program && !n->nvrtcGetProgramLogSize(program, &bytes) ? malloc(bytes + 1) : NULL;
        k->failed = 1;
        if (log && n->nvrtcGetProgramLog(program, log)) *log = 0;
        snprintf(k->reason, sizeof k->reason, "CUDA's compiler refused %.64s for %s: %.120s", options, arch,
                 log ? log : "out of memory");
        for (char *line = k->reason; *line; line++)
            if (*line == '\n') *line = ' ';
        free(log);
        free(k->image);
        k->image = NULL;
    }
    if (program) n->nvrtcDestroyProgram(&program);
}

/* ---- the disk ---- */

/* All that a kernel comes from, in words; a file begins with them. */
static void origin(const cuda *c, const cu_kernel *k, char out[CU_KEY + 80]) {
    char arch[16];
    architecture(c, arch);
    snprintf(out, CU_KEY + 80, "%016llx %s nvrtc %d.%d %s", (unsigned long long)c->texts, arch, c->compiler.major,
             c->compiler.minor, k->key);
}

static char *path_of(const cuda *c, const char *from, const char *suffix) {
    if (!c->cache_path) return NULL;
    const size_t length = strlen(c->cache_path) + 64;
    char *path = malloc(length);
    if (path)
        snprintf(path, length, "%s-cuda-%016llx.cubin%s", c->cache_path,
                 (unsigned long long)hash_of(0xcbf29ce484222325u, from), suffix);
    return path;
}

static void load(const cuda *c, cu_kernel *k) {
    char from[CU_KEY + 80], found[CU_KEY + 80];
    origin(c, k, from);
    char *path = path_of(c, from, "");
    FILE *file = path ? fb_os_file(path, 0) : NULL;
    const size_t length = strlen(from) + 1;
    free(path);
    if (!file) return;
    if (fread(found, 1, length, file) == length && memcmp(found, from, length) == 0 && !fseek(file, 0, SEEK_END)) {
        const long end = ftell(file);
        k->image_bytes = end > (long)length ? (size_t)end - length : 0;
        k->image = k->image_bytes ? malloc(k->image_bytes) : NULL;
        if (k->image && (fseek(file, (long)length, SEEK_SET) || fread(k->image, 1, k->image_bytes, file) != k->image_bytes)) {
            free(k->image);
            k->image = NULL;
        }
    }
    fclose(file);
}

/* No kernel that is not kept is an error: it is compiled again. */
static void save(const cuda *c, const cu_kernel *k) {
    char from[CU_KEY + 80], suffix[32];
    origin(c, k, from);
    snprintf(suffix, sizeof suffix, ".%llx", (unsigned long long)(fb_os_seconds() * 1e9));
    char *path = path_of(c, from, ""), *temporary = path_of(c, from, suffix);
    FILE *file = path && temporary ? fb_os_file(temporary, 1) : NULL;
    if (file) {
        const size_t length = strlen(from) + 1;
        int whole = fwrite(from, 1, length, file) == length && fwrite(k->image, 1, k->image_bytes, file) == k->image_bytes;
        whole &= !fclose(file);
        if (!whole || fb_os_rename(temporary, path)) fb_os_remove(temporary);
    }
    free(path);
    free(temporary);
}

/* ---- kernels ---- */

int cu_kernel_of(cuda *c, const char *key) {
    for (int i = 0; i < c->n_kernels; i++)
        if (!strcmp(c->kernels[i].key, key)) return i;
    cu_kernel *grown = fb_grown(c->kernels, c->n_kernels, &c->room_kernels, sizeof *grown);
    if (!grown) return -FB_E_MEMORY;
    c->kernels = grown;
    char *copy = malloc(strlen(key) + 1);
    if (!copy) return -fb_fail(FB_E_MEMORY, "out of memory");
    strcpy(copy, key);
    c->kernels[c->n_kernels] = (cu_kernel){.key = copy};
    return c->n_kernels++;
}

typedef struct work {
    cuda *c;
    atomic_int next;
} work;

static void compile_all(void *arg) {
    work *w = arg;
    for (int i; (i = atomic_fetch_add(&w->next, 1)) < w->c->n_kernels;) {
        cu_kernel *k = &w->c->kernels[i];
        if (k->module || k->image) continue;
        load(w->c, k);
        if (k->image) continue;
        compile(w->c, k);
        if (!k->failed) save(w->c, k);
    }
}

static int into_driver(cuda *c, cu_kernel *k) {
    CUresult result = c->cu->cuModuleLoadData(&k->module, k->image);
    if (result) k->module = NULL;
    if (!result) result = c->cu->cuModuleGetFunction(&k->function, k->module, "run");
    if (!result && k->shared_bytes > STATIC_BYTES)
        result =
            c->cu->cuFuncSetAttribute(k->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)k->shared_bytes);
    free(k->image);
    k->image = NULL;
    return cu_check(c, result, "load a kernel");
}

int cu_kernels_ready(cuda *c) {
    work w = {.c = c};
    fb_thread *threads[MOST_THREADS];
    int wanted = 0, n = 0, code = FB_OK;
    for (int i = 0; i < c->n_kernels; i++) {
        wanted += !c->kernels[i].module;
        c->kernels[i].failed = 0;
    }
    const int most = fb_os_cpu_count() < MOST_THREADS ? fb_os_cpu_count() : MOST_THREADS;
    while (n + 1 < wanted && n + 1 < most && (threads[n] = fb_thread_start(compile_all, &w))) n++;
    compile_all(&w);
    for (int i = 0; i < n; i++) fb_thread_join(threads[i]);
    for (int i = 0; i < c->n_kernels && code == FB_OK; i++) {
        cu_kernel *k = &c->kernels[i];
        if (k->failed) code = fb_fail(FB_E_DEVICE, "%s", k->reason);
        else if (!k->module) code = into_driver(c, k);
    }
    return code;
}

void cu_kernels_close(cuda *c) {
    for (int i = 0; i < c->n_kernels; i++) {
        if (c->kernels[i].module) c->cu->cuModuleUnload(c->kernels[i].module);
        free(c->kernels[i].image);
        free(c->kernels[i].key);
    }
    free(c->kernels);
}
