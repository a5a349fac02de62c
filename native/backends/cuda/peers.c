/* peers.c - sums over the cards of several processes, by NVIDIA's library for it (NCCL), opened at run time. They run on a stream
 * of their own, beside the kernels. No call waits for a process that may be gone longer than WAIT_S. */
#include "cuda.h"
#include <string.h>
#include "../../os.h"

enum { OLDEST_NCCL = 21400 };
static const unsigned NCCL_MAGIC = 0xcafebeef;
static const double WAIT_S = 20;

/* The library stays open once it was: threads of its own may run in it. */
static nccl library;

#define FROM_NCCL(name, arguments)                                                    \
    found.name = (ncclResult_t(*) arguments)fb_os_function(found.library, #name);      \
    if (!found.name) missing = #name;

static int nccl_open(const char *path) {
    static const char *const names[] = {"libnccl.so.2", NULL};
    const char *const told[] = {path, NULL}, *missing = NULL;
    if (library.library) return FB_OK;
    nccl found = {.library = path ? fb_os_library(told) : NULL};
    if (!found.library) found.library = fb_os_library(names);
    if (!found.library) return fb_fail(FB_E_DEVICE, "NCCL is not installed: pip install 'fabric-llm[nccl]'");
    NCCL_FUNCTIONS(FROM_NCCL)
    found.ncclGetLastError = (const char *(*)(ncclComm_t))fb_os_function(found.library, "ncclGetLastError");
    int version = 0;
    if (!missing && found.ncclGetVersion(&version)) version = 0;
    if (missing || version < OLDEST_NCCL) {
        fb_os_library_close(found.library);
        return fb_fail(FB_E_DEVICE, "NCCL is too old, 2.14 is needed: pip install -U 'fabric-llm[nccl]'");
    }
    library = found;
    return FB_OK;
}

static int failed(cuda *c, ncclResult_t result, const char *what) {
    const char *reason = library.ncclGetLastError ? library.ncclGetLastError(c ? c->peers.comm : NULL) : NULL;
    return fb_fail(FB_E_DEVICE, "NCCL failed to %s (%d)%s%.300s", what, (int)result, reason && *reason ? ": " : "",
                   reason ? reason : "");
}

/* Until what a call began has been begun on the card, or failed. */
static int settle(cuda *c, ncclResult_t result, const char *what) {
    const double end = fb_os_seconds() + WAIT_S;
    while (result == ncclInProgress) {
        if (fb_os_seconds() > end) return fb_fail(FB_E_DEVICE, "NCCL did not %s in %.0f s", what, WAIT_S);
        const ncclResult_t asked = library.ncclCommGetAsyncError(c->peers.comm, &result);
        if (asked) result = asked;
        else if (result == ncclInProgress) fb_os_sleep(1e-4);
    }
    return result == ncclSuccess ? FB_OK : failed(c, result, what);
}

int cu_peers_id(const char *path, char *id) {
    ncclUniqueId made;
    _Static_assert(sizeof made == FB_PEERS_ID, "an id of NCCL");
    int code = nccl_open(path);
    if (code || !id) return code;
    const ncclResult_t result = library.ncclGetUniqueId(&made);
    if (result) return failed(NULL, result, "begin");
    memcpy(id, &made, sizeof made);
    return FB_OK;
}

int cu_join(void *self, const char *path, const char id[FB_PEERS_ID], int rank, int size) {
    cuda *c = self;
    ncclConfig_t config = {.size = sizeof config, .magic = NCCL_MAGIC, .version = OLDEST_NCCL, .blocking = 0};
    ncclUniqueId made;
    memcpy(&made, id, sizeof made);
    int code = nccl_open(path);
    if (code) return code;
    cu_leave(c);
    c->cu->cuCtxSetCurrent(c->context);
    code = cu_check(c, c->cu->cuStreamCreate(&c->peers.stream, CU_STREAM_NON_BLOCKING), "make a stream");
    if (code == FB_OK) code = cu_check(c, c->cu->cuEventCreate(&c->peers.ready, CU_EVENT_DISABLE_TIMING), "make an event");
    if (code == FB_OK) code = cu_check(c, c->cu->cuEventCreate(&c->peers.done, CU_EVENT_DISABLE_TIMING), "make an event");
    if (code == FB_OK) {
        const ncclResult_t result = library.ncclCommInitRankConfig(&c->peers.comm, size, made, rank, &config);
        code = settle(c, result, "reach the other cards");
    }
    if (code) cu_leave(c);
    return code;
}

int cu_sum(void *self, const fb_view *what, int n, int mean) {
    cuda *c = self;
    if (!c->peers.comm) return fb_fail(FB_E_ARGUMENT, "this card has no others to add up with");
    c->cu->cuCtxSetCurrent(c->context);
    int code = cu_check(c, c->cu->cuEventRecord(c->peers.ready, c->stream), "mark its work");
    if (code == FB_OK)
        code = cu_check(c, c->cu->cuStreamWaitEvent(c->peers.stream, c->peers.ready, 0), "wait for its work");
    if (code) return code;
    c->peers.running = 1;
    ncclResult_t result = library.ncclGroupStart();
    for (int i = 0; i < n && result == ncclSuccess; i++) {
        void *at = (void *)(uintptr_t)cu_address(&what[i]);
        result = library.ncclAllReduce(at, at, (size_t)what[i].cols, ncclFloat32, mean ? ncclAvg : ncclSum, c->peers.comm,
                                       c->peers.stream);
        if (result == ncclInProgress) result = ncclSuccess;
    }
    const ncclResult_t ended = library.ncclGroupEnd();
    code = settle(c, result ? result : ended, "add up");
    return code ? code : cu_check(c, c->cu->cuEventRecord(c->peers.done, c->peers.stream), "mark its work");
}

int cu_summed(void *self, int *done) {
    cuda *c = self;
    ncclResult_t state = ncclSuccess;
    *done = 1;
    if (!c->peers.comm || !c->peers.running) return FB_OK;
    c->cu->cuCtxSetCurrent(c->context);
    const CUresult result = c->cu->cuEventQuery(c->peers.done);
    *done = result != CUDA_ERROR_NOT_READY;
    if (*done) {
        c->peers.running = 0;
        return cu_check(c, result, "add up with other cards");
    }
    const ncclResult_t asked = library.ncclCommGetAsyncError(c->peers.comm, &state);
    if (asked || (state != ncclSuccess && state != ncclInProgress)) return failed(c, asked ? asked : state, "add up");
    return FB_OK;
}

void cu_leave(void *self) {
    cuda *c = self;
    c->cu->cuCtxSetCurrent(c->context);
    if (c->peers.comm) library.ncclCommAbort(c->peers.comm);
    if (c->peers.ready) c->cu->cuEventDestroy_v2(c->peers.ready);
    if (c->peers.done) c->cu->cuEventDestroy_v2(c->peers.done);
    if (c->peers.stream) c->cu->cuStreamDestroy_v2(c->peers.stream);
    memset(&c->peers, 0, sizeof c->peers);
}
