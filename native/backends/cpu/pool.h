/* pool.h - the CPU's threads: all of them run one function over the same work (SPMD), claim items of it one by one,
 * and meet at `fb_sync`. Items are cut by shape, never by the number of threads, so results do not depend on it. */
#ifndef FB_POOL_H
#define FB_POOL_H
#include <stdint.h>

typedef struct fb_pool fb_pool;

typedef struct fb_worker {
    fb_pool *pool;
    int index; /* 0 is the caller's own thread */
    int count;
} fb_worker;

fb_pool *fb_pool_new(int threads); /* NULL when threads or memory ran out */
void fb_pool_free(fb_pool *pool);
int fb_pool_threads(const fb_pool *pool);
/* Runs body on every thread and returns when all have finished. Once *cancel is set, unless it is NULL, fb_next finds no
 * more items. */
void fb_pool_run(fb_pool *pool, void (*body)(fb_worker *, void *), void *arg, const volatile int32_t *cancel);

/* Inside a body: the next unclaimed item (0, 1, 2 ...) since the last fb_sync. */
int64_t fb_next(fb_worker *worker);
/* Waits for all threads: what each wrote before is seen by all after. Numbering of items starts anew. */
void fb_sync(fb_worker *worker);

#endif
