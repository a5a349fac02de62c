/* allocations.c - optimizer steps through the C interface, linked so that every allocation of the core is counted:
 * prints how many there were before the first step had ended, and how many in the steps after it. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include "../../native/include/fabric.h"

enum { TOKENS = 24, WIDTH = 32, VOCAB = 40, RANK = 4, STEPS = 5 };

static int count;
#define WRAPPED(type, name, parameters, ...)     \
    type __real_##name parameters;               \
    type __wrap_##name parameters;               \
    type __wrap_##name parameters {              \
        __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST); \
        return __real_##name(__VA_ARGS__);       \
    }
WRAPPED(void *, malloc, (size_t n), n)
WRAPPED(void *, calloc, (size_t n, size_t size), n, size)
WRAPPED(void *, realloc, (void *p, size_t n), p, n)
WRAPPED(int, posix_memalign, (void **p, size_t align, size_t n), p, align, n)
WRAPPED(void *, aligned_alloc, (size_t align, size_t n), align, n)
WRAPPED(void *, mmap, (void *p, size_t n, int a, int b, int c, off_t d), p, n, a, b, c, d)

static void must(int ok) {
    if (ok) return;
    fprintf(stderr, "%s\n", fb_error());
    exit(1);
}

int main(void) {
    static float frozen[VOCAB * WIDTH], values[2 * RANK * WIDTH];
    static int32_t ids[TOKENS], index[TOKENS], targets[TOKENS];
    for (int i = 0; i < VOCAB * WIDTH; i++) frozen[i] = (float)(i * 37 % 101) / 101 - 0.5f;
    for (int i = 0; i < 2 * RANK * WIDTH; i++) values[i] = (float)(i * 17 % 31) / 31 - 0.5f;
    for (int i = 0; i < TOKENS; i++) ids[i] = i * 7 % VOCAB, index[i] = i, targets[i] = i * 11 % VOCAB;
    fb_device *device = fb_device_open("cpu", &(fb_device_options){.threads = 2});
    must(device != NULL);
    fb_buffer *weights = fb_buffer_wrap(device, frozen, sizeof frozen, NULL, 0);
    fb_buffer *flat[4];
    for (int i = 0; i < 4; i++) must((flat[i] = fb_buffer_new(device, sizeof values, NULL, 0)) != NULL);
    must(weights && fb_buffer_write(flat[0], 0, values, sizeof values) == FB_OK);
    fb_graph *g = fb_graph_new(device, TOKENS, TOKENS, FB_BF16);
    fb_tensor tokens = fb_input(g, FB_I32, FB_ROWS_TOKENS, 1), at = fb_input(g, FB_I32, FB_ROWS_TRAINED, 1);
    fb_tensor wanted = fb_input(g, FB_I32, FB_ROWS_TRAINED, 1);
    fb_tensor head = fb_leaf(g, FB_FROZEN, weights, 0, FB_F32, VOCAB, WIDTH), square = fb_leaf(g, FB_FROZEN, weights, 0, FB_F32, WIDTH, WIDTH);
    fb_lora none = {.a = -1, .b = -1}, pair = {.scale = 1};
    pair.a = fb_leaf(g, FB_PARAM, flat[0], 0, FB_F32, RANK, WIDTH);
    pair.b = fb_leaf(g, FB_PARAM, flat[0], sizeof values / 2, FB_F32, WIDTH, RANK);
    must(fb_loss(g, fb_linear(g, fb_embed(g, head, tokens, 1, 1, 0), square, -1, pair, -1), head, none, at, wanted, 0) >= 0);
    fb_plan *plan = fb_plan_new(g, &(fb_plan_options){.train = 1, .params = flat[0], .grads = flat[1]});
    must(plan != NULL);
    const void *inputs[] = {ids, index, targets};
    const uint64_t all[] = {4 * TOKENS, 4 * TOKENS, 4 * TOKENS}, some[] = {4 * TOKENS / 2, 4 * TOKENS / 3, 4 * TOKENS / 3};
    const fb_feed feeds[] = {{TOKENS, TOKENS, 3, inputs, all}, {TOKENS / 2, TOKENS / 3, 3, inputs, some}};
    const fb_range range = {0, sizeof values / 4, 1, 1};
    fb_optimizer o = {.kind = FB_ADAMW, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .clip = 1, .m = flat[2], .v = flat[3],
                      .ranges = &range, .n_ranges = 1};
    fb_result result;
    fb_progress progress = {0};
    for (o.t = 1; o.t <= STEPS; o.t++) {
        o.lr = 0.01f / (float)o.t;
        must(fb_plan_step(plan, feeds, 1 + o.t % 2, &o, &result, &progress) == FB_OK && result.finite);
        if (o.t > 2) continue;
        if (o.t == 2) printf("%d\n", count);
        count = o.t == 2 ? 0 : count;
    }
    printf("%d\n", count);
    fb_plan_free(plan);
    fb_graph_free(g);
    for (int i = 0; i < 4; i++) fb_buffer_free(flat[i]);
    fb_buffer_free(weights);
    fb_device_close(device);
    return 0;
}
