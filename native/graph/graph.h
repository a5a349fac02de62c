/* graph.h - what the files of this folder share: tensors, nodes, the program they form, and the op table.
 *
 *   graph.c     records ops and infers shapes            (fb_graph)
 *   autodiff.c  turns a recording into a program: lowered loss, backward pass, recomputed blocks
 *   constants.c takes out what is computed from read-only leaves alone
 *   tiles.c     splits nodes whose operands pass a limit
 *   memory.c    lays the program's tensors into one arena by liveness
 *   plan.c      binds the program to memory              (fb_plan)
 *   run.c       runs it: feeds in, steps, kept rows back
 *   peers.c     sums over the devices of other processes, of gradients as soon as they are final
 *   optimizer.c the beginning and the end of a step over the flat parameters
 */
#ifndef FB_GRAPH_H
#define FB_GRAPH_H
#include "backend.h"

typedef struct fb_constant fb_constant;

struct fb_device {
    const fb_backend *backend;
    void *self;
    fb_device_info info;
    int profile;
    double duty; /* share of the time that is worked */
    int64_t users; /* its owner, and the buffers, graphs and plans of it: the last one that goes closes it */
    int closed;    /* by its owner */
    fb_constant *constants; /* of its plans */
};

/* Memory in parts, each an allocation of the device; offsets run on through all of them. What wraps memory of the caller is
 * given to the device when a plan first reads it. */
struct fb_buffer {
    fb_device *device;
    int64_t users; /* its owner, and the tensors that lie in it */
    const char *host; /* memory of the caller, which is only read; else NULL */
    uint64_t bytes;
    int64_t n_parts;
    fb_mem *parts; /* NULL: freed */
    uint64_t *starts; /* (n_parts + 1,) the last one is `bytes` */
};

/* Of a tensor, the inputs or an arena: beyond any memory, and sums of them do not wrap. */
#define FB_MOST_BYTES ((uint64_t)1 << 47)
enum { FB_NONE = -1, FB_ALIGN = 256 /* bytes: where tensors of an arena begin */ };

/* Where a tensor's bytes are. GRAD is the gradient of a FB_PARAM leaf, at the same offset of the gradient buffer. */
typedef enum fb_place { FB_IN_ARENA, FB_IN_BUFFER, FB_IN_GRADS, FB_IN_INPUTS, FB_IN_RECORD } fb_place;

typedef struct fb_tensor_info {
    int32_t type;
    int32_t rows;     /* capacity */
    int32_t cols;
    int32_t count;    /* FB_COUNT_...: what its rows in use are counted by */
    int32_t first;    /* rows in use = clamp(counts[count] - first, 0, rows) */
    fb_place place;
    int kind;         /* of a leaf: FB_FROZEN FB_PARAM FB_STATE */
    fb_tensor base;   /* a slice of rows of this tensor, or FB_NONE */
    int32_t base_row;
    fb_buffer *buffer;
    uint64_t offset;  /* bytes: in its buffer, the inputs or the arena */
    int32_t part_rows; /* in the arena: rows in each allocation, where it is larger than one; 0: it is not */
    int keep;
} fb_tensor_info;

/* An operand: some rows and columns of a tensor; whole ones until tiles.c cuts them. */
typedef struct fb_operand {
    fb_tensor tensor; /* or FB_NONE */
    int32_t row, rows, col, cols;
} fb_operand;

typedef struct fb_node {
    fb_op op;
    fb_attr attr;
    fb_operand v[FB_MAX_OPERANDS];
    fb_tensor lora_a; /* of a linear layer with a pair: what backward needs beside its operands */
    fb_tensor lora_x; /* and what lora_a saw where elements are dropped, else FB_NONE */
    float lora_scale;
    int32_t block;
    int tiled;
} fb_node;

/* A list of nodes over a list of tensors, in the order of execution. */
typedef struct fb_program {
    fb_tensor_info *tensors;
    int32_t n_tensors, room_tensors;
    fb_node *nodes;
    int32_t n_nodes, room_nodes;
    int failed; /* an allocation failed; told once, at the end */
    fb_node nowhere; /* what is recorded after that */
    uint64_t part_bytes; /* of the arena's parts */
    int32_t max_reduction;
    fb_tiling *tilings;
    int32_t n_tilings;
} fb_program;

typedef struct fb_loss_spec {
    fb_tensor x, seen, weight, index, targets, nll; /* seen: x with dropout, for the pair */
    fb_lora lora;
    float softcap;
} fb_loss_spec;

struct fb_graph {
    fb_device *device;
    int32_t tokens, trained, precision;
    fb_program program; /* the forward pass as recorded */
    int32_t n_inputs;
    fb_tensor *inputs;
    uint64_t input_bytes;
    int32_t block;
    int has_loss;
    fb_loss_spec loss;
};

/* Launches that a device has made ready; of a device that times them, what they are and the time of each. */
typedef struct fb_prepared {
    void *program;
    int32_t n;
    fb_launch *launches;
    double *seconds;
} fb_prepared;

/* A tensor whose value is computed once, from others of which this is the first. */
typedef struct fb_folded {
    fb_constant *constant;
    fb_tensor value, from;
} fb_folded;

struct fb_plan {
    fb_device *device;
    fb_program program;
    fb_folded *constants;
    int32_t n_constants, n_weights;
    fb_buffer **weights; /* the memory of the caller that the program reads, and the grids where a weight needs them */
    fb_buffer *grids;    /* NULL: none does */
    fb_plan_options options;
    int32_t tokens, trained, n_inputs;
    fb_tensor *inputs;
    int32_t *bounds; /* (n_inputs,) I32 values of an input must lie in 0 .. bounds - 1; 0: any */
    fb_tensor nll;
    uint64_t arena_bytes, scratch_bytes, input_bytes, step_bytes;
    fb_buffer *arena, *record;
    fb_mem scratch, staged;
    fb_mem step;                     /* of training: `hyper`, and the norm's partial sums from FB_ALIGN on */
    fb_prepared begin, feed, update; /* zeroed gradients; a feed forward, and in training backward; the optimizer's part */
    fb_optimizer optimizer;          /* that `update` was prepared for, with its own ranges */
    fb_range *ranges;
    int32_t *final, n_stretches, summed; /* of the gradients, the last one first: the launches after which each is final */
    int ready;
    char *text;
    fb_op_stats ops[FB_OP_COUNT];
};

struct fb_autodiff;

/* One row an op. roles, a letter an operand: o written, x read and written, i read.
 * row_axes, a letter an operand: the axis its rows run along, '.' where rows are never cut. */
typedef struct fb_op_info {
    const char *name;
    const char *roles;
    const char *row_axes;
    int acc; /* operand that may share memory with operand 0; 0: none */
    /* Backward: given the gradients of the outputs, emits those of the inputs. dy: one an operand, FB_NONE where it is no
     * output or none flows into it; there is at least one. NULL: nothing flows back. */
    void (*grad)(struct fb_autodiff *, const fb_node *, const fb_tensor *dy);
} fb_op_info;

extern const fb_op_info fb_ops[FB_OP_COUNT];

/* graph.c */
fb_tensor fb_program_tensor(fb_program *p, fb_tensor_info info);
fb_node *fb_program_node(fb_program *p, fb_op op, int n, const fb_tensor *operands);
fb_operand fb_whole(const fb_program *p, fb_tensor t);
uint64_t fb_tensor_bytes(const fb_tensor_info *t);
int fb_is_written(fb_op op, int operand);
void fb_program_free(fb_program *p);
/* For each tensor its buffer. */
void fb_program_hold(const fb_program *p);
void fb_program_release(const fb_program *p);

/* autodiff.c */
int fb_build_program(const fb_graph *g, const fb_plan_options *options, fb_program *out);
/* device.c: the part of a buffer in which an offset lies; launches made ready */
int64_t fb_buffer_part(const fb_buffer *buffer, uint64_t offset);
int fb_prepare(fb_device *device, const fb_launch *launches, int32_t n, const fb_mem *workspace, fb_prepared *out);
void fb_release(fb_device *device, fb_prepared *prepared);
/* Users count, so that handles may be closed in any order: what is left of a closed one is refused, not reached. */
fb_device *fb_device_hold(fb_device *device);
void fb_device_release(fb_device *device);
void fb_buffer_hold(fb_buffer *buffer);
void fb_buffer_release(fb_buffer *buffer);
/* A buffer whose memory (that of `host`, or zeros) is not there yet; whether it is; getting it, and giving it back. */
fb_buffer *fb_buffer_later(fb_device *device, const char *host, uint64_t bytes, const uint64_t *seams, int64_t n_seams);
int fb_buffer_there(const fb_buffer *buffer);
int fb_buffer_fill(fb_buffer *buffer);
void fb_buffer_drop(fb_buffer *buffer);
/* constants.c: products read frozen weights that nodes of their own decode; nodes that compute constants, taken out of the
 * program; their values, before the first feed; the bytes that they are planned to take, or take */
int fb_decode_weights(fb_program *p);
int fb_fold_constants(fb_plan *plan);
int fb_compute_constants(const fb_plan *plan);
uint64_t fb_constant_bytes(const fb_plan *plan, int there);
void fb_release_constants(fb_plan *plan);
/* tiles.c */
int fb_tile_program(fb_program *p, const fb_device_info *limits);
/* memory.c: sets offsets of arena tensors; returns the arena's size */
int fb_plan_memory(fb_program *p, uint64_t *arena_bytes);
/* Where a row begins, in bytes of what the tensor lies in. */
uint64_t fb_row_offset(const fb_program *p, const fb_tensor_info *t, int32_t row);
/* plan.c: memory and programs, at the first run; the memory of a row, and where in it the row begins */
int fb_plan_allocate(fb_plan *plan);
const fb_mem *fb_plan_locate(const fb_plan *plan, const fb_tensor_info *t, int32_t row, uint64_t *offset);
/* A node of a program over the plan's memory, with every row in use. 0 where some operand has none: nothing to do then. */
int fb_plan_launch(const fb_plan *plan, const fb_program *p, const fb_node *n, fb_launch *out);
void fb_count_launch(fb_op_stats *stats, const fb_launch *launch, double seconds);
/* optimizer.c: bytes beside the gradients; the programs before the feeds of a step and after them, this one made anew only
 * where the optimizer's constants or buffers are not those of before */
int fb_buffers_alike(const fb_buffer *a, const fb_buffer *b); /* in size and parts */
uint64_t fb_step_bytes(const fb_buffer *grads);
int fb_optimizer_check(const fb_buffer *params, const fb_optimizer *o); /* before anything is written */
int fb_prepare_begin(fb_plan *plan);
int fb_prepare_update(fb_plan *plan, const fb_optimizer *o);
void fb_release_update(fb_plan *plan);
/* peers.c: after which launches stretches of gradients are final; those that are, begun to be summed */
int fb_find_stretches(fb_plan *plan);
int fb_sum_final(void *plan, int launches);
#endif
