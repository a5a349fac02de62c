/* memory.c - device memory: few large allocations of the driver parted into slices, and copies through a staging buffer
 * where the host cannot see them. */
#include <stdlib.h>
#include <string.h>
#include "vulkan.h"

static const uint64_t SLICE_ALIGN = 256;        /* the largest offset alignment that a driver may ask for */
static const uint64_t BLOCK = (uint64_t)64 << 20; /* smaller slices share a block of this size */
static const uint64_t FEW_BYTES = 4096;         /* of a write that is put among the commands */
static const uint64_t STAGING = (uint64_t)16 << 20;
static const uint64_t LEAST_IMPORT = (uint64_t)64 << 10; /* bytes: a driver has only so many allocations */

static uint64_t up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* The first memory type that has all wanted properties; -1: none. */
static int memory_type(const vulkan *vk, uint32_t allowed, VkFlags wanted) {
    for (uint32_t i = 0; i < vk->memory.memoryTypeCount; i++)
        if ((allowed >> i & 1u) && (vk->memory.memoryTypes[i].propertyFlags & wanted) == wanted) return (int)i;
    return -1;
}

/* The best type for device memory, or for staging: what the host should see, and what it must. */
static int choose_type(const vulkan *vk, uint32_t allowed, int staging) {
    const VkFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT;
    const VkFlags seen = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    const int shared = vk->properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU; /* no bus in between */
    int type = -1;
    if (staging) type = memory_type(vk, allowed, seen | VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
    else if (shared) type = memory_type(vk, allowed, local | seen | VK_MEMORY_PROPERTY_HOST_CACHED_BIT);
    if (type < 0 && (staging || shared)) type = memory_type(vk, allowed, staging ? seen : local | seen);
    if (type < 0 && !staging) type = memory_type(vk, allowed, local);
    return type < 0 && !staging ? memory_type(vk, allowed, 0) : type;
}

static void block_free(vulkan *vk, vk_block *block) {
    if (block->buffer) vk->fn.DestroyBuffer(vk->device, block->buffer, NULL);
    if (block->memory) vk->fn.FreeMemory(vk->device, block->memory, NULL); /* unmaps it too */
    free(block);
}

static int no_memory(uint64_t bytes) {
    return fb_fail(FB_E_MEMORY, "The device could not allocate %.1f MiB; use a smaller context, batch or model.",
                   (double)bytes / 1048576);
}

static int block_new(vulkan *vk, uint64_t bytes, int staging, vk_block **out) {
    VkBufferCreateInfo info = {.sType = VK_STYPE_BUFFER, .size = bytes,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT |
                                        VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    VkMemoryRequirements needs;
    vk_block *block = calloc(1, sizeof *block);
    if (!block) return fb_fail(FB_E_MEMORY, "out of memory");
    block->bytes = bytes;
    if (bytes > vk->most_allocation || vk->fn.CreateBuffer(vk->device, &info, NULL, &block->buffer) != VK_SUCCESS) goto fail;
    vk->fn.GetBufferMemoryRequirements(vk->device, block->buffer, &needs);
    int type = choose_type(vk, needs.memoryTypeBits, staging);
    if (type < 0) goto fail;
    VkMemoryAllocateInfo allocate = {.sType = VK_STYPE_ALLOCATE, .allocationSize = needs.size,
                                     .memoryTypeIndex = (uint32_t)type};
    const VkFlags seen = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    const VkFlags flags = vk->memory.memoryTypes[type].propertyFlags;
    const int map = staging || ((flags & seen) == seen && vk->properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU);
    void *mapped = NULL;
    if (vk->fn.AllocateMemory(vk->device, &allocate, NULL, &block->memory) != VK_SUCCESS) goto fail;
    if (vk->fn.BindBufferMemory(vk->device, block->buffer, block->memory, 0) != VK_SUCCESS) goto fail;
    if (map && vk->fn.MapMemory(vk->device, block->memory, 0, ~(uint64_t)0, 0, &mapped) != VK_SUCCESS) goto fail;
    block->mapped = mapped;
    *out = block;
    return FB_OK;
fail:
    block_free(vk, block);
    return no_memory(bytes);
}

/* Puts `slice` into the first gap of the block that is large enough. */
static int fits(vk_block *block, vk_slice *slice) {
    uint64_t at = 0;
    vk_slice **link = &block->slices;
    for (; *link && (*link)->offset - at < slice->bytes; link = &(*link)->next) at = (*link)->offset + (*link)->bytes;
    if (!*link && block->bytes - at < slice->bytes) return 0;
    slice->block = block;
    slice->offset = at;
    slice->next = *link;
    *link = slice;
    return 1;
}

static int slice_new(vulkan *vk, uint64_t bytes, fb_mem *mem) {
    if (bytes > UINT64_MAX / 2) return no_memory(bytes);
    vk_slice *slice = calloc(1, sizeof *slice);
    if (!slice) return fb_fail(FB_E_MEMORY, "out of memory");
    slice->bytes = up(bytes ? bytes : 1, SLICE_ALIGN);
    vk_block *block = vk->blocks;
    while (block && (block->imported || !fits(block, slice))) block = block->next;
    if (!block) {
        uint64_t shared = BLOCK < vk->most_allocation ? BLOCK : vk->most_allocation;
        uint64_t size = slice->bytes > shared / 4 ? slice->bytes : shared;
        int code = block_new(vk, size, 0, &block);
        if (code) {
            free(slice);
            return code;
        }
        block->next = vk->blocks;
        vk->blocks = block;
        fits(block, slice);
    }
    *mem = (fb_mem){.handle = slice, .bytes = bytes};
    return FB_OK;
}

void vk_free(void *self, fb_mem *mem) {
    vulkan *vk = self;
    vk_slice *slice = mem->handle;
    *mem = (fb_mem){0};
    if (!slice) return;
    vk_wait(vk); /* nothing that runs may still use it; a failure has been told where it happened */
    vk_block *block = slice->block;
    vk_slice **link = &block->slices;
    while (*link != slice) link = &(*link)->next;
    *link = slice->next;
    free(slice);
    if (block->slices) return;
    vk_block **home = &vk->blocks;
    while (*home != block) home = &(*home)->next;
    *home = block->next;
    block_free(vk, block);
}

int vk_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    vulkan *vk = self;
    VkCommandBuffer commands;
    int code = slice_new(vk, bytes, mem);
    if (code) return code;
    const vk_slice *slice = mem->handle;
    if (slice->block->mapped) {
        memset(slice->block->mapped + slice->offset, 0, (size_t)slice->bytes);
        return FB_OK;
    }
    code = vk_begin(vk, &commands);
    if (code == FB_OK) {
        vk->fn.CmdFillBuffer(commands, slice->block->buffer, slice->offset, slice->bytes, 0);
        code = vk_flush(vk);
    }
    if (code) vk_free(vk, mem);
    return code;
}

/* ---- copies; they wait for what runs, but for a write of few bytes, which goes with the commands ---- */

static int staged(vulkan *vk, vk_slice *slice, uint64_t offset, const char *src, char *dst, uint64_t bytes) {
    VkCommandBuffer commands;
    const uint64_t room = STAGING < vk->most_allocation ? STAGING : vk->most_allocation;
    int code = vk->staging ? FB_OK : block_new(vk, room, 1, &vk->staging);
    for (uint64_t at = 0; at < bytes && code == FB_OK; at += room) {
        uint64_t n = bytes - at < room ? bytes - at : room;
        VkBufferCopy copy = {.srcOffset = src ? 0 : slice->offset + offset + at,
                             .dstOffset = src ? slice->offset + offset + at : 0, .size = n};
        if (src) memcpy(vk->staging->mapped, src + at, (size_t)n);
        code = vk_begin(vk, &commands);
        if (code) break;
        vk->fn.CmdCopyBuffer(commands, src ? vk->staging->buffer : slice->block->buffer,
                             src ? slice->block->buffer : vk->staging->buffer, 1, &copy);
        code = vk_wait(vk);
        if (dst && code == FB_OK) memcpy(dst + at, vk->staging->mapped, (size_t)n);
    }
    return code;
}

int vk_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    vulkan *vk = self;
    vk_slice *slice = mem->handle;
    VkCommandBuffer commands;
    int code = fb_inside(mem, offset, bytes);
    if (code || !bytes) return code;
    if (!slice->block->mapped && bytes <= FEW_BYTES && bytes % 4 == 0 && offset % 4 == 0) {
        code = vk_begin(vk, &commands);
        if (code == FB_OK) vk->fn.CmdUpdateBuffer(commands, slice->block->buffer, slice->offset + offset, bytes, src);
        return code;
    }
    code = vk_wait(vk);
    if (code) return code;
    if (!slice->block->mapped) return staged(vk, slice, offset, src, NULL, bytes);
    memcpy(slice->block->mapped + slice->offset + offset, src, (size_t)bytes);
    return FB_OK;
}

int vk_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    vulkan *vk = self;
    vk_slice *slice = mem->handle;
    int code = fb_inside(mem, offset, bytes);
    if (code == FB_OK) code = vk_wait(vk);
    if (code || !bytes) return code;
    if (!slice->block->mapped) return staged(vk, slice, offset, NULL, dst, bytes);
    memcpy(dst, slice->block->mapped + slice->offset + offset, (size_t)bytes);
    return FB_OK;
}

/* The pages of the host's memory as a buffer, without a copy; 0 where the driver does not take them. */
static int import(vulkan *vk, const void *host, uint64_t bytes, fb_mem *mem) {
    const uint64_t before = (uintptr_t)host % vk->import_align, size = up(before + bytes, vk->import_align);
    char *page = (char *)(uintptr_t)host - before;
    const int32_t kind = VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT;
    VkExternalMemoryBufferCreateInfo external = {.sType = VK_STYPE_EXTERNAL_BUFFER, .handleTypes = (VkFlags)kind};
    VkBufferCreateInfo info = {.sType = VK_STYPE_BUFFER, .pNext = &external, .size = size,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT};
    VkMemoryHostPointerPropertiesEXT takes = {.sType = VK_STYPE_HOST_POINTER};
    VkImportMemoryHostPointerInfoEXT pages = {.sType = VK_STYPE_IMPORT_HOST, .handleType = kind, .pHostPointer = page};
    VkMemoryRequirements needs;
    if (size > vk->most_allocation || vk->GetMemoryHostPointerProperties(vk->device, kind, page, &takes) != VK_SUCCESS) return 0;
    vk_block *block = calloc(1, sizeof *block);
    vk_slice *slice = calloc(1, sizeof *slice);
    if (!block || !slice || vk->fn.CreateBuffer(vk->device, &info, NULL, &block->buffer) != VK_SUCCESS) goto fail;
    vk->fn.GetBufferMemoryRequirements(vk->device, block->buffer, &needs);
    const int type = memory_type(vk, needs.memoryTypeBits & takes.memoryTypeBits, 0);
    VkMemoryAllocateInfo allocate = {.sType = VK_STYPE_ALLOCATE, .pNext = &pages, .allocationSize = size,
                                     .memoryTypeIndex = (uint32_t)type};
    if (type < 0 || needs.size > size || vk->fn.AllocateMemory(vk->device, &allocate, NULL, &block->memory) != VK_SUCCESS) goto fail;
    if (vk->fn.BindBufferMemory(vk->device, block->buffer, block->memory, 0) != VK_SUCCESS) goto fail;
    *block = (vk_block){block->memory, block->buffer, size, page, 1, slice, vk->blocks};
    *slice = (vk_slice){block, before, bytes, NULL};
    vk->blocks = block;
    *mem = (fb_mem){.host = (char *)(uintptr_t)host, .handle = slice, .bytes = bytes};
    return 1;
fail:
    if (block) block_free(vk, block);
    free(slice);
    return 0;
}

/* Read-only memory of the host: used where it lies, or uploaded at once. What is small shares pages with other things. */
int vk_wrap(void *self, const void *host, uint64_t bytes, fb_mem *mem) {
    vulkan *vk = self;
    if (vk->import_align && bytes >= LEAST_IMPORT && import(vk, host, bytes, mem)) return FB_OK;
    int code = slice_new(self, bytes, mem);
    if (code == FB_OK) code = vk_write(self, mem, 0, host, bytes);
    if (code) vk_free(self, mem);
    return code;
}

void vk_memory_close(vulkan *vk) {
    while (vk->blocks) {
        vk_block *block = vk->blocks;
        vk->blocks = block->next;
        while (block->slices) {
            vk_slice *slice = block->slices;
            block->slices = slice->next;
            free(slice);
        }
        block_free(vk, block);
    }
    if (vk->staging) block_free(vk, vk->staging);
    vk->staging = NULL;
}
