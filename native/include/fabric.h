/* fabric.h - the whole interface of the training core, and the only header that
 * Python reads (preprocessor lines are dropped first, so declarations stay plain).
 *
 * Intended usage:
 *   fb_device *dev = fb_device_open("cpu", &options);
 *   fb_buffer *w   = fb_buffer_wrap(dev, mapped, bytes);   // frozen weights, as they lie in the file
 *   fb_buffer *p   = fb_buffer_new(dev, n_params * 4);     // everything that trains, flat, and its gradients
 *   fb_graph  *g   = fb_graph_new(dev, tokens, trained, FB_BF16);
 *   ... fb_leaf / fb_input / ops ... fb_loss ...            // record the forward pass once
 *   fb_plan   *pl  = fb_plan_new(g, &plan_options);        // derives backward, plans memory and tiles
 *   fb_plan_step(pl, feeds, n_feeds, ...);                 // a whole optimizer step, as often as wanted, or in parts:
 *   fb_plan_accumulate(pl, feeds, n_feeds, ...);           // gradients and losses of many feeds
 *   ... gradients and fb_plan_record(pl) added up over devices ...
 *   fb_plan_update(pl, optimizer, ...);                    // norm, clip, update
 *
 * A function that can fail returns NULL, a negative tensor, or a code other than
 * FB_OK; fb_error() then holds one sentence. Handles are not thread-safe, but
 * fb_progress may be read and its cancel flag set from any thread at any time.
 */
#ifndef FABRIC_H
#define FABRIC_H
#include <stdint.h>

enum {
    FB_OK = 0,
    FB_E_ARGUMENT = 1,  /* the caller's mistake: shapes, types, ranges */
    FB_E_MEMORY = 2,    /* host or device memory ran out */
    FB_E_DEVICE = 3,    /* no such device, lost device, missing driver or feature */
    FB_E_LIMIT = 4,     /* does not fit a device limit even when tiled */
    FB_E_CANCELLED = 5, /* fb_progress.cancel was set; parameters are as before the step */
    FB_E_INTERNAL = 6   /* a broken promise inside the core */
};

/* The last failure of this thread, as one sentence. */
const char *fb_error(void);

/* ---- tensor types; numbers are GGUF's own, and quant/formats.h has them all ---- */
enum { FB_F32 = 0, FB_F16 = 1, FB_I32 = 26, FB_BF16 = 30 };

typedef struct fb_format {
    const char *name;    /* "Q8_0" */
    int32_t type;        /* its number */
    int32_t block;       /* elements a block */
    int32_t block_bytes; /* bytes a block */
    int32_t file_type;   /* general.file_type of a file of such tensors; -1: there is none */
    int32_t decodes;     /* 1: the core reads it */
    int32_t encodes;     /* 1: and writes it */
} fb_format;

/* The i-th type that GGUF has, decoded or not; NULL behind the last. */
const fb_format *fb_format_at(int32_t i);
/* NULL when the core cannot decode that type. */
const fb_format *fb_format_get(int32_t type);
/* src: n elements in whole blocks, which take `src_bytes`; dst: n floats. */
int fb_decode(int32_t type, const void *src, uint64_t src_bytes, float *dst, int64_t n);
/* src: (rows, cols) floats; dst: rows of whole blocks, which take `dst_bytes`; importance: NULL, or cols weights >= 0 of the squared error, which
 * formats of 8 bits and more have no use for. */
int fb_encode(int32_t type, const float *src, void *dst, uint64_t dst_bytes, int64_t rows, int64_t cols,
              const float *importance);

/* ---- devices ---- */
typedef struct fb_device fb_device;

typedef struct fb_device_options {
    int32_t threads;            /* CPU worker threads; 0: one a core */
    const char *isa;            /* CPU: "generic" "avx2" "avx512" "avx512_bf16" "neon"; NULL: the best there is */
    /* These lower what the driver says (fb_device_info); 0: as it says. */
    uint64_t memory_bytes, max_binding_bytes, max_allocation_bytes;
    uint32_t max_reduction;
    uint32_t workgroup_bytes, workgroup_threads, workgroups;
    uint32_t tile_rows, tile_cols; /* most of a product's output that a workgroup owns: 16, 32 or 64; 0: by its shape */
    uint32_t submit_ms;            /* what a submission to a GPU may take; 0: 100 */
    double duty;                   /* share of the time that is worked, the rest is slept; 0: all of it */
    int32_t profile;               /* time every launch (fb_plan_op_stats) */
    const char *compiler_path;  /* of the library that compiles CUDA's kernels (NVRTC); NULL: where the system finds it */
    const char *cache_path;     /* start of a file name for a driver's built kernels, kept from run to run; NULL: none */
} fb_device_options;

typedef struct fb_device_info {
    char backend[16]; /* "cpu" */
    char name[96];    /* "AMD EPYC 9B14" */
    char driver[96];  /* "llvmpipe"; empty where it has no name */
    char isa[32];     /* "avx512_bf16" */
    int32_t cores;
    int32_t threads;
    int32_t bf16;               /* 1: 16-bit activations pay off here */
    int32_t own_memory;         /* 1: memory that nothing but the device uses */
    int32_t in_place;           /* 1: wrapped memory is read where it lies, if the driver takes it */
    int32_t decode_pays;        /* 1: training is faster with weights decoded to 16 bits once, where there is room */
    uint64_t memory_bytes;      /* of the device */
    uint64_t max_binding_bytes; /* largest range one operand of a launch may span; UINT64_MAX: any */
    uint64_t max_allocation_bytes; /* largest piece of memory that it gives; UINT64_MAX: any */
    uint32_t max_reduction;        /* most rows of a weight that one launch sums an input gradient over; 0: any */
    uint32_t workgroup_bytes;   /* memory that the threads of a workgroup share; these three are 0 on the CPU */
    uint32_t workgroup_threads; /* most threads of a workgroup */
    uint32_t workgroups;        /* most workgroups in one dimension of a launch */
    int32_t software;           /* 1: a GPU's interface that the processor carries out */
} fb_device_info;

/* Where the library lies through which a backend reaches its driver, for one ("sycl") that is made on this machine; where
 * there is none (NULL), `missing` is one sentence about why. Before the devices are counted. */
void fb_backend_find(const char *backend, const char *library, const char *missing);
/* A text that is embedded for compilers on this machine, by its file's name; NULL: there is none. */
const char *fb_text(const char *name);
int fb_device_count(void);
int fb_device_describe(int index, fb_device_info *info);
/* Why a kind of device is not there, one sentence after another; NULL after the last. */
const char *fb_device_missing(int index);
fb_device *fb_device_open(const char *name, const fb_device_options *options); /* "cpu", "vulkan:1" */
int fb_device_get_info(const fb_device *device, fb_device_info *info);
void fb_device_close(fb_device *device);

enum { FB_PEAK_F32 = 0, FB_PEAK_BF16 = 1, FB_PEAK_READ = 2 };
/* Measures for about `seconds`: operations/s (FB_PEAK_F32, _BF16: multiply-adds count 2) or bytes/s read. */
int fb_device_peak(fb_device *device, int kind, double seconds, double *per_second);

/* ---- device memory ---- */
typedef struct fb_buffer fb_buffer;
/* Zeroed. A buffer larger than one allocation of the device is parted at some of its `n_seams` seams, offsets in ascending
 * order: rows of matrices must not lie across one. seams may be NULL where n_seams is 0. */
fb_buffer *fb_buffer_new(fb_device *device, uint64_t bytes, const uint64_t *seams, int64_t n_seams);
/* Read-only memory of the caller, which must outlive the buffer and stay as it is; the CPU and devices that share its memory
 * read it in place, others copy it when a plan that reads it first runs. */
fb_buffer *fb_buffer_wrap(fb_device *device, const void *host, uint64_t bytes, const uint64_t *seams, int64_t n_seams);
/* 1: the device reads the caller's memory itself, or will, as far as is known; 0: it has memory of its own for this. */
int fb_buffer_in_place(const fb_buffer *buffer);
int fb_buffer_write(fb_buffer *buffer, uint64_t offset, const void *src, uint64_t bytes);
int fb_buffer_read(fb_buffer *buffer, uint64_t offset, void *dst, uint64_t bytes);
void fb_buffer_free(fb_buffer *buffer);

/* ---- devices of several processes, which add up buffers by a library of their maker ---- */
enum { FB_CARD = 33, FB_PEERS_ID = 128 };
/* A name of the device that is the same in every process, empty where it has none: two processes on one device cannot join. */
int fb_device_card(fb_device *device, char card[FB_CARD]);
/* What one process makes and all of them join by; id NULL: only whether the library is there. library: where it lies, or NULL. Of
 * "cuda" it is NCCL, and elsewhere there is none. */
int fb_peers_id(const char *backend, const char *library, char *id);
int fb_device_join(fb_device *device, const char *library, const char id[FB_PEERS_ID], int32_t rank, int32_t size);
/* Begins to replace a buffer of F32 by its sum over all devices, or by their mean; all call it in the same order. Nothing may
 * touch the buffer until fb_device_summed says that all that was begun is done. */
int fb_buffer_sum(fb_buffer *buffer, int mean);
int fb_device_summed(fb_device *device, int32_t *done);
/* At once, even where others are gone; what was begun may be half done. */
void fb_device_leave(fb_device *device);

/* ---- files that are mapped into memory ---- */
/* A file that is cut while it is mapped has nothing behind its end, and one whose drive went away has nothing at all. From
 * now on a read there writes `sentence` to stderr and ends the process with exit code `code`, where it would be a bus error;
 * every other one is left to the handler that was there before. Takes the place of what was guarded there. */
int fb_guard(const void *mapped, uint64_t bytes, const char *sentence, int code);
void fb_unguard(const void *mapped);
/* The most memory that this process ever had resident, mapped file pages included; 0: unknown. */
uint64_t fb_peak_bytes(void);

/* ---- recording a graph ---- */
typedef struct fb_graph fb_graph;
typedef int32_t fb_tensor; /* >= 0; negative: an error, or "none" where an operand is optional */

/* Rows of a tensor: a constant, or counted anew in every feed up to a capacity. */
enum { FB_ROWS_TOKENS = -1, FB_ROWS_TRAINED = -2 };

/* tokens: capacity of a feed (T); trained: most trained positions in it; precision: FB_F32 or
 * FB_BF16, the type of activations (residual stream, statistics and sums stay F32). */
fb_graph *fb_graph_new(fb_device *device, int32_t tokens, int32_t trained, int32_t precision);
void fb_graph_free(fb_graph *graph);

enum { FB_FROZEN = 0, FB_PARAM = 1, FB_STATE = 2 };
/* A matrix that outlives the run: (rows, cols) at byte `offset` of `buffer`. FB_PARAM trains; it is F32 and its
 * gradient lies at the same offset of the gradient buffer. FB_STATE is written by fb_append (a cache). */
fb_tensor fb_leaf(fb_graph *g, int kind, fb_buffer *buffer, uint64_t offset, int32_t type, int32_t rows, int32_t cols);
/* Data of a feed, in the order of these calls: type FB_I32 or FB_F32, (rows, cols). */
fb_tensor fb_input(fb_graph *g, int32_t type, int32_t rows, int32_t cols);
/* Ops recorded after this belong to the next block: the unit of activation checkpointing. */
void fb_mark(fb_graph *g);
/* Keeps a tensor readable after the run. */
int fb_keep(fb_graph *g, fb_tensor t);

/* y (T, D) = scale * weight[ids * stride + part]; weight (V, D) of any block format, ids (T, 1). */
fb_tensor fb_embed(fb_graph *g, fb_tensor weight, fb_tensor ids, float scale, int32_t stride, int32_t part);
/* y = x / sqrt(mean(x^2) + eps) * weight over groups of weight's width (whole rows, or heads). */
fb_tensor fb_rms_norm(fb_graph *g, fb_tensor x, fb_tensor weight, float eps);

/* A LoRA pair beside a linear layer: a (r, K), b (N, r); adds scale * b (a x). With dropout > 0, a training plan drops
 * elements of the x that `a` sees (Srivastava et al. 2014): which, is a hash of keys[t] (T, 1 I32), the pair and the
 * column, so it depends on nothing that lays work out. */
typedef struct fb_lora {
    fb_tensor a, b; /* both negative: none */
    float scale;
    float dropout;  /* share that is dropped, below 1; the others grow by 1 / (1 - dropout) */
    fb_tensor keys; /* where dropout > 0 */
} fb_lora;
/* y (T, N) = x W^T (+ bias) (+ scale * (x A^T) B^T); weight (N, K), bias (1, N) or -1.
 * residual (T, N) or -1 is added, and y is then F32: the residual stream. */
fb_tensor fb_linear(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, fb_tensor residual);

/* (T, n_rot) of cos, sin pairs: angle = positions[t] * inv_freq[i]; inv_freq (1, n_rot/2) F32. */
fb_tensor fb_rope_table(fb_graph *g, fb_tensor positions, fb_tensor inv_freq, float magnitude);
enum { FB_ROPE_PAIRS = 0 /* (0,1), (2,3) ... */, FB_ROPE_HALVES = 1 /* (0,n/2), (1,n/2+1) ... */ };
/* Rotates the first n_rot of each head_dim columns. */
fb_tensor fb_rope(fb_graph *g, fb_tensor x, fb_tensor table, int32_t head_dim, int layout);

typedef struct fb_attention_shape {
    int32_t n_head, n_kv_head, head_dim;
    int32_t window; /* most recent keys seen, 0: all */
    float scale;    /* of q.k */
    float softcap;  /* c * tanh(s / c), 0: none */
} fb_attention_shape;
/* q (T, n_head*head_dim); k, v (S, n_kv_head*head_dim): this feed's rows, or a cache. Query t sees keys
 * range[t][0] <= s < range[t][1] ((T, 2) I32), the last `window` of them if a window is set. Packed rows, caches and
 * batched decoding are all expressed by that range. No score matrix is ever stored. */
fb_tensor fb_attention(fb_graph *g, fb_tensor q, fb_tensor k, fb_tensor v, fb_tensor range, fb_attention_shape shape);
/* cache[slots[t]] = x[t]; returns the cache, for the ops that read it afterwards. */
fb_tensor fb_append(fb_graph *g, fb_tensor cache, fb_tensor x, fb_tensor slots);

enum { FB_MOST_TAPS = 8 };
/* A causal convolution of each column: y[t] = bias + sum_k weight[:, L-1-k] x[range[t][1] - 1 - k] for k < L, of the keys
 * that query t sees (fb_attention). x (S, D): this feed's rows, or a cache; weight (D, L) F32, L up to FB_MOST_TAPS; bias
 * (1, D) F32 or none. */
fb_tensor fb_conv(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_tensor range);

/* The gates of a delta net's value heads, Hv of them: (T, 4 Hv) F32, of which the first half are what a token writes by,
 * sigmoid(b), and what it fades the state by, exp(rate * softplus(a)), which is 0 for a token that sees itself alone, the first
 * of a row. b, a (T, Hv); rate (1, Hv), not positive, which does not train. */
fb_tensor fb_delta_gates(fb_graph *g, fb_tensor b, fb_tensor a, fb_tensor rate, fb_tensor range);
/* The gated delta rule: of each value head a state S (dk, dv) that fades, S = decay S, then takes in S += k (beta (v - S^T k))^T,
 * and answers S^T q. Value head h reads key head h % key_heads. q, k (T, key_heads dk); v (T, Hv dv). In generation `cache`
 * (L, Hv dk dv) F32 holds states, and `at` (T, 2) I32 says which one, from 1 on, a row takes its state from and which one
 * becomes what it leaves; 0: none. Yang et al. 2024, https://arxiv.org/abs/2412.06464 */
fb_tensor fb_delta(fb_graph *g, fb_tensor q, fb_tensor k, fb_tensor v, fb_tensor gates, int32_t key_heads, fb_tensor cache,
                   fb_tensor at);
/* Of every head_dim columns those from `first` on, `width` of them. */
fb_tensor fb_part(fb_graph *g, fb_tensor x, int32_t head_dim, int32_t first, int32_t width);

enum { FB_SILU = 0, FB_GELU_TANH = 1, FB_RELU2 = 2 /* max(x, 0)^2 */, FB_BILINEAR = 3 /* x itself */, FB_SIGMOID = 4 };
/* act(gate) * up */
fb_tensor fb_glu(fb_graph *g, fb_tensor gate, fb_tensor up, int kind);
fb_tensor fb_add(fb_graph *g, fb_tensor a, fb_tensor b);
fb_tensor fb_scale(fb_graph *g, fb_tensor x, float scale);
fb_tensor fb_softcap(fb_graph *g, fb_tensor x, float cap);
/* y[i] = x[index[i]]; index is an input of FB_ROWS_TRAINED rows. */
fb_tensor fb_gather(fb_graph *g, fb_tensor x, fb_tensor index);

/* A mixture of experts (Shazeer et al. 2017): of `experts`, every token has `used`, its slots. */
typedef struct fb_routing {
    fb_tensor weights; /* (T, used) F32: those of a token sum to 1 */
    fb_tensor order;   /* its slots, expert by expert */
    int32_t experts, used;
} fb_routing;
/* Chooses the experts of the `used` largest logits x weight^T + bias, and their softmax. load (1, experts), a FB_STATE of F32
 * or -1, goes up by the slots of each expert. A recomputed block adds them again. */
int fb_route(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, int32_t used, fb_tensor load,
             fb_routing *routing);
/* A linear layer of each expert, for the slots that chose it: x (T, K) or (T, used*K), weight (experts*N, K), bias
 * (experts, N) or -1, of the pair a (experts*r, K) and b (experts*N, r); y (T, used*N). */
fb_tensor fb_experts(fb_graph *g, fb_tensor x, fb_tensor weight, fb_tensor bias, fb_lora lora, fb_routing routing);
/* y (T, D) F32 = residual + the weighted sum of a token's slots, x (T, used*D). */
fb_tensor fb_combine(fb_graph *g, fb_tensor x, fb_routing routing, fb_tensor residual);

/* The head for generation: softcap(x[index] W^T), F32 and kept; index as in fb_gather, softcap 0: none. */
fb_tensor fb_logits(fb_graph *g, fb_tensor x, fb_tensor weight, fb_lora lora, fb_tensor index, float softcap);

/* Head and cross-entropy over the trained positions only, in chunks of rows:
 * returns nll (trained, 1) = -log softmax(softcap(x[index] W^T))[targets]. The gradient of sum(nll) is computed on the
 * way, so full logits never exist. One a graph. softcap 0: none. */
fb_tensor fb_loss(fb_graph *g, fb_tensor x, fb_tensor weight, fb_lora lora, fb_tensor index, fb_tensor targets,
                  float softcap);

/* ---- planning ---- */
typedef struct fb_plan fb_plan;

typedef struct fb_plan_options {
    int32_t train;         /* derive the backward pass of fb_loss */
    int32_t checkpoint;    /* recompute each block's activations in backward */
    int32_t decode;        /* products read frozen weights that the caller's memory has in blocks or F16 as BF16, decoded once
                              for all plans of the device that ask for it */
    uint64_t logits_bytes; /* room for one chunk of logits; 0: 160 MiB, 64 with checkpoint, or 1/64 of a larger card */
    fb_buffer *params;     /* holds the FB_PARAM leaves */
    fb_buffer *grads;      /* same layout */
} fb_plan_options;

typedef struct fb_plan_stats {
    uint64_t arena_bytes;     /* activations and gradients of activations, planned by liveness */
    uint64_t scratch_bytes;   /* of kernels */
    uint64_t input_bytes;     /* staged feeds, and the few numbers of a step */
    uint64_t allocated_bytes; /* what the three came to; 0 before the first run */
    uint64_t constant_bytes;  /* values computed once from wrapped memory, as decoded weights are; plans share them */
    uint64_t weight_bytes;    /* wrapped memory that the plan reads and the device copies; plans share it */
    int32_t launches;
    int32_t tiled;            /* launches that exist only because an operand passed a limit */
    double flops_per_token;   /* products of one feed / tokens */
    double flops_per_trained; /* of the head, a trained position */
} fb_plan_stats;

fb_plan *fb_plan_new(fb_graph *g, const fb_plan_options *options); /* allocates nothing on the device */
void fb_plan_free(fb_plan *plan);
int fb_plan_get_stats(const fb_plan *plan, fb_plan_stats *stats);
/* The launches as text, a line each; valid until the plan is freed. */
const char *fb_plan_describe(fb_plan *plan);

enum { FB_LIMIT_BINDING = 0, FB_LIMIT_ALLOCATION = 1, FB_LIMIT_REDUCTION = 2 };
enum { FB_OF_ACTIVATION = 0, FB_OF_WEIGHT = 1, FB_OF_GRADIENT = 2 };

/* An op that was cut, and the operand because of which. */
typedef struct fb_tiling {
    const char *op;      /* "linear" */
    int32_t what;        /* FB_OF_WEIGHT: a leaf; FB_OF_GRADIENT: that of one */
    fb_tensor tensor;    /* the leaf, or one of the plan's own */
    int32_t rows, cols;
    uint64_t bytes, limit;
    int32_t limit_of;    /* FB_LIMIT_...; of a reduction it counts rows, else bytes */
    int32_t tiles;
} fb_tiling;
/* The ops that were cut, in the order in which they run. Returns how many there are; at most `capacity` are filled in. */
int32_t fb_plan_tilings(const fb_plan *plan, fb_tiling *out, int32_t capacity);

typedef struct fb_op_stats {
    const char *name;
    int64_t launches;
    double seconds;
    double flops;
    double bytes; /* of operands read and written */
} fb_op_stats;
/* Sums since the plan was made, for a device opened with profile = 1. Returns how many were filled. */
int fb_plan_op_stats(fb_plan *plan, fb_op_stats *out, int capacity);

/* ---- running ---- */
typedef struct fb_feed {
    int32_t tokens;            /* rows in use, 1 .. capacity */
    int32_t trained;           /* 0 .. capacity */
    int32_t n_inputs;          /* as many as there were calls of fb_input */
    const void *const *inputs; /* one a fb_input, in order; (rows in use, cols) each */
    const uint64_t *bytes;     /* of each, and of nothing more */
} fb_feed;

typedef struct fb_progress {
    volatile int32_t done;   /* launches finished */
    volatile int32_t total;  /* launches of this call */
    volatile int32_t cancel; /* set it to stop; FB_E_CANCELLED comes back soon */
} fb_progress;

/* One feed, forward; and, in a training plan, backward: gradients of sum(nll) are added to the gradient buffer. */
int fb_plan_run(fb_plan *plan, const fb_feed *feed, fb_progress *progress);
/* Rows of a kept tensor, or of fb_loss's nll, as F32; `bytes` is what they come to. */
int fb_plan_read(fb_plan *plan, fb_tensor t, int32_t first_row, int32_t rows, float *dst, uint64_t bytes);

enum { FB_ADAMW = 0, FB_SGD = 1 };

typedef struct fb_range {
    uint64_t first, count; /* elements of the flat space */
    float lr_scale;
    float decay_scale;
} fb_range;

typedef struct fb_optimizer {
    int32_t kind;
    float lr, beta1, beta2, eps, weight_decay; /* decay is decoupled: p -= lr * decay * p */
    float momentum;                            /* FB_SGD */
    float clip;                                /* global norm; 0: none */
    int64_t t;                                 /* 1 in the first step */
    fb_buffer *m, *v;                          /* AdamW: both; SGD with momentum: m */
    const fb_range *ranges;
    int32_t n_ranges;
} fb_optimizer;

typedef struct fb_result {
    double loss_sum;  /* over trained tokens, all feeds */
    int64_t trained;  /* tokens */
    double grad_norm; /* of the mean gradient, before clipping */
    int32_t finite;   /* 0: loss or gradient was NaN or infinite, and nothing was updated */
} fb_result;

/* What fb_plan_accumulate leaves beside the gradients: FB_RECORD floats in one small buffer. The first FB_RECORD_SUMS add
 * up over devices, like the gradients. A loss or a count is two of them, whose sum it is: a single one would lose digits. */
enum {
    FB_RECORD_LOSS = 0,    /* two: of all trained tokens */
    FB_RECORD_TRAINED = 2, /* two: tokens */
    FB_RECORD_SUMS = 4,
    FB_RECORD_NORM = 4,    /* of the mean gradient; this and the others are filled in by fb_plan_update */
    FB_RECORD_SCALE = 5,   /* what gradients are multiplied by */
    FB_RECORD_FINITE = 6,  /* 1: loss and gradient are numbers */
    FB_RECORD = 8
};

/* Zeroes the gradients and the record, then runs every feed (there may be none) forward and backward and adds to both. May
 * return before the device has finished; reads of buffers and fb_plan_update wait. With `sum`, stretches of gradients that are
 * final begin to be added up over the devices that joined, while the rest is computed; fb_plan_sum begins what is left, also
 * after a failure, and then `more`, a buffer of whatever else is to be added up. */
int fb_plan_accumulate(fb_plan *plan, const fb_feed *feeds, int32_t n_feeds, int sum, fb_progress *progress);
int fb_plan_sum(fb_plan *plan, fb_buffer *more);
/* The record, FB_RECORD floats, for as long as the plan lives; NULL: out of memory. */
fb_buffer *fb_plan_record(fb_plan *plan);
/* Divides the gradients once by the trained tokens of the record, clips, updates, and waits. Parameters and the optimizer's
 * state are untouched where it was cancelled, or failed before it began; a failure after that says so. */
int fb_plan_update(fb_plan *plan, const fb_optimizer *optimizer, fb_result *result, fb_progress *progress);
/* Both. */
int fb_plan_step(fb_plan *plan, const fb_feed *feeds, int32_t n_feeds, const fb_optimizer *optimizer,
                 fb_result *result, fb_progress *progress);

/* ---- text: a word to token ids ---- */
typedef struct fb_words fb_words;

/* A vocabulary: `count` keys one after the other, of `lengths` bytes each, `key_bytes` in all. ranks[i] >= 0: the two symbols left and
 * right with left + joint + right == key merge (joint: a byte, or -1 for none), the lowest rank first, of equals the
 * leftmost. ids[i] >= 0: the key is the text of that token. Of equal keys the first one counts. byte_ids: 256 tokens
 * for what is no token, or NULL, when it falls back to characters. NULL where memory runs out, or lengths do not add up. */
fb_words *fb_words_new(const char *keys, int64_t key_bytes, const int32_t *lengths, const int32_t *ranks,
                       const int32_t *ids, int64_t count, int32_t joint, const int32_t *byte_ids);
void fb_words_free(fb_words *words);
/* The number of ids written; `ids` has room for so many, at least one a byte. Safe from several threads. -1: too long,
 * too little room, or no memory. */
int64_t fb_words_encode(const fb_words *words, const char *word, int64_t bytes, int32_t *ids, int64_t room);

#endif
