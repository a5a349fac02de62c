/* backend.h - what a device must be able to do: the ops, the operands of each, and the one struct of functions that a
 * backend fills in. The graph knows nothing else of a device, and a device nothing else of the graph. */
#ifndef FB_BACKEND_H
#define FB_BACKEND_H
#include <stddef.h>
#include "../include/fabric.h"
#include "operands.h"
#include "../quant/formats.h"

/* FB_Q8_0 ...; those of the public header are compared. */
#define FB_NUMBERED(NAME, name, number, block, bytes, file_type, encoders) FB_##NAME = number,
#define FB_NUMBER_IS(NAME, name, number, block, bytes, file_type, encoders) \
    _Static_assert(FB_##NAME == number, "number of " #NAME);
FB_PLAIN_FORMATS(FB_NUMBER_IS)
enum { FB_BLOCK_FORMATS(FB_NUMBERED) };

/* quant/grids.c */
extern const uint32_t fb_grids[FB_GRID_ENTRIES / 2];
/* Whether codes of a type point into it. */
static inline int fb_has_grid(int32_t type) {
#define FB_IS(NAME, name, number, block, bytes, file_type, encoders) type == number ||
    return FB_GRID_FORMATS(FB_IS) 0;
#undef FB_IS
}

#define FB_MAX_OPERANDS 12

/* Memory of a device: `host` where its kernels read the host's own, else a handle. */
typedef struct fb_mem {
    void *host;
    void *handle;
    uint64_t bytes;
} fb_mem;

/* What the rows in use of a matrix are counted by. The counts of a feed are all that changes between two replays. */
enum { FB_COUNT_NONE, FB_COUNT_TOKENS, FB_COUNT_TRAINED, FB_COUNTS };

/* A matrix inside some memory: row r, column c is element r * ld + c after `offset`. Of block formats whole rows only
 * (cols == ld); a kernel that works on a stretch of such a row cuts it at multiples of 32, the unit of decoding, which
 * may lie inside a super-block of 256. An absent operand has mem == NULL. */
typedef struct fb_view {
    const fb_mem *mem;
    uint64_t offset; /* bytes */
    int32_t type;
    int32_t rows, cols;           /* rows: capacity */
    int64_t ld;                   /* elements */
    int32_t count, factor, first; /* rows in use: clamp(counts[count] * factor - first, 0, rows); of FB_COUNT_NONE all */
} fb_view;

static inline int32_t fb_rows_in_use(const fb_view *v, const int32_t counts[FB_COUNTS]) {
    if (v->count == FB_COUNT_NONE) return v->rows;
    int64_t n = (int64_t)counts[v->count] * v->factor - v->first;
    return n < 0 ? 0 : n < v->rows ? (int32_t)n : v->rows;
}

/*  Ops and their operands, in order. "act": F32 or BF16, each operand its own; kernels sum in F32.
 *  out: written; io: read and written; everything else is read. [x]: may be absent.
 *  "acc" is a term added to the output, act of the output's shape; it may be the same memory as the output.
 *
 *  EMBED          out y act(T,D); w block(V,D); ids i32(T,1).           y = scale * w[ids * stride - first]; where w has
 *                                                                       no such row (it may be a slice) y is left alone
 *  DECODE         out y bf16(N,K); w block(N,K)                         y = w
 *  RMS_NORM       out y act(T,D); x act(T,D); w f32(1,G)                G divides D: groups of G columns
 *  RMS_NORM_DX    out dx act(T,D); dy act; x act; w; [acc]
 *  RMS_NORM_DW    io dw f32(1,G); dy act(T,D); x act(T,D)               dw += sum over rows and groups
 *  LINEAR         out y act(T,N); x act(T,K); w block(N,K); [bias f32(1,N)]; [u act(T,R)]; [b f32(N,R)]; [acc]
 *                                                                       y = scale*(x w^T) + u b^T + bias + acc
 *  LINEAR_DX      out dx act(T,K); dy act(T,N); w block(N,K); [u act(T,R)]; [a f32(R,K)]; [acc]
 *                                                                       dx = scale*(dy w) + u a + acc
 *  LINEAR_DW      io dw f32(N,K); dy act(T,N); x act(T,K)               dw += scale * dy^T x
 *  BIAS_DB        io db f32(1,N); dy act(T,N)                           db += column sums
 *  EMBED_DW       io dw f32(V,D); dy act(T,D); ids i32(T,1)             dw[ids * stride - first] += scale * dy
 *  ROPE_TABLE     out table f32(T,n_rot); pos i32(T,1); inv_freq f32(1,n_rot/2)   [t][2i]=cos*scale, [2i+1]=sin*scale
 *  ROPE           out y act(T,H*head_dim); x act; table f32(T,n_rot); [acc]       inverse = 1 rotates back
 *  ATTENTION      out o act(T,Hq*hd); out stats f32(T,2*Hq); q act; k act(S,Hkv*hd); v act; range i32(T,2)
 *                                                                       range: the first key that a query sees and the
 *                                                                       one after the last; one that sees none gives 0.
 *                                                                       stats: the log-sum-exp of each head, or -inf;
 *                                                                       the other half is left for the gradient
 *  ATTENTION_DQ   out dq act(T,Hq*hd); io stats; q; k; v; o; dout act; range
 *                                                                       stats, other half = rowsum(dout * o) per head
 *  ATTENTION_DKV  out dk act(S,Hkv*hd); out dv act; q; k; v; stats; dout; range
 *                                                                       k, v, dk, dv start at key `first`
 *  CONV           out y act(T,D); x act(S,D); w f32(D,L); [bias f32(1,D)]; range i32(T,2)
 *                                                                       y[t] = bias + sum_k w[:, L-1-k] x[end - 1 - k]
 *                                                                       over keys of range [start, end), L up to
 *                                                                       FB_MOST_TAPS
 *  CONV_DX        out dx act(S,D); dy act(T,D); w; range                where the last key of a query is its own row:
 *                                                                       others add nothing. dx starts at row `first`
 *  CONV_DW        io dw f32(D,L); dy act(T,D); x act(S,D); range        dw += its gradient
 *  DELTA_GATES    out gates f32(T,4*Hv); b act(T,Hv); a act(T,Hv); rate f32(1,Hv); range i32(T,2)
 *                                                                       sigmoid(b), then exp(rate * softplus(a)), 0 where
 *                                                                       a row begins: its token sees itself alone. The
 *                                                                       other half is left for the gradient
 *  DELTA_GATES_GRAD  out db act(T,Hv); out da act; gates; b; a; rate    what flows into the gates lies in their other half
 *  DELTA          out o act(T,Hv*dv); out states f32(C,Hv*dk*dv); q act(T,Hk*dk); k act; v act(T,Hv*dv); gates; [io cache f32(L,Hv*dk*dv)]; [at i32(T,2)]
 *                                                                       of value head h, with key head h % Hk: s = decay s;
 *                                                                       s += k (beta (v - s^T k))^T; o = s^T q. states:
 *                                                                       s (dk,dv) before each FB_DELTA_CHUNK rows. Before
 *                                                                       row t s is row at[t][0] - 1 of the cache where that
 *                                                                       is >= 0, and after it row at[t][1] - 1 becomes s
 *  DELTA_GRAD     out dq act(T,Hk*dk); out dk act; out dv act(T,Hv*dv); io gates f32(T,4*Hv); q; k; v; states; dout act(T,Hv*dv)
 *                                                                       gates, other half = d beta, d log(decay)
 *  PART           out y act; x act; [acc]                               of every `head_dim` columns of x those from `first`
 *                                                                       on, `width` of them; inverse = 1: puts them there,
 *                                                                       0 elsewhere. + acc
 *  GLU            out y act(T,F); gate act; up act                      kind: FB_SILU, FB_GELU_TANH, FB_RELU2, FB_BILINEAR,
 *                                                                       FB_SIGMOID
 *  GLU_GRAD       out dgate act; out dup act; dy act; gate act; up act
 *  ADD            out y act; a act; b act
 *  SCALE          out y act; x act; [acc]                               y = scale * x + acc; also the cast
 *  SOFTCAP        out y act; x act                                      y = softcap * tanh(x / softcap)
 *  SOFTCAP_GRAD   out dx act; dy act; y act; [acc]
 *  DROPOUT        out y act(T,D); x act; keys i32(T,1); [acc act]       y = scale * x or 0, + acc; dropped where
 *                                                                       fb_noise(keys[t], salt, column) < threshold
 *  GATHER         out y act(M,D); x act(T,D); index i32(M,1)            y[i] = x[index[i]]
 *  SCATTER        io y act(T,D); x act(M,D); index i32(M,1)             y[index[i]] += x[i], in order of i
 *  XENT           out nll f32(M,1); io logits f32(M,V); targets i32(M,1)  softcap applies to logits first; grad = 1
 *                                                                       leaves d sum(nll) / d logits in logits
 *  APPEND         io cache act(S,D); x act(T,D); slots i32(T,1)         cache[slots[t]] = x[t]
 *  ZERO           out y any(R,C)
 *  ROUTE          out weights f32(T,k); out chosen i32(T,k); logits act(T,E)   the k experts of the largest logits, the largest
 *                                                                       first, and the softmax over those logits
 *  ROUTE_GRAD     out dlogits act(T,E); dweights f32(T,k); weights; chosen
 *  ORDER          out order i32(1,E+1+n); [io load f32(1,E)]; chosen i32(T,k)   the slots t * k + j of chosen[t][j], expert by
 *                                                                       expert, from order[E+1] on, each expert's in order of
 *                                                                       t; those of e are order[order[e]] up to, not
 *                                                                       including, order[order[e + 1]]. load += how many
 *  EXPERTS        out y act(T,k*N); x act(T,K) or (T,k*K); w block(E*N,K); order; [bias f32(E,N)]; [u act(T,k*R)]; [b f32(E*N,R)]
 *                                                                       slot by slot, with the matrix of its expert:
 *                                                                       y = scale*(x w^T) + u b^T + bias. w may be a slice,
 *                                                                       of the experts from `first` on, and x and y rows
 *                                                                       of the tokens from `token` on; other slots are
 *                                                                       left alone
 *  EXPERTS_DX     out dx act(T,k*K); dy act(T,k*N); w; order; [u act(T,k*R)]; [a f32(E*R,K)]; [acc]   dx = scale*(dy w) + u a + acc
 *  EXPERTS_DW     io dw f32(E*N,K); dy act(T,k*N); x act(T,K) or (T,k*K); order   dw += scale * dy^T x
 *  COMBINE        out y act(T,D); x act(T,k*D); [weights f32(T,k)]; [acc]   y = sum over slots of weight (or 1) * x, + acc
 *  COMBINE_GRAD   out dx act(T,k*D); out dweights f32(T,k); dy act(T,D); x; weights
 *  TALLY          io record f32(1,R); nll f32(M,1)                     adds sum(nll) to FB_RECORD_LOSS and M to
 *                                                                       FB_RECORD_TRAINED, in fixed order
 *  SUMSQ          out partial f32(1,P); x f32(1,n)                      partial[i] = sum of squares of the i-th of P
 *                                                                       equal pieces (ceil(n/P)), in fixed order
 *  NORM           io record f32(1,R); partial f32(1,P); hyper f32(1,H)  FB_RECORD_NORM = sqrt(sum(partial)) / trained;
 *                                                                       _SCALE = 1 / trained, times clip / (norm + 1e-6)
 *                                                                       where the norm is above a clip > 0;
 *                                                                       _FINITE = 1 where loss and norm are, else 0
 *  ADAMW          io p f32(1,n); io m; io v; g; hyper; record           see fb_attr; g is multiplied by _SCALE. Where
 *                                                                       _FINITE is 0, all is left as it is
 *  SGD            io p f32(1,n); [io m]; g; hyper; record
 */
typedef enum fb_op {
    FB_OP_EMBED, FB_OP_DECODE, FB_OP_RMS_NORM, FB_OP_RMS_NORM_DX, FB_OP_RMS_NORM_DW,
    FB_OP_LINEAR, FB_OP_LINEAR_DX, FB_OP_LINEAR_DW, FB_OP_BIAS_DB, FB_OP_EMBED_DW,
    FB_OP_ROPE_TABLE, FB_OP_ROPE,
    FB_OP_ATTENTION, FB_OP_ATTENTION_DQ, FB_OP_ATTENTION_DKV,
    FB_OP_CONV, FB_OP_CONV_DX, FB_OP_CONV_DW,
    FB_OP_DELTA_GATES, FB_OP_DELTA_GATES_GRAD, FB_OP_DELTA, FB_OP_DELTA_GRAD, FB_OP_PART,
    FB_OP_GLU, FB_OP_GLU_GRAD, FB_OP_ADD, FB_OP_SCALE, FB_OP_SOFTCAP, FB_OP_SOFTCAP_GRAD, FB_OP_DROPOUT,
    FB_OP_GATHER, FB_OP_SCATTER, FB_OP_XENT, FB_OP_APPEND, FB_OP_ZERO,
    FB_OP_ROUTE, FB_OP_ROUTE_GRAD, FB_OP_ORDER, FB_OP_EXPERTS, FB_OP_EXPERTS_DX, FB_OP_EXPERTS_DW, FB_OP_COMBINE, FB_OP_COMBINE_GRAD,
    FB_OP_TALLY, FB_OP_SUMSQ, FB_OP_NORM, FB_OP_ADAMW, FB_OP_SGD,
    FB_OP_COUNT
} fb_op;

enum { FB_DELTA_CHUNK = 64 };

/* The numbers of an op; each reads those that its line above names. */
typedef struct fb_attr {
    float scale;                              /* EMBED LINEAR* EMBED_DW ROPE_TABLE SCALE DROPOUT EXPERTS* */
    int32_t rounded;                          /* LINEAR*: 1: operands may be rounded to 16 bits to be multiplied, F32 ones too */
    float eps;                                /* RMS_NORM*, ADAMW */
    float softcap;                            /* SOFTCAP* XENT; 0: none */
    int32_t stride;                           /* EMBED EMBED_DW */
    int32_t first;                            /* EMBED EMBED_DW: row of w; ATTENTION_DKV: key; CONV_DX: row; EXPERTS*: expert; PART: column */
    int32_t experts;                          /* ORDER: E */
    int32_t token, slots;                     /* EXPERTS*: the first row of x; k */
    int32_t head_dim, layout, inverse;        /* ROPE, PART */
    int32_t width, key_heads;                 /* PART; DELTA DELTA_GRAD: Hk */
    int32_t kind;                             /* GLU* */
    int32_t grad;                             /* XENT */
    uint32_t threshold, salt;                 /* DROPOUT */
    fb_attention_shape attention;             /* ATTENTION* */
    float lr_scale, decay;                    /* ADAMW SGD: lr = hyper lr * lr_scale; p -= lr * decay * p */
    float beta1, beta2;                       /* ADAMW: p -= lr * (m / correct1) / (sqrt(v / correct2) + eps) */
    float momentum;                           /* SGD: m = momentum * m + g; p -= lr * m */
} fb_attr;

/* The numbers that change from step to step: the operand `hyper`. correct1, correct2: 1 - beta^t; clip 0: none. */
enum { FB_HYPER_LR, FB_HYPER_CORRECT1, FB_HYPER_CORRECT2, FB_HYPER_CLIP, FB_HYPER };

/* 32 random bits of an element, from a row's key, an op's salt and a column. */
static inline uint32_t fb_mix(uint32_t x) { /* a bijection whose every output bit hangs on every input bit */
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}
static inline uint32_t fb_noise(uint32_t key, uint32_t salt, uint32_t column) {
    return fb_mix(fb_mix(key + salt * 0x9e3779b9u) + column * 0x85ebca77u);
}

#define FB_VIEW(name) fb_view name;
#define FB_VIEWS_OF(op) struct fb_##op##_views { fb_##op##_views(FB_VIEW) };
#define FB_VIEWS_IN_LAUNCH(op) struct fb_##op##_views op;
FB_VIEWS_OF_OPS(FB_VIEWS_OF)

typedef struct fb_launch {
    fb_op op;
    fb_attr attr;
    const fb_mem *grids; /* fb_grids; may be NULL where no operand's codes point into it */
    uint32_t written;    /* operands that are written, a bit each; 0: any may be */
    union {
        fb_view v[FB_MAX_OPERANDS];
        FB_VIEWS_OF_OPS(FB_VIEWS_IN_LAUNCH)
    };
} fb_launch;
#undef FB_VIEW
#undef FB_VIEWS_OF
#undef FB_VIEWS_IN_LAUNCH

/* The launch as it runs with these counts: `rows` are those in use. 0 where an operand has none: then it does nothing. */
static inline int fb_launch_in_use(const fb_launch *launch, const int32_t counts[FB_COUNTS], fb_launch *out) {
    *out = *launch;
    for (int k = 0; k < FB_MAX_OPERANDS; k++) {
        if (!out->v[k].mem) continue;
        out->v[k].rows = fb_rows_in_use(&out->v[k], counts);
        if (out->v[k].rows == 0) return 0;
    }
    return 1;
}

/* How a program is replayed; what is NULL is not asked for. */
typedef struct fb_run {
    const volatile int32_t *cancel; /* once it is set, replay soon ends with FB_E_CANCELLED */
    volatile int32_t *done;         /* goes up by one for each launch that has finished or was submitted */
    double *seconds;                /* one a launch: its time; then replay waits */
    double duty;                    /* share of the time that is worked, the rest is slept (fb_os_rest); 1: all of it */
    int (*reached)(void *context, int launches); /* may be called now and then: so many launches were given to the device */
    void *context;
} fb_run;

/* What a device is. Every function returns FB_OK or a code, and sets fb_error through fb_fail. Whatever is given to a device
 * takes effect in order: writes, replays and reads see all that came before them. */
typedef struct fb_backend {
    const char *name;
    void (*find)(const char *library, const char *missing); /* fb_backend_find; NULL: it finds all by itself */
    int (*count)(void); /* 0 after fb_fail where there is none */
    int (*describe)(int index, fb_device_info *info);
    int (*open)(int index, const fb_device_options *options, void **self, fb_device_info *info);
    void (*close)(void *self);
    int (*alloc)(void *self, uint64_t bytes, fb_mem *mem);                   /* zeroed */
    int (*wrap)(void *self, const void *host, uint64_t bytes, fb_mem *mem);  /* read-only; may upload at first use */
    void (*free)(void *self, fb_mem *mem);
    int (*write)(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes); /* src is free afterwards */
    int (*read)(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes);
    /* Bytes of scratch that the launch needs; asked once, with every row in use, and must then do for any fewer rows.
     * UINT64_MAX after fb_fail: it cannot run. */
    uint64_t (*scratch)(void *self, const fb_launch *launch);
    /* Makes a program of launches that run in order, each seeing what those before it wrote. The memory that they name stays
     * where it is until the program is released, and so does the workspace, scratch for any of them. */
    int (*prepare)(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **program);
    /* Runs it with these counts, as often as wanted. May return before it has finished. */
    int (*replay)(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run);
    void (*release)(void *self, void *program); /* waits until it has finished */
    int (*wait)(void *self);
    int (*peak)(void *self, int kind, double seconds, double *per_second);
    /* Devices of several processes that add up by a library of their maker; of a backend that has none, all are NULL. */
    int (*card)(void *self, char out[FB_CARD]); /* the device's own name, the same in every process */
    int (*peers_id)(const char *library, char *id); /* id NULL: only whether the library is there */
    int (*join)(void *self, const char *library, const char id[FB_PEERS_ID], int rank, int size);
    /* Begins to replace F32 rows by their sum, or mean, once all that was given to the device before is done. What the device
     * is given afterwards runs beside it, and must leave that memory alone until summed says that it is done. */
    int (*sum)(void *self, const fb_view *what, int n, int mean);
    int (*summed)(void *self, int *done);
    void (*leave)(void *self); /* at once, whatever runs */
} fb_backend;

/* backends/backends.c: those there are, in the order in which devices are listed; NULL ends them. */
extern const fb_backend *const fb_backends[];

/* Sets fb_error() to one formatted sentence and returns code. */
int fb_fail(int code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 2, 3)))
#endif
    ;

/* FB_OK where a memory has these bytes, else a code after fb_fail. */
int fb_inside(const fb_mem *mem, uint64_t offset, uint64_t bytes);

/* Bytes of `n` elements (whole blocks) of a type; 0 for a type the core does not know. */
uint64_t fb_type_bytes(int32_t type, int64_t n);

#endif
