/* device.c - the registry of backends, open devices and their memory. */
#include <stdlib.h>
#include <string.h>
#include "graph.h"

static const fb_backend *const backends[] = {&fb_backend_cpu, &fb_backend_vulkan};
enum { N_BACKENDS = sizeof backends / sizeof *backends };

int fb_device_count(void) {
    int total = 0;
    for (int i = 0; i < N_BACKENDS; i++) total += backends[i]->count();
    return total;
}

int fb_device_describe(int index, fb_device_info *info) {
    for (int i = 0; i < N_BACKENDS; i++) {
        int count = backends[i]->count();
        if (index < count) return backends[i]->describe(index, info);
        index -= count;
    }
    return fb_fail(FB_E_DEVICE, "there is no device of that number");
}

const char *fb_device_missing(int index) {
    for (int i = 0; i < N_BACKENDS; i++)
        if (backends[i]->count() == 0 && index-- == 0) return fb_error();
    return NULL;
}

/* "cpu" is its first device, "cpu:1" the second. */
fb_device *fb_device_open(const char *name, const fb_device_options *options) {
    static const fb_device_options defaults;
    if (!options) options = &defaults;
    const char *colon = strchr(name, ':');
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    int index = colon ? atoi(colon + 1) : 0;
    for (int i = 0; i < N_BACKENDS; i++) {
        const fb_backend *backend = backends[i];
        if (strlen(backend->name) != length || strncmp(backend->name, name, length) != 0) continue;
        int count = backend->count();
        if (count == 0) return NULL; /* the backend has said why */
        if (index < 0 || index >= count) break;
        fb_device *device = calloc(1, sizeof *device);
        if (!device) {
            fb_fail(FB_E_MEMORY, "out of memory while opening device %s", name);
            return NULL;
        }
        device->backend = backend;
        device->profile = options->profile;
        device->duty = options->duty > 0 && options->duty < 1 ? options->duty : 1;
        if (backend->open(index, options, &device->self, &device->info) != FB_OK) {
            free(device);
            return NULL;
        }
        uint64_t forced = options->max_binding_bytes;
        if (forced && (forced < device->info.max_binding_bytes || !device->info.max_binding_bytes))
            device->info.max_binding_bytes = forced;
        return device;
    }
    fb_fail(FB_E_DEVICE, "there is no device '%s' here; 'fabric devices' lists those there are", name);
    return NULL;
}

int fb_device_get_info(const fb_device *device, fb_device_info *info) {
    *info = device->info;
    return FB_OK;
}

void fb_device_close(fb_device *device) {
    if (!device) return;
    device->backend->close(device->self);
    free(device);
}

int fb_device_peak(fb_device *device, int kind, double seconds, double *per_second) {
    return device->backend->peak(device->self, kind, seconds, per_second);
}

static fb_buffer *buffer_of(fb_device *device, const void *host, uint64_t bytes) {
    fb_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) {
        fb_fail(FB_E_MEMORY, "out of memory");
        return NULL;
    }
    buffer->device = device;
    int code = host ? device->backend->wrap(device->self, host, bytes, &buffer->mem)
                    : device->backend->alloc(device->self, bytes, &buffer->mem);
    if (code == FB_OK) return buffer;
    free(buffer);
    return NULL;
}

fb_buffer *fb_buffer_new(fb_device *device, uint64_t bytes) { return buffer_of(device, NULL, bytes ? bytes : 1); }

fb_buffer *fb_buffer_wrap(fb_device *device, const void *host, uint64_t bytes) {
    if (!host || !bytes) {
        fb_fail(FB_E_ARGUMENT, "a wrapped buffer needs memory");
        return NULL;
    }
    return buffer_of(device, host, bytes);
}

static int within(const fb_buffer *buffer, uint64_t offset, uint64_t bytes) {
    if (offset <= buffer->mem.bytes && bytes <= buffer->mem.bytes - offset) return FB_OK;
    return fb_fail(FB_E_ARGUMENT, "bytes %llu..%llu lie outside a buffer of %llu", (unsigned long long)offset,
                   (unsigned long long)(offset + bytes), (unsigned long long)buffer->mem.bytes);
}

int fb_buffer_write(fb_buffer *buffer, uint64_t offset, const void *src, uint64_t bytes) {
    int code = within(buffer, offset, bytes);
    return code ? code : buffer->device->backend->write(buffer->device->self, &buffer->mem, offset, src, bytes);
}

int fb_buffer_read(fb_buffer *buffer, uint64_t offset, void *dst, uint64_t bytes) {
    int code = within(buffer, offset, bytes);
    return code ? code : buffer->device->backend->read(buffer->device->self, &buffer->mem, offset, dst, bytes);
}

void fb_buffer_free(fb_buffer *buffer) {
    if (!buffer) return;
    buffer->device->backend->free(buffer->device->self, &buffer->mem);
    free(buffer);
}
