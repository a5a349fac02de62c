/* device.c - open devices, their memory and their programs. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

void fb_backend_find(const char *backend, const char *library, const char *missing) {
    for (int i = 0; backend && fb_backends[i]; i++)
        if (fb_backends[i]->find && !strcmp(fb_backends[i]->name, backend)) fb_backends[i]->find(library, missing);
}

int fb_device_count(void) {
    int total = 0;
    for (int i = 0; fb_backends[i]; i++) total += fb_backends[i]->count();
    return total;
}

int fb_device_describe(int index, fb_device_info *info) {
    if (!info) return fb_fail(FB_E_ARGUMENT, "what a device is needs a place to be written to");
    for (int i = 0; fb_backends[i]; i++) {
        int count = fb_backends[i]->count();
        if (index < count) return fb_backends[i]->describe(index, info);
        index -= count;
    }
    return fb_fail(FB_E_DEVICE, "there is no device of that number");
}

const char *fb_device_missing(int index) {
    for (int i = 0; fb_backends[i]; i++)
        if (fb_backends[i]->count() == 0 && index-- == 0) return fb_error();
    return NULL;
}

static void lower(uint64_t *limit, uint64_t to) {
    if (to && to < *limit) *limit = to;
}

/* The number behind a colon, digits alone; -1: there is none. */
static int number_of(const char *digits) {
    size_t n = strlen(digits);
    return n && n < 10 && strspn(digits, "0123456789") == n ? atoi(digits) : -1;
}

static int is_tile(uint32_t n) { return n == 0 || n == 16 || n == 32 || n == 64; }

/* Limits below these leave no room for a row of anything. */
static int usable(const fb_device_options *o) {
    const uint64_t least = FB_ALIGN;
    return (!o->max_binding_bytes || o->max_binding_bytes >= least) &&
           (!o->max_allocation_bytes || o->max_allocation_bytes >= least) && is_tile(o->tile_rows) && is_tile(o->tile_cols);
}

/* The name of a backend alone is its first device, "name:1" its second. */
fb_device *fb_device_open(const char *name, const fb_device_options *options) {
    static const fb_device_options defaults;
    if (!options) options = &defaults;
    if (!name || !usable(options)) {
        fb_fail(FB_E_ARGUMENT, "a device needs a name, limits of at least %d bytes, and tiles of 16, 32 or 64", FB_ALIGN);
        return NULL;
    }
    const char *colon = strchr(name, ':');
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    int index = colon ? number_of(colon + 1) : 0;
    for (int i = 0; fb_backends[i]; i++) {
        const fb_backend *backend = fb_backends[i];
        if (strlen(backend->name) != length || strncmp(backend->name, name, length) != 0) continue;
        if (index < 0) break;
        int count = backend->count();
        if (count == 0) return NULL; /* the backend has said why */
        if (index >= count) break;
        fb_device *device = calloc(1, sizeof *device);
        if (!device) {
            fb_fail(FB_E_MEMORY, "out of memory while opening device %s", name);
            return NULL;
        }
        device->backend = backend;
        device->users = 1;
        device->profile = options->profile;
        device->duty = options->duty > 0 && options->duty < 1 ? options->duty : 1;
        if (backend->open(index, options, &device->self, &device->info) != FB_OK) {
            free(device);
            return NULL;
        }
        lower(&device->info.memory_bytes, options->memory_bytes);
        lower(&device->info.max_binding_bytes, options->max_binding_bytes);
        lower(&device->info.max_allocation_bytes, options->max_allocation_bytes);
        uint32_t *reduction = &device->info.max_reduction;
        if (options->max_reduction && (!*reduction || options->max_reduction < *reduction)) *reduction = options->max_reduction;
        return device;
    }
    fb_fail(FB_E_DEVICE, "there is no device '%s' here", name);
    return NULL;
}

int fb_device_get_info(const fb_device *device, fb_device_info *info) {
    if (!device || device->closed || !info) return fb_fail(FB_E_ARGUMENT, "the device is closed");
    *info = device->info;
    return FB_OK;
}

fb_device *fb_device_hold(fb_device *device) {
    device->users++;
    return device;
}

void fb_device_release(fb_device *device) {
    if (--device->users) return;
    device->backend->close(device->self);
    free(device);
}

void fb_device_close(fb_device *device) {
    if (!device || device->closed) return;
    device->closed = 1;
    fb_device_release(device);
}

int fb_device_peak(fb_device *device, int kind, double seconds, double *per_second) {
    if (!device || device->closed || !per_second) return fb_fail(FB_E_ARGUMENT, "the device is closed");
    return device->backend->peak(device->self, kind, seconds, per_second);
}

/* Where the parts start: each ends at the last seam that the device's largest allocation reaches. */
static int lay_out(fb_buffer *b, uint64_t most, const uint64_t *seams, int64_t n_seams) {
    b->starts = malloc(sizeof *b->starts * (size_t)(2 * (b->bytes / most) + 3));
    if (!b->starts) return fb_fail(FB_E_MEMORY, "out of memory");
    uint64_t start = 0, seam = 0;
    b->starts[b->n_parts++] = 0;
    for (int64_t i = 0; b->bytes - start > most; start = b->starts[b->n_parts++] = seam) {
        for (; i < n_seams && seams[i] - start <= most; i++) seam = seams[i];
        if (seam <= start || seam >= b->bytes)
            return fb_fail(FB_E_LIMIT, "%.1f MiB that cannot be parted are more than the %.1f MiB that this device allocates at once",
                           (double)(b->bytes - start) / 1048576, (double)most / 1048576);
    }
    b->starts[b->n_parts] = b->bytes;
    b->parts = calloc((size_t)b->n_parts, sizeof *b->parts);
    return b->parts ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
}

void fb_buffer_hold(fb_buffer *buffer) { buffer->users++; }

void fb_buffer_release(fb_buffer *buffer) {
    if (--buffer->users) return;
    free(buffer->starts);
    fb_device_release(buffer->device);
    free(buffer);
}

void fb_buffer_drop(fb_buffer *buffer) {
    for (int64_t i = 0; i < buffer->n_parts && buffer->parts; i++) {
        if (buffer->parts[i].bytes) buffer->device->backend->free(buffer->device->self, &buffer->parts[i]);
        memset(&buffer->parts[i], 0, sizeof buffer->parts[i]);
    }
}

static void let_go(fb_buffer *buffer) {
    fb_buffer_drop(buffer);
    free(buffer->parts);
    buffer->parts = NULL;
    fb_buffer_release(buffer);
}

fb_buffer *fb_buffer_later(fb_device *device, const char *host, uint64_t bytes, const uint64_t *seams, int64_t n_seams) {
    if (!device || device->closed || n_seams < 0 || (n_seams && !seams)) {
        fb_fail(FB_E_ARGUMENT, "a buffer needs an open device, and its seams");
        return NULL;
    }
    fb_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) {
        fb_fail(FB_E_MEMORY, "out of memory");
        return NULL;
    }
    buffer->device = fb_device_hold(device);
    buffer->users = 1;
    buffer->host = host;
    buffer->bytes = bytes;
    if (lay_out(buffer, device->info.max_allocation_bytes, seams, n_seams) == FB_OK) return buffer;
    let_go(buffer);
    return NULL;
}

int fb_buffer_there(const fb_buffer *buffer) {
    for (int64_t i = 0; i < buffer->n_parts; i++)
        if (!buffer->parts[i].bytes) return 0;
    return 1;
}

int fb_buffer_fill(fb_buffer *buffer) {
    const fb_backend *backend = buffer->device->backend;
    void *self = buffer->device->self;
    int code = FB_OK;
    for (int64_t i = 0; i < buffer->n_parts && code == FB_OK; i++) {
        uint64_t start = buffer->starts[i], size = buffer->starts[i + 1] - start;
        if (buffer->parts[i].bytes) continue;
        code = buffer->host ? backend->wrap(self, buffer->host + start, size, &buffer->parts[i])
                            : backend->alloc(self, size, &buffer->parts[i]);
    }
    return code;
}

fb_buffer *fb_buffer_new(fb_device *device, uint64_t bytes, const uint64_t *seams, int64_t n_seams) {
    fb_buffer *buffer = fb_buffer_later(device, NULL, bytes ? bytes : 1, seams, n_seams);
    if (!buffer || fb_buffer_fill(buffer) == FB_OK) return buffer;
    let_go(buffer);
    return NULL;
}

fb_buffer *fb_buffer_wrap(fb_device *device, const void *host, uint64_t bytes, const uint64_t *seams, int64_t n_seams) {
    if (!host || !bytes) {
        fb_fail(FB_E_ARGUMENT, "a wrapped buffer needs memory");
        return NULL;
    }
    return fb_buffer_later(device, host, bytes, seams, n_seams);
}

int fb_buffer_in_place(const fb_buffer *buffer) {
    if (!buffer || !buffer->host || !buffer->parts) return 0;
    if (!buffer->device->info.in_place) return 0;
    for (int64_t i = 0; i < buffer->n_parts; i++)
        if (buffer->parts[i].bytes && !buffer->parts[i].host) return 0;
    return 1;
}

int64_t fb_buffer_part(const fb_buffer *buffer, uint64_t offset) {
    int64_t low = 0, high = buffer->n_parts - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (buffer->starts[middle] <= offset) low = middle;
        else high = middle - 1;
    }
    return low;
}

static int within(const fb_buffer *buffer, uint64_t offset, uint64_t bytes) {
    if (!buffer || !buffer->parts) return fb_fail(FB_E_ARGUMENT, "the buffer is closed");
    if (offset <= buffer->bytes && bytes <= buffer->bytes - offset) return FB_OK;
    return fb_fail(FB_E_ARGUMENT, "bytes %llu..%llu lie outside a buffer of %llu", (unsigned long long)offset,
                   (unsigned long long)(offset + bytes), (unsigned long long)buffer->bytes);
}

/* Copies part after part, to the device or (dst) from it. */
static int copy(fb_buffer *buffer, uint64_t offset, const char *src, char *dst, uint64_t bytes) {
    int code = within(buffer, offset, bytes);
    if (code == FB_OK) code = fb_buffer_fill(buffer);
    if (code) return code;
    const fb_backend *backend = buffer->device->backend;
    for (uint64_t at = 0; at < bytes && code == FB_OK;) {
        int64_t part = fb_buffer_part(buffer, offset + at);
        uint64_t from = offset + at - buffer->starts[part], n = buffer->starts[part + 1] - offset - at;
        if (n > bytes - at) n = bytes - at;
        code = src ? backend->write(buffer->device->self, &buffer->parts[part], from, src + at, n)
                   : backend->read(buffer->device->self, &buffer->parts[part], from, dst + at, n);
        at += n;
    }
    return code;
}

int fb_buffer_write(fb_buffer *buffer, uint64_t offset, const void *src, uint64_t bytes) {
    if (buffer && buffer->host) return fb_fail(FB_E_ARGUMENT, "memory of the caller is only read");
    if (bytes && !src) return fb_fail(FB_E_ARGUMENT, "there is nothing to copy from");
    return copy(buffer, offset, src, NULL, bytes);
}

int fb_buffer_read(fb_buffer *buffer, uint64_t offset, void *dst, uint64_t bytes) {
    if (bytes && !dst) return fb_fail(FB_E_ARGUMENT, "there is nothing to copy to");
    return copy(buffer, offset, NULL, dst, bytes);
}

void fb_buffer_free(fb_buffer *buffer) {
    if (buffer && buffer->parts) let_go(buffer);
}

/* ---- programs ---- */

int fb_prepare(fb_device *device, const fb_launch *launches, int32_t n, const fb_mem *workspace, fb_prepared *out) {
    memset(out, 0, sizeof *out);
    int code = device->backend->prepare(device->self, launches, n, workspace, &out->program);
    if (code) return code;
    out->n = n;
    if (!device->profile || !n) return FB_OK;
    out->launches = malloc(sizeof *launches * (size_t)n);
    out->seconds = malloc(sizeof *out->seconds * (size_t)n);
    if (out->launches && out->seconds) {
        memcpy(out->launches, launches, sizeof *launches * (size_t)n);
        return FB_OK;
    }
    fb_release(device, out);
    return fb_fail(FB_E_MEMORY, "out of memory");
}

void fb_release(fb_device *device, fb_prepared *prepared) {
    if (prepared->program) device->backend->release(device->self, prepared->program);
    free(prepared->launches);
    free(prepared->seconds);
    memset(prepared, 0, sizeof *prepared);
}
