/* cpu.h - between the CPU backend (cpu.c) and its kernels, which exist once an instruction set (isa_*.c). */
#ifndef FB_CPU_H
#define FB_CPU_H
#include "../../graph/backend.h"
#include "pool.h"

/* Runs one launch on all threads together; scratch is shared and has what `scratch` told. */
typedef void fb_kernel(fb_worker *w, const fb_launch *launch, char *scratch);

typedef struct fb_kernels {
    const char *isa;
    fb_kernel *run[FB_OP_COUNT];
    uint64_t (*scratch)(const fb_launch *launch, int threads);
    double (*peak)(int kind, int rounds); /* multiply-adds in registers, FB_PEAK_F32 or _BF16; returns operations done */
    float (*read)(const float *p, int64_t n); /* a sum, so that every element is read */
} fb_kernels;

extern const fb_kernels fb_kernels_generic;
#if defined(__x86_64__)
extern const fb_kernels fb_kernels_avx2, fb_kernels_avx512, fb_kernels_avx512_bf16;
#elif defined(__aarch64__)
extern const fb_kernels fb_kernels_neon;
/* Older clang knows the intrinsics only when the whole file is built for them. */
#if !defined(__clang__) || __clang_major__ >= 17 || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define FB_HAS_NEON_BF16
extern const fb_kernels fb_kernels_neon_bf16;
#endif
#endif

static inline int fb_has(const fb_view *v) { return v->mem != NULL; }

static inline char *fb_row(const fb_view *v, int64_t r) {
    return (char *)v->mem->host + v->offset + fb_type_bytes(v->type, r * v->ld);
}

/* A rectangle of a matrix, as one item of work for ops that go element by element. */
typedef struct fb_patch {
    int64_t r0, r1, c0, c1;
} fb_patch;

static inline int fb_next_patch(fb_worker *w, int64_t rows, int64_t cols, fb_patch *p) {
    enum { SIZE = 16384 };
    int64_t wide = cols < SIZE ? cols : SIZE, high = SIZE / wide;
    int64_t across = (cols + wide - 1) / wide, down = (rows + high - 1) / high, i = fb_next(w);
    if (i >= across * down) return 0;
    p->r0 = i / across * high;
    p->c0 = i % across * wide;
    p->r1 = p->r0 + high < rows ? p->r0 + high : rows;
    p->c1 = p->c0 + wide < cols ? p->c0 + wide : cols;
    return 1;
}
#endif
