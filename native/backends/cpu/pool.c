/* pool.c - see pool.h. One barrier does everything: workers wait in it between runs, and asleep when it takes long. */
#include "pool.h"
#include <stdatomic.h>
#include <stdlib.h>
#include "../../os.h"

enum { SPINS = 1000, YIELDS = 50 };
#define NO_ITEM ((int64_t)1 << 48) /* beyond any range, and callers may multiply it by the rows of an item */

struct fb_pool {
    int count, spins, started;
    void (*body)(fb_worker *, void *);
    void *arg;
    const volatile int32_t *cancel;
    atomic_uint generation; /* barriers passed */
    fb_gate *gate;
    fb_thread **threads;
    fb_worker *workers;
    char pad0[64];
    atomic_int arrived;
    atomic_int asleep;
    char pad1[64];
    _Atomic int64_t next;
    char pad2[64];
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

void fb_sync(fb_worker *worker) {
    fb_pool *pool = worker->pool;
    unsigned seen = atomic_load(&pool->generation);
    if (atomic_fetch_add(&pool->arrived, 1) == pool->count - 1) {
        atomic_store(&pool->arrived, 0);
        atomic_store(&pool->next, 0);
        atomic_fetch_add(&pool->generation, 1);
        if (atomic_load(&pool->asleep)) fb_gate_wake(pool->gate);
        return;
    }
    for (int i = 0; i < pool->spins; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
        relax();
    }
    for (int i = 0; i < YIELDS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
        fb_os_yield();
    }
    atomic_fetch_add(&pool->asleep, 1);
    fb_gate_wait(pool->gate, &pool->generation, seen);
    atomic_fetch_sub(&pool->asleep, 1);
}

int64_t fb_next(fb_worker *worker) {
    const volatile int32_t *cancel = worker->pool->cancel;
    if (cancel && *cancel) return NO_ITEM;
    return atomic_fetch_add_explicit(&worker->pool->next, 1, memory_order_relaxed);
}

static void worker_main(void *arg) {
    fb_worker *worker = arg;
    for (;;) {
        fb_sync(worker);
        if (!worker->pool->body) return;
        worker->pool->body(worker, worker->pool->arg);
        fb_sync(worker);
    }
}

void fb_pool_run(fb_pool *pool, void (*body)(fb_worker *, void *), void *arg, const volatile int32_t *cancel) {
    pool->body = body;
    pool->arg = arg;
    pool->cancel = cancel;
    fb_sync(&pool->workers[0]);
    if (!body) return;
    body(&pool->workers[0], arg);
    fb_sync(&pool->workers[0]);
}

int fb_pool_threads(const fb_pool *pool) { return pool->count; }

fb_pool *fb_pool_new(int threads) {
    fb_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->count = threads;
    pool->spins = threads > fb_os_cpu_count() ? 0 : SPINS;
    pool->gate = fb_gate_new();
    pool->threads = calloc((size_t)threads, sizeof *pool->threads);
    pool->workers = calloc((size_t)threads, sizeof *pool->workers);
    if (!pool->gate || !pool->threads || !pool->workers) goto fail;
    for (int i = 0; i < threads; i++) pool->workers[i] = (fb_worker){pool, i, threads};
    for (pool->started = 1; pool->started < threads; pool->started++) {
        fb_thread *thread = fb_thread_start(worker_main, &pool->workers[pool->started]);
        if (!thread) goto fail;
        pool->threads[pool->started] = thread;
    }
    return pool;
fail:
    fb_pool_free(pool);
    return NULL;
}

void fb_pool_free(fb_pool *pool) {
    if (!pool) return;
    if (pool->started) {
        for (int i = 0; i < pool->count - pool->started; i++) atomic_fetch_add(&pool->arrived, 1); /* never born */
        fb_pool_run(pool, NULL, NULL, NULL);
        for (int i = 1; i < pool->started; i++) fb_thread_join(pool->threads[i]);
    }
    fb_gate_free(pool->gate);
    free(pool->threads);
    free(pool->workers);
    free(pool);
}
