/* faults.c - a backend behind its stand-in: opens a device, runs a program and closes it again, with the n-th call of each
 * function of the driver and of the compiler failing, for every n that is reached. Each time it must end with a code and a
 * sentence, and leave nothing behind. Prints a line a function; exit 1 where something is wrong. Built for CUDA (standin.c), or
 * with -DMETAL (metal_standin.c). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../native/graph/backend.h"

#ifdef METAL
#include "../../native/backends/metal/objc.h"
#define NAME(name, selector, type, parameters, encoding, page) selector,
#define FUNCTION(name, type, parameters, page) #name,
static const char *const NAMES[] = {MTL_METHODS(NAME) MTL_FRAMEWORK(FUNCTION)};
/* Calls whose failure is made up for: memory that cannot be seen is copied, and a list of devices has a default. */
static const char *const QUIET[] = {"newBufferWithBytesNoCopy:length:options:deallocator:", "MTLCopyAllDevices", NULL};
#define LIBRARY "libobjc.A.dylib"
#define B fb_backend_metal
#else
#include "../../native/backends/cuda/cu.h"
#define NAME(name, arguments) #name,
static const char *const NAMES[] = {CU_FUNCTIONS(NAME) NVRTC_FUNCTIONS(NAME) NCCL_FUNCTIONS(NAME)};
/* Waits before memory is freed may fail unheard: there is nobody left to tell. */
static const char *const QUIET[] = {"cuStreamSynchronize", NULL};
#define LIBRARY "libcuda.so.1"
#define B fb_backend_cuda
#endif
extern const fb_backend B;
#define TRY(call) \
    if (code == FB_OK) code = (call)

static fb_view view(const fb_mem *mem, int64_t offset, int type, int rows, int cols) {
    return (fb_view){.mem = mem, .offset = (uint64_t)offset, .type = type, .rows = rows, .cols = cols, .ld = cols, .count = FB_COUNT_TOKENS, .factor = 1};
}

/* What a run does: everything once, on operands that take all of the backend's own kernels where the card has them. */
static int scenario(const char *cache) {
    enum { T = 160, D = 128, BYTES = 1 << 20 };
    const fb_device_options options = {.cache_path = cache};
    fb_device_info info;
    fb_mem a = {0}, w = {0}, scratch = {0};
    void *device = NULL, *program = NULL;
    static char host[BYTES];
    double seconds[4], peak;
    int32_t done = 0, counts[FB_COUNTS] = {0, T, T};
    int code = FB_OK;
    if (B.count() < 1) return FB_E_DEVICE;
    code = B.describe(0, &info);
    TRY(B.open(0, &options, &device, &info));
    TRY(B.alloc(device, BYTES, &a));
    TRY(B.wrap(device, host, BYTES, &w));
    TRY(B.write(device, &a, 0, host, BYTES));
    fb_view x = view(&a, 0, FB_BF16, T, D), y = view(&a, 1 << 17, FB_BF16, T, D), z = view(&a, 1 << 18, FB_F32, T, D);
    fb_view weight = view(&w, 0, FB_BF16, D, D), g = view(&w, 0, FB_F32, D, D);
    weight.count = g.count = FB_COUNT_NONE;
    fb_launch l[4] = {{.op = FB_OP_LINEAR, .attr.scale = 1, .v = {y, x, weight}},
                      {.op = FB_OP_LINEAR_DW, .attr.scale = 1, .v = {g, y, x}},
                      {.op = FB_OP_ADD, .v = {z, x, y}},
                      {.op = FB_OP_DROPOUT, .attr.scale = 1, .v = {y, x, view(&w, 0, FB_I32, T, 1)}}};
    uint64_t most = 1;
    for (int i = 0; i < 4 && code == FB_OK; i++) {
        const uint64_t need = B.scratch(device, &l[i]);
        if (need == UINT64_MAX) code = FB_E_DEVICE;
        else if (need > most) most = need;
    }
    TRY(B.alloc(device, most, &scratch));
    TRY(B.prepare(device, l, 4, &scratch, &program));
    TRY(B.replay(device, program, counts, &(fb_run){.done = &done, .duty = 1}));
    TRY(B.write(device, &a, 0, host, 4096)); /* behind what runs */
    TRY(B.replay(device, program, counts, &(fb_run){.duty = 0.5}));
    TRY(B.replay(device, program, counts, &(fb_run){.seconds = seconds, .duty = 1}));
    TRY(B.read(device, &a, 0, host, BYTES));
    for (int kind = FB_PEAK_F32; kind <= FB_PEAK_READ; kind++) TRY(B.peak(device, kind, 1e-4, &peak));
    if (B.join) {
        char card[FB_CARD], id[FB_PEERS_ID];
        const fb_view row = {.mem = &a, .rows = 1, .cols = 1000};
        int summed = 0;
        TRY(B.card(device, card));
        TRY(B.peers_id(NULL, id));
        TRY(B.join(device, NULL, id, 0, 1));
        TRY(B.sum(device, (fb_view[]){row, row}, 2, 1));
        while (code == FB_OK && !summed) TRY(B.summed(device, &summed));
    }
    TRY(B.wait(device));
    if (program) B.release(device, program);
    if (a.handle) B.free(device, &a);
    if (w.handle) B.free(device, &w);
    if (scratch.handle) B.free(device, &scratch);
    B.close(device);
    return code;
}

int main(void) {
    void *library = dlopen(LIBRARY, RTLD_NOW);
    int *alive = library ? dlsym(library, "standin_alive") : NULL, *calls = library ? dlsym(library, "standin_calls") : NULL, wrong = 0;
    const char **fail = library ? dlsym(library, "standin_fail") : NULL;
    if (!alive || !calls || !fail) return fprintf(stderr, LIBRARY " is not the stand-in\n"), 2;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        int n = 0, quiet = 0;
        for (int reached = 1; reached; n += reached) {
            char which[96];
            snprintf(which, sizeof which, "%s %d %d", NAMES[i], n + 1, n % 2 ? 999 : 2);
            *fail = which;
            *calls = 0;
            const int code = scenario(NULL);
            reached = *calls > n;
            const int whole = code == FB_OK || fb_error()[0];
            if (reached && code == FB_OK) quiet++;
            if ((!reached && code != FB_OK) || *alive != 0 || !whole) {
                printf("  %s: code %d, %d left, \"%s\"\n", which, code, *alive, fb_error());
                wrong++;
            }
            *alive = 0;
        }
        int allowed = 0;
        for (int k = 0; QUIET[k]; k++) allowed |= !strcmp(NAMES[i], QUIET[k]);
        if (quiet && !allowed) wrong++;
        printf("%-52s %4d failing calls%s\n", NAMES[i], n, quiet ? ", some unheard" : "");
    }
    return wrong != 0;
}
