/* names.h - the operands, constants and arguments of every kernel, named once: the text of a kernel, in every dialect, and the
 * C that launches it both read these lists.
 *
 *   name_OPERANDS(BIND)        BIND(binding, NAME, kind, role). What is written may be read too. The kind is
 *                              ACT     F32 or BF16, each operand its own
 *                              WORDS   F32 or I32
 *                              BLOCKS  rows of any format that can be decoded; addressed in bytes
 *                              HALVES  rows of 16-bit floats, read and written by eight
 *                              GRIDS   fb_grids, there where a format of BLOCKS points into it; fb_lower adds it
 *   name_CONSTANTS(SPEC, TILE) what changes the code. SPEC(id, NAME): a condition; TILE(id, NAME, most): the size of an
 *                              array too. 0, 1 and 2 are every kernel's: THREADS of a workgroup, and a bit an operand in
 *                              TYPES (it is BF16) and HAS (it is there)
 *   name_ARGUMENTS(ARG)        ARG(type, NAME): what changes numbers only. The type is uint, float, or
 *                              rows    rows in use of an operand: a kernel finds them from the counts of the feed
 *
 * Bindings and constants are numbered in the order in which they stand; kernels.h has the compiler check that. */
#ifndef FB_NAMES_H
#define FB_NAMES_H

/* ---- products ---- */

#define product_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) /* (M, N), or the sums of the parts: F32 (PARTS M, N) */ \
    BIND(1, X, ACT, READ) \
    BIND(2, W, BLOCKS, READ)    /* or an activation */ \
    BIND(3, U, ACT, READ)       /* (M, R) */ \
    BIND(4, B, WORDS, READ)     /* F32: (N, R), or (R, N) */ \
    BIND(5, ACC, ACT, READ)     /* (M, N) */ \
    BIND(6, BIAS, WORDS, READ)  /* F32 (1, N) */ \
    BIND(7, GRIDS, GRIDS, READ)
#define product_CONSTANTS(SPEC, TILE) \
    SPEC(3, OP) /* 0 y (M, N) = x (M, K) w (N, K)^T; 1 dx (M, N) = dy (M, K) w (K, N); 2 dw (M, N) = dy (K, M)^T x (K, N) */ \
    SPEC(4, WTYPE) \
    TILE(5, BM, 64u) TILE(6, BN, 64u) /* of a workgroup */ \
    TILE(7, TM, 4u) TILE(8, TN, 4u)   /* of a thread */ \
    TILE(9, PAD, 1u)
#define product_ARGUMENTS(ARG) \
    ARG(rows, M) ARG(uint, N) ARG(rows, K) ARG(uint, R) /* R: columns of U */ \
    ARG(float, SCALE) \
    ARG(uint, PARTS) ARG(uint, DEPTH) /* of the reduction; DEPTH is a multiple of 32 where there are several */

#define product_few_OPERANDS product_OPERANDS
#define product_few_CONSTANTS(SPEC, TILE) \
    SPEC(3, WTYPE) \
    SPEC(4, WHOLE)    /* 1: rows of x are whole sixteens that start at whole words, so loads need no conditions */ \
    TILE(5, MOST, 8u) /* rows of x, or more: what is summed lies in registers */ \
    TILE(6, WIDE, 4u) /* rows of w that a workgroup owns; an even number */
#define product_few_ARGUMENTS(ARG) ARG(rows, M) ARG(uint, N) ARG(uint, K) ARG(uint, R) ARG(float, SCALE)

/* A product from the sums of its parts. */
#define parts_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, PART, WORDS, READ) /* F32 (PARTS ROWS, COLS) */ \
    BIND(2, ACC, ACT, READ) BIND(3, BIAS, WORDS, READ)
#define parts_CONSTANTS(SPEC, TILE)
#define parts_ARGUMENTS(ARG) ARG(rows, ROWS) ARG(uint, COLS) ARG(uint, PARTS)

/* ---- a mixture of experts ---- */

#define route_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN)       /* weights (M, SLOTS), or the gradient of the logits (M, EXPERTS) */ \
    BIND(1, CHOSEN, WORDS, WRITTEN)  /* (M, SLOTS) */ \
    BIND(2, LOGITS, ACT, READ) BIND(3, WEIGHTS, WORDS, READ) BIND(4, DWEIGHTS, WORDS, READ) \
    BIND(5, ORDER, WORDS, WRITTEN) BIND(6, LOAD, WORDS, WRITTEN)
#define route_CONSTANTS(SPEC, TILE) SPEC(3, OP) /* 0 route, 1 its gradient, 2 order */
#define route_ARGUMENTS(ARG) ARG(rows, M) ARG(uint, EXPERTS) ARG(uint, SLOTS)

#define experts_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, X, ACT, READ) BIND(2, W, BLOCKS, READ) /* or an activation */ \
    BIND(3, ORDER, WORDS, READ) BIND(4, U, ACT, READ) BIND(5, B, WORDS, READ) BIND(6, ACC, ACT, READ) \
    BIND(7, BIAS, WORDS, READ) BIND(8, GRIDS, GRIDS, READ)
#define experts_CONSTANTS product_CONSTANTS /* of OP 2 the reduction is over the rows of an expert */
#define experts_ARGUMENTS(ARG) \
    ARG(rows, M) ARG(uint, N) ARG(uint, K) ARG(uint, R) /* tokens; of the product; of OP 2 K is the rows of dw */ \
    ARG(uint, EXPERTS) ARG(uint, FIRST)                 /* of OUT or W, and the number of its first */ \
    ARG(uint, TOKEN) ARG(uint, SLOTS)                   /* the first one of X, and slots of each */ \
    ARG(uint, STEP)  /* columns from slot to slot in X, of OP 2 in W; 0: all read the same ones */ \
    ARG(float, SCALE)

#define combine_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, X, ACT, READ) BIND(2, DY, ACT, READ) BIND(3, WEIGHTS, WORDS, READ) BIND(4, ACC, ACT, READ)
#define combine_CONSTANTS(SPEC, TILE) SPEC(3, OP) /* 0 y = sum of weights x + acc; 1 dx = weight dy; 2 dweights */
#define combine_ARGUMENTS(ARG) ARG(rows, M) ARG(uint, COLS) ARG(uint, SLOTS)

/* ---- attention ---- */

/* Of keys and values `kind`: the kernels of matrix units take the same as rows of 16-bit floats. */
#define fb_attention_operands(BIND, kind) \
    BIND(0, O, ACT, WRITTEN) BIND(1, STATS, WORDS, WRITTEN) \
    BIND(2, Q, kind, READ) BIND(3, K, kind, READ) BIND(4, V, kind, READ) BIND(5, RANGE, WORDS, READ)
#define fb_attention_dq_operands(BIND, kind) \
    BIND(0, DQ, ACT, WRITTEN) BIND(1, STATS, WORDS, WRITTEN) \
    BIND(2, Q, kind, READ) BIND(3, K, kind, READ) BIND(4, V, kind, READ) \
    BIND(5, O, ACT, READ) BIND(6, DO, kind, READ) BIND(7, RANGE, WORDS, READ)
#define fb_attention_dkv_operands(BIND, kind) \
    BIND(0, DK, ACT, WRITTEN) BIND(1, DV, ACT, WRITTEN) \
    BIND(2, Q, kind, READ) BIND(3, K, kind, READ) BIND(4, V, kind, READ) \
    BIND(5, STATS, WORDS, READ) BIND(6, DO, kind, READ) BIND(7, RANGE, WORDS, READ)

#define attention_OPERANDS(BIND) fb_attention_operands(BIND, ACT)
#define attention_CONSTANTS(SPEC, TILE) TILE(3, HD, 256u) /* columns of a head */
#define attention_ARGUMENTS(ARG) \
    ARG(rows, T) ARG(rows, S) ARG(uint, HEADS) ARG(uint, KV_HEADS) ARG(uint, WINDOW) \
    ARG(float, SCALE) ARG(float, CAP) /* of a score; no cap: 0 */ \
    ARG(uint, FIRST)                /* number of the first key */
#define attention_few_OPERANDS attention_OPERANDS
#define attention_few_CONSTANTS(SPEC, TILE) \
    TILE(3, HD, 256u) \
    SPEC(4, WHOLE) /* 1: heads are whole fours that start at whole words, so loads need no conditions */
#define attention_few_ARGUMENTS attention_ARGUMENTS
#define attention_dq_OPERANDS(BIND) fb_attention_dq_operands(BIND, ACT)
#define attention_dq_CONSTANTS attention_CONSTANTS
#define attention_dq_ARGUMENTS attention_ARGUMENTS
#define attention_dkv_OPERANDS(BIND) fb_attention_dkv_operands(BIND, ACT) /* or of DK and DV the sums of the parts */
#define attention_dkv_CONSTANTS attention_CONSTANTS
#define attention_dkv_ARGUMENTS(ARG) attention_ARGUMENTS(ARG) ARG(uint, PARTS) /* of the queries */

/* A causal convolution of each column over the keys that a query sees. */
#define conv_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN)   /* y, dx, or dw (COLS, TAPS), or of that the sums of the parts */ \
    BIND(1, X, ACT, READ)        /* or dy, of dx */ \
    BIND(2, W, WORDS, READ)      /* F32 (COLS, TAPS) */ \
    BIND(3, BIAS, WORDS, READ)   /* F32 (1, COLS) */ \
    BIND(4, RANGE, WORDS, READ) BIND(5, DY, ACT, READ)
#define conv_CONSTANTS(SPEC, TILE) \
    SPEC(3, OP) /* 0 y, 1 dx, 2 dw += its gradient */ \
    TILE(4, TAPS, 8u)
#define conv_ARGUMENTS(ARG) \
    ARG(rows, ROWS) ARG(uint, COLS) /* of y, dx or dy */ \
    ARG(rows, S) ARG(uint, FIRST)   /* of dx: rows of dy, and the number of its own first row */ \
    ARG(uint, PARTS) ARG(uint, DEPTH) /* of dw: of its rows */

/* ---- the gated delta rule ---- */

#define delta_OPERANDS(BIND) \
    BIND(0, O, ACT, WRITTEN) BIND(1, STATES, WORDS, WRITTEN) /* F32 (chunks, HEADS DK DV) */ \
    BIND(2, Q, ACT, READ) BIND(3, K, ACT, READ) BIND(4, V, ACT, READ) BIND(5, GATES, WORDS, READ) \
    BIND(6, CACHE, WORDS, WRITTEN) BIND(7, PLACES, WORDS, READ)
#define delta_CONSTANTS(SPEC, TILE) TILE(3, PER, 64u) /* rows of the state that a thread has */
#define delta_ARGUMENTS(ARG) \
    ARG(rows, T) ARG(uint, HEADS) ARG(uint, KEY_HEADS) ARG(uint, DK) ARG(uint, DV) ARG(uint, FROM) ARG(uint, UPTO)
#define delta_grad_OPERANDS(BIND) \
    BIND(0, DQK, WORDS, WRITTEN)    /* F32 (2 parts STEP, KEY_HEADS DK): those of dq, then of dk */ \
    BIND(1, DVALUES, ACT, WRITTEN) \
    BIND(2, DGATES, WORDS, WRITTEN) /* F32 (parts STEP, 2 HEADS) */ \
    BIND(3, GATES, WORDS, READ) BIND(4, Q, ACT, READ) BIND(5, K, ACT, READ) BIND(6, V, ACT, READ) \
    BIND(7, STATES, WORDS, READ) BIND(8, DO, ACT, READ) \
    BIND(9, PAST, WORDS, WRITTEN)   /* F32 (workgroups, 65 DK 16): of each row of a chunk, and what goes on to the stretch before */
#define delta_grad_CONSTANTS(SPEC, TILE) TILE(3, PER, 2u)
#define delta_grad_ARGUMENTS(ARG) \
    ARG(rows, T) ARG(uint, HEADS) ARG(uint, KEY_HEADS) ARG(uint, DK) ARG(uint, DV) ARG(uint, FROM) ARG(uint, STEP)

#define delta_gates_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) /* the gates, or the gradient of b */ BIND(1, OUT_A, ACT, WRITTEN) \
    BIND(2, GATES, WORDS, READ) BIND(3, B, ACT, READ) BIND(4, A, ACT, READ) BIND(5, RATE, WORDS, READ) BIND(6, RANGE, WORDS, READ)
#define delta_gates_CONSTANTS(SPEC, TILE) SPEC(3, GRAD)
#define delta_gates_ARGUMENTS(ARG) ARG(rows, ROWS) ARG(uint, HEADS)

/* ---- norms and sums down the rows ---- */

#define norm_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, X, ACT, READ) BIND(2, WEIGHT, ACT, READ) /* F32 (1, G) */ \
    BIND(3, DY, ACT, READ) BIND(4, ACC, ACT, READ)
#define norm_CONSTANTS(SPEC, TILE) \
    SPEC(3, OP) /* 0 y = x inv w; 1 dx = inv (w dy - x inv^2 mean(w dy x)) + acc; 2 inv itself, which the gradient of w reads */ \
    SPEC(4, SHARE) /* threads that share a group: a power of two, of which a workgroup is a multiple */
#define norm_ARGUMENTS(ARG) ARG(rows, ROWS) ARG(uint, COLS) ARG(uint, G) ARG(float, EPS)

#define columns_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, DY, ACT, READ) BIND(2, X, ACT, READ) \
    BIND(3, INV, WORDS, READ) /* F32 (ROWS, GROUPS) */ BIND(4, INDEX, WORDS, READ) /* of 0 and 1, OUT may be the sums of the parts */
#define columns_CONSTANTS(SPEC, TILE) \
    SPEC(3, OP) /* 0 db += dy; 1 dw += dy x inv over rows and groups; 2 y[index[r] stride - first] += scale x[r], each a sixteenth */
#define columns_ARGUMENTS(ARG) \
    ARG(rows, ROWS) ARG(uint, COLS) ARG(uint, GROUPS) \
    ARG(uint, PARTS) ARG(uint, DEPTH) /* of rows and groups, and groups of rows in each */ \
    ARG(rows, TARGETS) ARG(uint, STRIDE) ARG(uint, FIRST) ARG(float, SCALE) /* rows of y */

#define sumsq_OPERANDS(BIND) BIND(0, PARTIAL, WORDS, WRITTEN) BIND(1, X, WORDS, READ)
#define sumsq_CONSTANTS(SPEC, TILE)
#define sumsq_ARGUMENTS(ARG) ARG(uint, PIECES) ARG(uint, COUNT) ARG(uint, PIECE) /* elements: all, and of a piece */

/* The numbers of a step: losses and trained tokens added up, and the norm of the gradient. */
#define tally_OPERANDS(BIND) \
    BIND(0, RECORD, WORDS, WRITTEN) BIND(1, X, WORDS, READ) /* losses, or partial sums of squares */ BIND(2, HYPER, WORDS, READ)
#define tally_CONSTANTS(SPEC, TILE) SPEC(3, OP) /* 0: adds losses to the record; 1: norm, scale and finiteness */
#define tally_ARGUMENTS(ARG) ARG(rows, COUNT)

/* Places in RECORD and HYPER, those of FB_RECORD and FB_HYPER. */
#define RECORD_LOSS 0u
#define RECORD_TRAINED 2u
#define RECORD_NORM 4u
#define RECORD_SCALE 5u
#define RECORD_FINITE 6u
#define HYPER_LR 0u
#define HYPER_CORRECT1 1u
#define HYPER_CORRECT2 2u
#define HYPER_CLIP 3u

#define xent_OPERANDS(BIND) BIND(0, NLL, WORDS, WRITTEN) BIND(1, LOGITS, WORDS, WRITTEN) BIND(2, TARGETS, WORDS, READ)
#define xent_CONSTANTS(SPEC, TILE) SPEC(3, GRAD) /* 1: leave the gradient */
#define xent_ARGUMENTS(ARG) ARG(rows, ROWS) ARG(uint, COLS) ARG(float, CAP)

/* ---- element by element, and rows by number ---- */

#define elements_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, A, ACT, READ) BIND(2, B, ACT, READ) /* keys, of dropout */ BIND(3, ACC, ACT, READ)
#define elements_CONSTANTS(SPEC, TILE) SPEC(3, OP) /* 0 add, 1 scale, 2 softcap, 3 softcap_grad, 4 zero, 5 dropout, 6 part, 7 part put back */
#define elements_ARGUMENTS(ARG) \
    ARG(rows, ROWS) ARG(uint, COLS) ARG(float, SCALE) /* or the cap */ ARG(uint, THRESHOLD) ARG(uint, SALT) \
    ARG(uint, HEAD) ARG(uint, FIRST) ARG(uint, WIDTH) /* of parts */

#define gate_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN)    /* y, or the gradient of the gate */ \
    BIND(1, OUT_UP, ACT, WRITTEN) BIND(2, DY, ACT, READ) BIND(3, GATE, ACT, READ) BIND(4, UP, ACT, READ)
#define gate_CONSTANTS(SPEC, TILE) \
    SPEC(3, GRAD) \
    SPEC(4, KIND) /* 0 SiLU, 1 GELU in its tanh form, 2 squared ReLU, 3 none, 4 sigmoid */
#define gate_ARGUMENTS(ARG) ARG(rows, ROWS) ARG(uint, COLS)

#define update_OPERANDS(BIND) \
    BIND(0, P, WORDS, WRITTEN) BIND(1, M, WORDS, WRITTEN) BIND(2, V, WORDS, WRITTEN) BIND(3, G, WORDS, READ) \
    BIND(4, HYPER, WORDS, READ) BIND(5, RECORD, WORDS, READ)
#define update_CONSTANTS(SPEC, TILE) SPEC(3, OP) /* 0 adamw, 1 sgd */
#define update_ARGUMENTS(ARG) \
    ARG(uint, COUNT) ARG(float, LR_SCALE) ARG(float, DECAY) ARG(float, EPS) \
    ARG(float, BETA1) ARG(float, REST1) ARG(float, BETA2) ARG(float, REST2) /* rest: 1 - beta */

#define rows_OPERANDS(BIND) BIND(0, OUT, ACT, WRITTEN) BIND(1, W, BLOCKS, READ) BIND(2, IDS, WORDS, READ) \
    BIND(3, GRIDS, GRIDS, READ)
#define rows_CONSTANTS(SPEC, TILE) \
    SPEC(3, OP) /* 0 out[r] = scale w[ids[r] stride - first], other ids left alone; 1 out[ids[r]] = w[r]; 2 out = w */ \
    SPEC(4, WTYPE)
#define rows_ARGUMENTS(ARG) \
    ARG(rows, ROWS) ARG(uint, COLS) ARG(rows, CHOICE) /* rows of w */ ARG(uint, STRIDE) ARG(uint, FIRST) ARG(float, SCALE)

#define rope_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN) BIND(1, X, ACT, READ) /* (T, heads * HEAD); of the table: positions */ \
    BIND(2, TABLE, WORDS, READ)                   /* (T, N_ROT); of the table: inv_freq */ \
    BIND(3, ACC, ACT, READ)
#define rope_CONSTANTS(SPEC, TILE) SPEC(3, OP) /* 0 table, 1 rotation */
#define rope_ARGUMENTS(ARG) \
    ARG(rows, ROWS) ARG(uint, COLS) ARG(uint, HEAD) ARG(uint, N_ROT) \
    ARG(uint, HALVES) /* 0: pairs are neighbours; 1: they are half of N_ROT apart */ \
    ARG(float, SCALE) /* of the table, or of the sines: -1 turns back */

#define peak_OPERANDS(BIND) BIND(0, OUT, WORDS, WRITTEN)
#define peak_CONSTANTS(SPEC, TILE)
#define peak_ARGUMENTS(ARG) ARG(uint, ROUNDS)

/* ---- on matrix units; F16: they multiply F16, not BF16 ---- */

#define matrix_product_OPERANDS(BIND) \
    BIND(0, OUT, ACT, WRITTEN)    /* (M, N), or the sums of the parts */ \
    BIND(1, X, HALVES, READ) \
    BIND(2, W, HALVES, READ)      /* (N, K + R), or (K + R, N) */ \
    BIND(3, U, HALVES, READ)      /* (M, R) */ \
    BIND(4, ACC, ACT, READ) BIND(5, BIAS, WORDS, READ) \
    BIND(6, ROW_SCALE, WORDS, READ) /* F32 (M, 1): of the rows of X and U */
#define matrix_product_CONSTANTS(SPEC, TILE) \
    TILE(3, OP, 0u) /* as of product */ SPEC(4, F16) \
    TILE(5, BM, 128u) TILE(6, BN, 128u) /* of a workgroup */ \
    TILE(7, WM, 64u) TILE(8, WN, 64u)   /* of a subgroup */
#define matrix_product_ARGUMENTS product_ARGUMENTS /* R and DEPTH are multiples of 32 */

#define matrix_pack_OPERANDS(BIND) \
    BIND(0, OUT, HALVES, WRITTEN) /* (OUT_ROWS, WIDE) */ \
    BIND(1, W, BLOCKS, READ)      /* (ROWS, COLS) */ \
    BIND(2, B, WORDS, READ)       /* F32: (ROWS, R), or (R, COLS) */ \
    BIND(3, GRIDS, GRIDS, READ)
#define matrix_pack_CONSTANTS(SPEC, TILE) \
    SPEC(3, AS_ROWS) /* where B goes: behind W as columns, or as rows */ \
    SPEC(4, WTYPE) SPEC(5, F16)
#define matrix_pack_ARGUMENTS(ARG) \
    ARG(rows, ROWS) ARG(uint, COLS) ARG(uint, R) ARG(uint, WIDE) ARG(rows, OUT_ROWS) ARG(float, SCALE) /* of B */ \
    ARG(rows, USED) /* of what is to be multiplied by it: without any there is nothing to do */

#define matrix_rows_OPERANDS(BIND) \
    BIND(0, OUT, HALVES, WRITTEN)      /* (ROWS, K + R) */ \
    BIND(1, X, ACT, READ)              /* (ROWS, K) */ \
    BIND(2, U, ACT, READ)              /* (ROWS, RANK) */ \
    BIND(3, ROW_SCALE, WORDS, WRITTEN) /* F32 (ROWS, 1): what a row was divided by */
#define matrix_rows_CONSTANTS(SPEC, TILE)
#define matrix_rows_ARGUMENTS(ARG) ARG(rows, ROWS) ARG(uint, K) ARG(uint, RANK) ARG(uint, R)

#define fb_matrix_attention_constants(SPEC, TILE) \
    TILE(3, HD, 256u) TILE(4, BLOCK, 32u) /* rows of the other side at a time */ SPEC(5, F16)
#define matrix_attention_OPERANDS(BIND) fb_attention_operands(BIND, HALVES)
#define matrix_attention_CONSTANTS fb_matrix_attention_constants
#define matrix_attention_ARGUMENTS attention_ARGUMENTS
#define matrix_attention_dq_OPERANDS(BIND) fb_attention_dq_operands(BIND, HALVES)
#define matrix_attention_dq_CONSTANTS fb_matrix_attention_constants
#define matrix_attention_dq_ARGUMENTS attention_ARGUMENTS
#define matrix_attention_dkv_OPERANDS(BIND) fb_attention_dkv_operands(BIND, HALVES)
#define matrix_attention_dkv_CONSTANTS fb_matrix_attention_constants
#define matrix_attention_dkv_ARGUMENTS attention_dkv_ARGUMENTS

#define matrix_peak_OPERANDS(BIND) BIND(0, OUT, WORDS, WRITTEN)
#define matrix_peak_CONSTANTS(SPEC, TILE) SPEC(3, F16)
#define matrix_peak_ARGUMENTS(ARG) ARG(uint, ROUNDS)
#endif
