/* share.h - what backends that run portable kernels have in common beside them: memory, paces, programs, peaks. */
#ifndef FB_SHARE_H
#define FB_SHARE_H
#include "kernels.h"

/* A limit of a device that the caller may want lower; 0: as it is. */
static inline void fb_lower_limit(uint32_t *limit, uint32_t to) {
    if (to && to < *limit) *limit = to;
}

/* An array with room for more than n elements of `each` bytes; NULL after fb_fail, and then it is as it was. */
void *fb_grown(void *array, int n, int *room, size_t each);

/* ---- how long kernels take: work in operations, as a dispatch has it ---- */

typedef struct fb_pace {
    double submit_s;              /* a submission should take no longer */
    double each[FB_KERNEL_COUNT]; /* seconds an operation */
} fb_pace;

/* What a submission holds. */
typedef struct fb_load {
    double work[FB_KERNEL_COUNT], seconds[FB_KERNEL_COUNT], expected; /* of each kernel, what it should take, and all should */
} fb_load;

/* `first`: of every kernel, until it was seen. */
void fb_pace_start(fb_pace *pace, uint32_t submit_ms, double first);
void fb_load_add(const fb_pace *pace, fb_load *load, fb_kernel_id kernel, double work);
/* Moves the pace of each kernel of a submission towards what that took, by the kernel's share. Not `exact`: it may have taken
 * less. What short ones take is not operations. */
void fb_pace_learn(fb_pace *pace, const fb_load *load, double took, int exact);

/* ---- programs ---- */

/* The operand by whose rows in use the work of a launch goes down; NULL: it is the same for every feed. */
const fb_view *fb_counted(const fb_launch *launch);
/* Workgroups of a dispatch with rows in use, of `groups`: others end at once. `counted` as fb_counted found it, or zeros. */
double fb_groups_in_use(const fb_view *counted, uint64_t groups, const int32_t counts[FB_COUNTS]);
/* Whether it has any. */
static inline int fb_is_used(const fb_view *counted, const int32_t counts[FB_COUNTS]) {
    return !counted->count || fb_rows_in_use(counted, counts) > 0;
}

/* Lowers launches, and hands each dispatch to `add`. */
typedef int fb_take(void *self, void *program, fb_dispatch *d, int launch, const fb_view *counted);
int fb_lower_all(const fb_launch *launches, int n, const fb_mem *workspace, const fb_kernel_limits *limits, fb_take *add,
                 void *self, void *program);

/* ---- peaks ---- */

/* fb_backend.peak, by `timed`, which runs a dispatch as often as it is told: multiply-adds in registers, by the matrix units where
 * products run on those, or sums over `read_bytes` of memory, in growing portions until one takes long enough to be
 * measured. */
typedef int fb_timed(void *self, fb_dispatch *d, uint32_t times, double *seconds);
int fb_measure(const fb_backend *backend, void *self, const fb_kernel_limits *limits, uint64_t read_bytes, fb_timed *timed, int kind,
               double seconds, double *per_second);
#endif
