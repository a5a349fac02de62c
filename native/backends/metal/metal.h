/* metal.h - what the files of this folder share.
 *   metal.c     Metal's devices, opening one, memory                         (fb_backend_metal)
 *   program.c   launches made into commands, and their replay
 *   library.c   kernels compiled for the device, with a launch's constants
 *   objc.h      the messages of Objective-C that all of it comes down to
 *   simdgroup.prelude, product.metal   products and attention on simdgroup matrices; the other kernels are native/kernels
 */
#ifndef FB_METAL_H
#define FB_METAL_H
#include "../../kernels/share.h"
#include "objc.h"

enum { MTL_SLOTS = 3 /* command buffers under way */ };

typedef struct mtl_library {
    uint32_t key[FB_SPECS + 2]; /* kernel, whether on simdgroup matrices, and what sizes arrays, else 0 */
    mtl_id library;
} mtl_library;

typedef struct mtl_pipeline {
    uint32_t key[FB_SPECS + 2]; /* kernel, whether on simdgroup matrices, constants */
    mtl_id state;
} mtl_pipeline;

typedef struct mtl_slot {
    mtl_id commands; /* retained; NULL: none */
    int committed;
    fb_load load;
} mtl_slot;

typedef struct metal {
    mtl_id device, queue;
    int simdgroups; /* 1: it has matrices of simdgroups */
    uint64_t page, memory_bytes, in_use;
    uint32_t most_groups;
    fb_kernel_limits limits;
    fb_pace pace;
    mtl_slot slots[MTL_SLOTS];              /* in turn; `slot` is being filled */
    int slot;
    mtl_id encoder;                         /* of the slot that is being filled, retained; NULL: none is open */
    int failed;                             /* the code of a command buffer, and its sentence, until they were told */
    char reason[256];
    double worked;                          /* seconds of the device, of all command buffers that have ended */
    const volatile int32_t *cancel;
    mtl_library *libraries;
    mtl_pipeline *pipelines;
    int n_libraries, room_libraries, n_pipelines, room_pipelines;
} metal;

/* One sentence of an NSError, or `otherwise`, without line breaks. */
void mtl_reason(mtl_id error, const char *otherwise, char *out, size_t bytes);

/* program.c */
int mtl_write_ordered(metal *m, const fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes);
int mtl_is_busy(const metal *m);
void mtl_finish(metal *m);  /* waits for all that was begun */
int mtl_wait_all(metal *m); /* and tells a failure, once */
int mtl_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **program);
int mtl_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run);
void mtl_release(void *self, void *program);
uint64_t mtl_scratch(void *self, const fb_launch *launch);
int mtl_peak(void *self, int kind, double seconds, double *per_second);

/* library.c: the pipeline of a dispatch, made when it is first asked for */
int mtl_pipeline_of(metal *m, const fb_dispatch *d, mtl_id *state);
void mtl_pipelines_close(metal *m);
/* Whether a kernel runs on simdgroup matrices here. */
int mtl_on_simdgroups(const metal *m, fb_kernel_id kernel);

extern const fb_backend fb_backend_metal;
#endif
