/* shim.h - SYCL behind functions of plain C: what shim.cpp is, which is compiled on the user's machine. */
#ifndef FB_SYCL_SHIM_H
#define FB_SYCL_SHIM_H
#include <stdint.h>

enum { SHIM_OK, SHIM_MEMORY, SHIM_FAILED, SHIM_BUSY };
enum { SHIM_GPU, SHIM_OTHER, SHIM_PROCESSOR };
enum { SHIM_BUFFERS = 10, SHIM_COUNTS = 4, SHIM_SPECS = 10, SHIM_WORDS = 33 };

typedef struct shim_device shim_device;

typedef struct shim_facts {
    char name[96], driver[96], api[32]; /* api: what lies under SYCL, as "level_zero" */
    int32_t kind, cores, own_memory;
    uint64_t memory_bytes, allocation_bytes;
    uint32_t workgroup_bytes, workgroup_threads;
    uint32_t unit_m, unit_n, unit_k; /* of joint matrices of BF16 summed in F32, by unit_n work-items; 0: there are none */
} shim_facts;

/* What every kernel takes, as sycl.prelude declares it. */
typedef struct shim_args {
    uint64_t buffer[SHIM_BUFFERS];
    uint32_t counts[SHIM_COUNTS], spec[SHIM_SPECS], words[SHIM_WORDS];
} shim_args;

/* Those that return int return one of the first enumeration, and shim_error says what went wrong. Everything on a device runs
 * in order. shim_count: how many devices there are, or -1. shim_build: the functions of a text, by name, as numbers of
 * kernels from *first on; `files` are what the text may include, 2n names and contents in turn. shim_passed: SHIM_BUSY
 * until all before mark 0 or 1 has run. */
#define SHIM_FUNCTIONS(X)                                                                                              \
    X(const char *, shim_error, (void))                                                                                \
    X(int, shim_count, (void))                                                                                         \
    X(int, shim_describe, (int index, shim_facts *facts))                                                              \
    X(int, shim_open, (int index, shim_device **device))                                                               \
    X(void, shim_close, (shim_device * device))                                                                        \
    X(int, shim_alloc, (shim_device * device, uint64_t bytes, void **at))                                              \
    X(void, shim_free, (shim_device * device, void *at))                                                               \
    X(int, shim_zero, (shim_device * device, void *at, uint64_t bytes))                                                \
    X(int, shim_write, (shim_device * device, void *at, const void *src, uint64_t bytes))                              \
    X(int, shim_read, (shim_device * device, const void *at, void *dst, uint64_t bytes))                               \
    X(int, shim_build, (shim_device * device, const char *text, const char *const *files, int n_files,                 \
                        const char *const *names, int n, int *first))                                                  \
    X(int, shim_run, (shim_device * device, int kernel, const shim_args *args, uint64_t groups, uint32_t threads))     \
    X(int, shim_mark, (shim_device * device, int mark))                                                                \
    X(int, shim_passed, (shim_device * device, int mark))                                                              \
    X(int, shim_wait, (shim_device * device))
#endif
