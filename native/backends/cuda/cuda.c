/* cuda.c - CUDA as a backend: the driver opened at run time, one stream on which everything runs in order, memory and copies. */
#include "cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

enum { OLDEST_DRIVER = 12000, OLDEST_CARD = 75, MOST_DEVICES = 64 };
static const uint64_t STAGED = (uint64_t)8 << 20; /* bytes that a write puts on its way at once */

int cu_check(const cuda *c, CUresult result, const char *what) {
    const char *name = NULL;
    if (result == CUDA_SUCCESS) return FB_OK;
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return fb_fail(FB_E_MEMORY, "The card ran out of memory when told to %s; use a smaller context, batch or model.",
                       what);
    if (c->cu->cuGetErrorName(result, &name) || !name) name = "unknown";
    return fb_fail(FB_E_DEVICE, "The CUDA driver failed to %s (%s, %d).", what, name, (int)result);
}

/* ---- the driver and its devices ---- */

/* The driver stays open once it was: it does not bear to be unloaded. */
static cu_driver driver;

#define FROM_DRIVER(name, arguments)                                                   \
    driver.name = (CUresult(CUCALL *) arguments)fb_os_function(library, #name);         \
    if (!driver.name) missing = #name;

/* FB_OK, or why there is no driver. */
static int driver_open(void) {
    static const char *const names[] = {"libcuda.so.1", "libcuda.so", "nvcuda.dll", NULL};
    const char *missing = NULL;
    if (driver.library) return FB_OK;
    void *library = fb_os_library(names);
    if (!library) return fb_fail(FB_E_DEVICE, "no CUDA: libcuda, a part of NVIDIA's driver, is not installed");
    CU_FUNCTIONS(FROM_DRIVER)
    int version = 0;
    if (driver.cuDriverGetVersion) driver.cuDriverGetVersion(&version);
    if (missing || version < OLDEST_DRIVER) {
        fb_os_library_close(library);
        return fb_fail(FB_E_DEVICE,
                       "no CUDA: NVIDIA's driver knows CUDA %d.%d and 12.0 is needed; update it to 525 or newer",
                       version / 1000, version % 1000 / 10);
    }
    CUresult result = driver.cuInit(0);
    if (result == CUDA_SUCCESS) {
        driver.library = library;
        driver.version = version;
        return FB_OK;
    }
    const char *name = NULL;
    if (driver.cuGetErrorName(result, &name) || !name) name = "unknown";
    if (result == CUDA_ERROR_NO_DEVICE)
        fb_fail(FB_E_DEVICE, "no CUDA: the driver shows no card; CUDA_VISIBLE_DEVICES may hide it");
    else fb_fail(FB_E_DEVICE, "no CUDA: NVIDIA's driver does not start (%s, %d); nvidia-smi says more", name, (int)result);
    fb_os_library_close(library); /* the name is the library's */
    return FB_E_DEVICE;
}

static int attribute(CUdevice device, int which) {
    int value = 0;
    return driver.cuDeviceGetAttribute(&value, which, device) ? 0 : value;
}

static int arch_of(CUdevice device) {
    return attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) * 10 +
           attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
}

/* Cards that can run the kernels, in our numbering; 0 after fb_fail where there is none. */
static int usable(CUdevice found[MOST_DEVICES]) {
    int all = 0, n = 0, newest = 0;
    if (driver_open()) return 0;
    if (driver.cuDeviceGetCount(&all)) all = 0;
    for (int i = 0; i < all && n < MOST_DEVICES; i++) {
        CUdevice device;
        if (driver.cuDeviceGet(&device, i)) continue;
        const int arch = arch_of(device);
        if (arch > newest) newest = arch;
        if (arch >= OLDEST_CARD) found[n++] = device;
    }
    if (all == 0) fb_fail(FB_E_DEVICE, "no CUDA: the driver shows no card; CUDA_VISIBLE_DEVICES may hide it");
    else if (n == 0)
        fb_fail(FB_E_DEVICE, "no CUDA: the newest card has compute capability %d.%d, and %d.%d is needed", newest / 10,
                newest % 10, OLDEST_CARD / 10, OLDEST_CARD % 10);
    return n;
}

static int cu_count(void) {
    CUdevice found[MOST_DEVICES];
    return usable(found);
}

static void look(CUdevice device, fb_device_info *info) {
    size_t bytes = 0;
    const int arch = arch_of(device), shared = attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    memset(info, 0, sizeof *info);
    snprintf(info->backend, sizeof info->backend, "cuda");
    if (driver.cuDeviceGetName(info->name, sizeof info->name, device)) snprintf(info->name, sizeof info->name, "NVIDIA card");
    snprintf(info->driver, sizeof info->driver, "CUDA %d.%d", driver.version / 1000, driver.version % 1000 / 10);
    snprintf(info->isa, sizeof info->isa, "sm_%d%s", arch, arch >= 80 ? ", bf16 matrix units" : "");
    info->cores = attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    info->bf16 = 1;
    info->own_memory = !attribute(device, CU_DEVICE_ATTRIBUTE_INTEGRATED);
    info->decode_pays = arch >= 80;
    info->memory_bytes = driver.cuDeviceTotalMem_v2(&bytes, device) ? 0 : bytes;
    info->max_binding_bytes = ((uint64_t)4 << 30) - 256; /* kernels count elements, and bytes of blocks, in 32 bits */
    info->max_allocation_bytes = UINT64_MAX;
    info->workgroup_bytes = (uint32_t)shared;
    info->workgroup_threads = (uint32_t)attribute(device, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    info->workgroups = INT32_MAX;
}

static int cu_describe(int index, fb_device_info *info) {
    CUdevice found[MOST_DEVICES];
    const int n = usable(found);
    if (n == 0) return FB_E_DEVICE;
    if (index >= n) return fb_fail(FB_E_DEVICE, "there is no CUDA device %d", index);
    look(found[index], info);
    return FB_OK;
}

/* ---- opening ---- */

static void cu_close(void *self) {
    cuda *c = self;
    if (!c) return;
    if (c->context) {
        c->cu->cuCtxSetCurrent(c->context);
        if (c->stream) c->cu->cuStreamSynchronize(c->stream);
        cu_leave(c);
        cu_kernels_close(c);
        for (int i = 0; i < 2; i++) {
            if (c->marks[i]) c->cu->cuEventDestroy_v2(c->marks[i]);
            if (c->staging[i].done) c->cu->cuEventDestroy_v2(c->staging[i].done);
            if (c->staging[i].host) c->cu->cuMemFreeHost(c->staging[i].host);
        }
        if (c->counts) c->cu->cuMemFree_v2(c->counts);
        if (c->stream) c->cu->cuStreamDestroy_v2(c->stream);
        c->cu->cuCtxSetCurrent(NULL);
        c->cu->cuDevicePrimaryCtxRelease_v2(c->device);
    }
    cu_compiler_close(c);
    free(c->cache_path);
    free(c);
}

static int open_stream(cuda *c) {
    int code = cu_check(c, c->cu->cuDevicePrimaryCtxRetain(&c->context, c->device), "open the card");
    if (code) {
        c->context = NULL;
        return code;
    }
    code = cu_check(c, c->cu->cuCtxSetCurrent(c->context), "open the card");
    if (code == FB_OK) code = cu_check(c, c->cu->cuStreamCreate(&c->stream, CU_STREAM_NON_BLOCKING), "make a stream");
    enum { COUNTS_BYTES = 256 };
    if (code == FB_OK)
        code = cu_check(c, c->cu->cuMemAlloc_v2(&c->counts, COUNTS_BYTES), "allocate memory");
    for (int i = 0; i < 2 && code == FB_OK; i++) {
        code = cu_check(c, c->cu->cuEventCreate(&c->marks[i], CU_EVENT_DISABLE_TIMING), "make an event");
        if (code == FB_OK)
            code = cu_check(c, c->cu->cuEventCreate(&c->staging[i].done, CU_EVENT_DISABLE_TIMING), "make an event");
    }
    return code;
}

static int cu_open(int index, const fb_device_options *options, void **self, fb_device_info *info) {
    CUdevice found[MOST_DEVICES];
    const int n = usable(found);
    if (n == 0) return FB_E_DEVICE;
    if (index >= n) return fb_fail(FB_E_DEVICE, "there is no CUDA device %d", index);
    cuda *c = calloc(1, sizeof *c);
    if (!c) return fb_fail(FB_E_MEMORY, "out of memory");
    look(found[index], info);
    fb_lower_limit(&info->workgroup_bytes, options->workgroup_bytes);
    fb_lower_limit(&info->workgroup_threads, options->workgroup_threads);
    c->cu = &driver;
    c->device = found[index];
    c->arch = arch_of(c->device);
    c->processors = info->cores;
    c->shared_bytes = info->workgroup_bytes;
    c->memory_bytes = info->memory_bytes;
    c->own = c->arch >= 80 && !options->tile_rows && !options->tile_cols;
    c->limits = (fb_kernel_limits){.threads = info->workgroup_threads,
                                   .shared_bytes = info->workgroup_bytes < 48 << 10 ? info->workgroup_bytes : 48 << 10,
                                   .binding_bytes = options->max_binding_bytes,
                                   .tile_rows = options->tile_rows,
                                   .tile_cols = options->tile_cols};
    int code = cu_compiler_open(c, options->compiler_path);
    if (code == FB_OK && options->cache_path) {
        const size_t length = strlen(options->cache_path) + 1;
        c->cache_path = malloc(length);
        if (c->cache_path) memcpy(c->cache_path, options->cache_path, length);
        else code = fb_fail(FB_E_MEMORY, "out of memory");
    }
    if (code == FB_OK) code = open_stream(c);
    if (code) cu_close(c);
    else *self = c;
    return code;
}

static int cu_card(void *self, char out[FB_CARD]) {
    cuda *c = self;
    CUuuid uuid;
    int code = cu_check(c, c->cu->cuDeviceGetUuid_v2(&uuid, c->device), "name the card");
    for (int i = 0; i < 16 && code == FB_OK; i++) snprintf(out + 2 * i, 3, "%02x", uuid.bytes[i]);
    return code;
}

/* ---- memory ---- */

static CUdeviceptr address_of(const fb_mem *mem) { return (CUdeviceptr)(uintptr_t)mem->handle; }

static void cu_free(void *self, fb_mem *mem) {
    cuda *c = self;
    c->cu->cuCtxSetCurrent(c->context);
    if (c->peers.running) cu_leave(c); /* a sum that nobody waited for */
    c->cu->cuStreamSynchronize(c->stream); /* nothing that runs may still use it; a failure was reported where it happened */
    if (mem->handle) c->cu->cuMemFree_v2(address_of(mem));
    *mem = (fb_mem){0};
}

static int allocate(cuda *c, uint64_t bytes, fb_mem *mem) {
    CUdeviceptr at = 0;
    const uint64_t padded = bytes <= UINT64_MAX - 512 ? (bytes + 511) / 256 * 256 : 0; /* reads of a last word stay inside */
    c->cu->cuCtxSetCurrent(c->context);
    if (!padded || c->cu->cuMemAlloc_v2(&at, padded) != CUDA_SUCCESS)
        return fb_fail(FB_E_MEMORY, "The card could not allocate %.1f MiB; use a smaller context, batch or model.",
                       (double)bytes / 1048576);
    *mem = (fb_mem){.handle = (void *)(uintptr_t)at, .bytes = bytes};
    return FB_OK;
}

static int cu_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    cuda *c = self;
    int code = allocate(c, bytes, mem);
    if (code) return code;
    code = cu_check(c, c->cu->cuMemsetD8Async(address_of(mem), 0, (bytes + 511) / 256 * 256, c->stream), "clear memory");
    if (code) cu_free(c, mem);
    return code;
}

/* Room for n bytes of what is on its way to the card: in one of two pieces of memory that the card reads by itself, of which
 * one is filled while the other is copied. */
static int stage(cuda *c, uint64_t n, char **host) {
    cu_staging *s = &c->staging[c->turn];
    int code = FB_OK;
    if (s->used + n > STAGED) {
        code = cu_check(c, c->cu->cuEventRecord(s->done, c->stream), "mark its work");
        c->turn ^= 1;
        s->full = 1;
        s = &c->staging[c->turn];
        if (code == FB_OK && s->full) code = cu_check(c, c->cu->cuEventSynchronize(s->done), "finish its work");
        s->full = 0;
        s->used = 0;
    }
    void *memory = s->host;
    if (code == FB_OK && !memory) code = cu_check(c, c->cu->cuMemHostAlloc(&memory, STAGED, 0), "lock memory of the host");
    if (code) return code;
    s->host = memory;
    *host = s->host + s->used;
    s->used += (n + 255) / 256 * 256;
    return FB_OK;
}

static int cu_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    cuda *c = self;
    int code = fb_inside(mem, offset, bytes);
    c->cu->cuCtxSetCurrent(c->context);
    for (uint64_t at = 0; at < bytes && code == FB_OK; at += STAGED) {
        const uint64_t n = bytes - at < STAGED ? bytes - at : STAGED;
        char *host;
        code = stage(c, n, &host);
        if (code) break;
        memcpy(host, (const char *)src + at, (size_t)n);
        code =
            cu_check(c, c->cu->cuMemcpyHtoDAsync_v2(address_of(mem) + offset + at, host, n, c->stream), "copy to the card");
    }
    return code;
}

static int cu_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    cuda *c = self;
    int code = fb_inside(mem, offset, bytes);
    c->cu->cuCtxSetCurrent(c->context);
    if (code == FB_OK && bytes)
        code =
            cu_check(c, c->cu->cuMemcpyDtoHAsync_v2(dst, address_of(mem) + offset, bytes, c->stream), "copy from the card");
    return code ? code : cu_wait(c);
}

/* Read-only memory of the host: uploaded at once. */
static int cu_wrap(void *self, const void *host, uint64_t bytes, fb_mem *mem) {
    int code = allocate(self, bytes, mem);
    if (code) return code;
    code = cu_write(self, mem, 0, host, bytes);
    if (code) cu_free(self, mem);
    return code;
}

int cu_wait(void *self) {
    cuda *c = self;
    c->cu->cuCtxSetCurrent(c->context);
    return cu_check(c, c->cu->cuStreamSynchronize(c->stream), "finish its work");
}

const fb_backend fb_backend_cuda = {
    .name = "cuda",
    .count = cu_count,
    .describe = cu_describe,
    .open = cu_open,
    .close = cu_close,
    .alloc = cu_alloc,
    .wrap = cu_wrap,
    .free = cu_free,
    .write = cu_write,
    .read = cu_read,
    .scratch = cu_scratch,
    .prepare = cu_prepare,
    .replay = cu_replay,
    .release = cu_release,
    .wait = cu_wait,
    .peak = cu_peak,
    .card = cu_card,
    .peers_id = cu_peers_id,
    .join = cu_join,
    .sum = cu_sum,
    .summed = cu_summed,
    .leave = cu_leave,
};
