/* kernels.h - the portable kernels and how an op becomes launches of them; for the backends that run them. */
#ifndef FB_KERNELS_H
#define FB_KERNELS_H
#include "../graph/backend.h"

/* The files of this folder, one a kernel, and those that need matrix units: a backend that has them has a file of its own
 * for each. */
#define FB_KERNEL_NAMES(X)                                                                                       \
    X(attention) X(attention_dkv) X(attention_dq) X(attention_few) X(columns) X(elements) X(norm) X(parts)   \
    X(peak) X(product) X(product_few) X(rope) X(rows) X(sumsq) X(xent)
#define FB_MATRIX_KERNEL_NAMES(X) \
    X(matrix_attention) X(matrix_attention_dkv) X(matrix_attention_dq) X(matrix_pack) X(matrix_peak) \
    X(matrix_peak_f16) X(matrix_product) X(matrix_product_f16) X(matrix_rows)
#define FB_KERNEL_ID(name) FB_KERNEL_##name,
typedef enum fb_kernel_id {
    FB_KERNEL_NAMES(FB_KERNEL_ID) FB_MATRIX_KERNEL_NAMES(FB_KERNEL_ID) FB_KERNEL_COUNT,
    FB_FIRST_MATRIX_KERNEL = FB_KERNEL_matrix_attention
} fb_kernel_id;
#undef FB_KERNEL_ID

enum { FB_BINDINGS = 10, FB_SPECS = 10, FB_ARGS = 12 };

/* What a kernel reads beside its operands: push constants, or whatever a dialect passes small arguments in. */
typedef struct fb_push {
    uint32_t off[FB_BINDINGS]; /* first element after the start of the binding; bytes for an operand of blocks */
    uint32_t ld[FB_BINDINGS];  /* elements a row; bytes for an operand of blocks */
    uint32_t arg[FB_ARGS];     /* arg[11]: number of the first workgroup */
} fb_push;

typedef struct fb_dispatch {
    fb_kernel_id kernel;
    uint32_t spec[FB_SPECS]; /* 0 threads of a workgroup, 1 TYPES, 2 HAS, then the kernel's own */
    uint32_t groups;
    uint32_t arg[FB_ARGS];
    fb_view b[FB_BINDINGS];
    int blocks;  /* the binding that is addressed in bytes; -1: none */
    uint32_t writes; /* bit k: binding k is written */
    double work; /* operations, roughly: what bounds a submission in time */
    double rounds; /* of all loops of a thread, at most; where their number depends on the operands */
} fb_dispatch;

/* The limits of a device that kernels are shaped by. */
typedef struct fb_kernel_limits {
    uint32_t threads;      /* of a workgroup; at least 128 */
    uint32_t shared_bytes; /* at least 16 KiB */
    uint64_t binding_bytes; /* of an operand; 0: any */
    uint32_t subgroup;      /* threads that share matrix units of 16 x 16 x 16 summed in F32; 0: there are none */
    int f16;                /* those units multiply F16, not BF16 */
    uint32_t rounds;        /* after which a driver ends the loops of a thread; 0: it does not */
    uint32_t tile_rows, tile_cols; /* most of a product's output that a workgroup owns: 16, 32, 64, or 0: by its shape */
} fb_kernel_limits;

enum { FB_MOST_DISPATCHES = 64 };

/* An op as launches of kernels, in order; returns how many, or 0 after fb_fail. */
int fb_lower(const fb_launch *launch, const fb_mem *scratch, const fb_kernel_limits *limits,
             fb_dispatch out[FB_MOST_DISPATCHES]);
/* Products in the registers of matrix units, as many as a device can do; returns the operations of a workgroup, 0: products
 * run on none here. */
double fb_matrix_peak(fb_dispatch *d, const fb_kernel_limits *limits);
/* Bytes of scratch that the launch needs; UINT64_MAX after fb_fail. */
uint64_t fb_lower_scratch(const fb_launch *launch, const fb_kernel_limits *limits);

/* SPIR-V of each kernel, made by tools/spirv.py from the sources here. */
typedef struct fb_spirv {
    const uint32_t *words;
    uint32_t count;
} fb_spirv;
extern const fb_spirv fb_spirv_kernels[FB_KERNEL_COUNT];
#endif
