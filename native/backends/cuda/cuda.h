/* cuda.h - what the files of this folder share.
 *   cuda.c      the driver, its devices, opening one, memory               (fb_backend_cuda)
 *   program.c   launches made into graphs, and their replay
 *   peers.c     sums over the cards of other processes, by NCCL
 *   compile.c   kernels compiled for the very device, and kept on disk
 *   lower.c     which of this folder's own kernels a launch runs on, if any
 *   *.cu        those kernels, as text; the others are the portable ones of native/kernels
 */
#ifndef FB_CUDA_H
#define FB_CUDA_H
#include "../../kernels/share.h"
#include "args.h"
#include "cu.h"

typedef struct cu_kernel {
    char *key; /* name of its text, and its constants as options of a compiler */
    char *image;
    size_t image_bytes;
    CUmodule module;
    CUfunction function;
    uint32_t shared_bytes; /* it may take */
    int failed;
    char reason[256];
} cu_kernel;

enum { CU_KEY = 320 /* most characters of a key */ };

/* One kernel that runs: `kernel` is a number of cuda.kernels. */
typedef struct cu_step {
    int kernel, launch; /* of the program */
    uint32_t groups, threads, shared_bytes;
    uint32_t tiles, first_tile; /* at which parts of a reduction arrive; 0: none */
    void *argument; /* its only one */
} cu_step;

typedef struct cu_staging {
    char *host;
    uint64_t used;
    CUevent done; /* once it is full */
    int full;
} cu_staging;

typedef struct cuda {
    const cu_driver *cu;
    CUdevice device;
    CUcontext context;
    CUstream stream;
    int arch;              /* 90: compute capability 9.0 */
    int processors;        /* multiprocessors */
    uint32_t shared_bytes; /* that a workgroup may have */
    uint64_t memory_bytes;
    int own;               /* 1: kernels of this folder run here, 0: portable ones alone */
    fb_kernel_limits limits;
    CUdeviceptr counts;    /* of the feed that is being replayed */
    cu_staging staging[2]; /* through which writes go, in turn */
    int turn;
    CUevent marks[2];      /* of the two latest parts of a replay */
    nvrtc compiler;
    cu_kernel *kernels;
    int n_kernels, room_kernels;
    char *cache_path;
    uint64_t texts;        /* hash of all texts */
    struct {
        ncclComm_t comm;     /* NULL: there are none */
        CUstream stream;     /* of the sums */
        CUevent ready, done; /* what is summed was computed; it was summed */
        int running;
    } peers;
} cuda;

extern const fb_backend fb_backend_cuda;

/* FB_OK, or the code of a failed call after one sentence about `what`. */
int cu_check(const cuda *c, CUresult result, const char *what);
int cu_wait(void *self);
static inline CUdeviceptr cu_address(const fb_view *v) {
    return v->mem ? (CUdeviceptr)(uintptr_t)v->mem->handle + v->offset : 0;
}

/* program.c */
int cu_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **program);
int cu_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run);
void cu_release(void *self, void *program);
uint64_t cu_scratch(void *self, const fb_launch *launch);
int cu_peak(void *self, int kind, double seconds, double *per_second);

/* peers.c */
int cu_peers_id(const char *library, char *id);
int cu_join(void *self, const char *library, const char id[FB_PEERS_ID], int rank, int size);
int cu_sum(void *self, const fb_view *what, int n, int mean);
int cu_summed(void *self, int *done);
void cu_leave(void *self);

/* compile.c */
int cu_compiler_open(cuda *c, const char *path);
void cu_compiler_close(cuda *c);
/* The number of the kernel of that key, compiled or not; negative after fb_fail. */
int cu_kernel_of(cuda *c, const char *key);
/* Compiles, in as many threads as there are processors, and loads all that are not. */
int cu_kernels_ready(cuda *c);
void cu_kernels_close(cuda *c);

/* lower.c: how many of the launches make one sum, at least 1; and the kernels of those, at most CU_MOST_STEPS of them, those of
 * this folder with a key. Returns how many, or a negative code after fb_fail. With `bytes`, how much scratch they need: then
 * addresses mean nothing. */
int cu_terms(const cuda *c, const fb_launch *launches, int n);
enum { CU_MOST_STEPS = 64 };
typedef struct cu_lowered {
    cu_args args;
    char key[CU_KEY];
    uint32_t groups, threads, shared_bytes;
    uint32_t tiles; /* at which parts of a reduction arrive; 0: none */
    fb_dispatch dispatch; /* of a portable kernel: without a key */
} cu_lowered;
int cu_lower(const cuda *c, const fb_launch *launches, int terms, const fb_mem *scratch, cu_lowered *out, uint64_t *bytes);
#endif
