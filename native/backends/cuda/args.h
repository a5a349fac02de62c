/* args.h - what a kernel of this folder is given, by name; C and CUDA C++ both read it. */
#ifndef CU_ARGS_H
#define CU_ARGS_H
#ifdef __cplusplus
#define CU_ALIGNED alignas(64)
#else
#define CU_ALIGNED _Alignas(64)
#endif

/* The operands of a product: out (m, n) = scale * x w + u b + bias + acc; and the further x, u and b of one that sums several. */
enum {
    CU_OUT, CU_X, CU_W, CU_U, CU_B, CU_ACC, CU_BIAS, CU_SUMS, CU_GRIDS /* of decode.cu */,
    CU_MORE, CU_SUMMED = 3, CU_OPERANDS = CU_MORE + 3 * (CU_SUMMED - 1)
};

/* A matrix as in fb_view; rows in use = clamp(counts[count] * factor - first, 0, rows), all of them where count is 0. */
typedef struct cu_view {
    unsigned long long at;
    long long ld; /* elements */
    int rows, cols, count, factor, first, there;
} cu_view;

typedef struct cu_map { /* of a matrix that the copy engine reads in tiles: CUtensorMap */
    CU_ALIGNED unsigned long long words[16];
} cu_map;

typedef struct cu_args {
    cu_map x_map[CU_SUMMED], w_map[CU_SUMMED], out_map;
    cu_view v[CU_OPERANDS];    /* CU_... of products, else those of the op, in order */
    unsigned long long counts;   /* of the feed, on the device */
    unsigned long long arrivals; /* (tiles,) of parts, zeros between kernels */
    int parts, depth;          /* of a reduction, and the depth of each */
    int n_head, n_kv_head, window, first, n_rot, inverse;
    float scale, eps, softcap, attention_scale;
} cu_args;

/* Of product_mma: floats from a row to the next where an operand lies in shared memory as F32, and bytes of a stage. */
#define CU_RAW_LINE(across, size) ((across) ? (size) + 4 : 72)
#define CU_SIDE_BYTES(raw, across, size) ((raw) ? ((across) ? 64 : (size)) * CU_RAW_LINE(across, size) * 4 : (size) * 128)
/* Types of an operand, as constants of a kernel. */
enum { CU_NONE, CU_F32, CU_BF16 };
#endif
