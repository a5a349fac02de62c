/* vulkan.c - Vulkan as a backend: the driver opened at run time, its devices, and opening one. What runs are the portable kernels
 * of native/kernels. */
#include "vulkan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

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

/* What the caller wants lower than the driver has it. */
static void restrict_to(vulkan *vk, const fb_device_options *options) {
    if (options->max_binding_bytes && options->max_binding_bytes < vk->max_binding_bytes)
        vk->max_binding_bytes = options->max_binding_bytes;
    if (options->max_allocation_bytes && options->max_allocation_bytes < vk->most_allocation)
        vk->most_allocation = options->max_allocation_bytes;
    vk->limits.binding_bytes = vk->max_binding_bytes;
    fb_lower_limit(&vk->limits.shared_bytes, options->workgroup_bytes);
    fb_lower_limit(&vk->limits.threads, options->workgroup_threads);
    fb_lower_limit(&vk->most_groups, options->workgroups);
    vk->limits.tile_rows = options->tile_rows;
    vk->limits.tile_cols = options->tile_cols;
    fb_pace_start(&vk->pace, options->submit_ms, FIRST_PACE);
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

static void vk_close(void *self) {
    vulkan *vk = self;
    if (!vk) return;
    if (vk->device && vk->fn.DeviceWaitIdle) {
        vk->fn.DeviceWaitIdle(vk->device);
        vk_pipelines_close(vk);
        vk_memory_close(vk);
        vk_slots_close(vk);
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
    if (code == FB_OK) code = vk_slots_open(vk);
    if (code == FB_OK) code = vk_pipelines_open(vk, options->cache_path);
    if (code == FB_OK) code = vk_alloc(vk, VK_COUNTS_BYTES, &vk->counts);
    if (code) vk_close(vk);
    else *self = vk;
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
