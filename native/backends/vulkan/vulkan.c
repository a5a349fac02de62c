/* vulkan.c - Vulkan as a backend: the driver opened at run time, one compute queue, launches recorded into a ring of command
 * buffers without a wait of the host between them. What runs are the portable kernels of native/kernels. */
#include "vulkan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

enum { SUBMIT_MS = 100 }; /* unless told; drivers kill what runs for seconds */
static const double FIRST_PACE = 1e-9; /* seconds an operation, until a kernel has run: submissions start small */
enum { VERSION_1_1 = 1 << 22 | 1 << 12, VERSION_1_2 = 1 << 22 | 2 << 12, MOST_DEVICES = 16, LEAST_THREADS = 128, LEAST_SHARED = 16 << 10 };

int vk_check(VkResult result, const char *what) {
    switch (result) {
    case VK_SUCCESS: return FB_OK;
    case VK_ERROR_OUT_OF_HOST_MEMORY: case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return fb_fail(FB_E_MEMORY, "The device ran out of memory when told to %s; use a smaller context, batch or model.", what);
    case VK_ERROR_DEVICE_LOST:
        return fb_fail(FB_E_DEVICE, "The device was lost when told to %s; its driver has stopped it.", what);
    default: return fb_fail(FB_E_DEVICE, "The Vulkan driver failed to %s (error %d).", what, (int)result);
    }
}

/* ---- the driver and its devices ---- */

static void driver_close(vk_driver *d) {
    if (d->instance && d->DestroyInstance) d->DestroyInstance(d->instance, NULL);
    if (d->library) fb_os_library_close(d->library);
    memset(d, 0, sizeof *d);
}

#define FROM_INSTANCE(result, name, arguments)                                                        \
    d->name = (result(VKCALL *) arguments)d->GetInstanceProcAddr(d->instance, "vk" #name);             \
    if (!d->name) goto broken;

static int driver_open(vk_driver *d) {
    static const char *const names[] = {"libvulkan.so.1", "libvulkan.so", "vulkan-1.dll", "libvulkan.1.dylib", NULL};
    VkApplicationInfo app = {.sType = VK_STYPE_APPLICATION_INFO, .pApplicationName = "fabric", .apiVersion = VERSION_1_1};
    VkInstanceCreateInfo info = {.sType = VK_STYPE_INSTANCE, .pApplicationInfo = &app};
    memset(d, 0, sizeof *d);
    d->library = fb_os_library(names);
    if (!d->library) return fb_fail(FB_E_DEVICE, "no Vulkan driver: libvulkan is not installed");
    d->GetInstanceProcAddr =
        (void *(VKCALL *)(VkInstance, const char *))fb_os_function(d->library, "vkGetInstanceProcAddr");
    if (!d->GetInstanceProcAddr) goto broken;
    d->CreateInstance = (VkResult(VKCALL *)(const VkInstanceCreateInfo *, const void *, VkInstance *))
                            d->GetInstanceProcAddr(NULL, "vkCreateInstance");
    if (!d->CreateInstance) goto broken;
    VkResult result = d->CreateInstance(&info, NULL, &d->instance);
    if (result != VK_SUCCESS) {
        d->instance = NULL;
        driver_close(d);
        return fb_fail(FB_E_DEVICE, "no Vulkan driver: there is libvulkan, but no working driver behind it (error %d)",
                       (int)result);
    }
    VK_INSTANCE_FUNCTIONS(FROM_INSTANCE)
    return FB_OK;
broken:
    driver_close(d);
    return fb_fail(FB_E_DEVICE, "libvulkan is too old or broken: a function of Vulkan 1.1 is missing");
}

/* A device's rank in our numbering: dedicated cards first, processors last. */
static int rank_of(int32_t type) {
    return type == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU     ? 0
           : type == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU ? 1
           : type == VK_PHYSICAL_DEVICE_TYPE_CPU            ? 3
                                                            : 2;
}

static int compute_family(const vk_driver *d, VkPhysicalDevice device) {
    VkQueueFamilyProperties families[16];
    uint32_t n = 16;
    d->GetPhysicalDeviceQueueFamilyProperties(device, &n, families);
    for (uint32_t i = 0; i < n; i++)
        if (families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) return (int)i;
    return -1;
}

/* Whether a device has what the kernels need; else fb_error says what it lacks. */
static int suits(const vk_driver *d, VkPhysicalDevice device, const VkPhysicalDeviceProperties *p) {
    const VkPhysicalDeviceLimits *has = &p->limits;
    const uint32_t needs[][2] = {{has->maxPerStageDescriptorStorageBuffers, FB_BINDINGS},
                                 {has->maxComputeWorkGroupInvocations, LEAST_THREADS},
                                 {has->maxComputeWorkGroupSize[0], LEAST_THREADS},
                                 {has->maxComputeSharedMemorySize, LEAST_SHARED}};
    static const char *const names[] = {"storage buffers a kernel", "threads a workgroup", "threads a workgroup",
                                        "bytes of workgroup memory"};
    if (p->apiVersion < VERSION_1_1 || compute_family(d, device) < 0)
        return fb_fail(FB_E_DEVICE, "%s has no Vulkan 1.1 or cannot compute", p->deviceName), 0;
    for (int i = 0; i < 4; i++)
        if (needs[i][0] < needs[i][1])
            return fb_fail(FB_E_DEVICE, "%s has %u %s, and Vulkan kernels need %u", p->deviceName, needs[i][0], names[i],
                           needs[i][1]), 0;
    return 1;
}

/* Devices that can run the kernels, in our numbering. */
static int usable(const vk_driver *d, VkPhysicalDevice found[MOST_DEVICES]) {
    VkPhysicalDevice all[MOST_DEVICES];
    uint32_t n = MOST_DEVICES;
    int count = 0;
    VkResult result = d->EnumeratePhysicalDevices(d->instance, &n, all);
    fb_fail(FB_E_DEVICE, "the Vulkan driver has no device");
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) return 0;
    for (int rank = 0; rank < 4; rank++)
        for (uint32_t i = 0; i < n; i++) {
            VkPhysicalDeviceProperties p;
            d->GetPhysicalDeviceProperties(all[i], &p);
            if (rank_of(p.deviceType) == rank && suits(d, all[i], &p)) found[count++] = all[i];
        }
    return count;
}

static int vk_count(void) {
    vk_driver driver;
    VkPhysicalDevice found[MOST_DEVICES];
    if (!fb_spirv_kernels[0].count)
        return fb_fail(FB_E_DEVICE, "no Vulkan kernels: fabric was built without a shader compiler (glslang) to compile them"), 0;
    if (driver_open(&driver)) return 0;
    int n = usable(&driver, found);
    driver_close(&driver);
    return n;
}

static void tell_limits(const vulkan *vk, fb_device_info *info) {
    info->max_binding_bytes = vk->max_binding_bytes;
    info->max_allocation_bytes = vk->most_allocation;
    info->workgroup_bytes = vk->limits.shared_bytes;
    info->workgroup_threads = vk->limits.threads;
    info->workgroups = vk->most_groups;
    if (vk->limits.rounds) info->max_reduction = vk->limits.rounds / 2; /* a product has some 40 of them for 32 summands */
}

static void lower(uint32_t *limit, uint32_t to) {
    if (to && to < *limit) *limit = to;
}

/* What the caller wants lower than the driver has it. */
static void restrict_to(vulkan *vk, const fb_device_options *options) {
    if (options->max_binding_bytes && options->max_binding_bytes < vk->max_binding_bytes)
        vk->max_binding_bytes = options->max_binding_bytes;
    if (options->max_allocation_bytes && options->max_allocation_bytes < vk->most_allocation)
        vk->most_allocation = options->max_allocation_bytes;
    vk->limits.binding_bytes = vk->max_binding_bytes;
    lower(&vk->limits.shared_bytes, options->workgroup_bytes);
    lower(&vk->limits.threads, options->workgroup_threads);
    lower(&vk->most_groups, options->workgroups);
    vk->limits.tile_rows = options->tile_rows;
    vk->limits.tile_cols = options->tile_cols;
    vk->submit_s = (options->submit_ms ? options->submit_ms : SUBMIT_MS) / 1000.0;
    for (int i = 0; i < FB_KERNEL_COUNT; i++) vk->pace[i] = FIRST_PACE;
}

static const char *const IMPORTS = "VK_EXT_external_memory_host";
enum { PAGE = 4096 }; /* no system that we know of has smaller ones */

/* The device's facts, in its own structures and in ours. */
static void look(const vk_driver *d, VkPhysicalDevice device, vulkan *vk, fb_device_info *info) {
    VkPhysicalDeviceDriverProperties driver = {.sType = VK_STYPE_DRIVER};
    VkPhysicalDeviceMaintenance3Properties sizes = {.sType = VK_STYPE_MAINTENANCE_3};
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {.sType = VK_STYPE_HOST_MEMORY, .pNext = &driver};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STYPE_PROPERTIES_2, .pNext = &sizes};
    const int imports = vk_has_extensions(d, device, &IMPORTS, 1);
    d->GetPhysicalDeviceProperties(device, &properties.properties);
    if (properties.properties.apiVersion < VERSION_1_2) host.pNext = NULL;
    sizes.pNext = imports ? &host : host.pNext;
    d->GetPhysicalDeviceProperties2(device, &properties);
    d->GetPhysicalDeviceMemoryProperties(device, &vk->memory);
    const VkPhysicalDeviceLimits *limits = &properties.properties.limits;
    vk->physical = device;
    vk->properties = properties.properties;
    vk->family = (uint32_t)compute_family(d, device);
    vk->most_allocation = sizes.maxMemoryAllocationSize;
    /* Whole pages of the host: what lies beside an operand in its first and last one is never read. */
    if (imports && properties.properties.deviceType != VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU &&
        host.minImportedHostPointerAlignment <= PAGE)
        vk->import_align = PAGE;
    vk->align = limits->minStorageBufferOffsetAlignment < 4 ? 4 : limits->minStorageBufferOffsetAlignment;
    /* A binding starts at an aligned offset before its view and ends at a whole word. */
    uint64_t range = limits->maxStorageBufferRange;
    vk->max_binding_bytes = (range - vk->align - 4) / vk->align * vk->align;
    vk->limits.threads = limits->maxComputeWorkGroupInvocations;
    if (limits->maxComputeWorkGroupSize[0] < vk->limits.threads) vk->limits.threads = limits->maxComputeWorkGroupSize[0];
    vk->limits.shared_bytes = limits->maxComputeSharedMemorySize;
    vk->most_groups = limits->maxComputeWorkGroupCount[0];
    if (limits->maxComputeWorkGroupCount[1] < vk->most_groups) vk->most_groups = limits->maxComputeWorkGroupCount[1];
    vk->limits.subgroup = vk_matrix_subgroup(d, device, &vk->limits.f16);
    /* Mesa's llvmpipe ends the loops of a thread after so many rounds in all, without a word. */
    if (strncmp(vk->properties.deviceName, "llvmpipe", 8) == 0) vk->limits.rounds = 65535;
    memset(info, 0, sizeof *info);
    snprintf(info->backend, sizeof info->backend, "vulkan");
    snprintf(info->name, sizeof info->name, "%.95s", vk->properties.deviceName);
    snprintf(info->driver, sizeof info->driver, "%.95s", driver.driverName);
    const char *units = vk->limits.f16 ? "spirv, f16 matrix units" : "spirv, bf16 matrix units";
    const char *none = fb_spirv_kernels[FB_FIRST_MATRIX_KERNEL].count ? "spirv" : "spirv, matrix units not built";
    snprintf(info->isa, sizeof info->isa, "%s", vk->limits.subgroup ? units : none);
    info->software = vk->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    info->bf16 = !info->software;
    info->in_place = vk->import_align > 0;
    info->own_memory = vk->properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
    for (uint32_t i = 0; i < vk->memory.memoryTypeCount; i++) {
        uint64_t heap = vk->memory.memoryHeaps[vk->memory.memoryTypes[i].heapIndex].size;
        if (!(vk->memory.memoryTypes[i].propertyFlags & VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT)) continue;
        if (heap > info->memory_bytes) info->memory_bytes = heap;
    }
    tell_limits(vk, info);
}

static int vk_describe(int index, fb_device_info *info) {
    vulkan *vk = calloc(1, sizeof *vk);
    VkPhysicalDevice found[MOST_DEVICES];
    if (!vk) return fb_fail(FB_E_MEMORY, "out of memory");
    int code = driver_open(&vk->driver);
    if (code == FB_OK && index >= usable(&vk->driver, found)) code = fb_fail(FB_E_DEVICE, "there is no Vulkan device %d", index);
    if (code == FB_OK) look(&vk->driver, found[index], vk, info);
    driver_close(&vk->driver);
    free(vk);
    return code;
}

/* ---- opening ---- */

#define FROM_DEVICE(result, name, arguments)                                                                \
    vk->fn.name = (result(VKCALL *) arguments)vk->driver.GetDeviceProcAddr(vk->device, "vk" #name);          \
    if (!vk->fn.name) return fb_fail(FB_E_DEVICE, "the Vulkan driver has no function vk" #name);

static int open_device(vulkan *vk) {
    const float priority = 1;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STYPE_QUEUE, .queueFamilyIndex = vk->family, .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkDeviceCreateInfo info = {.sType = VK_STYPE_DEVICE, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
    vk_matrix_features features;
    const char *names[1 + VK_MATRIX_EXTENSIONS] = {IMPORTS};
    info.ppEnabledExtensionNames = names;
    info.enabledExtensionCount = vk->import_align > 0;
    if (vk->limits.subgroup) vk_matrix_ask(&features, &info, names, vk->limits.f16);
    int code = vk_check(vk->driver.CreateDevice(vk->physical, &info, NULL, &vk->device), "open a device");
    if (code) {
        vk->device = NULL;
        return code;
    }
    VK_DEVICE_FUNCTIONS(FROM_DEVICE)
    if (vk->import_align)
        vk->GetMemoryHostPointerProperties =
            (VkResult(VKCALL *)(VkDevice, int32_t, const void *, VkMemoryHostPointerPropertiesEXT *))
                vk->driver.GetDeviceProcAddr(vk->device, "vkGetMemoryHostPointerPropertiesEXT");
    if (!vk->GetMemoryHostPointerProperties) vk->import_align = 0;
    vk->fn.GetDeviceQueue(vk->device, vk->family, 0, &vk->queue);
    return FB_OK;
}

/* A clock is no need: without one the host's is read. */
static void open_stamps(vulkan *vk) {
    VkQueueFamilyProperties families[16];
    uint32_t n = 16;
    VkQueryPoolCreateInfo info = {.sType = VK_STYPE_QUERY_POOL, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = STAMPS};
    vk->driver.GetPhysicalDeviceQueueFamilyProperties(vk->physical, &n, families);
    if (!families[vk->family].timestampValidBits || vk->properties.limits.timestampPeriod <= 0) return;
    if (vk->fn.CreateQueryPool(vk->device, &info, NULL, &vk->stamps) != VK_SUCCESS) vk->stamps = 0;
}

static int open_slots(vulkan *vk) {
    VkCommandPoolCreateInfo pool = {.sType = VK_STYPE_COMMAND_POOL, .queueFamilyIndex = vk->family,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT};
    int code = vk_check(vk->fn.CreateCommandPool(vk->device, &pool, NULL, &vk->pool), "make a command pool");
    for (int i = 0; i < SLOTS && code == FB_OK; i++) {
        VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, SETS * FB_BINDINGS};
        VkDescriptorPoolCreateInfo sets = {.sType = VK_STYPE_DESCRIPTOR_POOL, .maxSets = SETS, .poolSizeCount = 1,
                                           .pPoolSizes = &size};
        VkCommandBufferAllocateInfo commands = {.sType = VK_STYPE_COMMAND_ALLOCATE, .commandPool = vk->pool,
                                                .commandBufferCount = 1};
        VkFenceCreateInfo fence = {.sType = VK_STYPE_FENCE};
        vk_slot *slot = &vk->slots[i];
        code = vk_check(vk->fn.AllocateCommandBuffers(vk->device, &commands, &slot->commands), "make a command buffer");
        if (code == FB_OK)
            code = vk_check(vk->fn.CreateDescriptorPool(vk->device, &sets, NULL, &slot->sets), "make a descriptor pool");
        if (code == FB_OK) code = vk_check(vk->fn.CreateFence(vk->device, &fence, NULL, &slot->fence), "make a fence");
    }
    return code;
}

static void vk_close(void *self) {
    vulkan *vk = self;
    if (!vk) return;
    if (vk->device && vk->fn.DeviceWaitIdle) {
        vk->fn.DeviceWaitIdle(vk->device);
        vk_pipelines_close(vk);
        vk_memory_close(vk);
        for (int i = 0; i < SLOTS; i++) {
            if (vk->slots[i].sets) vk->fn.DestroyDescriptorPool(vk->device, vk->slots[i].sets, NULL);
            if (vk->slots[i].fence) vk->fn.DestroyFence(vk->device, vk->slots[i].fence, NULL);
        }
        if (vk->stamps) vk->fn.DestroyQueryPool(vk->device, vk->stamps, NULL);
        if (vk->pool) vk->fn.DestroyCommandPool(vk->device, vk->pool, NULL);
        vk->fn.DestroyDevice(vk->device, NULL);
    }
    driver_close(&vk->driver);
    free(vk);
}

static int vk_open(int index, const fb_device_options *options, void **self, fb_device_info *info) {
    VkPhysicalDevice found[MOST_DEVICES];
    vulkan *vk = calloc(1, sizeof *vk);
    if (!vk) return fb_fail(FB_E_MEMORY, "out of memory");
    int code = driver_open(&vk->driver);
    if (code == FB_OK && index >= usable(&vk->driver, found)) code = fb_fail(FB_E_DEVICE, "there is no Vulkan device %d", index);
    if (code == FB_OK) {
        look(&vk->driver, found[index], vk, info);
        restrict_to(vk, options);
        tell_limits(vk, info);
        code = open_device(vk);
    }
    if (code == FB_OK) code = open_slots(vk);
    if (code == FB_OK) open_stamps(vk);
    if (code == FB_OK) code = vk_pipelines_open(vk, options->cache_path);
    if (code) vk_close(vk);
    else *self = vk;
    return code;
}

/* ---- recording and running ---- */

/* Makes everything before visible to everything after. */
static void barrier(vulkan *vk, VkCommandBuffer commands) {
    vk->n_uses = 0;
    const VkFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkFlags reads = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;
    const VkFlags writes = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    VkMemoryBarrier all = {.sType = VK_STYPE_MEMORY_BARRIER, .srcAccessMask = writes, .dstAccessMask = reads | writes};
    vk->fn.CmdPipelineBarrier(commands, stages, stages, 0, 1, &all, 0, NULL, 0, NULL);
}

/* Moves the pace of each kernel of a submission towards what it took, by its share. `seen`: the host saw it end; where it
 * only knows that it has ended, it may have been quicker but not slower. What short ones take is not operations. */
static void learn(vulkan *vk, const vk_slot *slot, double took, int seen) {
    double ratio = slot->expected > 0 ? took / slot->expected : 1;
    if (ratio > 1 && (!seen || took < vk->submit_s / 2)) return;
    ratio = ratio < 0.25 ? 0.25 : ratio > 8 ? 8 : ratio;
    for (int i = 0; i < FB_KERNEL_COUNT; i++) {
        if (slot->work[i] <= 0) continue;
        double told = slot->seconds[i] / slot->work[i] * ratio, share = slot->seconds[i] / slot->expected;
        vk->pace[i] += share * (told - vk->pace[i]);
    }
}

static int retire(vulkan *vk, vk_slot *slot) {
    if (!slot->running) return FB_OK;
    double asked = fb_os_seconds();
    int code = vk_check(vk->fn.WaitForFences(vk->device, 1, &slot->fence, 1, ~(uint64_t)0), "finish its work");
    double now = fb_os_seconds();
    int seen = now - asked > 5e-5;
    slot->running = 0;
    if (code == FB_OK) learn(vk, slot, now - (slot->began > vk->ended ? slot->began : vk->ended), seen);
    vk->ended = seen ? now : 0;
    if (code == FB_OK) code = vk_check(vk->fn.ResetFences(vk->device, 1, &slot->fence), "reset a fence");
    return code;
}

/* Begins a command buffer where none is being recorded. */
static int start(vulkan *vk) {
    vk_slot *slot = &vk->slots[vk->slot];
    VkCommandBufferBeginInfo begin = {.sType = VK_STYPE_COMMAND_BEGIN, .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    if (vk->recording) return FB_OK;
    int code = retire(vk, slot);
    if (code == FB_OK) code = vk_check(vk->fn.ResetDescriptorPool(vk->device, slot->sets, 0), "reset descriptors");
    if (code == FB_OK) code = vk_check(vk->fn.BeginCommandBuffer(slot->commands, &begin), "record commands");
    if (code) return code;
    slot->used = 0;
    slot->expected = 0;
    memset(slot->work, 0, sizeof slot->work);
    memset(slot->seconds, 0, sizeof slot->seconds);
    vk->recording = 1;
    barrier(vk, slot->commands);
    return FB_OK;
}

int vk_begin(vulkan *vk, VkCommandBuffer *commands) {
    int code = start(vk);
    *commands = vk->slots[vk->slot].commands;
    if (code == FB_OK) barrier(vk, *commands);
    vk->n_uses = USES; /* and a barrier must follow */
    return code;
}

int vk_flush(vulkan *vk) {
    if (!vk->recording) return FB_OK;
    vk_slot *slot = &vk->slots[vk->slot];
    VkMemoryBarrier host = {.sType = VK_STYPE_MEMORY_BARRIER,
                            .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                            .dstAccessMask = VK_ACCESS_HOST_READ_BIT | VK_ACCESS_HOST_WRITE_BIT};
    vk->fn.CmdPipelineBarrier(slot->commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                              VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &host, 0, NULL, 0, NULL);
    VkSubmitInfo submit = {.sType = VK_STYPE_SUBMIT, .commandBufferCount = 1, .pCommandBuffers = &slot->commands};
    vk->recording = 0;
    int code = vk_check(vk->fn.EndCommandBuffer(slot->commands), "end a command buffer");
    if (code == FB_OK) code = vk_check(vk->fn.QueueSubmit(vk->queue, 1, &submit, slot->fence), "run commands");
    if (code) return code;
    slot->running = 1;
    slot->began = fb_os_seconds();
    vk->slot = (vk->slot + 1) % SLOTS;
    return FB_OK;
}

int vk_wait(void *self) {
    vulkan *vk = self;
    int code = vk_flush(vk);
    for (int i = 0; i < SLOTS; i++) {
        int failed = retire(vk, &vk->slots[(vk->slot + i) % SLOTS]);
        if (code == FB_OK) code = failed;
    }
    return code;
}

/* Bytes from the first element of a view to its last. */
static uint64_t span(const fb_view *v) {
    return fb_type_bytes(v->type, (int64_t)(v->rows - 1) * v->ld) + fb_type_bytes(v->type, v->cols);
}

/* Where a view's binding starts and ends, and what the kernel must add to get to its first element. */
static int bind(const vulkan *vk, const fb_dispatch *d, int k, VkDescriptorBufferInfo *info, uint32_t words[FB_PUSH_WORDS]) {
    const fb_view *v = &d->operand.at[k];
    const vk_slice *slice = v->mem->handle;
    const uint64_t bytes = span(v), start = slice->offset + v->offset, aligned = start / vk->align * vk->align;
    if (v->offset > v->mem->bytes || bytes > v->mem->bytes - v->offset)
        return fb_fail(FB_E_INTERNAL, "operand %d of a launch reaches beyond its buffer", k);
    if (bytes > vk->max_binding_bytes)
        return fb_fail(FB_E_LIMIT, "operand %d of a launch spans %llu bytes, and this device binds %llu", k,
                       (unsigned long long)bytes, (unsigned long long)vk->max_binding_bytes);
    fb_place(d, k, start - aligned, words);
    *info = (VkDescriptorBufferInfo){slice->block->buffer, aligned, (start - aligned + bytes + 3) / 4 * 4};
    return FB_OK;
}

static int make_set(vulkan *vk, vk_slot *slot, const fb_dispatch *d, uint32_t words[FB_PUSH_WORDS],
                    VkDescriptorBufferInfo *infos, VkDescriptorSet *set) {
    VkWriteDescriptorSet writes[FB_BINDINGS];
    VkDescriptorSetAllocateInfo allocate = {.sType = VK_STYPE_SET_ALLOCATE, .descriptorPool = slot->sets,
                                            .descriptorSetCount = 1, .pSetLayouts = &vk->set_layout};
    int code = vk_check(vk->fn.AllocateDescriptorSets(vk->device, &allocate, set), "make a descriptor set");
    for (int k = 0; k < FB_BINDINGS && code == FB_OK; k++) {
        if (d->operand.at[k].mem) code = bind(vk, d, k, &infos[k], words);
        else infos[k] = infos[0]; /* never read, but something must be there */
        writes[k] = (VkWriteDescriptorSet){.sType = VK_STYPE_WRITE_SET, .dstSet = *set, .dstBinding = (uint32_t)k,
                                           .descriptorCount = 1, .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .pBufferInfo = &infos[k]};
    }
    if (code == FB_OK) vk->fn.UpdateDescriptorSets(vk->device, FB_BINDINGS, writes, 0, NULL);
    return code;
}

/* A barrier, unless a dispatch neither reads nor writes what one since the last barrier wrote, nor writes what one read. */
static void order(vulkan *vk, VkCommandBuffer commands, const fb_dispatch *d, const VkDescriptorBufferInfo *infos) {
    const uint32_t written = fb_kernels[d->kernel].written;
    int apart = vk->n_uses + FB_BINDINGS > USES;
    for (int k = 0; k < FB_BINDINGS && !apart; k++)
        for (int i = 0; d->operand.at[k].mem && i < vk->n_uses && !apart; i++) {
            const vk_use *u = &vk->uses[i];
            apart = u->buffer == infos[k].buffer && u->from < infos[k].offset + infos[k].range && infos[k].offset < u->to &&
                    (u->written || (written >> k & 1u));
        }
    if (apart) barrier(vk, commands);
    for (int k = 0; k < FB_BINDINGS; k++)
        if (d->operand.at[k].mem)
            vk->uses[vk->n_uses++] = (vk_use){infos[k].buffer, infos[k].offset, infos[k].offset + infos[k].range,
                                              (int)(written >> k & 1u)};
}

/* Workgroups first .. first + n of a dispatch, in a grid that the device takes; its rest does nothing. */
static int record(vulkan *vk, const fb_dispatch *d, uint32_t first, uint32_t n, double work) {
    VkDescriptorBufferInfo infos[FB_BINDINGS];
    VkPipeline pipeline;
    VkDescriptorSet set;
    uint32_t words[FB_PUSH_WORDS] = {0};
    int code = vk_pipeline_get(vk, d, &pipeline);
    if (code == FB_OK) code = start(vk);
    vk_slot *slot = &vk->slots[vk->slot];
    VkCommandBuffer commands = slot->commands;
    if (code == FB_OK) code = make_set(vk, slot, d, words, infos, &set);
    if (code) return code;
    order(vk, commands, d, infos);
    slot->used++;
    slot->work[d->kernel] += work;
    slot->seconds[d->kernel] += work * vk->pace[d->kernel];
    slot->expected += work * vk->pace[d->kernel];
    const uint32_t size = 4 * fb_arguments(d, first, words);
    const uint32_t widest = vk->most_groups, wide = n < widest ? n : widest;
    vk->fn.CmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    vk->fn.CmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, vk->layout, 0, 1, &set, 0, NULL);
    vk->fn.CmdPushConstants(commands, vk->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, size, words);
    vk->fn.CmdDispatch(commands, wide, (n + wide - 1) / wide, 1);
    return FB_OK;
}

/* A dispatch in parts that should take submit_s at most (but for a single workgroup), each in a submission that is not yet
 * full. */
static int run(vulkan *vk, const fb_dispatch *d) {
    const uint64_t widest = vk->most_groups, most = widest * (widest < 32768 ? widest : 32768);
    const double each = d->work / d->groups, pace = vk->pace[d->kernel], whole = d->work * pace;
    double groups = whole > vk->submit_s ? d->groups * (vk->submit_s / whole) : d->groups;
    uint32_t part = groups < 1 ? 1 : groups > (double)most ? (uint32_t)most : (uint32_t)groups;
    int code = FB_OK;
    for (uint64_t at = 0; at < d->groups && code == FB_OK; at += part) {
        uint32_t n = d->groups - at < part ? (uint32_t)(d->groups - at) : part;
        const vk_slot *slot = &vk->slots[vk->slot];
        if (vk->recording && (slot->used == SETS || slot->expected + each * n * pace > vk->submit_s)) code = vk_flush(vk);
        if (code == FB_OK && !vk->recording && vk->cancel && *vk->cancel) code = fb_fail(FB_E_CANCELLED, "cancelled");
        if (code == FB_OK) code = record(vk, d, (uint32_t)at, n, each * n);
    }
    return code;
}

static int run_launch(vulkan *vk, const fb_launch *launch, const fb_mem *scratch) {
    fb_dispatch parts[FB_MOST_DISPATCHES];
    int count = fb_lower(launch, scratch, &vk->limits, parts), code = count ? FB_OK : FB_E_DEVICE;
    for (int k = 0; k < count && code == FB_OK; k++) code = run(vk, &parts[k]);
    return code;
}

/* Has the device note the time when all before is done. */
static int stamp(vulkan *vk, int i) {
    VkCommandBuffer commands;
    int code = vk_begin(vk, &commands);
    if (code) return code;
    if (i == 0) vk->fn.CmdResetQueryPool(commands, vk->stamps, 0, STAMPS);
    vk->fn.CmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, vk->stamps, (uint32_t)i);
    return FB_OK;
}

/* At most STAMPS - 1 launches, with the time of each by the device's clock, or by the host's where that is missing. */
static int run_timed(vulkan *vk, const fb_launch *launches, int n, const fb_mem *scratch, double *seconds) {
    uint64_t at[STAMPS];
    int code = vk_wait(vk);
    if (code == FB_OK && vk->stamps) code = stamp(vk, 0);
    for (int i = 0; i < n && code == FB_OK; i++) {
        double before = fb_os_seconds();
        code = run_launch(vk, &launches[i], scratch);
        if (code == FB_OK) code = vk->stamps ? stamp(vk, i + 1) : vk_wait(vk);
        seconds[i] = fb_os_seconds() - before;
    }
    if (code == FB_OK) code = vk_wait(vk);
    if (code || !vk->stamps) return code;
    code = vk_check(vk->fn.GetQueryPoolResults(vk->device, vk->stamps, 0, (uint32_t)n + 1, sizeof at, at, 8,
                                               VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT), "tell the time");
    for (int i = 0; i < n; i++) seconds[i] = (double)(at[i + 1] - at[i]) * vk->properties.limits.timestampPeriod * 1e-9;
    return code;
}

/* Launches as they were given: each replay records them anew, with the rows in use. */
typedef struct vk_program {
    const fb_mem *scratch;
    int n;
    fb_launch launches[];
} vk_program;

static int vk_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **out) {
    (void)self;
    vk_program *p = malloc(sizeof *p + (size_t)n * sizeof *launches);
    if (!p) return fb_fail(FB_E_MEMORY, "out of memory");
    p->scratch = workspace;
    p->n = n;
    memcpy(p->launches, launches, (size_t)n * sizeof *launches);
    *out = p;
    return FB_OK;
}

static void vk_release(void *self, void *program) {
    vk_wait(self);
    free(program);
}

/* A command buffer is submitted when it is full; a wait submits the last. */
static int vk_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run) {
    enum { GROUP = STAMPS - 1, RESTED = 8 }; /* launches that are timed at once, or between two rests */
    vulkan *vk = self;
    const vk_program *p = program;
    fb_launch group[GROUP];
    double seconds[GROUP];
    int at[GROUP], code = FB_OK;
    vk->cancel = run->cancel;
    for (int i = 0, n; i < p->n && code == FB_OK;) {
        const double before = fb_os_seconds();
        for (n = 0; n < (run->duty < 1 ? RESTED : GROUP) && i < p->n; i++) {
            if (run->seconds) run->seconds[i] = 0;
            if (run->done) ++*run->done;
            at[n] = i;
            n += fb_launch_in_use(&p->launches[i], counts, &group[n]);
        }
        if (run->cancel && *run->cancel) code = fb_fail(FB_E_CANCELLED, "cancelled");
        else if (run->seconds) code = run_timed(vk, group, n, p->scratch, seconds);
        for (int k = 0; k < n && code == FB_OK; k++)
            if (run->seconds) run->seconds[at[k]] = seconds[k];
            else code = run_launch(vk, &group[k], p->scratch);
        if (run->duty == 1 || code) continue;
        code = vk_wait(vk);
        fb_os_rest((fb_os_seconds() - before) * (1 / run->duty - 1), run->cancel);
    }
    vk->cancel = NULL;
    return code;
}

static uint64_t vk_scratch(void *self, const fb_launch *launch) {
    const vulkan *vk = self;
    return fb_lower_scratch(launch, &vk->limits);
}

/* ---- peaks ---- */

static int timed(vulkan *vk, const fb_dispatch *d, uint32_t times, double *seconds) {
    int code = vk_wait(vk);
    double before = fb_os_seconds();
    for (uint32_t i = 0; i < times && code == FB_OK; i++) code = run(vk, d);
    if (code == FB_OK) code = vk_wait(vk);
    *seconds = fb_os_seconds() - before;
    return code;
}

/* Multiply-adds in registers, by the matrix units where products run on those, or sums over memory, in growing portions
 * until one takes long enough to be measured. */
static int vk_peak(void *self, int kind, double seconds, double *per_second) {
    vulkan *vk = self;
    const int read = kind == FB_PEAK_READ;
    const uint64_t bytes = read ? vk->max_binding_bytes < (uint64_t)256 << 20 ? vk->max_binding_bytes : (uint64_t)256 << 20 : 4096;
    fb_mem memory = {0}, partial = {0};
    int code = kind < FB_PEAK_F32 || kind > FB_PEAK_READ ? fb_fail(FB_E_ARGUMENT, "There is no peak number %d.", kind) : FB_OK;
    if (code == FB_OK) code = vk_alloc(vk, bytes, &memory);
    if (code == FB_OK) code = vk_alloc(vk, 4096 * 4, &partial);
    const int32_t n = (int32_t)(bytes / 4);
    fb_launch sum = {.op = FB_OP_SUMSQ,
                     .v = {{.mem = &partial, .type = FB_F32, .rows = 1, .cols = 4096, .ld = 4096},
                           {.mem = &memory, .type = FB_F32, .rows = 1, .cols = n, .ld = n}}};
    fb_dispatch d[FB_MOST_DISPATCHES] = {{.kernel = FB_KERNEL_peak, .groups = 64}};
    d->constant.peak.THREADS = 128;
    d->argument.peak.ROUNDS = 1000;
    double each = 2.0 * 16 * 128 * d->argument.peak.ROUNDS, best = 0, took = 0, spent = 0; /* each: of a workgroup */
    const double matrix = kind == FB_PEAK_BF16 ? fb_matrix_peak(d, &vk->limits) : 0;
    if (matrix > 0) each = matrix;
    d->operand.at[0] = sum.v[0];
    if (code == FB_OK && read && !fb_lower(&sum, NULL, &vk->limits, d)) code = FB_E_INTERNAL;
    uint32_t times = 1;
    while (code == FB_OK && (spent < seconds || best == 0)) {
        code = timed(vk, d, times, &took);
        spent += took;
        double done = times * (read ? (double)bytes : each * d->groups);
        if (took > 0 && done / took > best) best = done / took;
        if (took > seconds / 8) continue;
        if (!read && d->groups < 1u << 12) d->groups *= 2;
        else times *= 2;
    }
    vk_free(vk, &memory);
    vk_free(vk, &partial);
    *per_second = best;
    return code;
}

const fb_backend fb_backend_vulkan = {
    .name = "vulkan",
    .count = vk_count,
    .describe = vk_describe,
    .open = vk_open,
    .close = vk_close,
    .alloc = vk_alloc,
    .wrap = vk_wrap,
    .free = vk_free,
    .write = vk_write,
    .read = vk_read,
    .scratch = vk_scratch,
    .prepare = vk_prepare,
    .replay = vk_replay,
    .release = vk_release,
    .wait = vk_wait,
    .peak = vk_peak,
};
