/* metal.c - Metal as a backend: Apple's frameworks opened at run time, devices, and memory, which processor and GPU share. */
#include "metal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

enum { MOST_DEVICES = 16, STAGED = 4 << 20 /* bytes of a write that need not wait */ };
static const double FIRST_PACE = 1e-11; /* seconds an operation, until one was seen */

/* ---- the runtime and its devices ---- */

mtl_runtime mtl;

#define FROM_OBJC(name, type, parameters, page) mtl.name = (type(*) parameters)fb_os_function(mtl.objc, #name);
#define FROM_METAL(name, type, parameters, page) mtl.name = (type(*) parameters)fb_os_function(mtl.metal, #name);
#define NEEDED(name, type, parameters, page) &&mtl.name
#define REGISTER(name, selector, type, parameters, encoding, page) \
    mtl.selectors[mtl_has_##name] = mtl.sel_registerName(selector);

/* FB_OK, or why there is no Metal. A process that draws nothing has no default device until CoreGraphics is there. */
static int runtime_open(void) {
    static const char *const objc[] = {"/usr/lib/libobjc.A.dylib", "libobjc.A.dylib", NULL};
    static const char *const graphics[] = {"/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics", NULL};
    static const char *const metal[] = {"/System/Library/Frameworks/Metal.framework/Metal", "libMetal.dylib", NULL};
    if (mtl.metal) return FB_OK;
    if (!mtl.objc && !(mtl.objc = fb_os_library(objc))) return fb_fail(FB_E_DEVICE, "no Metal: it is a part of macOS and iOS");
    fb_os_library(graphics);
    mtl.metal = fb_os_library(metal);
    MTL_RUNTIME(FROM_OBJC)
    if (mtl.metal) { MTL_FRAMEWORK(FROM_METAL) }
    if (!(mtl.metal && mtl.MTLCreateSystemDefaultDevice MTL_RUNTIME(NEEDED))) {
        mtl.metal = NULL;
        return fb_fail(FB_E_DEVICE, "no Metal: this system has an Objective-C runtime without Metal.framework");
    }
    MTL_METHODS(REGISTER)
    return FB_OK;
}

/* Whether a device has what the kernels need: Metal of macOS 10.15 or iOS 16, which say how much memory may be worked in. */
static int suits(mtl_id device) {
    return SEND(is_of_family, device, MTLGPUFamilyApple4) || SEND(is_of_family, device, MTLGPUFamilyMac2);
}

/* Devices that can run the kernels, retained; 0 after fb_fail where there is none. */
static int usable(mtl_id found[MOST_DEVICES]) {
    int n = 0;
    if (runtime_open()) return 0;
    void *pool = mtl.objc_autoreleasePoolPush();
    const mtl_id all = mtl.MTLCopyAllDevices ? mtl.MTLCopyAllDevices() : NULL;
    const mtl_uint count = all ? SEND(count, all) : 0;
    for (mtl_uint i = 0; i < count && n < MOST_DEVICES; i++) {
        const mtl_id device = SEND(object_at, all, i);
        if (suits(device)) found[n++] = SEND(retain, device);
    }
    if (all) SEND(release, all);
    const mtl_id one = count ? NULL : mtl.MTLCreateSystemDefaultDevice();
    if (one && suits(one)) found[n++] = one;
    else if (one) SEND(release, one);
    if (n == 0)
        fb_fail(FB_E_DEVICE, count || one ? "no Metal: the GPU is older than Apple's A11 and than the Macs of 2015 with Metal's family Mac 2"
                                          : "no Metal: the system shows no GPU to this process");
    mtl.objc_autoreleasePoolPop(pool);
    return n;
}

static void let_go(mtl_id *found, int n) {
    for (int i = 0; i < n; i++) SEND(release, found[i]);
}

static int mtl_count(void) {
    mtl_id found[MOST_DEVICES];
    const int n = usable(found);
    let_go(found, n);
    return n;
}

static void look(mtl_id device, metal *m, fb_device_info *info) {
    const mtl_id name = SEND(name, device);
    const char *text = name ? SEND(utf8, name) : NULL;
    const int apple7 = SEND(is_of_family, device, MTLGPUFamilyApple7);
    memset(info, 0, sizeof *info);
    snprintf(info->backend, sizeof info->backend, "metal");
    snprintf(info->name, sizeof info->name, "%.95s", text ? text : "GPU");
    snprintf(info->driver, sizeof info->driver, "Metal");
    snprintf(info->isa, sizeof info->isa, "%s", apple7 ? "msl, f32 simdgroup matrices" : "msl");
    m->device = device;
    m->simdgroups = apple7;
    m->page = fb_os_page_bytes();
    m->memory_bytes = SEND(working_set, device);
    m->limits.threads = 1024; /* of those two families */
    m->limits.shared_bytes = (uint32_t)SEND(group_memory, device);
    m->most_groups = INT32_MAX;
    info->bf16 = 1;
    info->own_memory = !SEND(is_unified, device);
    info->memory_bytes = m->memory_bytes;
    const uint64_t longest = SEND(longest_buffer, device);
    info->max_allocation_bytes = longest - 2 * m->page; /* what is wrapped begins and ends at pages */
    info->max_binding_bytes = ((uint64_t)4 << 30) - 256; /* kernels count elements, and bytes of blocks, in 32 bits */
    if (info->max_allocation_bytes < info->max_binding_bytes) info->max_binding_bytes = info->max_allocation_bytes;
    info->workgroup_bytes = m->limits.shared_bytes;
    info->workgroup_threads = m->limits.threads;
    info->workgroups = m->most_groups;
}

/* The device of that number, retained. */
static int device_of(int index, mtl_id *device) {
    mtl_id found[MOST_DEVICES];
    const int n = usable(found);
    if (n == 0) return FB_E_DEVICE;
    *device = index < n ? SEND(retain, found[index]) : NULL;
    let_go(found, n);
    return *device ? FB_OK : fb_fail(FB_E_DEVICE, "there is no Metal device %d", index);
}

static int mtl_describe(int index, fb_device_info *info) {
    metal m = {0};
    int code = device_of(index, &m.device);
    if (code) return code;
    void *pool = mtl.objc_autoreleasePoolPush();
    look(m.device, &m, info);
    SEND(release, m.device);
    mtl.objc_autoreleasePoolPop(pool);
    return FB_OK;
}

/* ---- opening ---- */

static void mtl_close(void *self) {
    metal *m = self;
    if (!m) return;
    void *pool = mtl.objc_autoreleasePoolPush();
    mtl_finish(m);
    mtl_pipelines_close(m);
    if (m->queue) SEND(release, m->queue);
    if (m->device) SEND(release, m->device);
    mtl.objc_autoreleasePoolPop(pool);
    free(m);
}

static int mtl_open(int index, const fb_device_options *options, void **self, fb_device_info *info) {
    metal *m = calloc(1, sizeof *m);
    if (!m) return fb_fail(FB_E_MEMORY, "out of memory");
    int code = device_of(index, &m->device);
    if (code) {
        free(m);
        return code;
    }
    void *pool = mtl.objc_autoreleasePoolPush();
    look(m->device, m, info);
    fb_lower_limit(&info->workgroup_bytes, options->workgroup_bytes);
    fb_lower_limit(&info->workgroup_threads, options->workgroup_threads);
    fb_lower_limit(&info->workgroups, options->workgroups);
    m->most_groups = info->workgroups;
    m->limits.shared_bytes = info->workgroup_bytes;
    m->limits.threads = info->workgroup_threads;
    m->limits.binding_bytes = info->max_binding_bytes;
    if (options->max_binding_bytes && options->max_binding_bytes < info->max_binding_bytes)
        m->limits.binding_bytes = options->max_binding_bytes;
    m->limits.tile_rows = options->tile_rows;
    m->limits.tile_cols = options->tile_cols;
    fb_pace_start(&m->pace, options->submit_ms, FIRST_PACE);
    m->queue = SEND(new_queue, m->device);
    mtl.objc_autoreleasePoolPop(pool);
    if (m->queue) *self = m;
    else {
        code = fb_fail(FB_E_DEVICE, "Metal gave no command queue for the GPU.");
        mtl_close(m);
    }
    return code;
}

/* ---- memory: fb_mem.host is where its bytes are for both sides, handle the buffer ---- */

static void mtl_free(void *self, fb_mem *mem) {
    metal *m = self;
    void *pool = mtl.objc_autoreleasePoolPush();
    if (mem->handle) {
        mtl_finish(m); /* nothing that runs may still use it; the next call tells a failure */
        SEND(release, (mtl_id)mem->handle);
        m->in_use -= mem->bytes;
    }
    mtl.objc_autoreleasePoolPop(pool);
    *mem = (fb_mem){0};
}

/* Where all buffers together would pass the working set, a phone ends the process without a word. */
static int has_room(const metal *m, uint64_t bytes) {
    if (bytes <= m->memory_bytes && m->in_use <= m->memory_bytes - bytes) return FB_OK;
    return fb_fail(FB_E_MEMORY,
                   "The GPU could not allocate %.1f MiB beside %.1f MiB: its working set is %.1f MiB; use a smaller context, batch or model.",
                   (double)bytes / 1048576, (double)m->in_use / 1048576, (double)m->memory_bytes / 1048576);
}

static int keep(metal *m, mtl_id buffer, const char *host, uint64_t bytes, fb_mem *mem) {
    if (!buffer) return fb_fail(FB_E_MEMORY, "The GPU could not allocate %.1f MiB; use a smaller context, batch or model.", (double)bytes / 1048576);
    *mem = (fb_mem){.host = host ? (char *)(uintptr_t)host : SEND(contents, buffer), .handle = buffer, .bytes = bytes};
    m->in_use += bytes;
    return FB_OK;
}

static int mtl_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    metal *m = self;
    int code = has_room(m, bytes);
    if (code) return code;
    void *pool = mtl.objc_autoreleasePoolPush();
    const uint64_t padded = (bytes + 31) / 16 * 16; /* reads of a last word stay inside */
    code = keep(m, SEND(new_buffer, m->device, padded, MTLResourceStorageModeShared), NULL, bytes, mem); /* it is zeroed */
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

/* Memory of the caller, as it lies there: a buffer is made of the pages that it touches. Where the system takes those for none,
 * they are copied. */
static int mtl_wrap(void *self, const void *host, uint64_t bytes, fb_mem *mem) {
    metal *m = self;
    int code = has_room(m, bytes);
    if (code) return code;
    void *pool = mtl.objc_autoreleasePoolPush();
    const uint64_t before = (uintptr_t)host % m->page, length = (before + bytes + m->page - 1) / m->page * m->page;
    const mtl_id view = SEND(new_view, m->device, (char *)(uintptr_t)host - before, length, MTLResourceStorageModeShared, NULL);
    if (view) code = keep(m, view, host, bytes, mem);
    else code = keep(m, SEND(new_copy, m->device, host, bytes, MTLResourceStorageModeShared), NULL, bytes, mem);
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

/* By a command of its own behind those that are under way; at once where there are none, or it is too large to be held twice. */
static int mtl_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    metal *m = self;
    int code = fb_inside(mem, offset, bytes);
    if (code || !bytes) return code;
    void *pool = mtl.objc_autoreleasePoolPush();
    const int ordered = mtl_is_busy(m) && bytes <= STAGED && (offset | bytes) % 4 == 0;
    if (ordered) code = mtl_write_ordered(m, mem, offset, src, bytes);
    else code = mtl_wait_all(m);
    if (code == FB_OK && !ordered) memcpy((char *)mem->host + offset, src, (size_t)bytes);
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

static int mtl_wait(void *self) {
    void *pool = mtl.objc_autoreleasePoolPush();
    const int code = mtl_wait_all(self);
    mtl.objc_autoreleasePoolPop(pool);
    return code;
}

static int mtl_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    int code = fb_inside(mem, offset, bytes);
    if (code == FB_OK) code = mtl_wait(self);
    if (code == FB_OK && bytes) memcpy(dst, (const char *)mem->host + offset, (size_t)bytes);
    return code;
}

const fb_backend fb_backend_metal = {
    .name = "metal",
    .count = mtl_count,
    .describe = mtl_describe,
    .open = mtl_open,
    .close = mtl_close,
    .alloc = mtl_alloc,
    .wrap = mtl_wrap,
    .free = mtl_free,
    .write = mtl_write,
    .read = mtl_read,
    .scratch = mtl_scratch,
    .prepare = mtl_prepare,
    .replay = mtl_replay,
    .release = mtl_release,
    .wait = mtl_wait,
    .peak = mtl_peak,
};
