/* ops.c - every op of a backend against doubles: each instruction set and thread count, at prime, size-1 and tile-edge
 * shapes, with F32, BF16 and mixed activations and every block format. Launches go through `const fb_backend *` alone.
 *     ops            all of it; one line an op, exit 1 if any is wrong
 *     ops quick      the smaller shapes (for emulators and sanitizers)
 *     ops emulated   the portable kernels on the host, where they were built in (-DFB_EMULATED)
 *     ops vulkan     the same on the first Vulkan device; also `ops quick vulkan`, and `ops attention` for one op
 *     ops sycl       the same on the first SYCL device, through the shim that OPS_SYCL names
 *     ops cuda       the same on the first card, compiled by the library that OPS_NVRTC names, kept as OPS_CACHE says
 *     ops speed vulkan [type], or
 *     ops speed [isa [threads [type]]]   operations/s of products and attention beside the measured peak; type is the
 *                                        number of the weights' format, 8 (Q8_0) if none is given */
#include "ops.h"
#include "speed.h"

extern const fb_backend fb_backend_cpu, fb_backend_cuda, fb_backend_metal, fb_backend_sycl, fb_backend_vulkan;
static const fb_backend *backend = &fb_backend_cpu;
static int matrix_units; /* attention rounds its weights to 16 bits, as products do */
static int few_variants; /* each format with one kind of activations a shape: where every combination is compiled anew */
static const char *const ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16", "neon", "neon_bf16"};
#define NUMBER(NAME, name, number, block, bytes, file_type, encoders) number,
static const int WEIGHTS[] = {FB_Q8_0, FB_FORMATS(NUMBER)};
/* Formats that meet half of the shapes, each with one kind of activations: their decoders are what is their own. */
static int is_rare(int type) { return fb_has_grid(type) || type == FB_IQ4_XS || type == FB_NVFP4 || type == FB_Q1_0; }
static const int THREADS[] = {1, 2, 5};
enum { MOST_SHAPES = 12, N_ISAS = 6, N_WEIGHTS = sizeof WEIGHTS / sizeof *WEIGHTS, N_THREADS = 3 };

typedef struct row {
    const char *name;
    fb_op op;
    void (*make)(test_case *, const int *);
    int by_weight;          /* where a shape has the columns of a block operand; 0: there is none */
    const char *counted;    /* a letter an operand: 'm' has the rows of a feed's tokens, 'n' of its trained ones, '.' its own */
    int s[MOST_SHAPES][7];  /* small ones first */
} row;

static const row TABLE[] = {
    {"embed", FB_OP_EMBED, make_embed, 1, "m.m", {{1, 32, 1}, {7, 64, 13}, {3, 768, 5}, {37, 576, 50}}},
    {"decode", FB_OP_DECODE, make_decode, 1, "", {{1, 32}, {13, 64}, {3, 768}, {50, 576}}},
    {"rms_norm", FB_OP_RMS_NORM, make_rms_norm, 0, "mm.", {{1, 1, 1}, {3, 7, 1}, {5, 64, 3}, {67, 576, 1}}},
    {"rms_norm_dx", FB_OP_RMS_NORM_DX, make_rms_norm_dx, 0, "mmm.m", {{1, 1, 1}, {3, 7, 1}, {5, 64, 3}, {67, 576, 1}, {9, 13, 5}}},
    {"rms_norm_dw", FB_OP_RMS_NORM_DW, make_rms_norm_dw, 0, ".mm", {{1, 1, 1}, {3, 7, 1}, {5, 64, 3}, {67, 576, 1}, {300, 128, 3}, {1100, 33, 2}}},
    {"linear", FB_OP_LINEAR, make_linear, 2, "mm..m.m",
     {{1, 1, 32, 0}, {3, 5, 64, 1}, {8, 65, 96, 3}, {2, 4099, 256, 3}, {9, 64, 288, 0}, {37, 288, 64, 8}, {15, 31, 256, 16}, {29, 97, 544, 5},
      {37, 67, 768, 2}, {85, 130, 64, 8}, {5, 33, 576, 0}, {260, 70, 32, 4}}},
    {"linear_f32", FB_OP_LINEAR, make_linear, 0, "mm..m.m", {{1, 1, 1, 0}, {13, 16, 17, 0}, {57, 16, 301, 0}, {2, 3, 5, 2}}},
    {"linear_dx", FB_OP_LINEAR_DX, make_linear_dx, 2, "mm.m.m",
     {{1, 1, 32, 0}, {3, 5, 64, 1}, {8, 65, 96, 3}, {9, 64, 288, 0}, {37, 288, 64, 8}, {15, 17, 512, 16}, {15, 256, 32, 16}, {29, 547, 96, 5}, {85, 130, 64, 8},
      {260, 70, 32, 4}}},
    {"small_dx", FB_OP_LINEAR_DX, make_small_dx, 0, "mm.m.m", {{19, 64, 32, 0}, {37, 96, 64, 8}, {85, 288, 512, 16}}},
    {"linear_dx_f32", FB_OP_LINEAR_DX, make_linear_dx, 0, "mm.m.m", {{1, 1, 1, 0}, {13, 16, 17, 0}, {57, 16, 301, 2}, {2, 257, 5, 2}}},
    {"pick", FB_OP_LINEAR, make_pick, 2, "mm..m.m", {{3, 5, 512}, {256, 33, 256}}},
    {"pick_dx", FB_OP_LINEAR_DX, make_pick_dx, 2, "mm.m.m", {{2, 7, 256}, {9, 33, 768}}},
    {"linear_dw", FB_OP_LINEAR_DW, make_linear_dw, 0, ".mm",
     {{1, 1, 1}, {3, 5, 64}, {17, 16, 67}, {260, 29, 97}, {31, 130, 16}, {515, 15, 65}}},
    {"bias_db", FB_OP_BIAS_DB, make_bias_db, 0, ".m", {{1, 1}, {7, 13}, {33, 200}, {700, 35}}},
    {"embed_dw", FB_OP_EMBED_DW, make_embed_dw, 0, ".mm", {{1, 1, 1}, {7, 13, 3}, {50, 200, 5}}},
    {"rope_table", FB_OP_ROPE_TABLE, make_rope_table, 0, "mm.", {{1, 1}, {7, 13}, {33, 32}}},
    {"rope", FB_OP_ROPE, make_rope, 0, "mmmm", {{1, 1, 2, 2}, {5, 3, 64, 64}, {7, 2, 80, 20}, {3, 1, 13, 6}, {3, 2, 1030, 1028},
     {9, 9, 256, 256}, {4, 1, 2050, 2048}}},
    {"attention", FB_OP_ATTENTION, make_attention, 0, "mmmnnm",
     {{1, 1, 1, 1, 1, 0, 0}, {7, 7, 2, 1, 8, 0, 0}, {13, 29, 3, 3, 20, 0, 15}, {67, 67, 6, 2, 64, 0, 0},
      {130, 130, 2, 1, 16, 11, 0}, {97, 97, 4, 4, 33, 40, 30}, {1, 301, 4, 2, 64, 0, 0}, {35, 35, 2, 1, 256, 0, 0},
      {5, 200, 3, 1, 80, 30, 20}}},
    {"attention_dq", FB_OP_ATTENTION_DQ, make_attention_dq, 0, "mmmnnmmm",
     {{1, 1, 1, 1, 1, 0, 0}, {7, 7, 2, 1, 8, 0, 0}, {13, 29, 3, 3, 20, 0, 15}, {67, 67, 6, 2, 64, 0, 0},
      {130, 130, 2, 1, 16, 11, 0}, {97, 97, 4, 4, 33, 40, 30}, {35, 35, 2, 1, 256, 0, 0}}},
    {"attention_dkv", FB_OP_ATTENTION_DKV, make_attention_dkv, 0, "nnmnnmmm",
     {{1, 1, 1, 1, 1, 0, 0}, {512, 3, 4, 1, 256, 0, 0}, {13, 29, 3, 3, 20, 0, 15}, {67, 67, 6, 2, 64, 0, 0},
      {130, 130, 2, 1, 16, 11, 0}, {97, 97, 4, 4, 33, 40, 30}, {35, 35, 2, 1, 256, 0, 0}}},
    {"conv", FB_OP_CONV, make_conv, 0, "mn..m", {{1, 1, 1, 1}, {7, 7, 13, 3}, {13, 29, 6, 8}, {140, 140, 70, 4}}},
    {"conv_dx", FB_OP_CONV_DX, make_conv_dx, 0, "nm.m", {{1, 1, 1, 1}, {7, 7, 13, 3}, {29, 13, 6, 8}, {140, 135, 70, 4}}},
    {"conv_dw", FB_OP_CONV_DW, make_conv_dw, 0, ".mnm", {{1, 1, 1, 1}, {7, 7, 13, 3}, {13, 29, 6, 8}, {700, 700, 35, 4}}},
    {"delta_gates", FB_OP_DELTA_GATES, make_delta_gates, 0, "mmm.m", {{1, 1}, {7, 13}, {130, 5}}},
    {"delta_gates_grad", FB_OP_DELTA_GATES_GRAD, make_delta_gates_grad, 0, "mmmmm.", {{1, 1}, {7, 13}, {130, 5}}},
    {"delta", FB_OP_DELTA, make_delta, 0, "m.mmmm.m",
     {{1, 1, 1, 1, 1, 0}, {1, 2, 1, 16, 16, 1}, {7, 1, 3, 9, 13, 1}, {67, 2, 2, 32, 40, 0}, {130, 2, 1, 64, 16, 1}, {200, 1, 1, 130, 33, 0}}},
    {"delta_grad", FB_OP_DELTA_GRAD, make_delta_grad, 0, "mmmmmmm.m",
     {{1, 1, 1, 1, 1}, {7, 1, 3, 9, 13}, {67, 2, 2, 32, 40}, {130, 2, 1, 64, 16}, {200, 1, 1, 130, 33}}},
    {"part", FB_OP_PART, make_part, 0, "mmm", {{1, 1, 1, 0, 1}, {7, 3, 13, 4, 5}, {33, 2, 128, 64, 64}, {5, 4, 70, 0, 35}}},
    {"glu", FB_OP_GLU, make_glu, 0, "mmm", {{1, 1}, {7, 13}, {33, 600}}},
    {"glu_grad", FB_OP_GLU_GRAD, make_glu_grad, 0, "mmmmm", {{1, 1}, {7, 13}, {33, 600}}},
    {"add", FB_OP_ADD, make_add, 0, "mmm", {{1, 1}, {7, 13}, {33, 600}, {1, 40000}}},
    {"scale", FB_OP_SCALE, make_scale, 0, "mmm", {{1, 1}, {7, 13}, {33, 600}}},
    {"softcap", FB_OP_SOFTCAP, make_softcap, 0, "mm", {{1, 1}, {7, 13}, {33, 600}}},
    {"softcap_grad", FB_OP_SOFTCAP_GRAD, make_softcap_grad, 0, "mmmm", {{1, 1}, {7, 13}, {33, 600}}},
    {"dropout", FB_OP_DROPOUT, make_dropout, 0, "mmmm", {{1, 1}, {7, 13}, {33, 600}}},
    {"gather", FB_OP_GATHER, make_gather, 0, "mnm", {{1, 1, 1}, {7, 13, 5}, {50, 200, 70}}},
    {"scatter", FB_OP_SCATTER, make_scatter, 0, "nmm", {{1, 1, 1}, {7, 13, 5}, {50, 200, 7}}},
    {"append", FB_OP_APPEND, make_append, 0, ".mm", {{1, 1, 1}, {7, 13, 9}, {50, 200, 70}}},
    {"route", FB_OP_ROUTE, make_route, 0, "mmm", {{1, 1, 1}, {7, 13, 3}, {33, 128, 8}}},
    {"route_grad", FB_OP_ROUTE_GRAD, make_route_grad, 0, "mmmm", {{1, 1, 1}, {7, 13, 3}, {33, 128, 8}}},
    {"order", FB_OP_ORDER, make_order, 0, "..m", {{1, 1, 1, 0}, {7, 13, 3, 1}, {50, 8, 4, 0}, {100, 33, 2, 1}}},
    {"experts", FB_OP_EXPERTS, make_experts, 2, "mm...m.",
     {{1, 1, 32, 0, 1, 1, 0}, {3, 5, 64, 1, 4, 2, 0}, {9, 65, 96, 3, 3, 3, 1}, {37, 67, 768, 2, 5, 2, 0}, {130, 30, 288, 5, 2, 1, 1}}},
    {"experts_dx", FB_OP_EXPERTS_DX, make_experts_dx, 2, "mm..m.m",
     {{1, 1, 32, 0, 1, 1, 0}, {3, 5, 64, 1, 4, 2, 0}, {9, 65, 96, 3, 3, 3, 1}, {37, 47, 512, 2, 5, 2, 0}, {130, 30, 288, 5, 2, 1, 1}}},
    {"experts_dw", FB_OP_EXPERTS_DW, make_experts_dw, 0, ".mm.",
     {{1, 1, 1, 0, 1, 1, 0}, {3, 5, 64, 0, 4, 2, 0}, {9, 65, 31, 0, 3, 3, 1}, {37, 13, 97, 0, 5, 2, 0}, {700, 3, 70, 0, 2, 2, 1}}},
    {"combine", FB_OP_COMBINE, make_combine, 0, "mmmm", {{1, 1, 1, 1}, {7, 13, 3, 0}, {33, 200, 4, 1}}},
    {"combine_grad", FB_OP_COMBINE_GRAD, make_combine_grad, 0, "mmmmm", {{1, 1, 1}, {7, 13, 3}, {33, 200, 4}}},
    {"xent", FB_OP_XENT, make_xent, 0, "mmm", {{1, 1, 0, 1}, {3, 7, 0, 1}, {2, 5003, 0, 1}, {3, 1031, 300, 1}, {2, 257, 0, 0}}},
    {"zero", FB_OP_ZERO, make_zero, 0, "m", {{1, 1}, {7, 13}, {33, 600}}},
    {"sumsq", FB_OP_SUMSQ, make_sumsq, 0, "", {{1, 1}, {13, 4}, {10007, 16}}},
    {"tally", FB_OP_TALLY, make_tally, 0, ".m", {{1}, {13}, {5003}}},
    {"norm", FB_OP_NORM, make_norm, 0, "", {{1, 0, 0}, {13, 1, 0}, {10007, 3, 0}, {7, 1, 1}, {300, 2, 2}}},
    {"adamw", FB_OP_ADAMW, make_adamw, 0, "", {{1}, {13}, {40009}, {40010}}},
    {"sgd", FB_OP_SGD, make_sgd, 0, "", {{1, 0}, {13, 1}, {40009, 0}, {40010, 1}}},
};
enum { N_ROWS = sizeof TABLE / sizeof TABLE[0] };

#define MUST(call)                                            \
    do {                                                      \
        if ((call) != FB_OK) {                                \
            fprintf(stderr, "%s: %s\n", #call, fb_error());   \
            exit(2);                                          \
        }                                                     \
    } while (0)

/* Gives operands that are counted room for `spare` more rows than are in use, and the counts that say so. */
static void counted(const char *letters, fb_launch *l, int spare, int32_t counts[FB_COUNTS]) {
    for (int i = 0; letters[i]; i++) {
        fb_view *v = &l->v[i];
        if (letters[i] == '.' || !v->mem) continue;
        v->count = letters[i] == 'm' ? FB_COUNT_TOKENS : FB_COUNT_TRAINED;
        v->factor = 2;
        v->first = 4 + v->rows % 2;
        counts[v->count] = (v->rows + v->first) / 2;
        v->rows += spare;
    }
}

/* Runs the case, whose counted operands have `spare` rows of NaN behind those in use; the outputs' bytes come back in one new
 * block, or NULL where any of those rows was written. With `empty` no row is in use. */
static char *launch(void *device, test_case *t, const char *letters, int spare, int empty, uint64_t *size) {
    fb_mem mem[FB_MAX_OPERANDS] = {{0}}, scratch = {0}, grids = {0};
    fb_launch l = t->launch;
    int32_t counts[FB_COUNTS] = {0};
    int spilled = 0;
    const fb_run run = {.duty = 1};
    void *program;
    uint64_t need;
    *size = 0;
    for (int i = 0; i < t->n; i++) {
        operand *o = &t->o[i];
        if (!o->image) continue;
        const uint64_t more = fb_type_bytes(o->view.type, o->view.ld) * (uint64_t)spare;
        char *image = malloc(o->bytes + more);
        memcpy(image, o->image, o->bytes);
        memset(image + o->bytes, 0xff, more);
        MUST(backend->alloc(device, o->bytes + more, &mem[i]));
        MUST(backend->write(device, &mem[i], 0, image, o->bytes + more));
        free(image);
        l.v[i] = o->view;
        l.v[i].mem = &mem[i];
        if (o->out) *size += o->bytes;
    }
    if (spare) counted(letters, &l, spare, counts);
    if (empty) memset(counts, 0, sizeof counts);
    if (backend->wrap) MUST(backend->wrap(device, fb_grids, sizeof fb_grids, &grids));
    else {
        MUST(backend->alloc(device, sizeof fb_grids, &grids));
        MUST(backend->write(device, &grids, 0, fb_grids, sizeof fb_grids));
    }
    l.grids = &grids;
    need = backend->scratch(device, &l);
    if (need) {
        MUST(backend->alloc(device, need, &scratch));
        char *noise = malloc(need);
        memset(noise, 0xff, need); /* NaN everywhere: scratch is not promised to be zero */
        MUST(backend->write(device, &scratch, 0, noise, need));
        free(noise);
    }
    MUST(backend->prepare(device, &l, 1, &scratch, &program));
    MUST(backend->replay(device, program, counts, &run));
    backend->release(device, program);
    char *bytes = malloc(*size + 1), *at = bytes;
    for (int i = 0; i < t->n; i++) {
        if (!t->o[i].image) continue;
        if (t->o[i].out) {
            MUST(backend->read(device, &mem[i], 0, at, t->o[i].bytes));
            at += t->o[i].bytes;
            char *behind = malloc(mem[i].bytes);
            MUST(backend->read(device, &mem[i], t->o[i].bytes, behind, mem[i].bytes - t->o[i].bytes));
            for (uint64_t k = 0; k < mem[i].bytes - t->o[i].bytes; k++) spilled |= behind[k] != (char)0xff;
            free(behind);
        }
        backend->free(device, &mem[i]);
    }
    if (need) backend->free(device, &scratch);
    backend->free(device, &grids);
    if (!spilled) return bytes;
    free(bytes);
    return NULL;
}

/* Whether outputs are as they were before. */
static int untouched(const test_case *t, const char *bytes) {
    for (int i = 0; i < t->n; i++) {
        if (!t->o[i].out) continue;
        if (memcmp(bytes, t->o[i].image, t->o[i].bytes)) return 0;
        bytes += t->o[i].bytes;
    }
    return 1;
}

/* The largest error of any output, in units of what is allowed there. */
static double error_of(const test_case *t, const char *bytes) {
    double worst = 0;
    for (int i = 0; i < t->n; i++) {
        const operand *o = &t->o[i];
        if (!o->out) continue;
        const int64_t count = (int64_t)o->view.rows * o->view.cols;
        double top = 1e-3, allowed;
        for (int64_t k = 0; k < count; k++)
            if (isfinite(o->d[k])) top = fmax(top, fabs(o->d[k]));
        for (int r = 0; r < o->view.rows && o->out != CHECK_SKIP; r++) {
            if (t->by_row) top = 1e-30;
            for (int64_t k = (int64_t)r * o->view.cols; t->by_row && k < (int64_t)(r + 1) * o->view.cols; k++)
                top = fmax(top, fabs(o->d[k]));
            allowed = t->equal ? 1e-40 : (t->coarse > 0 && o->out != FINE ? t->coarse : 4e-6) * top;
            double first = 0, wanted = 0; /* of a pair */
            for (int c = 0; c < o->view.cols; c++) {
                float element;
                decode_row(o->view.type, bytes + fb_type_bytes(o->view.type, r * o->view.ld + c), &element, 1);
                double want = o->d[(size_t)r * o->view.cols + c] + wanted, got = element + first, off = fabs(got - want);
                if (t->in_pairs && c % 2 == 0) {
                    first = got, wanted = want;
                    continue;
                }
                first = wanted = 0;
                double room = allowed + (o->view.type == FB_BF16 ? fabs(want) / 250 : 0);
                if (want == got) off = 0; /* infinities */
                if (!(off / room <= worst)) worst = isfinite(off) ? off / room : INFINITY;
            }
        }
        bytes += o->bytes;
    }
    return worst;
}

static void *open_device(const char *isa, int threads) {
    fb_device_options options = {.threads = threads, .isa = isa};
    fb_device_info info;
    void *device;
    return backend->open(0, &options, &device, &info) == FB_OK ? device : NULL;
}

#ifdef FB_EMULATED
extern const fb_backend fb_backend_emulated;
#define PORTABLE fb_backend_emulated
#else
#define PORTABLE fb_backend_vulkan
#endif

static void *open_portable(const fb_backend *which) {
    fb_device_options options = {.compiler_path = getenv("OPS_NVRTC"), .cache_path = getenv("OPS_CACHE")};
    fb_device_info info;
    void *device;
    backend = which;
    few_variants = backend == &fb_backend_vulkan || backend == &fb_backend_cuda;
    if (backend->find) backend->find(getenv("OPS_SYCL"), NULL);
    MUST(backend->open(0, &options, &device, &info));
    matrix_units = strstr(info.isa, "matrix") != NULL;
    few_variants |= matrix_units;
    printf("device: %s, %s\n", info.name, info.isa);
    for (int kind = FB_PEAK_F32; backend->peak && kind <= FB_PEAK_READ; kind++) {
        double peak = 0;
        MUST(backend->peak(device, kind, 0.01, &peak));
        printf("peak %d: %.3g a second\n", kind, peak);
    }
    return device;
}

/* A launch without a row in use does nothing. */
static int check_empty(const row *row, test_case *t, void *devices[N_ISAS][N_THREADS]) {
    int wrong = 0;
    for (int isa = 0; isa < N_ISAS; isa++) {
        uint64_t size;
        char *bytes = devices[isa][0] ? launch(devices[isa][0], t, row->counted, 1, 1, &size) : NULL;
        if (devices[isa][0] && (!bytes || !untouched(t, bytes)) && ++wrong)
            printf("  %s, %s: writes where no row is in use\n", row->name, ISAS[isa]);
        free(bytes);
    }
    return wrong;
}

static const int SPARES[] = {0, 3, 35}; /* with 35, few rows run on the kernels for many */

static int check_row(const row *row, void *devices[N_ISAS][N_THREADS], int quick) {
    double worst = 0;
    int cases = 0, wrong = 0;
    for (int s = 0; s < MOST_SHAPES && row->s[s][0] && !(quick && s > 6); s++)
        for (int k = 0; k < 3 * (row->by_weight ? N_WEIGHTS : 1); k++) {
            const int rare = row->by_weight && is_rare(WEIGHTS[k / 3]);
            if ((few_variants || rare) && row->by_weight && (k + s) % 3) continue;
            if (rare && (k / 3 + s) % 2) continue;
            test_case t = {.launch.op = row->op, .variant = k % 3, .weight = row->by_weight ? WEIGHTS[k / 3] : FB_F32};
            if (row->by_weight && row->s[s][row->by_weight] % fb_format_get(t.weight)->block) continue;
            seed = (uint64_t)(s * 100 + k + 1);
            row->make(&t, row->s[s]);
            if (matrix_units && t.coarse > 0) t.coarse = 8e-3;
            for (int isa = 0; isa < N_ISAS; isa++) {
                char *first = NULL;
                for (int n = 0; n < N_THREADS && devices[isa][n]; n++) {
                    uint64_t size;
                    char *bytes = launch(devices[isa][n], &t, row->counted, SPARES[(k / 3 + k + s) % 3], 0, &size);
                    double e = bytes ? error_of(&t, bytes) : INFINITY;
                    int same = !first || !bytes || !memcmp(first, bytes, size);
                    if (e > worst) worst = e;
                    if ((!(e <= 1) || !same) && wrong++ < 5)
                        printf("  %s shape %d variant %d weight %d, %s, %d threads: %s %.3g\n", row->name, s, t.variant,
                               t.weight, ISAS[isa], THREADS[n], same ? "error" : "bits depend on threads, error", e);
                    if (!first) first = bytes;
                    else free(bytes);
                    cases++;
                }
                free(first);
            }
            if (k == 0 && row->counted[0]) wrong += check_empty(row, &t, devices);
            free_case(&t);
        }
    printf("%-14s %5d launches, largest error %.2f of what is allowed%s\n", row->name, cases, worst, wrong ? ": WRONG" : "");
    return wrong;
}

/* ---- scratch: what is planned for all rows must do for any fewer ---- */

typedef struct sized {
    const char *name;
    fb_op op;
    int cols[FB_MAX_OPERANDS];    /* 0: there is no such operand */
    const char *counted;          /* a letter an operand: 'm' has the rows of a feed, else a fixed number of them */
    int fixed[FB_MAX_OPERANDS];
} sized;

static const sized SIZED[] = {
    {"linear", FB_OP_LINEAR, {48, 288, 288, 0, 300, 300}, "mm..m.", {0, 0, 48, 0, 0, 48}},
    {"linear_dx", FB_OP_LINEAR_DX, {288, 48, 288, 300, 288}, "mm.m.", {0, 0, 48, 0, 300}},
    {"linear_dw", FB_OP_LINEAR_DW, {40, 700, 40}, ".mm", {700}},
    {"rms_norm_dw", FB_OP_RMS_NORM_DW, {8, 64, 64}, ".mm", {1}},
    {"rope", FB_OP_ROPE, {128, 128, 64}, "mmm", {0}},
    {"conv_dw", FB_OP_CONV_DW, {4, 40, 40, 2}, ".mmm", {40}},
    {"attention", FB_OP_ATTENTION, {128, 4, 128, 64, 64, 2}, "mmmmmm", {0}},
    {"attention_dq", FB_OP_ATTENTION_DQ, {128, 4, 128, 64, 64, 128, 128, 2}, "mmmmmmmm", {0}},
    {"attention_dkv", FB_OP_ATTENTION_DKV, {64, 64, 128, 64, 64, 4, 128, 2}, "mmmmmmmm", {0}},
};

static uint64_t need_of(void *device, const sized *row, int rows, int type) {
    static const fb_mem any = {0};
    fb_launch l = {.op = row->op, .attr = {.scale = 1, .head_dim = 64, .attention = {.n_head = 2, .n_kv_head = 1, .head_dim = 64}}};
    for (int k = 0; row->counted[k]; k++)
        if (row->cols[k])
            l.v[k] = (fb_view){.mem = &any, .type = type, .rows = row->counted[k] == 'm' ? rows : row->fixed[k],
                               .cols = row->cols[k], .ld = row->cols[k]};
    return backend->scratch(device, &l);
}

static int check_scratch(void *device) {
    int wrong = 0;
    for (size_t i = 0; i < sizeof SIZED / sizeof *SIZED; i++)
        for (int type = 0; type < 2; type++) {
            uint64_t most = 0;
            for (int rows = 1; rows <= 5000; rows++) {
                uint64_t need = need_of(device, &SIZED[i], rows, type ? FB_BF16 : FB_F32);
                if (need < most && wrong++ < 5)
                    printf("  %s of %d rows needs %llu bytes of scratch, and more with fewer: WRONG\n", SIZED[i].name, rows,
                           (unsigned long long)need);
                most = need > most ? need : most;
            }
        }
    return wrong;
}

/* ---- what 32 bits cannot count is refused, whichever operand it is ---- */

static int check_reach(void *device) {
    static const fb_mem any = {.bytes = UINT64_MAX / 2};
    int wrong = 0;
    for (int i = 0; i < N_ROWS; i++) {
        test_case t = {.launch.op = TABLE[i].op, .weight = FB_F32};
        seed = 1;
        TABLE[i].make(&t, TABLE[i].s[1][0] ? TABLE[i].s[1] : TABLE[i].s[0]);
        for (int k = -1; k < t.n; k++) {
            fb_launch l = t.launch;
            for (int n = 0; n < t.n; n++) {
                l.v[n] = t.o[n].view;
                l.v[n].mem = t.o[n].image ? &any : NULL;
            }
            if (k >= 0 && !l.v[k].mem) continue;
            if (k >= 0) l.v[k].ld = 3000000000, l.v[k].rows = l.v[k].rows < 3 ? 3 : l.v[k].rows;
            const int refused = backend->scratch(device, &l) == UINT64_MAX;
            if (refused == (k >= 0) && (!refused || strstr(fb_error(), "can address"))) continue;
            printf("  %s, %s operand %d: %s: WRONG\n", TABLE[i].name, k < 0 ? "no" : "a huge", k, refused ? fb_error() : "not refused");
            wrong++;
        }
        free_case(&t);
    }
    return wrong;
}

static int check(int quick, const fb_backend *portable, const char *only) {
    void *devices[N_ISAS][N_THREADS] = {{NULL}};
    int wrong = 0;
    if (portable) devices[0][0] = open_portable(portable);
    if (portable && (!only || !strcmp(only, "reach"))) wrong += check_reach(devices[0][0]);
    for (int i = 0; i < N_ISAS && !portable; i++) {
        for (int n = 0; n < N_THREADS; n++) devices[i][n] = open_device(ISAS[i], THREADS[n]);
        if (!devices[i][0]) continue;
        printf("instruction set: %s\n", ISAS[i]);
        if (!only || !strcmp(only, "scratch")) wrong += check_scratch(devices[i][N_THREADS - 1]);
    }
    for (int i = 0; i < N_ROWS; i++)
        if (!only || !strcmp(only, TABLE[i].name)) wrong += check_row(&TABLE[i], devices, quick);
    for (int i = 0; i < N_ISAS; i++)
        for (int n = 0; n < N_THREADS; n++)
            if (devices[i][n]) backend->close(devices[i][n]);
    return wrong != 0;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 2 && !strcmp(argv[1], "speed") && (!strcmp(argv[2], "vulkan") || !strcmp(argv[2], "cuda")))
        speed(argv[2][0] == 'v' ? &fb_backend_vulkan : &fb_backend_cuda, NULL, 0, argc > 3 ? atoi(argv[3]) : FB_Q8_0);
    else if (argc > 1 && !strcmp(argv[1], "speed"))
        speed(backend, argc > 2 ? argv[2] : NULL, argc > 3 ? atoi(argv[3]) : 0, argc > 4 ? atoi(argv[4]) : FB_Q8_0);
    else {
        int quick = 0;
        const fb_backend *portable = NULL;
        const char *only = NULL;
        for (int i = 1; i < argc; i++)
            if (!strcmp(argv[i], "quick")) quick = 1;
            else if (!strcmp(argv[i], "vulkan") || !strcmp(argv[i], "emulated")) portable = &PORTABLE;
            else if (!strcmp(argv[i], "cuda")) portable = &fb_backend_cuda;
            else if (!strcmp(argv[i], "sycl")) portable = &fb_backend_sycl;
            else if (!strcmp(argv[i], "metal")) portable = &fb_backend_metal;
            else only = argv[i];
        return check(quick, portable, only);
    }
    return 0;
}
