/* kernels.h - the portable kernels and how an op becomes launches of them; for the backends that run them. */
#ifndef FB_KERNELS_H
#define FB_KERNELS_H
#include "../graph/backend.h"
#include "names.h"

/* The files of this folder, one a kernel, and those that need matrix units: in the folder matrix what several backends run, and in
 * a backend's own the others, two of them once more for units that multiply F16. */
#define FB_KERNEL_NAMES(X)                                                                                     \
    X(attention) X(attention_dkv) X(attention_dq) X(attention_few) X(columns) X(combine) X(conv) X(delta)      \
    X(delta_gates) X(delta_grad) X(elements)                                                                   \
    X(experts) X(gate) X(norm) X(parts) X(peak) X(product) X(product_few) X(rope) X(route) X(rows) X(sumsq)    \
    X(tally) X(update) X(xent)
#define FB_MATRIX_KERNEL_NAMES(X)                                                                              \
    X(matrix_attention) X(matrix_attention_dkv) X(matrix_attention_dq) X(matrix_pack) X(matrix_peak)           \
    X(matrix_product) X(matrix_rows)
#define FB_F16_KERNEL_NAMES(X) X(matrix_peak) X(matrix_product)
#define FB_KERNEL_ID(name) FB_KERNEL_##name,
#define FB_F16_KERNEL_ID(name) FB_KERNEL_##name##_f16,
typedef enum fb_kernel_id {
    FB_KERNEL_NAMES(FB_KERNEL_ID) FB_MATRIX_KERNEL_NAMES(FB_KERNEL_ID) FB_F16_KERNEL_NAMES(FB_F16_KERNEL_ID) FB_KERNEL_COUNT,
    FB_FIRST_MATRIX_KERNEL = FB_KERNEL_matrix_attention
} fb_kernel_id;

enum { FB_BINDINGS = 10, FB_SPECS = 10, FB_PUSH_WORDS = 32 /* 128 bytes: what every device has room for */ };

/* What names.h lists for a kernel, as structures: d->argument.product.M. Attention on matrix units takes the operands and
 * arguments of attention, and of those alone; so do product_few and product. */
typedef uint32_t uint;
typedef struct fb_rows { /* capacity, and what those in use are counted by (common.prelude) */
    uint most, counted, before;
} fb_rows;
#define FB_OPERAND(n, name, kind, role) fb_view name;
#define FB_SPEC(n, name) uint name;
#define FB_TILE(n, name, most) uint name;
#define FB_ARGUMENT(type, name) FB_ARGUMENT_##type(name)
#define FB_ARGUMENT_uint(name) uint name;
#define FB_ARGUMENT_float(name) float name;
#define FB_ARGUMENT_rows(name) fb_rows name;
#define FB_STRUCTURES(name)                                                                                    \
    struct fb_##name##_operands { name##_OPERANDS(FB_OPERAND) };                                               \
    struct fb_##name##_constants { uint THREADS, TYPES, HAS; name##_CONSTANTS(FB_SPEC, FB_TILE) };             \
    struct fb_##name##_arguments { name##_ARGUMENTS(FB_ARGUMENT) uint FIRST_GROUP; };
#define FB_OPERANDS_OF(name) struct fb_##name##_operands name;
#define FB_CONSTANTS_OF(name) struct fb_##name##_constants name;
#define FB_ARGUMENTS_OF(name) struct fb_##name##_arguments name;
FB_KERNEL_NAMES(FB_STRUCTURES)
FB_MATRIX_KERNEL_NAMES(FB_STRUCTURES)

typedef struct fb_dispatch {
    fb_kernel_id kernel;
    uint64_t groups; /* all their threads together can be counted in 32 bits */
    union fb_operands {
        fb_view at[FB_BINDINGS];
        FB_KERNEL_NAMES(FB_OPERANDS_OF)
        FB_MATRIX_KERNEL_NAMES(FB_OPERANDS_OF)
    } operand;
    union fb_constants { /* threads of a workgroup and what is there stand first in all */
        uint32_t at[FB_SPECS];
        FB_KERNEL_NAMES(FB_CONSTANTS_OF)
        FB_MATRIX_KERNEL_NAMES(FB_CONSTANTS_OF)
    } constant;
    union fb_arguments { /* the number of the first workgroup stands last in all */
        uint32_t at[FB_PUSH_WORDS];
        FB_KERNEL_NAMES(FB_ARGUMENTS_OF)
        FB_MATRIX_KERNEL_NAMES(FB_ARGUMENTS_OF)
    } argument;
    double work;   /* operations, roughly: what bounds a submission in time */
    double rounds; /* of all loops of a thread, at most; where their number depends on the operands */
} fb_dispatch;

/* What is known of a kernel by its lists. */
typedef struct fb_kernel {
    const char *name;
    uint32_t operands, arguments;     /* how many */
    uint32_t written, blocks, halves, grids; /* a bit an operand */
    uint32_t tiles;                   /* a bit a constant: it is the size of an array */
} fb_kernel;
extern const fb_kernel fb_kernels[FB_KERNEL_COUNT];

/* What a kernel reads beside its operands and constants, in words: push constants, or whatever a dialect passes small numbers
 * in. First two of every operand, by fb_place, then its arguments, by fb_arguments. */
void fb_place(const fb_dispatch *d, int operand, uint64_t bytes_before, uint32_t words[FB_PUSH_WORDS]);
/* Returns how many words there are. */
uint32_t fb_arguments(const fb_dispatch *d, uint32_t first_group, uint32_t words[FB_PUSH_WORDS]);

/* The limits of a device that kernels are shaped by. */
typedef struct fb_kernel_limits {
    uint32_t threads;      /* of a workgroup; at least 128 */
    uint32_t shared_bytes; /* at least 16 KiB */
    uint64_t binding_bytes; /* of an operand; 0: any */
    uint32_t subgroup;      /* threads that share matrix units of 16 x 16 x 16 summed in F32; 0: there are none */
    int f16;                /* those units multiply F16, not BF16 */
    int products_alone;     /* those units serve products, but not attention */
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

/* The texts of kernels that are compiled on the user's machine, embedded by the build (native/texts.py), by file name. */
extern const char *const fb_text_names[], *const fb_texts[];
extern const int fb_text_count;

/* SPIR-V of each kernel, made by native/spirv.py from the sources here; count is 0 where the build had no compiler for it. */
typedef struct fb_spirv {
    const uint32_t *words;
    uint32_t count;
} fb_spirv;
extern const fb_spirv fb_spirv_kernels[FB_KERNEL_COUNT];
#endif
