/* speed.h - how near the products and attention come to the measured peak. Not a test: numbers to read. */
#ifndef FB_TEST_SPEED_H
#define FB_TEST_SPEED_H
#include "case.h"

enum { TOKENS = 512, N_SHAPES = 5, COPIES = 16 };
static const int SHAPES[N_SHAPES][2] = {{2048, 1024}, {1024, 1024}, {3072, 1024}, {1024, 3072}, {1024, 2048}}; /* N, K */

static fb_view make_view(const fb_backend *b, void *device, fb_mem *mem, int type, int rows, int cols) {
    fb_view v = {.mem = mem, .type = type, .rows = rows, .cols = cols, .ld = cols};
    uint64_t bytes = fb_type_bytes(type, (int64_t)rows * cols);
    char *image = calloc(bytes, 1);
    for (int r = 0; r < rows && type != FB_I32; r++) {
        static float row[32768];
        for (int c = 0; c < cols; c++) row[c] = (float)uniform(-1, 1);
        encode_row(type, row, image + fb_type_bytes(type, (int64_t)r * cols), cols);
    }
    if (b->alloc(device, COPIES * bytes, mem)) exit(2);
    for (uint64_t i = 0; i < COPIES; i++)
        if (b->write(device, mem, i * bytes, image, bytes)) exit(2);
    free(image);
    return v;
}

static double best_of(const fb_backend *b, void *device, fb_launch *l, double limit_s) {
    fb_mem scratch = {0};
    double best = 1e9, sum = 0, seconds;
    if (b->alloc(device, b->scratch(device, l) + 64, &scratch)) exit(2);
    for (int i = 0; i < 2 * COPIES || (sum < limit_s && i < 64); i++) {
        fb_launch cold = *l;
        for (int k = 0; k < FB_MAX_OPERANDS; k++)
            if (cold.v[k].mem)
                cold.v[k].offset += (uint64_t)(i % COPIES) * fb_type_bytes(cold.v[k].type, (int64_t)cold.v[k].rows * cold.v[k].ld);
        void *program;
        if (b->prepare(device, &cold, 1, &scratch, &program)) exit(2);
        if (b->replay(device, program, (int32_t[FB_COUNTS]){0}, &(fb_run){.seconds = &seconds, .duty = 1})) exit(2);
        b->release(device, program);
        sum += seconds;
        if (seconds < best) best = seconds;
    }
    b->free(device, &scratch);
    return best;
}

static void speed_products(const fb_backend *b, void *device, int act, int weight, int tokens, double peak) {
    for (int s = 0; s < N_SHAPES; s++) {
        int n = SHAPES[s][0], k = SHAPES[s][1];
        fb_mem m[3];
        fb_view x = make_view(b, device, &m[0], act, tokens, k), y = make_view(b, device, &m[1], act, tokens, n);
        fb_view w = make_view(b, device, &m[2], weight, n, k);
        fb_launch forward = {.op = FB_OP_LINEAR, .attr.scale = 1, .v = {y, x, w}};
        fb_launch back = {.op = FB_OP_LINEAR_DX, .attr.scale = 1, .v = {x, y, w}};
        double flops = 2.0 * tokens * n * k, f = flops / best_of(b, device, &forward, 0.3);
        double d = flops / best_of(b, device, &back, 0.3);
        printf("  N %4d K %4d T %3d: forward %6.1f GFLOP/s %3.0f %%   gradient %6.1f GFLOP/s %3.0f %%\n", n, k, tokens,
               f / 1e9, 100 * f / peak, d / 1e9, 100 * d / peak);
        for (int i = 0; i < 3; i++) b->free(device, &m[i]);
    }
}

/* The products of a LoRA pair of rank 16. */
static void speed_lora(const fb_backend *b, void *device, int act, int tokens) {
    enum { N = 1024, R = 16 };
    fb_mem m[6];
    fb_view x = make_view(b, device, &m[0], act, tokens, N), u = make_view(b, device, &m[1], act, tokens, R);
    fb_view a = make_view(b, device, &m[2], FB_F32, R, N), l = make_view(b, device, &m[3], FB_F32, N, R);
    fb_launch launch[4] = {{.op = FB_OP_LINEAR, .attr.scale = 1, .v = {u, x, a}},
                           {.op = FB_OP_LINEAR_DX, .attr.scale = 1, .v = {u, x, l}},
                           {.op = FB_OP_LINEAR_DW, .attr.scale = 1, .v = {a, u, x}},
                           {.op = FB_OP_LINEAR_DW, .attr.scale = 1, .v = {l, x, u}}};
    static const char *const names[] = {"u = x A", "du = dy B", "dA", "dB"};
    for (int i = 0; i < 4; i++) {
        double s = best_of(b, device, &launch[i], 0.1);
        printf("  %-9s %7.1f us, %6.1f GFLOP/s\n", names[i], s * 1e6, 2.0 * tokens * N * R / s / 1e9);
    }
    for (int i = 0; i < 4; i++) b->free(device, &m[i]);
}

static void speed_attention(const fb_backend *b, void *device, int act, double peak) {
    int heads = 16, kv = 8, hd = 128;
    fb_mem m[9];
    fb_view q = make_view(b, device, &m[0], act, TOKENS, heads * hd), o = make_view(b, device, &m[1], act, TOKENS, heads * hd);
    fb_view k = make_view(b, device, &m[2], act, TOKENS, kv * hd), v = make_view(b, device, &m[3], act, TOKENS, kv * hd);
    fb_view stats = make_view(b, device, &m[4], FB_F32, TOKENS, 2 * heads), range = make_view(b, device, &m[5], FB_I32, TOKENS, 2);
    fb_view dk = make_view(b, device, &m[6], act, TOKENS, kv * hd), dv = make_view(b, device, &m[7], act, TOKENS, kv * hd);
    fb_view dq = make_view(b, device, &m[8], act, TOKENS, heads * hd);
    for (int32_t i = 0, end; i < COPIES * TOKENS; i++) end = i % TOKENS + 1, b->write(device, &m[5], (uint64_t)i * 8 + 4, &end, 4);
    fb_attr attr = {.attention = {heads, kv, hd, 0, 0.01f, 0}};
    fb_launch l[3] = {{.op = FB_OP_ATTENTION, .attr = attr, .v = {o, stats, q, k, v, range}},
                      {.op = FB_OP_ATTENTION_DQ, .attr = attr, .v = {dq, stats, q, k, v, o, o, range}},
                      {.op = FB_OP_ATTENTION_DKV, .attr = attr, .v = {dk, dv, q, k, v, stats, o, range}}};
    static const char *const names[] = {"forward", "dQ", "dK, dV"};
    for (int i = 0; i < 3; i++) {
        double flops = (4.0 + 2 * i) * hd * heads * TOKENS * TOKENS / 2, s = best_of(b, device, &l[i], 0.3);
        printf("  attention %-7s %6.2f ms, %6.1f GFLOP/s %3.0f %%\n", names[i], s * 1e3, flops / s / 1e9, 100 * flops / s / peak);
    }
    for (int i = 0; i < 9; i++) b->free(device, &m[i]);
}

/* One query over a cache. */
static void speed_cache(const fb_backend *b, void *device) {
    enum { KEYS = 1024, HEADS = 16, KV = 8, HD = 128 };
    fb_mem m[6];
    int32_t end = KEYS;
    fb_view q = make_view(b, device, &m[0], FB_F32, 1, HEADS * HD), o = make_view(b, device, &m[1], FB_F32, 1, HEADS * HD);
    fb_view k = make_view(b, device, &m[2], FB_BF16, KEYS, KV * HD), v = make_view(b, device, &m[3], FB_BF16, KEYS, KV * HD);
    fb_view stats = make_view(b, device, &m[4], FB_F32, 1, 2 * HEADS), range = make_view(b, device, &m[5], FB_I32, 1, 2);
    for (int i = 0; i < COPIES; i++) b->write(device, &m[5], (uint64_t)i * 8 + 4, &end, 4);
    fb_launch l = {.op = FB_OP_ATTENTION, .attr = {.attention = {HEADS, KV, HD, 0, 0.1f, 0}}, .v = {o, stats, q, k, v, range}};
    printf(" one token over a cache of %d keys, 16 / 8 heads of 128: %.1f us\n", KEYS, best_of(b, device, &l, 0.1) * 1e6);
    for (int i = 0; i < 6; i++) b->free(device, &m[i]);
}

static void speed(const fb_backend *b, const char *isa, int threads, int weight) {
    fb_device_options options = {.threads = threads, .isa = isa, .compiler_path = getenv("OPS_NVRTC"), .cache_path = getenv("OPS_CACHE")};
    fb_device_info info;
    void *device;
    double peak[3];
    if (b->open(0, &options, &device, &info)) return;
    for (int i = 0; i < 3; i++)
        if (b->peak(device, i, 0.3, &peak[i])) exit(2);
    printf("%s, %s, %d threads: f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, read %.1f GB/s\n", info.name, info.isa, info.threads,
           peak[0] / 1e9, peak[1] / 1e9, peak[2] / 1e9);
    for (int act = 0; act < 2; act++) {
        int type = act ? FB_BF16 : FB_F32;
        printf(" %s activations, %s weights; share of the %s peak\n", act ? "BF16" : "F32", fb_format_get(weight)->name,
               act ? "bf16" : "f32");
        speed_products(b, device, type, weight, TOKENS, peak[act]);
        speed_lora(b, device, type, TOKENS);
        speed_attention(b, device, type, peak[0]);
    }
    speed_cache(b, device);
    printf(" one token, share of the read peak by the weights' bytes, %s\n", fb_format_get(weight)->name);
    for (int s = 0; s < N_SHAPES; s++) {
        int n = 8 * SHAPES[s][0], k = SHAPES[s][1];
        fb_mem m[3];
        fb_view x = make_view(b, device, &m[0], FB_F32, 1, k), y = make_view(b, device, &m[1], FB_F32, 1, n);
        fb_view w = make_view(b, device, &m[2], weight, n, k);
        fb_launch l = {.op = FB_OP_LINEAR, .attr.scale = 1, .v = {y, x, w}};
        double rate = (double)fb_type_bytes(weight, (int64_t)n * k) / best_of(b, device, &l, 0.2);
        printf("  N %5d K %4d: %5.1f GB/s %3.0f %%\n", n, k, rate / 1e9, 100 * rate / peak[2]);
        for (int i = 0; i < 3; i++) b->free(device, &m[i]);
    }
    b->close(device);
}
#endif
